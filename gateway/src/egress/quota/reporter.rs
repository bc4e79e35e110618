//! One provider's conversation with its allocator: reports when they are due, and lets those go whose time has come.

use std::sync::Arc;

use flotilla_core::quota::Reply;
use futures::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use super::admission::Admission;
use super::link::Link;

/// Until `stop`.
pub(super) async fn run(admission: Arc<Admission>, link: Link, stop: CancellationToken) {
    let mut leader = link.leader.clone();
    let mut pending: Option<BoxFuture<'static, Option<Reply>>> = None;
    loop {
        let due = admission.tick(pending.is_none());
        if let Some(report) = due.report {
            let (link, provider) = (link.clone(), admission.provider().to_owned());
            pending = Some(Box::pin(async move { link.report(&provider, report).await }));
        }
        let answer = async {
            match &mut pending {
                Some(pending) => pending.await,
                None => std::future::pending().await,
            }
        };
        let timer = async {
            match due.at {
                Some(at) => tokio::time::sleep_until(admission.instant(at)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            reply = answer => {
                pending = None;
                if let Some(reply) = reply {
                    admission.take(&reply);
                }
            }
            Ok(()) = leader.changed() => admission.greet(),
            () = admission.changed() => {}
            () = timer => {}
        }
    }
}
