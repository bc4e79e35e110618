use std::collections::{HashMap, HashSet};
use std::hash::RandomState;

use proptest::prelude::*;

use super::lanes::Backlog;
use super::*;

const SECOND: u64 = 1_000_000_000;

/// Distinct for each number, as a hash would be.
pub(super) fn tenant(number: u64) -> Tenant {
    Tenant::named(
        &number.to_le_bytes(),
        &std::hash::BuildHasherDefault::<std::hash::DefaultHasher>::default(),
    )
}

fn arrival(tenant: Tenant, class: Class, now: u64) -> Arrival {
    Arrival {
        tenant,
        class,
        cost: 1,
        arrived_nanoseconds: now,
        deadline_nanoseconds: u64::MAX,
    }
}

pub(super) fn pop<T>(queue: &mut FairQueue<T>, now: u64) -> Option<T> {
    match queue.pop(u64::MAX, now, |_| {}) {
        Next::Entry(entry) => Some(entry.item),
        Next::Short(_) | Next::Nobody => None,
    }
}

pub(super) fn is_full() -> bool {
    std::env::var("FLOTILLA_FULL").is_ok_and(|value| value == "1")
}

proptest! {
    #[test]
    fn what_is_served_alongside_is_within_a_factor_of_two(works in prop::collection::vec(1u64..5000, 1..40), turn in 1u64..6000) {
        let mut backlog = Backlog::default();
        for work in &works {
            backlog.change(0, work + 7);
            backlog.change(work + 7, *work);
        }
        let exact: u64 = works.iter().map(|work| turn.min(*work)).sum();
        let told = backlog.served_alongside(turn);
        prop_assert!((exact..=2 * exact).contains(&told), "{told} for {exact}");
        for work in works {
            backlog.change(work, 0);
        }
        prop_assert_eq!(backlog.served_alongside(turn), 0);
    }
}

#[test]
fn tenants_take_turns_and_classes_rule_within_one() {
    let mut queue = FairQueue::new(&Settings::of_slots(100));
    let (a, b) = (tenant(1), tenant(2));
    for (tenant, class, item) in [
        (a, Class::Low, "a low"),
        (a, Class::Normal, "a normal 1"),
        (a, Class::Normal, "a normal 2"),
        (a, Class::Critical, "a critical"),
        (b, Class::Low, "b low 1"),
        (b, Class::Low, "b low 2"),
    ] {
        queue.push(&arrival(tenant, class, 0), item, 0).unwrap();
    }
    let order: Vec<_> = std::iter::from_fn(|| pop(&mut queue, 1)).collect();
    assert_eq!(
        order,
        [
            "a critical",
            "b low 1",
            "a normal 1",
            "b low 2",
            "a normal 2",
            "a low"
        ]
    );
}

#[test]
fn coming_and_going_gains_no_turns() {
    let mut queue = FairQueue::new(&Settings::of_slots(100));
    for item in 0..40 {
        queue
            .push(&arrival(tenant(1), Class::Low, 0), ("steady", item), 0)
            .unwrap();
    }
    let mut served = HashMap::new();
    for now in 0..40 {
        if queue.waiting(tenant(2)) == 0 {
            queue
                .push(&arrival(tenant(2), Class::Critical, now), ("sprinter", 0), now)
                .unwrap();
        }
        *served.entry(pop(&mut queue, now).unwrap().0).or_insert(0) += 1;
    }
    assert!((19..=21).contains(&served["sprinter"]), "{served:?}");
}

#[test]
fn one_large_request_at_a_time_gains_nothing_over_many_small_ones() {
    let settings = Settings::of_quota(1000, 10, 0);
    let mut queue = FairQueue::new(&settings);
    let mut served = [0u64; 2];
    for now in 0..20_000 {
        for (number, cost, depth) in [(0, 1000, 1), (1, 10, 50)] {
            while queue.waiting(tenant(number)) < depth {
                let asks = Arrival {
                    cost,
                    ..arrival(tenant(number), Class::Normal, now)
                };
                queue.push(&asks, number as usize, now).unwrap();
            }
        }
        if let Next::Entry(entry) = queue.pop(u64::MAX, now, |_| {}) {
            served[entry.item] += entry.cost;
        }
    }
    let share = served[0] as f64 / (served[0] + served[1]) as f64;
    assert!((share - 0.5).abs() < 0.01, "{served:?}");
}

#[test]
fn a_full_queue_gives_way_to_the_tenant_that_has_less_and_to_the_higher_class() {
    let mut queue = FairQueue::new(&Settings::of_slots(4));
    let (flood, other) = (tenant(1), tenant(2));
    for item in 0..4 {
        let class = if item == 1 { Class::High } else { Class::Critical };
        queue.push(&arrival(flood, class, 0), item, 0).unwrap();
    }
    // The flood's own share is full, and so is the queue.
    let refused = queue.push(&arrival(flood, Class::Low, 0), 9, 0).unwrap_err();
    assert_eq!(
        (refused.limit, refused.retry_after_seconds()),
        (Limit::QueueFull, 1)
    );
    // A Low one of somebody else takes the place of the flood's lowest, then of its newest.
    for (item, victim) in [(10, 1), (11, 3)] {
        let admitted = queue.push(&arrival(other, Class::Low, 0), item, 0).unwrap();
        assert!(
            matches!(admitted.gone, Some(Gone::Displaced(Entry { item, .. })) if item == victim),
            "{admitted:?}"
        );
    }
    // Now both have two.
    let refused = queue.push(&arrival(other, Class::Low, 0), 12, 0).unwrap_err();
    assert_eq!(refused.limit, Limit::TenantShare);
    // A higher class takes the place of its own lower one.
    let admitted = queue.push(&arrival(other, Class::High, 0), 13, 0).unwrap();
    assert!(
        matches!(admitted.gone, Some(Gone::Displaced(Entry { item: 11, .. }))),
        "{admitted:?}"
    );
    // And, of a tenant that has fewer, that of an equal's lower one.
    let admitted = queue.push(&arrival(tenant(3), Class::High, 0), 14, 0).unwrap();
    assert!(matches!(admitted.gone, Some(Gone::Displaced(_))), "{admitted:?}");
    assert_eq!(queue.len(), 4);
}

#[test]
fn among_many_with_one_each_the_higher_class_comes_in() {
    let mut queue = FairQueue::new(&Settings::of_slots(50));
    for number in 0..50 {
        queue
            .push(&arrival(tenant(number), Class::Low, number), number, number)
            .unwrap();
    }
    let refused = queue
        .push(&arrival(tenant(99), Class::Low, 60), 99, 60)
        .unwrap_err();
    assert_eq!(refused.limit, Limit::QueueFull);
    let admitted = queue
        .push(&arrival(tenant(99), Class::Normal, 60), 99, 60)
        .unwrap();
    assert!(
        matches!(admitted.gone, Some(Gone::Displaced(Entry { item: 49, .. }))),
        "{admitted:?}"
    );
}

#[test]
fn a_bound_that_others_use_up_lets_nobody_in() {
    let mut queue = FairQueue::new(&Settings::of_slots(0));
    let refused = queue
        .push(&arrival(Tenant::ABSENT, Class::Critical, 0), (), 0)
        .unwrap_err();
    assert_eq!(refused.limit, Limit::QueueFull);
}

/// A queue with this many left that has been served every half second, and the time.
fn served_at_two_a_second(left: u64) -> (FairQueue<u64>, u64) {
    let mut queue = FairQueue::new(&Settings::of_slots(100));
    for item in 0..left + 40 {
        let admitted = queue
            .push(&arrival(Tenant::ABSENT, Class::Normal, 0), item, 0)
            .unwrap();
        assert_eq!(admitted.predicted_nanoseconds, None);
    }
    for half in 1..=40 {
        assert_eq!(pop(&mut queue, half * SECOND / 2), Some(half - 1));
    }
    (queue, 20 * SECOND)
}

#[test]
fn a_wait_beyond_the_deadline_is_refused_on_arrival_with_the_time() {
    let (mut queue, now) = served_at_two_a_second(9);
    let asks = |patience: u64| Arrival {
        deadline_nanoseconds: now + patience * SECOND,
        ..arrival(Tenant::ABSENT, Class::Low, now)
    };
    let close_to = |wait: Option<u64>, seconds: f64| {
        let wait = wait.unwrap() as f64 / SECOND as f64;
        assert!((wait / seconds - 1.0).abs() < 0.02, "{wait} for {seconds}");
    };
    let refused = queue.push(&asks(4), 0, now).unwrap_err();
    assert_eq!(refused.limit, Limit::PredictedWait);
    // The tenth at two a second.
    close_to(refused.predicted_nanoseconds, 5.0);
    assert_eq!(refused.retry_after_seconds(), 5);
    close_to(queue.push(&asks(5), 0, now).unwrap().predicted_nanoseconds, 5.0);
    // A higher class is no help against those who have grown old; another tenant waits for its turn only.
    let critical = Arrival {
        class: Class::Critical,
        ..asks(4)
    };
    close_to(queue.predict(&critical, now), 5.0);
    let other = Arrival {
        tenant: tenant(1),
        ..asks(4)
    };
    close_to(queue.predict(&other, now), 1.0);
    // Nor is one let in whose time is over.
    assert_eq!(
        queue.push(&asks(0), 0, now).unwrap_err().limit,
        Limit::PredictedWait
    );
}

/// A prediction must not keep itself true: with nobody let in nothing would ever be measured again.
#[test]
fn a_pool_that_hung_is_tried_again() {
    let (mut queue, mut now) = served_at_two_a_second(9);
    // It hangs for a minute, and those who wait give up.
    now += 60 * SECOND;
    let asks = |now: u64| Arrival {
        deadline_nanoseconds: now + 5 * SECOND,
        ..arrival(Tenant::ABSENT, Class::Normal, now)
    };
    assert_eq!(
        queue.push(&asks(now), 0, now).unwrap_err().limit,
        Limit::PredictedWait
    );
    while queue.take_any(now).is_some() {}
    assert!(queue.push(&asks(now), 0, now).is_err());
    // After the memory's 30 s it is not known any more how fast the pool is.
    now += 31 * SECOND;
    assert_eq!(
        queue.push(&asks(now), 0, now).unwrap().predicted_nanoseconds,
        None
    );
    assert!(queue.push(&asks(now), 0, now).is_ok());
}

#[test]
fn tenants_beyond_the_lanes_share_some_and_memory_is_bounded() {
    let settings = Settings {
        lanes: 8,
        shared_lanes: 2,
        ..Settings::of_slots(100_000)
    };
    let mut queue = FairQueue::new(&settings);
    for number in 0..10_000 {
        queue
            .push(&arrival(tenant(number), Class::Normal, 0), number, 0)
            .unwrap();
    }
    queue
        .push(&arrival(Tenant::ABSENT, Class::Normal, 0), 10_000, 0)
        .unwrap();
    assert_eq!((queue.active_lanes(), queue.waiting(Tenant::ABSENT)), (11, 1));
    // The flood of names costs those who have a lane eleven turns, not ten thousand.
    let place = (0..).find(|_| pop(&mut queue, 0) == Some(10_000)).unwrap();
    assert!(place < 11, "{place}");
    let rest = std::iter::from_fn(|| pop(&mut queue, 0)).count();
    assert_eq!((place + 1 + rest, queue.active_lanes()), (10_001, 0));
}

#[test]
fn names_are_told_apart() {
    let hasher = RandomState::new();
    let names: HashSet<_> = (0u32..1000)
        .map(|n| Tenant::named(&n.to_le_bytes(), &hasher))
        .collect();
    assert_eq!(names.len(), 1000);
    assert_eq!(Tenant::named(b"a", &hasher), Tenant::named(b"a", &hasher));
    assert_ne!(Tenant::named(b"", &hasher), Tenant::ABSENT);
}

#[test]
fn classes_have_names() {
    for class in Class::ALL {
        assert_eq!(Class::from_name(class.name()), Some(class));
        assert_eq!(Class::from_name(&class.name().to_lowercase()), Some(class));
    }
    assert_eq!(Class::from_name("urgent"), None);
}

#[test]
fn one_who_chooses_again_keeps_its_age() {
    let mut queue = FairQueue::new(&Settings::of_slots(10));
    for item in [0, 1, 2] {
        queue
            .push(
                &arrival(Tenant::ABSENT, Class::Normal, item * SECOND),
                item,
                item * SECOND,
            )
            .unwrap();
    }
    let first = queue.take_any(3 * SECOND).unwrap();
    assert_eq!((first.item, first.waited_nanoseconds), (0, 3 * SECOND));
    queue
        .push(&arrival(Tenant::ABSENT, Class::Normal, 0), 0, 4 * SECOND)
        .unwrap();
    assert_eq!(pop(&mut queue, 4 * SECOND), Some(0));
    // Six seconds of age are a level, with 5 s each.
    queue
        .push(&arrival(Tenant::ABSENT, Class::High, 6 * SECOND), 7, 6 * SECOND)
        .unwrap();
    assert_eq!(pop(&mut queue, 6 * SECOND), Some(1));
}

#[test]
fn a_large_request_lets_small_ones_past_for_as_much_as_it_costs() {
    let mut queue = FairQueue::new(&Settings::of_quota(1000, 100, 0));
    let push = |queue: &mut FairQueue<u64>, number, cost| {
        let asks = Arrival {
            cost,
            ..arrival(tenant(number), Class::Normal, 0)
        };
        queue.push(&asks, cost, 0).unwrap();
    };
    push(&mut queue, 1, 100);
    for _ in 0..50 {
        push(&mut queue, 2, 7);
    }
    // The large one is first and 60 are available: 14 small ones are 98.
    let past: Vec<_> = std::iter::from_fn(|| match queue.pop(60, 0, |_| {}) {
        Next::Entry(entry) => Some(entry.item),
        Next::Short(cost) => {
            assert_eq!(cost, 100);
            None
        }
        Next::Nobody => unreachable!("the large one waits"),
    })
    .collect();
    assert!(
        !past.is_empty() && past.len() <= 14 && past.iter().all(|cost| *cost == 7),
        "{past:?}"
    );
    assert_eq!(pop(&mut queue, 0), Some(100));
}

/// Every entry cancelled after every number of pops: the others come out, once each.
#[test]
fn cancelled_at_any_point_it_is_gone_and_the_others_are_not() {
    for pops in 0..=12 {
        for cancelled in 0..12 {
            let mut queue = FairQueue::new(&Settings::of_quota(20, 3, 0));
            let tickets: Vec<_> = (0..12)
                .map(|item| {
                    let class = Class::ALL[item as usize % 4];
                    let asks = Arrival {
                        cost: 1 + item * 5 % 7,
                        ..arrival(tenant(item % 3), class, item)
                    };
                    queue.push(&asks, item, item).unwrap().ticket
                })
                .collect();
            let mut out: Vec<_> = std::iter::from_fn(|| pop(&mut queue, 20)).take(pops).collect();
            let was_out = out.contains(&cancelled);
            let entry = queue.cancel(tickets[cancelled as usize], 21);
            assert_eq!(entry.map(|entry| entry.item), (!was_out).then_some(cancelled));
            out.extend(std::iter::from_fn(|| pop(&mut queue, 22)));
            out.extend((!was_out).then_some(cancelled));
            out.sort_unstable();
            assert_eq!(out, (0..12).collect::<Vec<_>>());
            // The places are used again, and old tickets mean nothing there.
            queue.push(&arrival(tenant(1), Class::Low, 30), 99, 30).unwrap();
            assert!(tickets.iter().all(|ticket| queue.cancel(*ticket, 30).is_none()));
            assert_eq!((queue.len(), queue.work()), (1, 1));
        }
    }
}

#[test]
fn costs_far_above_the_quantum_take_no_longer() {
    let mut queue = FairQueue::new(&Settings::of_slots(100));
    for number in 0..50 {
        let asks = Arrival {
            cost: u64::MAX,
            ..arrival(tenant(number), Class::Normal, 0)
        };
        queue.push(&asks, number, 0).unwrap();
    }
    let start = std::time::Instant::now();
    assert_eq!(std::iter::from_fn(|| pop(&mut queue, 0)).count(), 50);
    assert!(start.elapsed().as_secs() < 2, "took 2^40 rounds one by one");
}

/// A Low request behind a flood of Critical ones of its own tenant and of others, served one every `service`.
fn wait_under_a_flood(class: Class, lanes: u64, ageing: u64, service: u64) -> u64 {
    let settings = Settings {
        ageing_nanoseconds: ageing,
        ..Settings::of_slots(10_000)
    };
    let mut queue = FairQueue::new(&settings);
    let flood = |queue: &mut FairQueue<bool>, now| {
        for number in 0..lanes {
            queue
                .push(&arrival(tenant(number), Class::Critical, now), false, now)
                .unwrap();
        }
    };
    flood(&mut queue, 0);
    queue.push(&arrival(tenant(0), class, 0), true, 0).unwrap();
    for round in 1.. {
        let now = round * service;
        if pop(&mut queue, now).unwrap() {
            return now;
        }
        // Each lane receives exactly what it is served, so none of the flood is ever exhausted.
        if round % lanes == 0 {
            flood(&mut queue, now);
        }
    }
    unreachable!("the rounds do not end")
}

#[test]
fn ageing_bounds_every_wait() {
    let service = SECOND / 20;
    for class in Class::ALL {
        for lanes in [1, 2, 7] {
            for ageing in [SECOND / 2, 2 * SECOND] {
                let wait = wait_under_a_flood(class, lanes, ageing, service);
                let rises = (3 - class as u64) * ageing;
                // Before it at the top: what its own lane had there when it got there, at most the first flood and one
                // more, and itself.
                let bound = rises + lanes * (3 + 2 + 1) * service;
                assert!(wait <= bound, "{class:?} {lanes} lanes: {wait} > {bound}");
                // And without ageing it would not be served at all before the end of the flood.
                assert!(wait >= rises, "{class:?} {lanes} lanes: {wait} < {rises}");
            }
        }
    }
    // Without ageing the flood would go on for ever.
    let settings = Settings {
        ageing_nanoseconds: u64::MAX,
        ..Settings::of_slots(10)
    };
    let mut queue = FairQueue::new(&settings);
    queue
        .push(&arrival(Tenant::ABSENT, Class::Low, 0), true, 0)
        .unwrap();
    for now in 1..1000 {
        queue
            .push(&arrival(Tenant::ABSENT, Class::Critical, now), false, now)
            .unwrap();
        assert_eq!(pop(&mut queue, now), Some(false));
    }
}

#[test]
fn ageing_can_change_while_somebody_waits() {
    let mut queue = FairQueue::new(&Settings::of_slots(10));
    let push = |queue: &mut FairQueue<_>, class, item, now| {
        queue
            .push(&arrival(Tenant::ABSENT, class, now), item, now)
            .unwrap();
    };
    push(&mut queue, Class::Low, "low", 0);
    push(&mut queue, Class::Normal, "normal", 4 * SECOND);
    push(&mut queue, Class::High, "high", 4 * SECOND);
    // At 5 s a level nobody has risen yet; at 1 s the Low one is at the top before the High one is.
    queue.set_ageing(SECOND);
    assert_eq!(pop(&mut queue, 5 * SECOND), Some("low"));
    queue.set_ageing(u64::MAX);
    push(&mut queue, Class::Critical, "critical", 6 * SECOND);
    assert_eq!(pop(&mut queue, 60 * SECOND), Some("high"));
    assert_eq!(pop(&mut queue, 60 * SECOND), Some("critical"));
    assert_eq!(pop(&mut queue, 60 * SECOND), Some("normal"));
}

/// As under load: a queue of a thousand with a hundred tenants that is full all the time.
#[test]
fn operations_cost_little() {
    let cycles = if is_full() { 3_000_000 } else { 20_000 };
    let mut queue = FairQueue::new(&Settings::of_slots(1000));
    let tenants: Vec<_> = (0..100).map(tenant).collect();
    let mut asks = (0u64..).map(|n| {
        let class = Class::ALL[(n / 7) as usize % 4];
        (n, arrival(tenants[n as usize * 31 % 100], class, n * 1000))
    });
    let start = std::time::Instant::now();
    let mut served = 0;
    for _ in 0..cycles {
        // One waits and is served, one waits and gives up, one is refused or displaces.
        let (mut now, mut last) = (0, None);
        for (n, asks) in asks.by_ref().take(3) {
            now = n * 1000;
            last = queue
                .push(&asks, n, now)
                .ok()
                .map(|admitted| admitted.ticket)
                .or(last);
        }
        served += u32::from(pop(&mut queue, now).is_some());
        last.and_then(|ticket| queue.cancel(ticket, now));
    }
    let nanoseconds = start.elapsed().as_nanos() / (cycles * 5);
    println!("{nanoseconds} ns for a push, pop or cancel");
    assert_eq!(u128::from(served), cycles);
    assert!(nanoseconds < 20_000, "{nanoseconds} ns");
}
