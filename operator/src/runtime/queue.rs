//! The work queue of one controller.
//!
//! The semantics are client-go's, which twenty years of controllers rely on: a key waits at most once however often
//! it is added, is handed to one worker at a time, and is queued again when it was added while being worked on. Two
//! kinds of timers are kept apart per key: what the reconciler's last answer asked for (replaced by each answer), and
//! what others asked for (kept until due).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::key::Key;
use crate::metrics::ControllerMetrics;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Timer {
    Own,
    Foreign,
}

#[derive(Default)]
struct Inner {
    ready: VecDeque<(Key, Instant)>,
    waiting: HashSet<Key>,
    working: HashSet<Key>,
    again: BTreeSet<Key>,
    due: BTreeMap<(Instant, Key, Timer), ()>,
    timers: HashMap<(Key, Timer), Instant>,
    metrics: Option<ControllerMetrics>,
}

/// The queue of one controller.
#[derive(Default)]
pub(super) struct Queue {
    inner: Mutex<Inner>,
    changed: Notify,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Queue({} ready)", self.inner.lock().ready.len())
    }
}

impl Queue {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// Counts into these metrics from now on.
    pub(super) fn observe(&self, metrics: ControllerMetrics) {
        self.inner.lock().metrics = Some(metrics);
    }

    /// Queues a key; if it is being worked on, for once more afterwards.
    pub(super) fn add(&self, key: Key) {
        self.inner.lock().add(key);
        self.changed.notify_one();
    }

    /// Queues a key at `due`, unless a timer of this kind is due earlier.
    pub(super) fn add_after(&self, key: Key, due: Instant) {
        self.inner.lock().set_timer(key, Timer::Foreign, due, true);
        self.changed.notify_one();
    }

    /// Ends the work on a key: its own timer is now `due`, or none.
    pub(super) fn done(&self, key: &Key, due: Option<Instant>) {
        {
            let mut inner = self.inner.lock();
            inner.working.remove(key);
            match due {
                Some(due) => inner.set_timer(key.clone(), Timer::Own, due, false),
                None => inner.clear_timer(key, Timer::Own),
            }
            if inner.again.remove(key) {
                inner.add(key.clone());
            }
        }
        self.changed.notify_one();
    }

    /// The next key to work on; it is marked as being worked on until [`Queue::done`]. One caller at a time.
    pub(super) async fn next(&self) -> Key {
        loop {
            let due = {
                let mut inner = self.inner.lock();
                inner.ripen(Instant::now());
                if let Some(key) = inner.pop() {
                    return key;
                }
                inner.due.first_key_value().map(|((due, ..), ())| *due)
            };
            let changed = self.changed.notified();
            match due {
                Some(due) => {
                    let _ = tokio::time::timeout_at(due, changed).await;
                }
                None => changed.await,
            }
        }
    }
}

impl Inner {
    fn add(&mut self, key: Key) {
        if let Some(metrics) = &self.metrics {
            metrics.adds.inc();
        }
        if self.working.contains(&key) {
            self.again.insert(key);
        } else if self.waiting.insert(key.clone()) {
            self.ready.push_back((key, Instant::now()));
            self.show_depth();
        }
    }

    fn pop(&mut self) -> Option<Key> {
        let (key, since) = self.ready.pop_front()?;
        self.waiting.remove(&key);
        self.working.insert(key.clone());
        if let Some(metrics) = &self.metrics {
            metrics.queue_duration.observe(since.elapsed().as_secs_f64());
        }
        self.show_depth();
        Some(key)
    }

    /// Queues every key whose timer is due.
    fn ripen(&mut self, now: Instant) {
        while let Some(((due, ..), ())) = self.due.first_key_value()
            && *due <= now
            && let Some(((_, key, timer), ())) = self.due.pop_first()
        {
            self.timers.remove(&(key.clone(), timer));
            self.add(key);
        }
    }

    fn set_timer(&mut self, key: Key, timer: Timer, due: Instant, keep_earlier: bool) {
        if keep_earlier
            && self
                .timers
                .get(&(key.clone(), timer))
                .is_some_and(|earlier| *earlier <= due)
        {
            return;
        }
        self.clear_timer(&key, timer);
        self.due.insert((due, key.clone(), timer), ());
        self.timers.insert((key, timer), due);
    }

    fn clear_timer(&mut self, key: &Key, timer: Timer) {
        if let Some(due) = self.timers.remove(&(key.clone(), timer)) {
            self.due.remove(&(due, key.clone(), timer));
        }
    }

    fn show_depth(&self) {
        if let Some(metrics) = &self.metrics {
            metrics
                .depth
                .set(i64::try_from(self.ready.len()).unwrap_or(i64::MAX));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt as _;

    use super::*;

    fn key(name: &str) -> Key {
        Key::new("a", name)
    }

    fn in_seconds(seconds: u64) -> Instant {
        Instant::now() + Duration::from_secs(seconds)
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_waits_once_and_never_runs_twice_at_once() {
        let queue = Queue::new();
        queue.add(key("x"));
        queue.add(key("x"));
        queue.add(key("y"));
        assert_eq!(queue.next().await, key("x"));
        queue.add(key("x"));
        assert_eq!(queue.next().await, key("y"));
        assert!(queue.next().now_or_never().is_none(), "x is being worked on");
        queue.done(&key("x"), None);
        assert_eq!(queue.next().await, key("x"));
        queue.done(&key("x"), None);
        assert!(queue.next().now_or_never().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_replaces_the_timer_of_the_answer_before() {
        let queue = Queue::new();
        queue.add(key("x"));
        queue.next().await;
        queue.done(&key("x"), Some(in_seconds(5)));
        queue.add(key("x"));
        queue.next().await;
        queue.done(&key("x"), Some(in_seconds(60)));
        let start = Instant::now();
        assert_eq!(queue.next().await, key("x"));
        assert_eq!(start.elapsed().as_secs(), 60);
        queue.done(&key("x"), None);
        assert!(
            tokio::time::timeout(Duration::from_secs(600), queue.next())
                .await
                .is_err()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn foreign_timers_survive_answers_and_the_earliest_counts() {
        let queue = Queue::new();
        queue.add_after(key("x"), in_seconds(10));
        queue.add_after(key("x"), in_seconds(3));
        queue.add_after(key("x"), in_seconds(20));
        queue.add(key("x"));
        queue.next().await;
        queue.done(&key("x"), None);
        let start = Instant::now();
        assert_eq!(queue.next().await, key("x"));
        assert_eq!(start.elapsed().as_secs(), 3);
    }
}
