//! Leaving without a reset.
//!
//! Closing a keep-alive connection that looks idle races with its client's next request, and a client without retries
//! reports that as an error. So a gateway that leaves says so where nothing can be lost:
//!
//! ```text
//! Serving ──begin──► Draining ──idle grace over──► Closing ──► Parting ──connections gone, or deadline──► Aborted
//! ```
//!
//! *Draining*: everything is still accepted and served. Each HTTP/1.1 response carries `Connection: close`, each HTTP/2
//! connection gets GOAWAY, `/readyz` fails. After the grace only connections are left on which nothing was asked for that
//! long. *Closing*: no new connections, idle ones are closed, busy ones after their response, WebSockets when they are quiet.
//! *Parting*: the deadline is near; WebSockets are told to go. *Aborted*: what is left is cut.
//!
//! Draining begins with SIGTERM, with `POST /drain`, or as soon as the gateway sees its own endpoint terminating: that is
//! during the pod's preStop sleep, seconds before the signal.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

/// From [`Phase::Parting`] to [`Phase::Aborted`]: time for a goodbye and its answer.
pub const PARTING: Duration = Duration::from_secs(3);

/// Where the process is on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Not on its way out.
    Serving,
    /// Serves everything and asks clients to go elsewhere.
    Draining,
    /// Takes no new connections and finishes what runs.
    Closing,
    /// The same, and conversations without an end of their own are ended.
    Parting,
    /// Cuts what is left.
    Aborted,
}

/// The phase, and what still runs.
#[derive(Debug)]
pub struct Drain {
    phase: watch::Sender<Phase>,
    leaving: AtomicBool,
    begun: parking_lot::Mutex<Option<Instant>>,
    requests: AtomicUsize,
    connections: watch::Sender<usize>,
}

/// Counts one as long as it lives.
#[derive(Debug)]
pub struct ConnectionGuard<'a>(&'a Drain);

impl Default for Drain {
    fn default() -> Self {
        Self {
            phase: watch::Sender::new(Phase::Serving),
            leaving: AtomicBool::new(false),
            begun: parking_lot::Mutex::new(None),
            requests: AtomicUsize::new(0),
            connections: watch::Sender::new(0),
        }
    }
}

impl Drain {
    /// Starts draining; later calls change nothing.
    pub fn begin(&self, reason: &str) {
        if !self.leaving.swap(true, Ordering::SeqCst) {
            info!(reason, "draining");
            *self.begun.lock() = Some(Instant::now());
            self.advance(Phase::Draining);
        }
    }

    /// True from [`begin`](Self::begin) on.
    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed)
    }

    /// Follows the phase.
    pub fn watch(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Requests whose response has not been handed to the connection whole.
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }

    pub(crate) fn request_started(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn request_ended(&self) {
        self.requests.fetch_sub(1, Ordering::Relaxed);
    }

    /// Counts a connection until the guard goes.
    pub(crate) fn connection(&self) -> ConnectionGuard<'_> {
        self.connections.send_modify(|count| *count += 1);
        ConnectionGuard(self)
    }

    /// Open client connections.
    pub fn connections(&self) -> usize {
        *self.connections.borrow()
    }

    fn advance(&self, to: Phase) {
        self.phase.send_if_modified(|phase| {
            let later = to > *phase;
            if later {
                *phase = to;
            }
            later
        });
    }

    /// Drains to the end: idle grace, then until no connection is left or `deadline` after the beginning. Gives the
    /// number of requests that were cut.
    pub async fn finish(&self, idle_grace: Duration, deadline: Duration) -> usize {
        self.begin("told to stop");
        let begun = self.begun.lock().unwrap_or_else(Instant::now);
        tokio::time::sleep_until(begun + idle_grace).await;
        self.advance(Phase::Closing);
        let mut connections = self.connections.subscribe();
        let mut gone = pin!(connections.wait_for(|count| *count == 0));
        let end = begun + deadline.max(idle_grace);
        let parting = end.checked_sub(PARTING).unwrap_or(end);
        let mut in_time = tokio::time::timeout_at(parting, gone.as_mut()).await.is_ok();
        if !in_time {
            self.advance(Phase::Parting);
            in_time = tokio::time::timeout_at(end, gone).await.is_ok();
        }
        let cut = self.requests();
        self.advance(Phase::Aborted);
        if in_time {
            info!("drained");
        } else {
            warn!(
                requests = cut,
                connections = self.connections(),
                "the drain's deadline is over"
            );
        }
        if in_time { 0 } else { cut }
    }
}

impl Drop for ConnectionGuard<'_> {
    fn drop(&mut self) {
        self.0.connections.send_modify(|count| *count -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[tokio::test(start_paused = true)]
    async fn it_waits_for_the_grace_and_for_the_last_connection() {
        let drain = Arc::new(Drain::default());
        let connection = drain.connection();
        let start = Instant::now();
        let task = tokio::spawn({
            let drain = drain.clone();
            async move {
                drain
                    .finish(Duration::from_secs(10), Duration::from_secs(300))
                    .await
            }
        });
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(*drain.watch().borrow(), Phase::Draining);
        tokio::time::sleep(Duration::from_secs(15)).await;
        assert_eq!(*drain.watch().borrow(), Phase::Closing);
        drop(connection);
        assert_eq!(task.await.expect("no panic"), 0);
        assert_eq!(start.elapsed(), Duration::from_secs(20));
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_cuts_what_is_left() {
        let drain = Drain::default();
        let _connection = drain.connection();
        drain.request_started();
        let start = Instant::now();
        assert_eq!(
            drain
                .finish(Duration::from_secs(10), Duration::from_secs(30))
                .await,
            1
        );
        assert_eq!(start.elapsed(), Duration::from_secs(30));
        assert_eq!(*drain.watch().borrow(), Phase::Aborted);
    }
}
