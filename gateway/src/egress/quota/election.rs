//! Which gateway deals out quotas: the holder of the Lease `flotilla-quota`.
//!
//! The election is for liveness only: two that believe to be elected cannot give out a unit twice, because both must write
//! the record (see [`flotilla_core::quota`]). So it can be simple. A holder renews; the others look when it is time, or at
//! once when they cannot reach the holder. A holder is judged dead when its record has not changed for as long as it
//! promised, on the looker's own clock. Without a quota in the namespace nobody takes part.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::store::{Claim, Store, StoreError};

/// Pause after a failed call.
const RETRY: Duration = Duration::from_millis(500);
/// Shortest pause between two looks, however often one is asked for.
const MIN_PAUSE: Duration = Duration::from_millis(200);

/// Who is elected, as far as this gateway knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Leader {
    /// Nobody is known.
    #[default]
    Nobody,
    /// This gateway.
    Me,
    /// The gateway in this pod.
    Other(String),
}

/// How the election goes.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// A claim lasts this long after its last renewal; whole seconds.
    pub claim: Duration,
    /// Pause between renewals, and between looks of those that are not elected.
    pub renew: Duration,
}

impl Default for Pace {
    /// A takeover within 12 s, before leases of 15 s end.
    fn default() -> Self {
        Self {
            claim: Duration::from_secs(10),
            renew: Duration::from_millis(2_500),
        }
    }
}

/// What the record of another holder promised, and since when it has been just that.
#[derive(Debug)]
struct Seen {
    claim: Claim,
    since: Instant,
}

/// Takes part in the election.
pub(super) struct Candidate {
    store: Arc<dyn Store>,
    pod: String,
    pace: Pace,
    seen: Option<Seen>,
    leader: watch::Sender<Leader>,
}

impl Candidate {
    pub(super) fn new(store: Arc<dyn Store>, pod: &str, pace: Pace) -> (Self, watch::Receiver<Leader>) {
        let (sender, receiver) = watch::channel(Leader::Nobody);
        let candidate = Self {
            store,
            pod: pod.to_owned(),
            pace,
            seen: None,
            leader: sender,
        };
        (candidate, receiver)
    }

    /// Takes part while `wanted`, until `stop`; looks at once when `look` is notified.
    pub(super) async fn run(
        mut self,
        mut wanted: watch::Receiver<bool>,
        look: Arc<Notify>,
        stop: CancellationToken,
    ) {
        let mut failing = false;
        loop {
            if !*wanted.borrow_and_update() {
                self.vacate().await;
                tokio::select! {
                    changed = wanted.changed() => if changed.is_err() { return },
                    () = stop.cancelled() => return,
                }
                continue;
            }
            let pause = match self.step().await {
                Ok(pause) => {
                    failing = false;
                    pause
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        warn!(%error, "failed to reach the Lease flotilla-quota");
                    }
                    self.expire();
                    RETRY
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return self.vacate().await,
                () = tokio::time::sleep(MIN_PAUSE.min(pause)) => {}
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return self.vacate().await,
                () = tokio::time::sleep(pause.saturating_sub(MIN_PAUSE)) => {}
                () = look.notified() => {}
                changed = wanted.changed() => if changed.is_err() { return },
            }
        }
    }

    fn is_mine(&self) -> bool {
        self.seen
            .as_ref()
            .is_some_and(|seen| seen.claim.holder == self.pod)
    }

    /// One look where another holds it, at most one write; gives the pause until the next.
    async fn step(&mut self) -> Result<Duration, StoreError> {
        if !self.is_mine() || *self.leader.borrow() != Leader::Me {
            let now = Instant::now();
            let found = self.store.claim().await?;
            let known = self.seen.take();
            self.seen = found.map(|claim| {
                let same = known.filter(|seen| seen.claim == claim);
                let since = same.map_or(now, |seen| seen.since);
                Seen { claim, since }
            });
        }
        if let Some(Seen { claim, since }) = &self.seen
            && !claim.holder.is_empty()
            && claim.holder != self.pod
        {
            let end = *since + Duration::from_secs(claim.seconds.into());
            let left = end.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                self.publish(Leader::Other(claim.holder.clone()));
                return Ok(left.min(self.pace.renew));
            }
        }
        self.claim().await?;
        Ok(self.pace.renew)
    }

    /// Takes the Lease, or renews it.
    async fn claim(&mut self) -> Result<(), StoreError> {
        let before = self
            .seen
            .as_ref()
            .map(|seen| seen.claim.clone())
            .unwrap_or_default();
        let changes_hands = !before.holder.is_empty() && before.holder != self.pod;
        let claim = Claim {
            holder: self.pod.clone(),
            seconds: u32::try_from(self.pace.claim.as_secs()).unwrap_or(10).max(1),
            transitions: before.transitions.saturating_add(u32::from(changes_hands)),
            ..before
        };
        let sent = Instant::now();
        match self.store.put_claim(claim).await {
            Ok(claim) => {
                self.seen = Some(Seen { claim, since: sent });
                self.publish(Leader::Me);
                Ok(())
            }
            Err(StoreError::Conflict) => {
                self.seen = None;
                self.publish(Leader::Nobody);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// While the store cannot be reached a claim ends by itself.
    fn expire(&self) {
        let lasts = self
            .seen
            .as_ref()
            .is_some_and(|seen| seen.since.elapsed() < self.pace.claim);
        if !lasts {
            self.publish(Leader::Nobody);
        }
    }

    /// Gives the Lease up, so that another gateway takes over at once.
    async fn vacate(&mut self) {
        let mine = self.is_mine();
        if let Some(seen) = self.seen.take()
            && mine
        {
            let claim = Claim {
                holder: String::new(),
                seconds: 1,
                ..seen.claim
            };
            if let Err(error) = self.store.put_claim(claim).await {
                warn!(%error, "failed to give up the Lease flotilla-quota; it ends by itself");
            }
        }
        self.publish(Leader::Nobody);
    }

    fn publish(&self, leader: Leader) {
        self.leader.send_if_modified(|known| {
            if *known == leader {
                return false;
            }
            info!(?leader, "quotas are dealt out by");
            *known = leader;
            true
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::store::Memory;
    use super::*;

    struct Running {
        leader: watch::Receiver<Leader>,
        wanted: watch::Sender<bool>,
        look: Arc<Notify>,
        stop: CancellationToken,
    }

    fn start(store: &Arc<Memory>, pod: &str) -> Running {
        let (candidate, leader) = Candidate::new(store.clone(), pod, Pace::default());
        let (wanted, wants) = watch::channel(true);
        let (look, stop) = (Arc::new(Notify::new()), CancellationToken::new());
        tokio::spawn(candidate.run(wants, look.clone(), stop.clone()));
        Running {
            leader,
            wanted,
            look,
            stop,
        }
    }

    async fn becomes(running: &mut Running, leader: Leader) -> Duration {
        let start = Instant::now();
        let wait = running.leader.wait_for(|known| *known == leader);
        tokio::time::timeout(Duration::from_secs(60), wait)
            .await
            .unwrap_or_else(|_| panic!("never {leader:?}"))
            .expect("it runs");
        start.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn one_is_elected_and_followed() {
        let store = Arc::new(Memory::default());
        let mut one = start(&store, "g-1");
        becomes(&mut one, Leader::Me).await;
        let mut two = start(&store, "g-2");
        becomes(&mut two, Leader::Other("g-1".into())).await;
        // Killed: no word any more.
        tokio::time::sleep(Duration::from_secs(30)).await;
        drop(one.wanted);
        let took = becomes(&mut two, Leader::Me).await;
        assert!(took <= Duration::from_secs(13), "{took:?}");
        // Its container is back at once, under the same name: it follows.
        let mut one = start(&store, "g-1");
        becomes(&mut one, Leader::Other("g-2".into())).await;
        // Told to stop: it gives it up, and one that cannot reach it looks at once.
        two.stop.cancel();
        becomes(&mut two, Leader::Nobody).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
        one.look.notify_one();
        let took = becomes(&mut one, Leader::Me).await;
        assert!(took < Duration::from_secs(1), "{took:?}");
        one.wanted.send_replace(false);
        becomes(&mut one, Leader::Nobody).await;
        assert_eq!(
            store.claim().await.expect("in memory").map(|claim| claim.holder),
            Some(String::new()),
            "without quotas nobody holds it"
        );
    }
}
