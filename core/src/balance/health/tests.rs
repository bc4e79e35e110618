use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;

use super::*;
use crate::balance::tests::is_full;
use crate::balance::{Balancer, Candidates, Draw, Pick, Strategy};
use crate::load::random::Stream;

const SECOND: u64 = 1_000_000_000;

/// Replicas with their health, at a time.
struct Fleet {
    health: Vec<Health>,
    ejector: Ejector,
    now: Cell<u64>,
}

impl Candidates for Fleet {
    fn count(&self) -> usize {
        self.health.len()
    }
    fn in_flight(&self, _: usize) -> u32 {
        0
    }
    fn slots(&self, _: usize) -> u32 {
        4
    }
    fn hash_id(&self, index: usize) -> u64 {
        index as u64
    }
    fn is_cordoned(&self, _: usize) -> bool {
        false
    }
    fn is_ejected(&self, index: usize) -> bool {
        self.health[index].is_ejected(self.now.get(), self.ejector.policy())
    }
}

impl Fleet {
    fn new(replicas: usize, policy: EjectionPolicy) -> Self {
        Self {
            health: (0..replicas).map(|_| Health::default()).collect(),
            ejector: Ejector::new(policy),
            now: Cell::new(0),
        }
    }

    fn census(&self) -> Census {
        Census::of(&self.health)
    }

    /// One request to the replica, as one that was picked by itself.
    fn request(&self, index: usize, outcome: Outcome) -> Option<Change> {
        self.request_with(index, outcome, None)
    }

    fn request_with(&self, index: usize, outcome: Outcome, retry_after: Option<u64>) -> Option<Change> {
        let (health, now) = (&self.health[index], self.now.get());
        let forced = self.is_ejected(index);
        let ticket = health.begin(forced, now, self.ejector.policy()).unwrap();
        let retry_after = retry_after.map(Duration::from_secs);
        self.ejector
            .end(health, ticket, outcome, retry_after, now, || self.census())
    }

    fn fail(&self, index: usize, times: usize) -> Option<Change> {
        let changes: Vec<_> = (0..times)
            .filter_map(|_| self.request(index, Outcome::Reset))
            .collect();
        assert!(changes.len() <= 1, "{changes:?}");
        changes.first().copied()
    }

    fn sweep(&self) -> Vec<(usize, Change)> {
        let pool: Vec<&Health> = self.health.iter().collect();
        self.ejector.sweep(&pool, self.now.get())
    }

    fn wait(&self, seconds: u64) {
        self.now.set(self.now.get() + seconds * SECOND);
    }
}

/// For how many seconds the replica has been ejected by this change.
fn seconds(fleet: &Fleet, change: Option<Change>) -> u64 {
    let opened = match change {
        Some(
            Change::FailedInARow(_, opened) | Change::ProbeFailed(opened) | Change::WorseThanOthers(opened),
        ) => opened,
        other => panic!("{other:?}"),
    };
    (opened.until_nanos - fleet.now.get()) / SECOND
}

#[test]
fn what_a_failure_is() {
    for (outcome, expected) in [
        (Outcome::ConnectFailed, Some(true)),
        (Outcome::Reset, Some(true)),
        (Outcome::TimedOut, Some(true)),
        (Outcome::Answered(503), Some(true)),
        (Outcome::Answered(500), Some(false)),
        (Outcome::Answered(429), Some(false)),
        (Outcome::Answered(200), Some(false)),
        (Outcome::Cancelled, None),
    ] {
        assert_eq!(outcome.is_failure(), expected, "{outcome:?}");
    }
}

#[test]
fn one_failed_connection_is_enough_and_no_share_protects_from_it() {
    let fleet = Fleet::new(4, EjectionPolicy::default());
    for index in 0..3 {
        let change = fleet.request(index, Outcome::ConnectFailed);
        assert!(matches!(change, Some(Change::Unreachable(_))), "{change:?}");
    }
    assert_eq!(fleet.census().ejected, 3);
    // The cap is used up: the last one stays, however it answers.
    assert_eq!(fleet.fail(3, 50), None);
    let off = Fleet::new(2, EjectionPolicy::off());
    assert_eq!(off.request(0, Outcome::ConnectFailed), None);
    assert_eq!(off.fail(0, 50), None);
    assert!(off.sweep().is_empty());
}

#[test]
fn five_failures_in_a_row_eject_and_probes_readmit() {
    let fleet = Fleet::new(4, EjectionPolicy::default());
    assert_eq!(fleet.fail(1, 4), None);
    assert_eq!(fleet.request(1, Outcome::Answered(404)), None, "starts again");
    assert_eq!(fleet.fail(1, 4), None);
    assert_eq!(
        fleet.request(1, Outcome::Cancelled),
        None,
        "says nothing, either way"
    );
    let change = fleet.fail(1, 1);
    assert!(matches!(change, Some(Change::FailedInARow(5, _))), "{change:?}");
    assert_eq!(seconds(&fleet, change), 10);
    assert!(fleet.is_ejected(1));
    fleet.wait(9);
    assert!(fleet.is_ejected(1));
    fleet.wait(1);
    assert!(!fleet.is_ejected(1), "on probation");
    let policy = fleet.ejector.policy();
    let probe = fleet.health[1].begin(false, fleet.now.get(), policy).unwrap();
    assert!(fleet.is_ejected(1), "one probe at a time");
    assert_eq!(fleet.health[1].begin(false, fleet.now.get(), policy), None);
    let end = |ticket, outcome| {
        fleet
            .ejector
            .end(&fleet.health[1], ticket, outcome, None, fleet.now.get(), || {
                fleet.census()
            })
    };
    assert_eq!(end(probe, Outcome::Answered(200)), None);
    assert_eq!(fleet.request(1, Outcome::Answered(200)), Some(Change::Readmitted));
    assert_eq!(
        fleet.health[1].state(fleet.now.get()),
        State::Closed { failures: 0 }
    );
}

#[test]
fn each_ejection_is_longer_and_rest_is_forgiven() {
    let fleet = Fleet::new(4, EjectionPolicy::default());
    assert_eq!(seconds(&fleet, fleet.fail(1, 5)), 10);
    for expected in [20, 40, 80, 160, 300, 300] {
        fleet.wait(300);
        let change = fleet.fail(1, 1);
        assert!(matches!(change, Some(Change::ProbeFailed(_))), "{change:?}");
        assert_eq!(seconds(&fleet, change), expected);
    }
    fleet.wait(300);
    assert_eq!(fleet.request(1, Outcome::Answered(200)), None);
    assert_eq!(fleet.request(1, Outcome::Answered(200)), Some(Change::Readmitted));
    // Seven times; five of them are forgotten in five minutes.
    fleet.wait(300);
    assert_eq!(seconds(&fleet, fleet.fail(1, 5)), 40);
}

#[test]
fn retry_after_lengthens_and_cannot_do_more() {
    let fleet = Fleet::new(8, EjectionPolicy::default());
    let eject = |index, asked| {
        assert_eq!(fleet.fail(index, 4), None);
        seconds(
            &fleet,
            fleet.request_with(index, Outcome::Answered(503), Some(asked)),
        )
    };
    assert_eq!(eject(0, 3), 10);
    assert_eq!(eject(1, 45), 45);
    fleet.wait(100);
    for index in [0, 1] {
        for _ in 0..2 {
            fleet.request(index, Outcome::Answered(200));
        }
    }
    assert_eq!(eject(2, 86_400), 300);
    assert_eq!(fleet.request_with(3, Outcome::Answered(503), Some(45)), None);
}

#[test]
fn no_more_than_the_allowed_share_is_ejected() {
    for (replicas, percent, expected) in [
        (1, 30, 0),
        (1, 100, 1),
        (2, 30, 1),
        (2, 99, 1),
        (3, 30, 1),
        (10, 30, 3),
        (10, 0, 1),
        (4, 100, 4),
    ] {
        let policy = EjectionPolicy {
            max_ejected_percent: percent,
            ..EjectionPolicy::default()
        };
        let fleet = Fleet::new(replicas, policy);
        for round in 0..8 {
            for index in 0..replicas {
                let _ = (round, fleet.request(index, Outcome::Reset));
            }
        }
        let census = fleet.census();
        assert_eq!(
            census,
            Census {
                replicas,
                ejected: expected
            },
            "{percent} %"
        );
        // If all are out, they serve.
        let balancer = Balancer::new(Strategy::LeastLoaded, [], 0);
        let pick = balancer.pick(&fleet, Draw::default());
        assert_eq!(matches!(pick, Pick::Ejected(_)), expected == replicas);
        assert!(pick.index().is_some());
    }
}

#[test]
fn a_replica_that_fails_one_in_three_is_found_among_three() {
    let fleet = Fleet::new(3, EjectionPolicy::default());
    let mut changes = Vec::new();
    for second in 0..60 {
        for n in 0..12 {
            let bad = n % 3 == 0;
            fleet.request(0, Outcome::Answered(200));
            fleet.request(1, Outcome::Answered(if bad { 503 } else { 200 }));
            fleet.request(2, Outcome::Answered(200));
        }
        fleet.wait(1);
        if second % 10 == 9 {
            changes.extend(fleet.sweep());
        }
        if !changes.is_empty() {
            break;
        }
    }
    assert!(
        matches!(changes[..], [(1, Change::WorseThanOthers(_))]),
        "{changes:?}"
    );
    assert_eq!(fleet.now.get(), 10 * SECOND);
    assert!(fleet.is_ejected(1) && !fleet.is_ejected(0) && !fleet.is_ejected(2));
}

#[test]
fn outliers_by_table() {
    let tally = |answered, failed| Tally { answered, failed };
    let policy = SuccessRatePolicy::default();
    for (tallies, limit, expected) in [
        (vec![], 3, vec![]),
        (vec![tally(0, 100)], 3, vec![]),
        (vec![tally(100, 0), tally(60, 40)], 1, vec![1]),
        // All alike, all bad.
        (vec![tally(10, 90), tally(12, 88), tally(9, 91)], 3, vec![]),
        // Two bad ones do not hide each other; the worst comes first.
        (
            vec![tally(100, 0), tally(60, 40), tally(98, 2), tally(10, 90)],
            4,
            vec![3, 1],
        ),
        (
            vec![tally(100, 0), tally(60, 40), tally(98, 2), tally(10, 90)],
            1,
            vec![3],
        ),
        // Too few requests, of its own or of the others.
        (vec![tally(500, 0), tally(0, 19)], 1, vec![]),
        (vec![tally(19, 0), tally(0, 500)], 1, vec![]),
        // Significant, but it does not matter.
        (vec![tally(100_000, 0), tally(90_000, 10_000)], 1, vec![]),
        // It would matter, but may be chance.
        (vec![tally(18, 2), tally(13, 7)], 1, vec![]),
        // One with hardly any requests does not shield the next.
        (vec![tally(100, 0), tally(0, 3), tally(20, 80)], 2, vec![2]),
    ] {
        assert_eq!(outliers(&tallies, &policy, limit), expected, "{tallies:?}");
    }
}

/// Replicas that all fail alike, by chance: hardly ever is one accused.
#[test]
fn equal_replicas_are_hardly_ever_ejected() {
    let looks = if is_full() { 200_000 } else { 2_000 };
    let stream = Stream::new(11, 0);
    let mut accused = 0;
    for look in 0..looks {
        let random = stream.split(look);
        let percent = random.below(0, 60);
        let tallies: Vec<Tally> = (0..5)
            .map(|replica| {
                let draws = random.split(replica);
                let failed = (0..40).filter(|n| draws.below(*n, 100) < percent).count() as u64;
                Tally {
                    answered: 40 - failed,
                    failed,
                }
            })
            .collect();
        accused += outliers(&tallies, &SuccessRatePolicy::default(), 5).len();
    }
    println!("{accused} accused in {looks} looks at 5 equal replicas");
    assert!(accused as u64 <= looks / 5_000 + 1, "{accused} of {looks}");
}

/// Half of the answers failed long ago, never five in a row; then all is well.
#[test]
fn old_answers_fade() {
    for (sweeps, expected) in [(0, 1), (10, 0)] {
        let fleet = Fleet::new(2, EjectionPolicy::default());
        for n in 0..400 {
            fleet.request(0, Outcome::Answered(if n % 2 == 0 { 503 } else { 200 }));
        }
        for _ in 0..sweeps {
            assert_eq!(fleet.sweep(), [], "nobody to compare with");
        }
        for _ in 0..100 {
            fleet.request(0, Outcome::Answered(200));
            fleet.request(1, Outcome::Answered(200));
        }
        assert_eq!(fleet.sweep().len(), expected, "after {sweeps}");
    }
}

/// Many threads, all replicas failing: the cap holds at every moment, and each change has its counterpart.
#[test]
fn the_cap_holds_under_concurrency() {
    let replicas = 10;
    let policy = EjectionPolicy {
        consecutive_failures: 3,
        breaker: BreakerPolicy {
            open: Duration::from_millis(50),
            open_max: Duration::from_millis(200),
            ..BreakerPolicy::default()
        },
        ..EjectionPolicy::default()
    };
    let (ejector, health) = (
        Ejector::new(policy),
        (0..replicas).map(|_| Health::default()).collect::<Vec<_>>(),
    );
    let (clock, ejections, readmissions) = (AtomicU64::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let rounds = if is_full() { 1_000_000 } else { 30_000 };
    thread::scope(|scope| {
        for thread in 0..4u64 {
            let (ejector, health, clock) = (&ejector, &health, &clock);
            let (ejections, readmissions) = (&ejections, &readmissions);
            scope.spawn(move || {
                let stream = Stream::new(thread, 2);
                for n in 0..rounds {
                    let now = clock.fetch_add(SECOND / 1000, SeqCst);
                    let replica = &health[stream.below(2 * n, replicas) as usize];
                    let Some(ticket) = replica.begin(false, now, &policy) else {
                        continue;
                    };
                    let outcome = match stream.below(2 * n + 1, 10) {
                        0 => Outcome::Cancelled,
                        1..=3 => Outcome::Answered(200),
                        _ => Outcome::TimedOut,
                    };
                    let change = ejector.end(replica, ticket, outcome, None, now, || Census::of(health));
                    match change {
                        Some(Change::FailedInARow(..)) => ejections.fetch_add(1, SeqCst),
                        Some(Change::Readmitted) => readmissions.fetch_add(1, SeqCst),
                        _ => 0,
                    };
                    if n % 100 == 0 {
                        let pool: Vec<&Health> = health.iter().collect();
                        ejections.fetch_add(ejector.sweep(&pool, now).len(), SeqCst);
                        // While nobody else may eject, the number can only fall during the count.
                        if let Some(_deciding) = ejector.decide() {
                            assert!(Census::of(health).ejected <= 3);
                        }
                    }
                }
            });
        }
    });
    let out = Census::of(&health).ejected;
    let (ejections, readmissions) = (ejections.into_inner(), readmissions.into_inner());
    println!("{ejections} ejections, {readmissions} readmissions");
    assert_eq!(ejections - readmissions, out);
    assert!(readmissions > 0);
}

/// One decision at a time; who finds another one being made leaves the next failure to try again.
#[test]
fn a_decision_excludes_others_until_it_is_made() {
    let fleet = Fleet::new(4, EjectionPolicy::default());
    assert_eq!(fleet.fail(1, 4), None);
    let deciding = fleet.ejector.decide();
    assert!(deciding.is_some());
    for _ in 0..3 {
        assert!(fleet.ejector.decide().is_none());
        assert_eq!(fleet.fail(1, 1), None);
    }
    drop(deciding);
    let change = fleet.fail(1, 1);
    assert!(matches!(change, Some(Change::FailedInARow(8, _))), "{change:?}");
    assert!(fleet.ejector.decide().is_some(), "free again");
}

/// What led to an ejection is not held against the replica once it is back.
#[test]
fn a_readmitted_replica_starts_with_a_clean_sheet() {
    let fleet = Fleet::new(3, EjectionPolicy::default());
    for _ in 0..40 {
        for index in 0..3 {
            fleet.request(index, Outcome::Answered(200));
        }
    }
    for n in 0..80 {
        fleet.request(1, Outcome::Answered(if n % 5 == 4 { 200 } else { 503 }));
    }
    assert!(fleet.fail(1, 5).is_some());
    fleet.wait(10);
    for expected in [None, Some(Change::Readmitted)] {
        assert_eq!(fleet.request(1, Outcome::Answered(200)), expected);
    }
    for _ in 0..20 {
        fleet.request(1, Outcome::Answered(200));
    }
    assert_eq!(fleet.sweep(), []);
}

#[test]
fn a_flood_of_answers_does_not_spill_into_the_failures() {
    let health = Health::default();
    health.tally.store(TALLY_FULL - 1, SeqCst);
    for failed in [false, false, true] {
        health.count(failed);
    }
    let expected = Tally {
        answered: TALLY_FULL,
        failed: 0,
    };
    assert_eq!(health.tally(), expected);
    health.forget(expected);
    health.count(true);
    assert_eq!((health.tally().answered, health.tally().failed), (0, 1));
}
