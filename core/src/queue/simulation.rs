//! The queue in front of simulated slots: open-loop arrivals, random service times, all from seeds.
//!
//! `FLOTILLA_FULL=1` runs the full figures and prints them.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::tests::is_full;
use super::*;
use crate::load::random::Stream;

pub(super) const SECOND: f64 = 1e9;

#[derive(Clone, Copy, Debug)]
pub(super) struct Job {
    pub(super) at: u64,
    pub(super) tenant: u64,
    pub(super) class: Class,
    pub(super) cost: u64,
    pub(super) service: u64,
    pub(super) patience: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Outcome {
    Served { wait: u64, predicted: Option<u64> },
    Refused(Limit),
    Displaced,
    Expired,
}

/// Sends `jobs`, sorted by time, to `slots` slots. One outcome each; panics if one has none or two.
pub(super) fn simulate(settings: &Settings, slots: usize, jobs: &[Job]) -> Vec<Outcome> {
    let hasher = std::hash::BuildHasherDefault::<std::hash::DefaultHasher>::default();
    let mut queue = FairQueue::new(settings);
    let mut busy = BinaryHeap::new();
    let mut outcomes: Vec<Option<Outcome>> = vec![None; jobs.len()];
    let mut predictions = vec![None; jobs.len()];
    let mut arrivals = jobs.iter().enumerate().peekable();
    let mut set = |job: usize, outcome: Outcome| {
        assert!(outcomes[job].replace(outcome).is_none(), "{job} has two outcomes");
    };
    loop {
        let next_end = busy.peek().map(|Reverse(end)| *end);
        let next_arrival = arrivals.peek().map(|(_, job)| job.at);
        match (next_end, next_arrival) {
            (Some(end), arrival) if arrival.is_none_or(|at| end <= at) => {
                busy.pop();
                let expired = |entry: Entry<usize>| set(entry.item, Outcome::Expired);
                if let Next::Entry(entry) = queue.pop(u64::MAX, end, expired) {
                    let (wait, predicted) = (entry.waited_nanoseconds, predictions[entry.item]);
                    set(entry.item, Outcome::Served { wait, predicted });
                    busy.push(Reverse(end + jobs[entry.item].service));
                }
            }
            (_, Some(_)) => {
                let Some((index, job)) = arrivals.next() else {
                    break;
                };
                if queue.is_empty() && busy.len() < slots {
                    set(
                        index,
                        Outcome::Served {
                            wait: 0,
                            predicted: Some(0),
                        },
                    );
                    busy.push(Reverse(job.at + job.service));
                    continue;
                }
                let asks = Arrival {
                    tenant: Tenant::named(&job.tenant.to_le_bytes(), &hasher),
                    class: job.class,
                    cost: job.cost,
                    arrived_nanoseconds: job.at,
                    deadline_nanoseconds: job.at.saturating_add(job.patience),
                };
                match queue.push(&asks, index, job.at) {
                    Ok(admitted) => {
                        predictions[index] = admitted.predicted_nanoseconds;
                        match admitted.gone {
                            Some(Gone::Displaced(entry)) => set(entry.item, Outcome::Displaced),
                            Some(Gone::Expired(entry)) => set(entry.item, Outcome::Expired),
                            None => {}
                        }
                    }
                    Err(refused) => set(refused.item, Outcome::Refused(refused.limit)),
                }
            }
            _ => break,
        }
    }
    assert!(queue.is_empty());
    outcomes
        .into_iter()
        .map(|outcome| outcome.expect("every job has an outcome"))
        .collect()
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Service {
    Constant,
    Exponential,
    /// The logarithm has a standard deviation of 1: the coefficient of variation is 1.3.
    Lognormal,
}

impl Service {
    /// The `n`-th service time with this mean in seconds.
    pub(super) fn nanoseconds(self, stream: Stream, n: u64, mean: f64) -> u64 {
        let factor = match self {
            Self::Constant => 1.0,
            Self::Exponential => stream.exponential(n),
            Self::Lognormal => {
                // Box and Muller; the mean of the lognormal with σ = 1 is e^(1/2).
                let radius = (2.0 * stream.exponential(2 * n)).sqrt();
                let angle =
                    std::f64::consts::TAU * stream.below(2 * n + 1, 1 << 53) as f64 / (1u64 << 53) as f64;
                (radius * angle.cos() - 0.5).exp()
            }
        };
        (factor * mean * SECOND) as u64
    }
}

/// Poisson arrivals at `rate` per second for `seconds`.
pub(super) fn arrivals(stream: Stream, rate: f64, seconds: f64, job: impl Fn(u64, u64) -> Job) -> Vec<Job> {
    let mut now = 0.0;
    let times = (0..).map_while(|n| {
        now += stream.exponential(n) / rate;
        (now < seconds).then(|| job(n, (now * SECOND) as u64))
    });
    times.collect()
}

fn merged(streams: Vec<Vec<Job>>) -> Vec<Job> {
    let mut jobs: Vec<_> = streams.into_iter().flatten().collect();
    jobs.sort_by_key(|job| job.at);
    jobs
}

/// 32 slots with services of 2.5 s on average, and a queue of 100: 12.8 requests a second.
pub(super) const SLOTS: usize = 32;
pub(super) const MEAN: f64 = 2.5;
pub(super) const CAPACITY: f64 = SLOTS as f64 / MEAN;

/// What part of what it sent, or of its share where it sent more, was served of tenant 0.
fn kept(jobs: &[Job], outcomes: &[Outcome], share: f64, seconds: f64) -> f64 {
    let mine = || jobs.iter().zip(outcomes).filter(|(job, _)| job.tenant == 0);
    let served = mine()
        .filter(|(_, outcome)| matches!(outcome, Outcome::Served { .. }))
        .count();
    served as f64 / (mine().count() as f64).min(share * seconds)
}

struct Flood {
    name: &'static str,
    tenants: u64,
    /// What each of the others sends, as a multiple of its share.
    times: f64,
    class: Class,
    /// What tenant 0 sends, as a part of its share.
    load: f64,
    service: Service,
}

/// What tenant 0 keeps among the others, and with its part of the slots and of the queue to itself.
fn survives(flood: &Flood, seed: u64, seconds: f64) -> (f64, f64) {
    let stream = Stream::new(seed, 1);
    let share = CAPACITY / flood.tenants as f64;
    let streams = (0..flood.tenants).map(|tenant| {
        let rate = share * if tenant == 0 { flood.load } else { flood.times };
        let class = if tenant == 0 { Class::Low } else { flood.class };
        arrivals(stream.split(2 * tenant), rate, seconds, |n, at| Job {
            at,
            tenant,
            class,
            cost: 1,
            service: flood.service.nanoseconds(stream.split(2 * tenant + 1), n, MEAN),
            patience: (30.0 * SECOND) as u64,
        })
    });
    let jobs = merged(streams.collect());
    let among = kept(
        &jobs,
        &simulate(&Settings::of_slots(100), SLOTS, &jobs),
        share,
        seconds,
    );
    let mine: Vec<Job> = jobs.into_iter().filter(|job| job.tenant == 0).collect();
    let tenants = flood.tenants as usize;
    let outcomes = simulate(&Settings::of_slots(100 / tenants), SLOTS / tenants, &mine);
    (among, kept(&mine, &outcomes, share, seconds))
}

/// A tenant keeps at least 95 % of what it sends, up to its share, whatever the others send, even if all of theirs is
/// Critical and all of its own Low. One of many that sends all of its share at random times cannot: a dozen places
/// do not hold its bursts. It is held to what it would keep with its part of the slots and of the queue to itself.
#[test]
fn a_flood_leaves_the_others_their_share() {
    // The work of 3,000 lognormal services is within 2 % of its mean two times of three.
    let (seeds, seconds, noise) = if is_full() {
        (40, 2000.0, 0.01)
    } else {
        (1, 500.0, 0.03)
    };
    let normal = Flood {
        name: "20 x, equal class",
        tenants: 2,
        times: 20.0,
        class: Class::Low,
        load: 1.0,
        service: Service::Lognormal,
    };
    let floods = [
        Flood {
            name: "20 x, Critical against Low",
            class: Class::Critical,
            ..normal
        },
        Flood {
            name: "20 x, sending 80 % of its share",
            load: 0.8,
            ..normal
        },
        Flood {
            name: "20 x, exponential services",
            service: Service::Exponential,
            ..normal
        },
        Flood {
            name: "20 x, constant services",
            service: Service::Constant,
            ..normal
        },
        Flood {
            name: "7 of 8 tenants at 20 x, Critical",
            tenants: 8,
            class: Class::Critical,
            ..normal
        },
        Flood {
            name: "the same, sending 80 % of its share",
            tenants: 8,
            class: Class::Critical,
            load: 0.8,
            ..normal
        },
        Flood {
            name: "both at 1.5 x",
            times: 1.5,
            load: 1.5,
            ..normal
        },
        normal,
    ];
    for flood in &floods {
        let runs: Vec<_> = (0..seeds).map(|seed| survives(flood, seed, seconds)).collect();
        let worst = runs.iter().map(|(among, _)| *among).fold(f64::MAX, f64::min);
        let among = runs.iter().map(|(among, _)| among).sum::<f64>() / runs.len() as f64;
        let alone = runs.iter().map(|(_, alone)| alone).sum::<f64>() / runs.len() as f64;
        println!(
            "{:36} keeps {:6.2} %, at worst {:6.2} %; alone {:6.2} %",
            flood.name,
            100.0 * among,
            100.0 * worst,
            100.0 * alone
        );
        assert!(among >= alone - noise, "{}: {among}, alone {alone}", flood.name);
        let has_room = flood.tenants == 2 || flood.load < 1.0;
        assert!(
            worst >= if has_room { 0.95 } else { 0.9 },
            "{}: {worst}",
            flood.name
        );
    }
}

/// Tenants with small and with large requests get equal work, not equal numbers.
#[test]
fn mixed_costs_share_the_quota_by_cost() {
    let seconds = if is_full() { 5000.0 } else { 500.0 };
    // 10,000 tokens a second, one after another; costs from 200 to 40,000.
    let stream = Stream::new(5, 5);
    let streams = [200.0, 1000.0, 4000.0, 40_000.0]
        .into_iter()
        .enumerate()
        .map(|(tenant, mean)| {
            let sizes = stream.split(100 + tenant as u64);
            arrivals(stream.split(tenant as u64), 20_000.0 / mean, seconds, |n, at| {
                let cost = (Service::Exponential.nanoseconds(sizes, n, mean / SECOND) + 1).min(128_000);
                let service = cost * 100_000;
                Job {
                    at,
                    tenant: tenant as u64,
                    class: Class::Normal,
                    cost,
                    service,
                    patience: u64::MAX / 2,
                }
            })
        });
    let jobs = merged(streams.collect());
    let outcomes = simulate(&Settings::of_quota(2000, 2000, 0), 1, &jobs);
    let mut work = [0u64; 4];
    for (job, outcome) in jobs.iter().zip(&outcomes) {
        // Only while all of them send.
        if let Outcome::Served { wait, .. } = outcome
            && (job.at + wait) as f64 <= seconds * SECOND
        {
            work[job.tenant as usize] += job.cost;
        }
    }
    let total: u64 = work.iter().sum();
    let shares = work.map(|work| work as f64 / total as f64);
    println!("mixed costs: shares {shares:.3?}");
    assert!(
        shares.iter().all(|share| (share - 0.25).abs() < 0.02),
        "{shares:?}"
    );
}

/// The wait of every entry in a random mixture, against the bound of the module's docs.
#[test]
fn no_wait_exceeds_the_bound() {
    let runs = if is_full() { 200 } else { 6 };
    let mut tightest = 0.0f64;
    for seed in 0..runs {
        let stream = Stream::new(seed, 9);
        let (tenants, quantum, largest) = (1 + seed % 6, 1 + stream.below(0, 20), 1 + stream.below(1, 40));
        let settings = Settings {
            quantum,
            ageing_nanoseconds: 500 + stream.below(2, 3000),
            ..Settings::of_slots(100_000)
        };
        // One server, a unit of cost a nanosecond, at 1.3 times what it can do for a while.
        let gap = largest.div_ceil(2) * 10 / 13;
        let jobs: Vec<_> = (0..3000)
            .map(|n| {
                let pick = stream.split(10 + n);
                let cost = 1 + pick.below(2, largest);
                Job {
                    at: n * gap,
                    tenant: pick.below(0, tenants),
                    class: Class::ALL[pick.below(1, 4) as usize],
                    cost,
                    service: cost,
                    patience: u64::MAX / 2,
                }
            })
            .collect();
        let outcomes = simulate(&settings, 1, &jobs);
        let top = |job: &Job| job.at + (3 - job.class as u64) * settings.ageing_nanoseconds;
        let served_at = |index: usize| match outcomes[index] {
            Outcome::Served { wait, .. } => jobs[index].at + wait,
            _ => unreachable!("nothing is refused: the queue is large and the patience long"),
        };
        for (index, job) in jobs.iter().enumerate() {
            let at_top = top(job);
            let goes_before = |other: usize| {
                let that = &jobs[other];
                that.tenant == job.tenant && top(that) <= at_top && served_at(other) >= at_top
            };
            let before: u64 = (0..jobs.len())
                .filter(|o| goes_before(*o))
                .map(|o| jobs[o].cost)
                .sum();
            // One may be in service when it comes to the top.
            let bound = tenants * (before + 2 * quantum + largest) + largest;
            let over = served_at(index).saturating_sub(at_top);
            assert!(
                over <= bound,
                "seed {seed}, {job:?}: {over} after the top, bound {bound}"
            );
            tightest = tightest.max(over as f64 / bound as f64);
        }
    }
    println!("ageing: at most {:.0} % of the bound", 100.0 * tightest);
    assert!(tightest > 0.3, "the bound says little: {tightest}");
}

/// A quota of 20,000 tokens a window, requests of up to 12,000 and always enough of them: little of a window is left
/// unused, and the large ones are served like the others.
#[test]
fn small_requests_use_what_is_left_of_a_window() {
    let windows = if is_full() { 20_000 } else { 1000 };
    let hasher = std::hash::BuildHasherDefault::<std::hash::DefaultHasher>::default();
    let (limit, stream) = (20_000, Stream::new(17, 1));
    let mut queue = FairQueue::new(&Settings::of_quota(64, 2000, 0));
    let (mut sent, mut used, mut large) = (0, 0, [0u64; 2]);
    for window in 0..windows {
        let mut available = limit;
        loop {
            while queue.len() < 64 {
                let cost = (stream.exponential(sent) * 2000.0) as u64 % 12_000 + 1;
                large[0] += u64::from(cost > 10_000);
                let asks = Arrival {
                    tenant: Tenant::named(&(sent % 4).to_le_bytes(), &hasher),
                    class: Class::Normal,
                    cost,
                    arrived_nanoseconds: window,
                    deadline_nanoseconds: u64::MAX,
                };
                queue.push(&asks, sent, window).unwrap();
                sent += 1;
            }
            let Next::Entry(entry) = queue.pop(available, window, |_| {}) else {
                break;
            };
            available -= entry.cost;
            used += entry.cost;
            large[1] += u64::from(entry.cost > 10_000);
        }
    }
    let utilisation = used as f64 / (limit * windows) as f64;
    println!(
        "windows: {:.1} % used, {} of {} large requests served",
        100.0 * utilisation,
        large[1],
        large[0]
    );
    assert!(utilisation > 0.95, "{utilisation}");
    assert!(large[1] + 8 >= large[0], "{large:?}");
}
