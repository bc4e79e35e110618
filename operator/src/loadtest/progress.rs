//! Live progress: worker 0 of every running test is asked every two seconds, by the leader.
//!
//! It is advisory. The verdict comes from what workers leave behind; a worker that cannot be reached, behind a network
//! policy say, costs the figures in `status.progress` and nothing else.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flotilla_core::load::wire::Progress;
use flotilla_crds::names;
use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use parking_lot::Mutex;
use tokio::time::MissedTickBehavior;
use tracing::debug;

use crate::runtime::{Key, Trigger};

/// Between two rounds.
const INTERVAL: Duration = Duration::from_secs(2);
/// One answer, from connecting to the last byte.
const TIMEOUT: Duration = Duration::from_millis(1500);
/// Workers asked at once.
const CONCURRENCY: usize = 16;
/// The largest answer that is read; a usual one has some hundred bytes.
const MAX_ANSWER: usize = 64 * 1024;

/// Whom to ask, and what they said. Cheap to clone; every clone shows the same.
#[derive(Clone, Debug, Default)]
pub struct Board(Arc<Mutex<BTreeMap<Key, Entry>>>);

#[derive(Clone, Debug, Default)]
struct Entry {
    address: String,
    newest: Option<Progress>,
}

impl Board {
    /// Asks worker 0 of a test at this address from now on; with `None` nobody.
    pub fn follow(&self, test: &Key, address: Option<&str>) {
        let mut entries = self.0.lock();
        match address {
            None => drop(entries.remove(test)),
            Some(address) if entries.get(test).is_some_and(|entry| entry.address == address) => {}
            Some(address) => {
                entries.insert(
                    test.clone(),
                    Entry {
                        address: address.to_owned(),
                        newest: None,
                    },
                );
            }
        }
    }

    /// The newest answer.
    pub fn newest(&self, test: &Key) -> Option<Progress> {
        self.0.lock().get(test).and_then(|entry| entry.newest.clone())
    }

    fn addresses(&self) -> Vec<(Key, String)> {
        self.0
            .lock()
            .iter()
            .map(|(key, entry)| (key.clone(), entry.address.clone()))
            .collect()
    }

    /// Takes an answer; whether it says anything new.
    fn take(&self, test: &Key, address: &str, progress: Progress) -> bool {
        let mut entries = self.0.lock();
        // The test may have ended, or worker 0 been replaced, while it was asked.
        let Some(entry) = entries.get_mut(test).filter(|entry| entry.address == address) else {
            return false;
        };
        if entry.newest.as_ref() == Some(&progress) {
            return false;
        }
        entry.newest = Some(progress);
        true
    }
}

/// Asks worker 0. Replaced in the simulator.
pub trait Ask: Send + Sync + 'static {
    /// What the worker with this address says, or a sentence why it says nothing.
    fn ask(&self, address: &str) -> BoxFuture<'static, Result<Progress, String>>;
}

/// Asks over HTTP, on the coordinator's port.
pub struct HttpAsk(Client<HttpConnector, Empty<Bytes>>);

impl Default for HttpAsk {
    fn default() -> Self {
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(Duration::from_secs(10))
            .build_http();
        Self(client)
    }
}

impl Ask for HttpAsk {
    fn ask(&self, address: &str) -> BoxFuture<'static, Result<Progress, String>> {
        let (client, uri) = (self.0.clone(), progress_uri(address));
        async move {
            let uri = uri.parse().map_err(|error| format!("{error}"))?;
            let answer = client.get(uri).await.map_err(|error| format!("{error}"))?;
            if !answer.status().is_success() {
                return Err(format!("status {}", answer.status()));
            }
            let body = Limited::new(answer.into_body(), MAX_ANSWER)
                .collect()
                .await
                .map_err(|error| format!("{error}"))?;
            serde_json::from_slice(&body.to_bytes()).map_err(|error| format!("{error}"))
        }
        .boxed()
    }
}

/// Asks for ever; the visits that news lead to are asked for with `trigger`.
pub async fn poll(board: Board, trigger: Trigger, workers: Arc<dyn Ask>) {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        futures::stream::iter(board.addresses())
            .for_each_concurrent(CONCURRENCY, |(test, address)| {
                let (workers, board, trigger) = (&workers, &board, &trigger);
                async move {
                    match tokio::time::timeout(TIMEOUT, workers.ask(&address)).await {
                        Ok(Ok(progress)) => {
                            if board.take(&test, &address, progress) {
                                trigger.now(test);
                            }
                        }
                        Ok(Err(error)) => debug!(%test, address, error, "no progress from worker 0"),
                        Err(_) => debug!(%test, address, "no progress from worker 0 in time"),
                    }
                }
            })
            .await;
    }
}

fn progress_uri(address: &str) -> String {
    let port = names::COORDINATOR_PORT;
    if address.contains(':') {
        format!("http://[{address}]:{port}/progress")
    } else {
        format!("http://{address}:{port}/progress")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_those_who_are_not_asked_any_more_are_dropped() {
        let (board, test) = (Board::default(), Key::new("shop", "steady"));
        let progress = |done| Progress {
            done,
            ..Progress::default()
        };
        assert!(!board.take(&test, "10.0.0.1", progress(1)), "nobody is followed");
        board.follow(&test, Some("10.0.0.1"));
        assert!(board.take(&test, "10.0.0.1", progress(1)));
        assert!(!board.take(&test, "10.0.0.1", progress(1)), "nothing new");
        board.follow(&test, Some("10.0.0.1"));
        assert_eq!(board.newest(&test).unwrap().done, 1);
        board.follow(&test, Some("10.0.0.2"));
        assert_eq!(board.newest(&test), None, "a replaced worker 0 starts anew");
        assert!(!board.take(&test, "10.0.0.1", progress(9)));
        board.follow(&test, None);
        assert!(board.addresses().is_empty());
    }

    #[test]
    fn addresses() {
        assert_eq!(progress_uri("10.0.0.1"), "http://10.0.0.1:9091/progress");
        assert_eq!(progress_uri("fd00::1"), "http://[fd00::1]:9091/progress");
    }
}
