use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread;

use proptest::prelude::*;

use super::{Pool, any_pool, assert_proportional, cases};
use crate::balance::{Balancer, Draw, Pick, Strategy, Wheel, least_loaded, round_robin, weighted};
use crate::load::random::Stream;

const SEED: u64 = 0x5eed;
const STRATEGIES: [Strategy; 5] = [
    Strategy::RoundRobin,
    Strategy::Weighted,
    Strategy::LeastLoaded,
    Strategy::Adaptive,
    Strategy::ConsistentHash,
];

fn balancer(strategy: Strategy, pool: &Pool, start: u64) -> Balancer {
    Balancer::new(strategy, pool.0.iter().map(|replica| replica.slots), start)
}

/// The rule of the tiers, said once more.
fn is_right(pool: &Pool, pick: Pick) -> bool {
    let open: Vec<_> = pool.0.iter().filter(|replica| !replica.is_cordoned).collect();
    let healthy: Vec<_> = open.iter().filter(|replica| !replica.is_ejected).collect();
    let index = pick.index();
    let is_open_and_free = index.is_none_or(|index| pool.0[index].is_free() && !pool.0[index].is_cordoned);
    is_open_and_free
        && match pick {
            Pick::NoReplica => open.is_empty(),
            Pick::Replica(index) => !pool.0[index].is_ejected,
            Pick::Ejected(_) => healthy.is_empty(),
            Pick::AllFull if healthy.is_empty() => {
                !open.is_empty() && !open.iter().any(|replica| replica.is_free())
            }
            Pick::AllFull => !healthy.iter().any(|replica| replica.is_free()),
        }
}

proptest! {
    #![proptest_config(cases(500, 200_000))]

    #[test]
    fn a_free_healthy_replica_is_found_and_no_other_taken(
        pool in any_pool(), random: u64, start: u64, key in prop::option::of(any::<u64>()),
    ) {
        let draw = Draw { random, key, now_nanos: 0 };
        for strategy in STRATEGIES {
            let balancer = balancer(strategy, &pool, start);
            let pick = balancer.pick(&pool, draw);
            prop_assert!(is_right(&pool, pick), "{strategy:?}: {pick:?}");
            // Whoever says no to all has been asked for each that may be used, and for no other.
            let mut asked = Vec::new();
            let refused = balancer.claim(&pool, draw, |index, _| { asked.push(index); false });
            asked.sort_unstable();
            asked.dedup();
            let usable: Vec<usize> = (0..pool.0.len())
                .filter(|index| is_right(&pool, Pick::Replica(*index)) || is_right(&pool, Pick::Ejected(*index)))
                .collect();
            prop_assert_eq!(asked, usable);
            prop_assert_eq!(refused == Pick::NoReplica, pick == Pick::NoReplica);
            prop_assert!(refused.index().is_none());
        }
    }

    #[test]
    fn round_robin_is_exact_among_those_that_can_take_it(
        mut usable in prop::collection::vec(any::<bool>(), 1..=8), one in any::<prop::sample::Index>(),
        start in 0u64..1000, n in 1u64..200,
    ) {
        let one = one.index(usable.len());
        usable[one] = true;
        let mut pool = Pool::with_slots(&vec![1; usable.len()]);
        for (replica, usable) in pool.0.iter_mut().zip(&usable) {
            replica.is_ejected = !usable;
        }
        let turns = AtomicU64::new(start);
        let mut counts = vec![0u64; usable.len()];
        for _ in 0..n {
            counts[round_robin(&pool, &turns).index().unwrap()] += 1;
        }
        let of_usable: Vec<u64> = counts.iter().zip(&usable).filter(|(_, usable)| **usable).map(|(n, _)| *n).collect();
        prop_assert_eq!(of_usable.iter().sum::<u64>(), n);
        prop_assert!(of_usable.iter().max().unwrap() - of_usable.iter().min().unwrap() <= 1, "{:?}", counts);
    }

    #[test]
    fn weighted_turns_are_exact_by_cycle_and_close_in_between(
        first in 1u32..40, mut slots in prop::collection::vec(0u32..40, 0..12), start: u32, n in 1u64..600,
    ) {
        slots.push(first);
        let total: u64 = slots.iter().map(|slots| u64::from(*slots)).sum();
        let wheel = Wheel::new(slots.iter().copied());
        prop_assert_eq!(total % wheel.cycle(), 0);
        let count = |from: u64, n: u64| {
            let mut counts = vec![0u64; slots.len()];
            for turn in from..from + n {
                counts[wheel.at(turn).unwrap()] += 1;
            }
            counts
        };
        let start = u64::from(start);
        for (own, slots) in count(start, wheel.cycle()).iter().zip(&slots) {
            prop_assert_eq!(own * total, u64::from(*slots) * wheel.cycle());
        }
        for (own, slots) in count(start, n).iter().zip(&slots) {
            let exact = n as f64 * f64::from(*slots) / total as f64;
            prop_assert!((*own as f64 - exact).abs() < 4.0, "{own} of {exact}");
        }
    }
}

#[test]
fn weighted_passes_over_the_full_in_proportion_to_the_rest() {
    let slots = [40, 3, 8, 1, 20];
    let mut pool = Pool::with_slots(&slots);
    *pool.0[0].in_flight.get_mut() = 40;
    pool.0[2].is_ejected = true;
    let (wheel, turns) = (Wheel::new(slots), AtomicU64::new(7));
    let mut counts = [0; 5];
    for _ in 0..24_000 {
        counts[weighted(&pool, &wheel, &turns).index().unwrap()] += 1;
    }
    assert_proportional(&counts, &[0, 3, 0, 1, 20]);
    assert_eq!((counts[0], counts[2]), (0, 0));
}

/// The first replica after a long gap gets no more than the others.
#[test]
fn round_robin_is_fair_when_most_replicas_are_out() {
    let mut pool = Pool::with_slots(&[1; 60]);
    for replica in &mut pool.0[..45] {
        replica.is_ejected = true;
    }
    let turns = AtomicU64::new(0);
    let mut counts = [0; 60];
    for _ in 0..30_000 {
        counts[round_robin(&pool, &turns).index().unwrap()] += 1;
    }
    let weights: Vec<u32> = (0..60).map(|index| u32::from(index >= 45)).collect();
    assert_proportional(&counts, &weights);
}

#[test]
fn turns_are_exact_under_concurrency() {
    let slots = [5, 1, 2, 7];
    let pool = Pool::with_slots(&slots);
    for strategy in [Strategy::RoundRobin, Strategy::Weighted] {
        let balancer = balancer(strategy, &pool, 11);
        let counts: [AtomicU64; 4] = Default::default();
        let barrier = Barrier::new(4);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    barrier.wait();
                    for _ in 0..60_000 {
                        let pick = balancer.pick(&pool, Draw::default());
                        counts[pick.index().unwrap()].fetch_add(1, SeqCst);
                    }
                });
            }
        });
        let counts = counts.map(AtomicU64::into_inner);
        let expected = match strategy {
            Strategy::RoundRobin => [60_000; 4],
            _ => [80_000, 16_000, 32_000, 112_000],
        };
        assert_eq!(counts, expected, "{strategy:?}");
    }
}

#[test]
fn two_choices_take_the_emptier_one_and_spread_evenly() {
    let mut pool = Pool::with_slots(&[10, 4]);
    *pool.0[0].in_flight.get_mut() = 4;
    *pool.0[1].in_flight.get_mut() = 2;
    for random in 0..100 {
        let pick = least_loaded(&pool, Stream::new(SEED, 0).at(random));
        assert_eq!(pick, Pick::Replica(0), "5 of 10 is less than 3 of 4");
    }
    // With one of three ejected, the two others are still compared.
    let mut pool = Pool::with_slots(&[9, 9, 9]);
    pool.0[0].is_ejected = true;
    *pool.0[1].in_flight.get_mut() = 1;
    for random in 0..100 {
        assert_eq!(
            least_loaded(&pool, Stream::new(SEED, 0).at(random)),
            Pick::Replica(2)
        );
    }
    let idle = Pool::with_slots(&[3; 30]);
    let mut counts = [0; 30];
    for random in 0..60_000 {
        counts[least_loaded(&idle, Stream::new(SEED, 0).at(random))
            .index()
            .unwrap()] += 1;
    }
    assert_proportional(&counts, &[1; 30]);
}

/// 100 replicas with 10 requests each on average: two choices keep the fullest near the mean, one choice does not.
#[test]
fn two_choices_beat_one() {
    let (two, one) = (Pool::with_slots(&[1000; 100]), Pool::with_slots(&[1000; 100]));
    let stream = Stream::new(5, 5);
    for n in 0..1000 {
        assert!(two.0[least_loaded(&two, stream.at(n)).index().unwrap()].take());
        assert!(one.0[stream.below(n, 100) as usize].take());
    }
    let fullest = |pool: &Pool| pool.0.iter().map(|replica| replica.in_flight.load(SeqCst)).max();
    assert!(fullest(&two) <= Some(13), "{:?}", fullest(&two));
    assert!(fullest(&one) >= Some(17), "{:?}", fullest(&one));
}

/// However many race for the last slots, each is taken once and none is left.
#[test]
fn every_slot_is_claimed_exactly_once_under_concurrency() {
    for strategy in STRATEGIES {
        let pool = Pool::with_slots(&[3, 40, 1, 17, 0, 29, 10]);
        let balancer = balancer(strategy, &pool, 3);
        let claimed = AtomicU64::new(0);
        thread::scope(|scope| {
            for thread in 0..4 {
                let (pool, balancer, claimed) = (&pool, &balancer, &claimed);
                scope.spawn(move || {
                    let random = Stream::new(thread, 9);
                    for n in 0.. {
                        let draw = Draw {
                            random: random.at(n),
                            key: Some(random.split(1).at(n)),
                            now_nanos: n,
                        };
                        match balancer.claim(pool, draw, |index, _| pool.0[index].take()) {
                            Pick::Replica(_) => claimed.fetch_add(1, SeqCst),
                            Pick::AllFull => break,
                            other => panic!("{other:?}"),
                        };
                    }
                });
            }
        });
        assert_eq!(claimed.into_inner(), 100, "{strategy:?}");
        assert!(pool.0.iter().all(|replica| !replica.is_free()));
    }
}
