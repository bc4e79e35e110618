//! Waiting for a state with a deadline, and saying what was there when it did not come.

use anyhow::{Result, anyhow};
use std::fmt::Debug;
use std::future::Future;
use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_millis(100);

/// Asks `look` until it answers `Ok`, for at most `limit`; its last `Err` becomes part of the error.
pub async fn until<T, W, F>(what: &str, limit: Duration, mut look: impl FnMut() -> F) -> Result<T>
where
    W: Debug,
    F: Future<Output = Result<T, W>>,
{
    let start = Instant::now();
    loop {
        match look().await {
            Ok(value) => return Ok(value),
            Err(seen) if start.elapsed() > limit => {
                return Err(anyhow!(
                    "waited {} s in vain for {what}; last seen: {seen:?}",
                    limit.as_secs()
                ));
            }
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// True for the API server's "not found".
pub fn is_gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_not_found())
}
