//! How good predicted waits are, on simulated slots.
//!
//! `FLOTILLA_FULL=1` runs the full figures and prints them.

use super::simulation::{CAPACITY, Job, MEAN, Outcome, SECOND, SLOTS, Service, arrivals, simulate};
use super::tests::is_full;
use super::*;
use crate::load::random::Stream;

/// Errors of predictions, for waits of at least one mean service time.
struct Errors {
    median: f64,
    p95: f64,
    bias: f64,
    waits: usize,
}

fn errors(outcomes: &[Outcome]) -> Errors {
    let pairs: Vec<(f64, f64)> = outcomes
        .iter()
        .filter_map(|outcome| match outcome {
            Outcome::Served {
                wait,
                predicted: Some(predicted),
            } if *wait as f64 >= MEAN * SECOND => Some((*wait as f64, *predicted as f64)),
            _ => None,
        })
        .collect();
    let mut relative: Vec<f64> = pairs
        .iter()
        .map(|(wait, predicted)| (predicted - wait).abs() / wait)
        .collect();
    relative.sort_by(f64::total_cmp);
    let at = |q: f64| relative[((relative.len() - 1) as f64 * q) as usize];
    let (waited, predicted) = pairs
        .iter()
        .fold((0.0, 0.0), |(a, b), (wait, told)| (a + wait, b + told));
    Errors {
        median: at(0.5),
        p95: at(0.95),
        bias: predicted / waited - 1.0,
        waits: pairs.len(),
    }
}

/// An M/G/c queue at 95 % load: one tenant and one class, and five tenants of different loads with two classes.
#[test]
fn predictions_are_about_right() {
    let seconds = if is_full() { 60_000.0 } else { 1500.0 };
    for slots in [1, 8, 32] {
        for service in [Service::Constant, Service::Exponential, Service::Lognormal] {
            for tenants in [1, 5] {
                let rate = 0.95 * slots as f64 / MEAN;
                let stream = Stream::new(slots as u64, 3);
                let jobs = arrivals(stream.split(0), rate, seconds * 32.0 / slots as f64, |n, at| {
                    Job {
                        at,
                        // Shares of 1 to 5 fifteenths; a fifth of the requests are High.
                        tenant: if tenants == 1 {
                            0
                        } else {
                            [0, 1, 1, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 4][stream.below(n, 15) as usize]
                        },
                        class: if tenants > 1 && stream.split(1).below(n, 5) == 0 {
                            Class::High
                        } else {
                            Class::Normal
                        },
                        cost: 1,
                        service: service.nanoseconds(stream.split(2), n, MEAN),
                        patience: u64::MAX / 2,
                    }
                });
                let found = errors(&simulate(&Settings::of_slots(10_000), slots, &jobs));
                println!(
                    "{slots:2} slots, {service:11?}, {tenants} tenants: {:6} waits, error median {:4.0} %, p95 {:4.0} %, bias {:+4.0} %",
                    found.waits,
                    100.0 * found.median,
                    100.0 * found.p95,
                    100.0 * found.bias,
                );
                assert!(
                    found.median < 0.45 && found.bias.abs() < 0.2,
                    "{slots} {service:?} {tenants}"
                );
            }
        }
    }
}

/// What the prediction is for: with clients that wait 5 s at most, in an overload of 1.5 times, nearly all who are let
/// in are served in time, and slots are not left idle for it.
#[test]
fn who_is_let_in_is_served_in_time() {
    let seconds = if is_full() { 20_000.0 } else { 2000.0 };
    let stream = Stream::new(11, 3);
    let jobs = arrivals(stream.split(0), 1.5 * CAPACITY, seconds, |n, at| Job {
        at,
        tenant: n % 3,
        class: Class::Normal,
        cost: 1,
        service: Service::Lognormal.nanoseconds(stream.split(2), n, MEAN),
        patience: (5.0 * SECOND) as u64,
    });
    let outcomes = simulate(&Settings::of_slots(500), SLOTS, &jobs);
    let count =
        |wanted: fn(&Outcome) -> bool| outcomes.iter().filter(|outcome| wanted(outcome)).count() as f64;
    let served = count(|outcome| matches!(outcome, Outcome::Served { .. }));
    let refused = count(|outcome| matches!(outcome, Outcome::Refused(Limit::PredictedWait)));
    let late = count(|outcome| matches!(outcome, Outcome::Expired));
    println!(
        "overload of 1.5: served {:.1} % of capacity, refused at once {:.1} % of all, let in but late {:.1} % of those let in",
        100.0 * served / (CAPACITY * seconds),
        100.0 * refused / jobs.len() as f64,
        100.0 * late / (served + late),
    );
    assert!(served >= 0.95 * CAPACITY * seconds, "{served}");
    assert!(late <= 0.15 * (served + late), "{late} of {served}");
}
