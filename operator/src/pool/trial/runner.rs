//! Carries probes out beside the visits: a few at a time, each attempt with its own timeout, on the leader only.
//!
//! A visit asks for what has come of a test; the first question begins it. When it has ended the pool is visited again. What
//! nobody asks for any more (another step, another candidate, a pool that is gone) is given up.
//!
//! A connection that is refused while the candidate's endpoint is new says nothing about the candidate: a node refuses
//! connections to a Service for which it knows no endpoint, and kube-proxy learns of one later than the operator. It is tried
//! again without using up an attempt until the first replica has been Ready for [`SETTLES`].

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};

use super::ask::{Ask, Miss, Target};
use super::list::{Check, Probe, Test};
use super::sitting::Outcome;
use crate::runtime::{Key, Trigger};

/// Tests under way at once, over all pools.
const CONCURRENCY: usize = 16;
/// Pause before the second attempt; it doubles with each further one, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// See [`FIRST_PAUSE`].
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// From when a replica is Ready until every node is taken to know its endpoint. kube-proxy gathers changes for a second
/// (`minSyncPeriod`) and writes its rules in less than one; where a node has tens of thousands of them, that takes several. A
/// Service without any endpoint is refused at once, so that waiting for it costs one connection a second.
pub const SETTLES: Duration = Duration::from_secs(10);

/// One test of one candidate at one rung.
#[derive(Clone, Debug, PartialEq)]
pub struct Ticket {
    /// UID of the pool.
    pub pool: String,
    /// The candidate.
    pub revision: String,
    /// Which attempt to release it.
    pub attempt: i32,
    /// The rung's weight.
    pub weight: i32,
    /// The test.
    pub check: Check,
}

#[derive(Debug)]
enum Stage {
    Queued,
    Running(AbortHandle),
    Ended(Outcome),
}

#[derive(Debug)]
struct Run {
    number: u64,
    ticket: Ticket,
    target: Target,
    settled: Instant,
    stage: Stage,
}

impl Drop for Run {
    fn drop(&mut self) {
        if let Stage::Running(task) = &self.stage {
            task.abort();
        }
    }
}

#[derive(Debug, Default)]
struct Board {
    next: u64,
    runs: HashMap<Key, Vec<Run>>,
}

struct Inner {
    ask: Arc<dyn Ask>,
    board: Mutex<Board>,
    wake: Notify,
    news: OnceLock<Trigger>,
}

/// The handle; cheap to clone.
#[derive(Clone)]
pub struct Runner(Arc<Inner>);

impl std::fmt::Debug for Runner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Runner({} pools)", self.0.board.lock().runs.len())
    }
}

struct Work {
    number: u64,
    pool: Key,
    check: Check,
    probe: Probe,
    target: Target,
    settled: Instant,
}

impl Runner {
    /// A runner that asks by `ask`.
    pub fn new(ask: Arc<dyn Ask>) -> Self {
        Self(Arc::new(Inner {
            ask,
            board: Mutex::default(),
            wake: Notify::new(),
            news: OnceLock::new(),
        }))
    }

    /// Whose visits are asked for when a test has ended. Set once.
    pub fn tell(&self, news: Trigger) {
        let _ = self.0.news.set(news);
    }

    /// What has come of a test; begins it with the first question. `target` says where to, and for how much longer a
    /// refused connection there is no attempt.
    pub fn outcome(
        &self,
        pool: &Key,
        ticket: &Ticket,
        target: impl FnOnce() -> (Target, Duration),
    ) -> Option<Outcome> {
        let mut board = self.0.board.lock();
        let runs = board.runs.get(pool).into_iter().flatten();
        if let Some(run) = runs.into_iter().find(|run| run.ticket == *ticket) {
            return match &run.stage {
                Stage::Ended(outcome) => Some(outcome.clone()),
                Stage::Queued | Stage::Running(_) => None,
            };
        }
        board.next += 1;
        let number = board.next;
        let (target, settles) = target();
        board.runs.entry(pool.clone()).or_default().push(Run {
            number,
            ticket: ticket.clone(),
            target,
            settled: Instant::now() + settles,
            stage: Stage::Queued,
        });
        drop(board);
        self.0.wake.notify_one();
        None
    }

    /// Gives up every other test of a pool.
    pub fn keep(&self, pool: &Key, tickets: &[Ticket]) {
        let mut board = self.0.board.lock();
        let Some(runs) = board.runs.get_mut(pool) else {
            return;
        };
        runs.retain(|run| tickets.contains(&run.ticket));
        if runs.is_empty() {
            board.runs.remove(pool);
        }
    }

    /// Works for ever; for the leader.
    pub async fn run(self) {
        // An earlier leadership may have been lost in the middle.
        for run in self.0.board.lock().runs.values_mut().flatten() {
            if matches!(run.stage, Stage::Running(_)) {
                run.stage = Stage::Queued;
            }
        }
        let mut work = JoinSet::new();
        loop {
            self.begin(&mut work);
            tokio::select! {
                () = self.0.wake.notified() => {}
                Some(ended) = work.join_next(), if !work.is_empty() => {
                    // A task that was given up has nothing to say.
                    if let Ok((pool, number, outcome)) = ended {
                        self.end(&pool, number, outcome);
                    }
                }
            }
        }
    }

    fn begin(&self, work: &mut JoinSet<(Key, u64, Outcome)>) {
        let mut board = self.0.board.lock();
        let mut room = CONCURRENCY.saturating_sub(work.len());
        // First come, first served.
        let mut queued: Vec<(u64, &Key, &mut Run)> = Vec::new();
        for (pool, runs) in &mut board.runs {
            let waiting = runs.iter_mut().filter(|run| matches!(run.stage, Stage::Queued));
            queued.extend(waiting.map(|run| (run.number, pool, run)));
        }
        queued.sort_by_key(|(number, ..)| *number);
        for (number, pool, run) in queued {
            if room == 0 {
                return;
            }
            let Test::Probe(probe) = &run.ticket.check.test else {
                continue;
            };
            let task = Work {
                number,
                pool: pool.clone(),
                check: run.ticket.check.clone(),
                probe: probe.clone(),
                target: run.target.clone(),
                settled: run.settled,
            };
            run.stage = Stage::Running(work.spawn(attempts(Arc::clone(&self.0.ask), task)));
            room -= 1;
        }
    }

    fn end(&self, pool: &Key, number: u64, outcome: Outcome) {
        let mut board = self.0.board.lock();
        let mut runs = board.runs.get_mut(pool).into_iter().flatten();
        let Some(run) = runs.find(|run| run.number == number) else {
            return;
        };
        run.stage = Stage::Ended(outcome);
        drop(board);
        if let Some(news) = self.0.news.get() {
            news.now(pool.clone());
        }
    }
}

async fn attempts(ask: Arc<dyn Ask>, work: Work) -> (Key, u64, Outcome) {
    let Work {
        number,
        pool,
        check,
        probe,
        target,
        settled,
    } = work;
    let limit = Duration::from_secs(u64::try_from(check.seconds).unwrap_or(1));
    let mut pause = FIRST_PAUSE;
    let mut attempt = 1;
    loop {
        let answer = timeout(limit, ask.ask(probe.clone(), target.clone())).await;
        let sentence = match answer {
            Ok(Ok(said)) => return (pool, number, Outcome::passed(attempt, said)),
            Ok(Err(Miss::Unreached(_))) if Instant::now() < settled => {
                sleep(FIRST_PAUSE).await;
                continue;
            }
            Ok(Err(Miss::Unreached(sentence) | Miss::Failed(sentence))) => sentence,
            Err(_) => format!("no answer within {} s", check.seconds),
        };
        if attempt >= check.attempts {
            return (pool, number, Outcome::failed(attempt, sentence));
        }
        attempt += 1;
        sleep(pause).await;
        pause = longer(pause);
    }
}

fn longer(pause: Duration) -> Duration {
    (pause * 2).min(LONGEST_PAUSE)
}

/// Seconds that `attempts` of `seconds` each take with their pauses, when the first ones are refused while the endpoint is new.
pub(super) fn longest(seconds: i64, attempts: i32) -> i64 {
    let pauses = std::iter::successors(Some(FIRST_PAUSE), |pause| Some(longer(*pause)));
    let between = usize::try_from(attempts).unwrap_or_default().saturating_sub(1);
    let pauses: Duration = pauses.take(between).sum();
    let other = i64::try_from((pauses + SETTLES).as_secs()).unwrap_or(i64::MAX);
    seconds.saturating_mul(attempts.into()).saturating_add(other)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use flotilla_crds::agent_pool::Agent;
    use flotilla_crds::release_test::{DnsTest, HttpTest};
    use futures::FutureExt as _;
    use futures::future::BoxFuture;

    use super::super::sitting::State;
    use super::*;

    /// Fails twice, then answers; hangs when asked for a name, and is not there for the first seconds of its life when connected
    /// to. Counts who is inside.
    #[derive(Default)]
    struct Script {
        asked: AtomicUsize,
        inside: AtomicUsize,
        most: AtomicUsize,
    }

    impl Ask for Arc<Script> {
        fn ask(&self, probe: Probe, _: Target) -> BoxFuture<'static, Result<String, Miss>> {
            let script = Arc::clone(self);
            async move {
                let number = script.asked.fetch_add(1, Ordering::SeqCst);
                let inside = script.inside.fetch_add(1, Ordering::SeqCst) + 1;
                script.most.fetch_max(inside, Ordering::SeqCst);
                sleep(Duration::from_millis(10)).await;
                script.inside.fetch_sub(1, Ordering::SeqCst);
                match probe {
                    Probe::Dns(_) => std::future::pending().await,
                    Probe::Tcp(_) if number < 6 => Err(Miss::Unreached("refused".into())),
                    _ if number < 2 => Err(Miss::Failed("not yet".into())),
                    _ => Ok("fine".into()),
                }
            }
            .boxed()
        }
    }

    fn ticket(name: &str, probe: Probe, attempts: i32) -> Ticket {
        Ticket {
            pool: "u-1".into(),
            revision: "support-2".into(),
            attempt: 1,
            weight: 0,
            check: Check {
                name: name.into(),
                test: Test::Probe(probe),
                seconds: 5,
                attempts,
                depends_on: Vec::new(),
            },
        }
    }

    fn target() -> (Target, Duration) {
        let agent: Agent = serde_json::from_value(serde_json::json!({"image": "a"})).unwrap();
        (
            Target::of_revision("shop", "support-2", None, &agent),
            Duration::ZERO,
        )
    }

    fn http() -> Probe {
        Probe::Http(HttpTest::default())
    }

    fn dns() -> Probe {
        Probe::Dns(DnsTest { host: "db".into() })
    }

    async fn outcome(runner: &Runner, pool: &Key, ticket: &Ticket) -> Outcome {
        for _ in 0..1000 {
            if let Some(outcome) = runner.outcome(pool, ticket, target) {
                return outcome;
            }
            sleep(Duration::from_millis(100)).await;
        }
        panic!("no outcome");
    }

    #[tokio::test(start_paused = true)]
    async fn a_test_is_tried_again_and_then_has_failed() {
        let pool = Key::new("shop", "support");
        for (attempts, expected) in [
            (3, Outcome::passed(3, "fine")),
            (2, Outcome::failed(2, "not yet")),
        ] {
            let runner = Runner::new(Arc::new(Arc::new(Script::default())));
            let working = tokio::spawn(runner.clone().run());
            assert_eq!(
                outcome(&runner, &pool, &ticket("health", http(), attempts)).await,
                expected
            );
            working.abort();
        }
        let runner = Runner::new(Arc::new(Arc::new(Script::default())));
        let working = tokio::spawn(runner.clone().run());
        let late = outcome(&runner, &pool, &ticket("dns", dns(), 2)).await;
        assert_eq!(late, Outcome::failed(2, "no answer within 5 s"));
        working.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_no_attempt_while_the_endpoint_is_new() {
        let pool = Key::new("shop", "support");
        let tcp = || Probe::Tcp(flotilla_crds::release_test::TcpTest::default());
        // Six refusals, a second apart.
        for (settles, attempts, expected) in [
            (SETTLES, 1, Outcome::passed(1, "fine")),
            (Duration::from_secs(3), 3, Outcome::failed(3, "refused")),
            (Duration::from_secs(3), 4, Outcome::passed(4, "fine")),
            (Duration::ZERO, 2, Outcome::failed(2, "refused")),
        ] {
            let runner = Runner::new(Arc::new(Arc::new(Script::default())));
            let working = tokio::spawn(runner.clone().run());
            let ticket = ticket("port", tcp(), attempts);
            runner.outcome(&pool, &ticket, || (target().0, settles));
            assert_eq!(outcome(&runner, &pool, &ticket).await, expected, "{settles:?}");
            working.abort();
        }
        // With pauses of 1, 2, 4, 8 and 8 s between six attempts.
        assert_eq!(longest(5, 1), 5 + 10);
        assert_eq!(longest(5, 6), 30 + 23 + 10);
    }

    #[tokio::test(start_paused = true)]
    async fn many_tests_are_carried_out_a_few_at_a_time_and_none_twice() {
        let script = Arc::new(Script::default());
        script.asked.store(2, Ordering::SeqCst);
        let runner = Runner::new(Arc::new(Arc::clone(&script)));
        let working = tokio::spawn(runner.clone().run());
        let pools: Vec<Key> = (0..40)
            .map(|number| Key::new("shop", format!("p-{number}")))
            .collect();
        for pool in pools.iter().chain(&pools) {
            runner.outcome(pool, &ticket("health", http(), 1), target);
        }
        for pool in &pools {
            assert_eq!(
                outcome(&runner, pool, &ticket("health", http(), 1)).await.state,
                State::Passed
            );
        }
        assert_eq!(script.most.load(Ordering::SeqCst), CONCURRENCY);
        assert_eq!(script.asked.load(Ordering::SeqCst), 42);
        working.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_asks_for_is_given_up_and_a_new_leader_begins_again() {
        let script = Arc::new(Script::default());
        script.asked.store(2, Ordering::SeqCst);
        let runner = Runner::new(Arc::new(Arc::clone(&script)));
        let pool = Key::new("shop", "support");
        let (hanging, other) = (ticket("dns", dns(), 1), ticket("health", http(), 1));
        let working = tokio::spawn(runner.clone().run());
        runner.outcome(&pool, &hanging, target);
        sleep(Duration::from_secs(1)).await;
        assert_eq!(script.asked.load(Ordering::SeqCst), 3);
        runner.outcome(&pool, &other, target);
        runner.keep(&pool, std::slice::from_ref(&other));
        assert_eq!(outcome(&runner, &pool, &other).await.state, State::Passed);
        working.abort();
        // Leadership is lost in the middle of a test.
        let second = ticket("again", http(), 1);
        let working = tokio::spawn(runner.clone().run());
        runner.outcome(&pool, &second, target);
        tokio::task::yield_now().await;
        working.abort();
        let _ = working.await;
        let working = tokio::spawn(runner.clone().run());
        assert_eq!(outcome(&runner, &pool, &second).await.state, State::Passed);
        working.abort();
        runner.keep(&pool, &[]);
        assert_eq!(format!("{runner:?}"), "Runner(0 pools)");
    }
}
