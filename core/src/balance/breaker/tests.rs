use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::thread;

use proptest::prelude::*;

use super::*;
use crate::balance::tests::{cases, is_full};
use crate::load::random::Stream;

/// The breaker as one would write it down, without words and bits.
#[derive(Debug)]
struct Model {
    policy: BreakerPolicy,
    millis: u64,
    stay: u64,
    times: u32,
    closed_since_seconds: u64,
    state: ModelState,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum ModelState {
    Closed { failures: u8 },
    Open { until: u64 },
    HalfOpen { out: u8, successes: u8 },
}

/// None: forced.
type ModelTicket = Option<u64>;

impl Model {
    fn go(&mut self, state: ModelState) {
        self.stay += 1;
        self.state = state;
    }

    fn begin(&mut self) -> Option<ModelTicket> {
        match &mut self.state {
            ModelState::Closed { .. } => {}
            ModelState::Open { until } if self.millis < *until => return None,
            ModelState::Open { .. } => self.go(ModelState::HalfOpen { out: 1, successes: 0 }),
            ModelState::HalfOpen { out, .. } if *out < self.policy.probes => *out += 1,
            ModelState::HalfOpen { .. } => return None,
        }
        Some(Some(self.stay))
    }

    fn succeed(&mut self, ticket: ModelTicket) {
        if ticket != Some(self.stay) {
            return;
        }
        match &mut self.state {
            ModelState::Closed { failures } => *failures = 0,
            ModelState::Open { .. } => unreachable!("no request starts while open"),
            ModelState::HalfOpen { out, successes } => {
                (*out, *successes) = (*out - 1, *successes + 1);
                if *successes == self.policy.successes {
                    self.closed_since_seconds = self.millis / 1000;
                    self.go(ModelState::Closed { failures: 0 });
                }
            }
        }
    }

    fn fail(&mut self, ticket: ModelTicket, asked: Option<u64>) {
        if ticket != Some(self.stay) {
            return;
        }
        match &mut self.state {
            ModelState::Closed { failures } => *failures = failures.saturating_add(1),
            ModelState::Open { .. } => unreachable!("no request starts while open"),
            ModelState::HalfOpen { .. } => self.open_again(asked),
        }
    }

    fn abandon(&mut self, ticket: ModelTicket) {
        if let ModelState::HalfOpen { out, .. } = &mut self.state
            && ticket == Some(self.stay)
        {
            *out -= 1;
        }
    }

    fn open(&mut self, asked: Option<u64>) {
        let quiet = self.millis / 1000 - self.closed_since_seconds;
        for _ in 0..quiet / self.policy.forget_after.as_secs() {
            self.times = self.times.saturating_sub(1);
        }
        self.open_again(asked);
    }

    fn open_again(&mut self, asked: Option<u64>) {
        self.times = (self.times + 1).min(63);
        let mut length = self.policy.open.as_millis() as u64;
        for _ in 1..self.times {
            length = (2 * length).min(self.policy.open_max.as_millis() as u64);
        }
        let length = length
            .max(asked.unwrap_or(0))
            .min(self.policy.open_max.as_millis() as u64);
        self.go(ModelState::Open {
            until: self.millis + length,
        });
    }

    fn shown(&self) -> State {
        match self.state {
            ModelState::Closed { failures } => State::Closed { failures },
            ModelState::Open { until } if self.millis < until => State::Open {
                until_nanos: until * NANOS_PER_MILLI,
            },
            ModelState::Open { .. } => State::HalfOpen {
                probes: 0,
                successes: 0,
            },
            ModelState::HalfOpen { out, successes } => State::HalfOpen {
                probes: out,
                successes,
            },
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Wait(u64),
    Begin,
    BeginAnyway,
    Succeed(prop::sample::Index),
    Fail(prop::sample::Index, Option<u64>),
    Abandon(prop::sample::Index),
    Open(Option<u64>),
}

fn step() -> impl Strategy<Value = Step> {
    let ticket = any::<prop::sample::Index>;
    let asked = || prop::option::weighted(0.3, 0u64..20_000);
    prop_oneof![
        3 => prop_oneof![0u64..50, 500u64..2_000, 5_000u64..200_000].prop_map(Step::Wait),
        5 => Just(Step::Begin),
        1 => Just(Step::BeginAnyway),
        4 => ticket().prop_map(Step::Succeed),
        3 => (ticket(), asked()).prop_map(|(ticket, asked)| Step::Fail(ticket, asked)),
        1 => ticket().prop_map(Step::Abandon),
        1 => asked().prop_map(Step::Open),
    ]
}

fn policy(probes: u8, successes: u8) -> BreakerPolicy {
    BreakerPolicy {
        open: Duration::from_secs(1),
        open_max: Duration::from_secs(12),
        forget_after: Duration::from_secs(30),
        probes,
        successes,
    }
}

proptest! {
    #![proptest_config(cases(400, 100_000))]

    #[test]
    fn does_what_the_model_does(
        probes in 1u8..4, successes in 1u8..4, steps in prop::collection::vec(step(), 1..150),
    ) {
        let policy = policy(probes, successes);
        let breaker = Breaker::default();
        let mut model = Model {
            policy,
            millis: 0,
            stay: 0,
            times: 0,
            closed_since_seconds: 0,
            state: ModelState::Closed { failures: 0 },
        };
        let mut tickets: Vec<(Ticket, ModelTicket)> = Vec::new();
        for step in steps {
            let now = model.millis * NANOS_PER_MILLI;
            let taken = match &step {
                Step::Succeed(ticket) | Step::Fail(ticket, _) | Step::Abandon(ticket) if !tickets.is_empty() => {
                    Some(tickets.swap_remove(ticket.index(tickets.len())))
                }
                _ => None,
            };
            match (step, taken) {
                (Step::Wait(millis), _) => model.millis += millis,
                (Step::Begin, _) => {
                    let admits = breaker.admits(now, &policy);
                    let (ticket, expected) = (breaker.begin(now, &policy), model.begin());
                    prop_assert_eq!(ticket.is_some(), expected.is_some());
                    prop_assert_eq!(admits, expected.is_some());
                    tickets.extend(ticket.zip(expected));
                }
                (Step::BeginAnyway, _) => {
                    tickets.push((breaker.begin_anyway(now, &policy), model.begin().flatten()));
                }
                (Step::Succeed(_), Some((ticket, expected))) => {
                    let was_closed = matches!(model.state, ModelState::Closed { .. });
                    let seen = breaker.succeed(ticket, now, &policy);
                    model.succeed(expected);
                    let is_closed = matches!(model.state, ModelState::Closed { .. });
                    prop_assert_eq!(seen == Succeeded::Closed, is_closed && !was_closed);
                }
                (Step::Fail(_, asked), Some((ticket, expected))) => {
                    let stay = model.stay;
                    let seen = breaker.fail(ticket, asked.map(Duration::from_millis), now, &policy);
                    model.fail(expected, asked);
                    prop_assert_eq!(matches!(seen, Failed::Reopened(_)), model.stay != stay);
                }
                (Step::Abandon(_), Some((ticket, expected))) => {
                    breaker.abandon(ticket);
                    model.abandon(expected);
                }
                (Step::Open(asked), _) => {
                    let asked_for = asked.map(Duration::from_millis);
                    let opened = breaker.open(breaker.stay(), asked_for, now, &policy);
                    let may = matches!(model.state, ModelState::Closed { .. });
                    prop_assert_eq!(opened.is_some(), may);
                    if may {
                        model.open(asked);
                    }
                }
                (Step::Succeed(_) | Step::Fail(..) | Step::Abandon(_), None) => {}
            }
            let now = model.millis * NANOS_PER_MILLI;
            prop_assert_eq!(breaker.state(now), model.shown());
            prop_assert_eq!(breaker.is_out(), !matches!(model.state, ModelState::Closed { .. }));
        }
    }

    #[test]
    fn a_word_is_what_was_packed(word: u64) {
        let word = Word::unpack(word & !(1 << 63)).pack();
        prop_assert_eq!(Word::unpack(word).pack(), word);
    }
}

#[test]
fn an_old_judgement_opens_nothing() {
    let (breaker, policy) = (Breaker::default(), policy(1, 1));
    let stay = breaker.stay();
    assert!(breaker.open(stay, None, 0, &policy).is_some());
    assert_eq!(breaker.open(stay, None, 0, &policy), None, "open already");
    let probe = breaker.begin(NANOS_PER_SECOND, &policy).unwrap();
    assert!(probe.is_probe());
    assert_eq!(
        breaker.succeed(probe, NANOS_PER_SECOND, &policy),
        Succeeded::Closed
    );
    assert_eq!(
        breaker.open(stay, None, NANOS_PER_SECOND, &policy),
        None,
        "closed again since"
    );
}

#[test]
fn the_longest_time_and_the_largest_count_do_not_overflow() {
    let policy = BreakerPolicy {
        open: Duration::from_secs(u64::MAX / 4),
        open_max: Duration::MAX,
        ..BreakerPolicy::default()
    };
    let breaker = Breaker::default();
    for _ in 0..300 {
        let ticket = breaker.begin(0, &policy).unwrap();
        assert!(matches!(
            breaker.fail(ticket, None, 0, &policy),
            Failed::Counted(1..)
        ));
    }
    assert!(breaker.open(breaker.stay(), None, 0, &policy).is_some());
    assert!(!breaker.admits(30 * 365 * 86_400 * NANOS_PER_SECOND, &policy));
}

/// Threads that begin and end as they like: never more probes at once than allowed, none lost, and every opening is
/// followed by at most one closing.
#[test]
fn probes_are_bounded_under_concurrency() {
    let policy = BreakerPolicy {
        open: Duration::from_millis(5),
        open_max: Duration::from_millis(10),
        ..policy(2, 3)
    };
    let breaker = Breaker::default();
    let out: Vec<AtomicU32> = (0..=u16::MAX).map(|_| AtomicU32::new(0)).collect();
    let (clock, probes) = (AtomicU64::new(0), AtomicU64::new(0));
    let (opened, closed) = (AtomicU64::new(0), AtomicU64::new(0));
    let rounds = if is_full() { 2_000_000 } else { 40_000 };
    thread::scope(|scope| {
        for thread in 0..4 {
            let (breaker, out, clock, probes) = (&breaker, &out, &clock, &probes);
            let (opened, closed, policy) = (&opened, &closed, &policy);
            scope.spawn(move || {
                let stream = Stream::new(thread, 7);
                let mut held: Vec<Ticket> = Vec::new();
                for n in 0..rounds {
                    let now = clock.fetch_add(20_000, SeqCst);
                    let random = stream.at(n);
                    if let Some(ticket) = breaker.begin(now, policy) {
                        if ticket.is_probe() {
                            probes.fetch_add(1, SeqCst);
                            let at_once = out[usize::from(ticket.generation)].fetch_add(1, SeqCst) + 1;
                            assert!(at_once <= 2, "{at_once}");
                        }
                        held.push(ticket);
                    }
                    if held.len() > (random % 4) as usize {
                        let ticket = held.swap_remove((random >> 8) as usize % held.len());
                        if ticket.is_probe() {
                            out[usize::from(ticket.generation)].fetch_sub(1, SeqCst);
                        }
                        match (random >> 32) % 8 {
                            0 => breaker.abandon(ticket),
                            1 => {
                                let stay = breaker.stay();
                                if let Failed::Counted(2..) = breaker.fail(ticket, None, now, policy)
                                    && breaker.open(stay, None, now, policy).is_some()
                                {
                                    opened.fetch_add(1, SeqCst);
                                }
                            }
                            _ => {
                                if breaker.succeed(ticket, now, policy) == Succeeded::Closed {
                                    closed.fetch_add(1, SeqCst);
                                }
                            }
                        }
                    }
                }
                for ticket in held {
                    if ticket.is_probe() {
                        out[usize::from(ticket.generation)].fetch_sub(1, SeqCst);
                    }
                    breaker.abandon(ticket);
                }
            });
        }
    });
    let end = clock.into_inner() + NANOS_PER_SECOND;
    let is_out = u64::from(breaker.is_out());
    let (opened, closed, probes) = (opened.into_inner(), closed.into_inner(), probes.into_inner());
    println!("{opened} times opened, {closed} times closed, {probes} probes");
    assert_eq!(opened - closed, is_out);
    assert!(closed > 10, "{closed}");
    if let State::HalfOpen { probes, .. } = breaker.state(end) {
        assert_eq!(probes, 0);
    }
}
