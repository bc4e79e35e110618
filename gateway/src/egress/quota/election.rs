//! Which gateway deals out quotas: the holder of the Lease `flotilla-quota`.
//!
//! The election is for liveness only: two that believe to be elected cannot give out a unit twice, because both must write
//! the record (see [`flotilla_core::quota`]). So it can be simple. A holder renews; the others look when it is time, or at
//! once when they cannot reach the holder. A holder is judged dead when its record has not changed for as long as it
//! promised, on the looker's own clock; earlier where a report to it failed: at once when its process has ended (its pod is gone,
//! or its machine says that nobody listens), and when it is silent and has missed a renewal. A gateway that cannot reach a
//! holder which is well must not depose it again and again: it does so at most once in [`HURRY_PAUSE`], and not after it was
//! deposed itself. One that drains stands aside: it gives up what it holds, once, and takes it again only when nobody else does.
//! Without a quota in the namespace nobody takes part.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::store::{Claim, Store, StoreError};

/// Pause after a failed call.
const RETRY: Duration = Duration::from_millis(500);
/// Shortest pause between two looks, however often one is asked for.
const MIN_PAUSE: Duration = Duration::from_millis(200);
/// After this gateway has taken the Lease before its time, or lost it, it waits for others' claims to end.
const HURRY_PAUSE: Duration = Duration::from_secs(30);

/// What a report that failed says of the gateway that it went to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doubt {
    /// Its process has ended.
    Ended,
    /// It was not reached, or did not answer.
    Silent,
}

/// How those that report and the election speak to each other.
#[derive(Debug, Default)]
pub(super) struct Look {
    notify: Notify,
    doubt: Mutex<Option<(String, Doubt)>>,
    aside: AtomicBool,
}

impl Look {
    /// The election is to look, and this is why.
    pub(super) fn at_once(&self, doubt: Option<(&str, Doubt)>) {
        if let Some((pod, doubt)) = doubt {
            *self.doubt.lock() = Some((pod.to_owned(), doubt));
        }
        self.notify.notify_one();
    }

    /// Others come first from now on.
    pub(super) fn stand_aside(&self) {
        self.aside.store(true, Ordering::SeqCst);
        self.notify.notify_one();
    }

    /// The gateway in this pod has answered.
    pub(super) fn reached(&self, pod: &str) {
        self.doubt.lock().take_if(|(doubted, _)| doubted == pod);
    }

    fn about(&self, pod: &str) -> Option<Doubt> {
        let doubt = self.doubt.lock();
        doubt
            .as_ref()
            .filter(|(doubted, _)| doubted == pod)
            .map(|(_, doubt)| *doubt)
    }
}

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
    look: Arc<Look>,
    seen: Option<Seen>,
    leader: watch::Sender<Leader>,
    /// Until then others' claims are waited for.
    patient_until: Option<Instant>,
    /// It has given up what it held, for others to take.
    stood_aside: bool,
}

impl Candidate {
    pub(super) fn new(
        store: Arc<dyn Store>,
        pod: &str,
        pace: Pace,
        look: Arc<Look>,
    ) -> (Self, watch::Receiver<Leader>) {
        let (sender, receiver) = watch::channel(Leader::Nobody);
        let candidate = Self {
            store,
            pod: pod.to_owned(),
            pace,
            look,
            seen: None,
            leader: sender,
            patient_until: None,
            stood_aside: false,
        };
        (candidate, receiver)
    }

    /// Takes part while `wanted`, until `stop`; looks at once when it is asked to.
    pub(super) async fn run(mut self, mut wanted: watch::Receiver<bool>, stop: CancellationToken) {
        let look = self.look.clone();
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
                        warn!(%error, "failed to reach the record of who deals out quotas");
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
                () = look.notify.notified() => {}
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
        let aside = self.look.aside.load(Ordering::SeqCst);
        if aside && !std::mem::replace(&mut self.stood_aside, true) && *self.leader.borrow() == Leader::Me {
            self.vacate().await;
            return Ok(MIN_PAUSE);
        }
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
        let mut hurries = false;
        if let Some(Seen { claim, since }) = &self.seen
            && (aside || !claim.holder.is_empty())
            && claim.holder != self.pod
        {
            let (lasts, holder) = match claim.holder.as_str() {
                "" => (Duration::ZERO, Leader::Nobody),
                pod => (
                    Duration::from_secs(claim.seconds.into()),
                    Leader::Other(pod.to_owned()),
                ),
            };
            // Others look once in a renewal.
            let after_others = if aside {
                self.pace.renew * 3 / 2
            } else {
                Duration::ZERO
            };
            let believed = self.believed(&claim.holder, lasts) + after_others;
            let left = |lasts: Duration| (*since + lasts).saturating_duration_since(Instant::now());
            if !left(believed).is_zero() {
                let pause = left(believed).min(self.pace.renew);
                self.publish(holder);
                return Ok(pause);
            }
            hurries = !left(lasts).is_zero();
            if hurries {
                info!(
                    holder = claim.holder,
                    "cannot be reached; taking its place before its claim ends"
                );
            }
        }
        self.claim().await?;
        if hurries && self.is_mine() {
            self.patient_until = Some(Instant::now() + HURRY_PAUSE);
        }
        Ok(self.pace.renew)
    }

    /// How long after its renewal was seen a claim of `lasts` by another pod is waited for.
    fn believed(&self, pod: &str, lasts: Duration) -> Duration {
        if self.patient_until.is_some_and(|until| Instant::now() < until) {
            return lasts;
        }
        match self.look.about(pod) {
            Some(Doubt::Ended) => Duration::ZERO,
            Some(Doubt::Silent) => lasts.min(self.pace.renew * 3 / 2),
            None => lasts,
        }
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
                if *self.leader.borrow() == Leader::Me {
                    self.patient_until = Some(Instant::now() + HURRY_PAUSE);
                }
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
                warn!(%error, "failed to give up dealing out quotas; the claim ends by itself");
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
        look: Arc<Look>,
        stop: CancellationToken,
    }

    fn start(store: &Arc<Memory>, pod: &str) -> Running {
        let (look, stop) = (Arc::new(Look::default()), CancellationToken::new());
        let (candidate, leader) = Candidate::new(store.clone(), pod, Pace::default(), look.clone());
        let (wanted, wants) = watch::channel(true);
        tokio::spawn(candidate.run(wants, stop.clone()));
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
        one.look.at_once(None);
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

    #[tokio::test(start_paused = true)]
    async fn one_that_nobody_listens_at_is_replaced_at_once_and_a_silent_one_when_it_misses_a_renewal() {
        for (doubt, least, most) in [(Doubt::Ended, 0, 1), (Doubt::Silent, 1, 5)] {
            let store = Arc::new(Memory::default());
            let mut one = start(&store, "g-1");
            becomes(&mut one, Leader::Me).await;
            let mut two = start(&store, "g-2");
            becomes(&mut two, Leader::Other("g-1".into())).await;
            tokio::time::sleep(Duration::from_secs(7)).await;
            drop(one.wanted);
            two.look.at_once(Some(("g-1", doubt)));
            let took = becomes(&mut two, Leader::Me).await;
            let expected = Duration::from_secs(least)..Duration::from_secs(most);
            assert!(expected.contains(&took), "{doubt:?}: {took:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_drains_hands_over_and_goes_on_only_where_nobody_else_is() {
        let store = Arc::new(Memory::default());
        let mut one = start(&store, "g-1");
        becomes(&mut one, Leader::Me).await;
        one.look.stand_aside();
        becomes(&mut one, Leader::Nobody).await;
        let took = becomes(&mut one, Leader::Me).await;
        let expected = Duration::from_secs(3)..Duration::from_secs(5);
        assert!(expected.contains(&took), "alone: {took:?}");
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(*one.leader.borrow(), Leader::Me, "it does so once");

        let store = Arc::new(Memory::default());
        let mut one = start(&store, "g-1");
        becomes(&mut one, Leader::Me).await;
        let mut two = start(&store, "g-2");
        becomes(&mut two, Leader::Other("g-1".into())).await;
        one.look.stand_aside();
        let took = becomes(&mut two, Leader::Me).await;
        assert!(took <= Pace::default().renew, "{took:?}");
        becomes(&mut one, Leader::Other("g-2".into())).await;
        // It is still there when it is needed.
        drop(two.wanted);
        two.stop.cancel();
        let took = becomes(&mut one, Leader::Me).await;
        assert!(took <= Duration::from_secs(15), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn two_that_cannot_reach_each_other_do_not_depose_each_other_for_ever() {
        let store = Arc::new(Memory::default());
        let mut one = start(&store, "g-1");
        becomes(&mut one, Leader::Me).await;
        let mut two = start(&store, "g-2");
        becomes(&mut two, Leader::Other("g-1".into())).await;
        let transitions = || async {
            let claim = store.claim().await.expect("in memory").expect("it is held");
            claim.transitions
        };
        for _ in 0..200 {
            two.look.at_once(Some(("g-1", Doubt::Ended)));
            one.look.at_once(Some(("g-2", Doubt::Ended)));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(transitions().await, 1, "in 20 s");
        two.look.reached("g-1");
        one.look.reached("g-2");
        assert_eq!(*two.leader.borrow(), Leader::Me);
        assert_eq!(*one.leader.borrow(), Leader::Other("g-2".into()));
    }
}
