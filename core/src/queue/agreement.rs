//! The queue against the [model](super::model).

use std::collections::HashSet;

use proptest::prelude::*;

use super::model::{Model, Popped};
use super::tests::{is_full, pop, tenant};
use super::*;

#[derive(Clone, Debug)]
enum Operation {
    Push {
        tenant: u64,
        class: usize,
        cost: u64,
        waited: u64,
        patience: u64,
    },
    Pop(u64),
    Cancel(usize),
    Pass(u64),
    Capacity(usize),
    TakeAny,
}

fn operation() -> impl Strategy<Value = Operation> {
    let push = (
        0u64..6,
        0usize..4,
        1u64..30,
        prop_oneof![8 => Just(0u64), 1 => 0u64..80],
        0u64..400,
    );
    prop_oneof![
        10 => push.prop_map(|(tenant, class, cost, waited, patience)| Operation::Push { tenant, class, cost, waited, patience }),
        6 => prop_oneof![3 => Just(u64::MAX), 2 => 1u64..40].prop_map(Operation::Pop),
        2 => (0usize..60).prop_map(Operation::Cancel),
        3 => (0u64..60).prop_map(Operation::Pass),
        1 => (0usize..16).prop_map(Operation::Capacity),
        1 => Just(Operation::TakeAny),
    ]
}

/// Whatever happens in whatever order, the queue does what the plain rules say, and nothing is lost or comes twice.
fn agrees_with_the_model(quantum: u64, operations: &[Operation]) -> Result<(), TestCaseError> {
    let settings = Settings {
        capacity: 12,
        quantum,
        ageing_nanoseconds: 20,
        ..Settings::of_slots(12)
    };
    let mut queue = FairQueue::new(&settings);
    let mut model = Model::new(quantum as i64, 20);
    let mut now = 100;
    let mut capacity = 12;
    let mut tickets = Vec::new();
    let mut left = HashSet::new();
    for (id, operation) in (0u32..).zip(operations) {
        match operation {
            Operation::Push {
                tenant: number,
                class,
                cost,
                waited,
                patience,
            } => {
                model.advance(now);
                let class = Class::ALL[*class];
                let (arrived, deadline) = (now - (*waited).min(now), now + patience);
                let asks = Arrival {
                    tenant: if *number == 0 {
                        Tenant::ABSENT
                    } else {
                        tenant(*number)
                    },
                    class,
                    cost: *cost,
                    arrived_nanoseconds: arrived,
                    deadline_nanoseconds: deadline,
                };
                let level = model.level(class, arrived, now);
                let work = model.work_until_served(*number, level, *cost);
                let predicted = queue.predict(&asks, now);
                let told = queue.work_until_served(&asks, level);
                prop_assert!((work..=2 * work).contains(&told), "{told} for {work}");
                let is_late = *patience == 0 || predicted.is_some_and(|wait| wait > *patience);
                let expired = model.waiting.iter().any(|entry| entry.deadline <= now);
                let is_full = model.waiting.len() >= capacity;
                match queue.push(&asks, id, now) {
                    Ok(admitted) => {
                        prop_assert!(!is_late);
                        prop_assert_eq!(admitted.gone.is_some(), is_full);
                        match admitted.gone {
                            Some(Gone::Displaced(victim)) => {
                                prop_assert!(model.may_displace(*number, level, victim.item));
                                prop_assert!(left.insert(victim.item) && model.remove(victim.item));
                            }
                            Some(Gone::Expired(victim)) => {
                                prop_assert!(expired && victim.deadline_nanoseconds <= now);
                                prop_assert!(left.insert(victim.item) && model.remove(victim.item));
                            }
                            None => {}
                        }
                        tickets.push((admitted.ticket, id));
                        model.push(id, *number, class, *cost, [arrived, deadline, now]);
                    }
                    Err(refused) => {
                        prop_assert_eq!(refused.item, id);
                        prop_assert_eq!(refused.limit == Limit::PredictedWait, is_late);
                        if !is_late {
                            prop_assert!(is_full);
                            let victims = model
                                .waiting
                                .iter()
                                .filter(|v| model.may_displace(*number, level, v.id));
                            // The rule for equals looks at the newest of each level only.
                            prop_assert_eq!(victims.count(), 0);
                        }
                    }
                }
            }
            Operation::Pop(available) => {
                model.advance(now);
                let (mut expired, mut expected) = (Vec::new(), Vec::new());
                let popped = match queue.pop(*available, now, |entry| expired.push(entry.item)) {
                    Next::Entry(entry) => {
                        prop_assert!(entry.cost <= *available && entry.deadline_nanoseconds > now);
                        prop_assert!(left.insert(entry.item));
                        Popped::Entry(entry.item)
                    }
                    Next::Short(cost) => Popped::Short(cost),
                    Next::Nobody => Popped::Nobody,
                };
                prop_assert_eq!(popped, model.pop(*available, now, &mut expected));
                prop_assert_eq!(&expired, &expected);
                prop_assert!(expired.into_iter().all(|id| left.insert(id)));
            }
            Operation::Cancel(which) => {
                if let Some((ticket, id)) = tickets.get(*which % tickets.len().max(1)) {
                    let cancelled = queue.cancel(*ticket, now).map(|entry| entry.item);
                    prop_assert_eq!(cancelled.is_some(), model.remove(*id));
                    prop_assert!(cancelled.is_none_or(|item| item == *id && left.insert(item)));
                    prop_assert!(queue.cancel(*ticket, now).is_none());
                }
            }
            Operation::Pass(time) => now += time,
            Operation::Capacity(entries) => {
                capacity = *entries;
                queue.set_capacity(capacity);
            }
            Operation::TakeAny => {
                model.advance(now);
                let first = model.waiting.iter().max_by_key(|entry| {
                    (
                        entry.level,
                        std::cmp::Reverse(model.waiting.iter().position(|e| e.id == entry.id)),
                    )
                });
                let first = first.map(|entry| entry.id);
                prop_assert_eq!(queue.take_any(now).map(|entry| entry.item), first);
                if let Some(id) = first {
                    prop_assert!(left.insert(id) && model.remove(id));
                }
            }
        }
        prop_assert_eq!(queue.len(), model.waiting.len());
        prop_assert_eq!(
            queue.work(),
            model.waiting.iter().map(|entry| entry.cost).sum::<u64>()
        );
        prop_assert_eq!(queue.waiting(tenant(1)), model.of(1).len());
        let tenants: HashSet<_> = model.waiting.iter().map(|entry| entry.tenant).collect();
        prop_assert_eq!(queue.active_lanes(), tenants.len());
    }
    // What is left comes out once each.
    let mut rest: HashSet<_> = model.waiting.iter().map(|entry| entry.id).collect();
    while let Some(id) = pop(&mut queue, now) {
        prop_assert!(rest.remove(&id), "{id} came twice");
    }
    prop_assert!(queue.is_empty());
    prop_assert!(
        model
            .waiting
            .iter()
            .all(|entry| !rest.contains(&entry.id) || entry.deadline <= now)
    );
    Ok(())
}

fn cases(sample: u32, full: u32) -> ProptestConfig {
    ProptestConfig::with_cases(if is_full() { full } else { sample })
}

proptest! {
    #![proptest_config(cases(250, 20_000))]
    #[test]
    fn does_what_the_model_does(quantum in 1u64..12, operations in prop::collection::vec(operation(), 1..150)) {
        agrees_with_the_model(quantum, &operations)?;
    }
}
