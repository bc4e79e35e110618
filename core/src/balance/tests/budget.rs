use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread;

use proptest::prelude::*;

use super::cases;
use crate::balance::{BudgetPolicy, RetryBudget};

const MILLI: u64 = 1_000_000;

fn policy(percent: u32, min_per_second: u32, burst: u32) -> BudgetPolicy {
    BudgetPolicy {
        percent,
        min_per_second,
        burst,
    }
}

fn drain(budget: &RetryBudget, now: u64) -> u64 {
    (0..).take_while(|_| budget.withdraw(now)).count() as u64
}

#[test]
fn a_fifth_of_the_requests_and_a_trickle() {
    let budget = RetryBudget::new(policy(20, 10, 100), 0);
    assert_eq!(drain(&budget, 0), 100);
    for _ in 0..50 {
        budget.deposit(0);
    }
    assert_eq!(drain(&budget, 0), 10);
    assert_eq!(drain(&budget, 99 * MILLI), 0);
    assert_eq!(drain(&budget, 100 * MILLI), 1);
    assert_eq!(
        drain(&budget, 50 * MILLI),
        0,
        "a clock read out of order gives nothing"
    );
    assert_eq!(
        drain(&budget, 3_600_000 * MILLI),
        100,
        "never more than the burst"
    );
    assert_eq!(RetryBudget::new(policy(0, 0, 0), 0).balance(0), 1);
}

proptest! {
    #![proptest_config(cases(200, 50_000))]

    /// Against a bucket in exact arithmetic.
    #[test]
    fn is_a_bucket(
        percent in 0u32..=200, min in 0u32..50, burst in 1u32..40,
        steps in prop::collection::vec((0u64..300, 0u8..4), 1..300),
    ) {
        let budget = RetryBudget::new(policy(percent, min, burst), 0);
        let capacity = u64::from(burst) * 1000;
        let (mut now, mut balance) = (0, capacity);
        for (pause, what) in steps {
            now += pause;
            balance = (balance + pause * u64::from(min)).min(capacity);
            if what == 0 {
                prop_assert_eq!(budget.withdraw(now * MILLI), balance >= 1000);
                balance = balance.checked_sub(1000).unwrap_or(balance);
            } else {
                budget.deposit(now * MILLI);
                balance = (balance + u64::from(percent) * 10).min(capacity);
            }
            prop_assert_eq!(budget.balance(now * MILLI), balance / 1000);
        }
    }
}

#[test]
fn nothing_is_lost_or_made_under_concurrency() {
    let budget = RetryBudget::new(policy(20, 0, 1_000_000), 0);
    assert_eq!(drain(&budget, 0), 1_000_000);
    let (paid, threads, requests) = (AtomicU64::new(0), 4, 25_000);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                for request in 0..requests {
                    budget.deposit(0);
                    if request % 3 == 0 && budget.withdraw(0) {
                        paid.fetch_add(1, SeqCst);
                    }
                }
            });
        }
    });
    let left = drain(&budget, 0);
    assert_eq!(paid.into_inner() + left, threads * requests / 5);
}

/// Threads whose clocks differ by up to half a second: the bound of the module holds all the same.
#[test]
fn the_bound_holds_when_clocks_are_read_out_of_order() {
    let policy = policy(20, 100, 50);
    let budget = RetryBudget::new(policy, 0);
    let (clock, paid, requests) = (AtomicU64::new(0), AtomicU64::new(0), 40_000u64);
    thread::scope(|scope| {
        for thread in 0..4u64 {
            let (budget, clock, paid) = (&budget, &clock, &paid);
            scope.spawn(move || {
                for request in 0..requests / 4 {
                    let now = clock
                        .fetch_add(MILLI / 4, SeqCst)
                        .saturating_sub(thread * 150 * MILLI);
                    if request % 10 == 0 {
                        budget.deposit(now);
                    }
                    if budget.withdraw(now) {
                        paid.fetch_add(1, SeqCst);
                    }
                }
            });
        }
    });
    let millis = clock.into_inner() / MILLI;
    let bound =
        u64::from(policy.burst) + requests / 10 / 5 + millis * u64::from(policy.min_per_second) / 1000;
    let paid = paid.into_inner();
    assert!(paid <= bound, "{paid} of {bound}");
    assert!(paid * 10 >= bound * 9, "{paid} of {bound}");
}
