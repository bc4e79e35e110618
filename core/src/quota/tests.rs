//! Cases of the protocol that a reader can follow; the world at large is in [`super::simulation`].

use jiff::tz::TimeZone;

use super::window::CalendarUnit;
use super::*;

mod fairness;
mod loss;

/// 2026-11-05T12:00:00Z.
const NOON: i64 = 1_793_880_000_000;
const NOTHING: Amounts = Amounts {
    input: 0,
    output: 0,
    nano_dollars: 0,
};

fn tokens(input: u64, output: u64) -> Amounts {
    Amounts {
        input,
        output,
        nano_dollars: 0,
    }
}

fn terms() -> Terms {
    Terms {
        lease: 10 * SECOND,
        shortest_lease: 10 * SECOND,
        report_every: SECOND,
        drift_ppm: 0,
        calendar_margin_ms: 1_000,
    }
}

fn requests(limit: u64, seconds: u64) -> Limit {
    Limit {
        within: SECOND,
        ..Limit::new("rpm", Resource::Requests, Window::seconds(seconds), limit)
    }
}

fn per_day(limit: u64) -> Limit {
    let day = Calendar::new(CalendarUnit::Day, TimeZone::UTC);
    Limit {
        within: SECOND,
        ..Limit::new("rpd", Resource::Requests, Window::Calendar(day), limit)
    }
}

fn at(seconds: u64) -> Now {
    Now {
        nanos: seconds * SECOND,
        unix_ms: NOON + seconds as i64 * 1_000,
    }
}

/// An allocator whose writes succeed at once.
struct Office {
    allocator: Allocator,
    limits: Vec<Limit>,
    stored: Option<Checkpoint>,
    writes: usize,
    vouches: Vec<(String, Vouch)>,
}

impl Office {
    fn new(limits: &[Limit]) -> Self {
        let allocator = Allocator::new(limits, terms(), None, 0, at(0));
        Self {
            allocator,
            limits: limits.to_vec(),
            stored: None,
            writes: 0,
            vouches: Vec::new(),
        }
    }

    fn take_over(&mut self, seen: u64, now: Now) {
        self.allocator = Allocator::new(&self.limits, terms(), self.stored.as_ref(), seen * SECOND, now);
    }

    fn carry_out(&mut self, actions: Vec<Action>, now: Now) -> Option<Reply> {
        let mut sent = None;
        for action in actions {
            match action {
                Action::Write(checkpoint) => {
                    self.stored = Some(checkpoint);
                    self.writes += 1;
                    let more = self.allocator.written(now);
                    sent = self.carry_out(more, now).or(sent);
                }
                Action::Send(_, reply) => sent = Some(reply),
                Action::Vouch(by, vouch) => self.vouches.push((by, vouch)),
                Action::StepDown(term) => panic!("nobody else is there, but {term}"),
            }
        }
        sent
    }

    fn exchange(&mut self, holder: &mut Holder, waiting: u64, now: Now) {
        for _ in 0..3 {
            let waits = Waiting {
                class: holder.class("m"),
                requests: waiting,
                total: NOTHING,
                largest: NOTHING,
                oldest: 0,
            };
            let report = holder.report(now.nanos, now.unix_ms, &[waits]);
            let actions = self.allocator.handle(&report, now);
            match self.carry_out(actions, now) {
                Some(reply @ Reply::Grant(_)) => {
                    holder.on_reply(&reply, now.nanos);
                    return;
                }
                Some(reply) => assert!(!holder.on_reply(&reply, now.nanos)),
                None => {}
            }
        }
    }
}

fn holder(id: &str, limits: &[Limit]) -> Holder {
    Holder::new(id, 1, limits, terms(), 0)
}

/// Admits and settles until it must wait; answers how many.
fn drain(holder: &mut Holder, now: Now) -> u64 {
    take(holder, u64::MAX, now)
}

/// The same for at most so many.
fn take(holder: &mut Holder, most: u64, now: Now) -> u64 {
    let class = holder.class("m");
    let mut count = 0;
    while count < most
        && let Admission::Admitted(ticket) = holder.try_admit(class, NOTHING, now.nanos)
    {
        holder.settle(ticket, NOTHING, now.nanos);
        count += 1;
    }
    count
}

#[test]
fn one_replica_uses_the_whole_limit_and_again_after_a_window() {
    let limits = [requests(60, 60)];
    let (mut office, mut one) = (Office::new(&limits), holder("a", &limits));
    let class = one.class("m");
    assert_eq!(
        one.try_admit(class, NOTHING, 0),
        Admission::Wait {
            limit: 0,
            until: None
        },
        "no lease yet"
    );
    office.exchange(&mut one, 100, at(1));
    assert_eq!(drain(&mut one, at(1)), 60);
    let Admission::Wait {
        limit: 0,
        until: Some(until),
    } = one.try_admit(class, NOTHING, at(2).nanos)
    else {
        panic!("all are in use")
    };
    assert!((61 * SECOND..62 * SECOND).contains(&until), "{until}");
    for second in 2..61 {
        office.exchange(&mut one, 100, at(second));
        assert_eq!(drain(&mut one, at(second)), 0);
    }
    assert_eq!(
        drain(
            &mut one,
            Now {
                nanos: until,
                ..at(61)
            }
        ),
        60
    );
    assert!(
        office.writes < 20,
        "a steady state writes twice a lease: {}",
        office.writes
    );
}

#[test]
fn a_request_passes_all_limits_or_none() {
    let small = Limit {
        models: vec!["m".to_owned()],
        ..Limit::new("tpm", Resource::Tokens, Window::seconds(60), 100)
    };
    let open = Limit::new("open", Resource::Concurrency, Window::None, 2);
    let limits = [requests(60, 60), small, open];
    let (mut office, mut one) = (Office::new(&limits), holder("a", &limits));
    let class = one.class("m");
    for second in 1..3 {
        office.exchange(&mut one, 100, at(second));
    }
    let now = at(3).nanos;
    assert_eq!(
        one.try_admit(class, tokens(50, 51), now),
        Admission::Never { limit: 1 }
    );
    let mut tickets = Vec::new();
    // The tokens' share follows the requests that wait, which say nothing of tokens: ask for them.
    let wish = Waiting {
        class,
        requests: 3,
        total: tokens(60, 60),
        largest: tokens(20, 20),
        oldest: 0,
    };
    let report = one.report(now, NOON, &[wish]);
    let actions = office.allocator.handle(&report, at(3));
    let reply = office.carry_out(actions, at(3)).expect("a grant");
    assert!(one.on_reply(&reply, now));
    for _ in 0..2 {
        match one.try_admit(class, tokens(20, 20), now) {
            Admission::Admitted(ticket) => tickets.push(ticket),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(
        one.try_admit(class, tokens(1, 1), now),
        Admission::Wait {
            limit: 2,
            until: None
        }
    );
    let used = |one: &mut Holder| [0, 1, 2].map(|i| one.usage(i, now).expect("a limit").0);
    assert_eq!(used(&mut one), [2, 80, 2], "the refused one holds nothing");
    let other = one.class("other");
    assert_eq!(
        one.try_admit(other, tokens(1, 1), now),
        Admission::Wait {
            limit: 2,
            until: None
        }
    );
    let mut tickets = tickets.into_iter();
    one.cancel(tickets.next().expect("two"));
    assert_eq!(used(&mut one), [1, 40, 1]);
    one.settle(tickets.next().expect("two"), tokens(20, 45), now);
    assert_eq!(used(&mut one), [1, 65, 0], "a debt is held, a connection is not");
}

#[test]
fn what_was_reserved_is_settled_by_usage() {
    let limits = [Limit {
        within: SECOND,
        ..Limit::new("tpm", Resource::Tokens, Window::seconds(60), 1_000)
    }];
    let (mut office, mut one) = (Office::new(&limits), holder("a", &limits));
    let class = one.class("m");
    let wish = Waiting {
        class,
        requests: 9,
        total: tokens(5_000, 0),
        largest: tokens(500, 0),
        oldest: 0,
    };
    office.exchange(&mut one, 0, at(0));
    let report = one.report(0, NOON, &[wish]);
    let actions = office.allocator.handle(&report, at(0));
    let reply = office.carry_out(actions, at(0)).expect("a grant");
    one.on_reply(&reply, 0);
    let used = |one: &mut Holder, second: u64| one.usage(0, second * SECOND).expect("a limit").0;
    let Admission::Admitted(mut ticket) = one.try_admit(class, tokens(500, 400), 0) else {
        panic!("there is room")
    };
    one.headers(&mut ticket, SECOND, SECOND);
    assert_eq!(used(&mut one, 2), 900);
    one.settle(ticket, tokens(100, 20), 5 * SECOND);
    assert_eq!(used(&mut one, 5), 120, "refunded at once");
    assert_eq!(used(&mut one, 60), 120, "held until a window after the headers");
    assert_eq!(used(&mut one, 62), 0);
}

#[test]
fn an_expired_lease_stops_at_once_or_at_the_floor() {
    for floor in [0, 5] {
        let limits = [Limit {
            floor,
            ..requests(60, 60)
        }];
        let (mut office, mut one) = (Office::new(&limits), holder("a", &limits));
        office.exchange(&mut one, 30, at(0));
        assert!(one.has_lease(at(9).nanos));
        assert_eq!(
            drain(
                &mut one,
                Now {
                    nanos: 10 * SECOND,
                    ..at(10)
                }
            ),
            floor
        );
        assert_eq!(drain(&mut one, at(80)), floor, "and again a window later");
        // The allocator keeps the floor for it, until it is known to be gone.
        let mut two = holder("b", &limits);
        for second in 100..104 {
            office.exchange(&mut two, 100, at(second));
        }
        assert_eq!(drain(&mut two, at(104)), 60 - floor);
        office.allocator.gone("a", at(104));
        for second in 170..174 {
            office.exchange(&mut two, 100, at(second));
        }
        assert_eq!(drain(&mut two, at(174)), 60);
    }
}

#[test]
fn a_share_is_written_before_it_is_sent() {
    let limits = [requests(60, 60)];
    let mut allocator = Allocator::new(&limits, terms(), None, 0, at(0));
    let mut one = holder("a", &limits);
    let report = one.report(0, NOON, &[]);
    assert_eq!(
        allocator.handle(&report, at(0)),
        [Action::Send("a".to_owned(), Reply::Term(1))]
    );
    one.on_reply(&Reply::Term(1), 0);
    let wish = Waiting {
        class: one.class("m"),
        requests: 9,
        total: NOTHING,
        largest: NOTHING,
        oldest: 0,
    };
    let report = one.report(0, NOON, &[wish]);
    let actions = allocator.handle(&report, at(0));
    let [Action::Write(checkpoint)] = actions.as_slice() else {
        panic!("{actions:?}")
    };
    let recorded = &checkpoint.holders["a"];
    assert!(recorded.granted["rpm/Requests/60000ms"] >= 9);
    assert!(
        recorded.expires_in_ms > 10_000,
        "renewals need no write for a while"
    );
    assert_eq!(allocator.handle(&report, at(0)), [], "the same report again");
    assert_eq!(
        allocator.tick(at(0)),
        [],
        "nothing is sent while it is unknown what is written"
    );
    allocator.not_written();
    let again = allocator.tick(at(1));
    assert!(matches!(again.as_slice(), [Action::Write(_)]), "{again:?}");
    let sent = allocator.written(at(1));
    let [Action::Send(_, Reply::Grant(grant))] = sent.as_slice() else {
        panic!("{sent:?}")
    };
    assert_eq!((grant.term, grant.seq), (1, 2));
    assert!(one.on_reply(&Reply::Grant(grant.clone()), SECOND));
    assert!(!one.on_reply(&Reply::Grant(grant.clone()), SECOND), "once");
    let newer = Report {
        term: 5,
        seq: 9,
        ..report
    };
    assert_eq!(allocator.handle(&newer, at(2)), [Action::StepDown(5)]);
    assert_eq!(
        Allocator::new(&limits, terms(), None, 0, at(2)).after(5).term(),
        6
    );
}

#[test]
fn a_new_allocator_counts_what_is_recorded_until_its_holder_speaks() {
    let limits = [requests(60, 60)];
    let (mut office, mut one, mut two) = (Office::new(&limits), holder("a", &limits), holder("b", &limits));
    office.exchange(&mut one, 40, at(0));
    office.take_over(0, at(5));
    for _ in 0..3 {
        office.exchange(&mut two, 100, at(5));
    }
    let before = drain(&mut two, at(5));
    let had = one.usage(0, at(5).nanos).expect("a limit").1;
    assert!(before + had <= 60 && before + had >= 58, "{before} beside {had}");
    // It says that it has used nothing; more is free, but not what it may still use.
    office.exchange(&mut one, 0, at(6));
    let kept = one.usage(0, at(6).nanos).expect("a limit").1;
    office.exchange(&mut two, 100, at(6));
    assert!(drain(&mut two, at(6)) + before + kept <= 60);
    // It is never heard of again: its lease ends, then its requests must have been counted, then a window.
    for second in 7..=95 {
        office.exchange(&mut two, 100, at(second));
        drain(&mut two, at(second));
    }
    assert_eq!(two.usage(0, at(95).nanos).expect("a limit").1, 60);
}

#[test]
fn a_days_count_survives_all_processes() {
    let limits = [per_day(1_000)];
    let (mut office, mut one) = (Office::new(&limits), holder("a", &limits));
    let mut used = 0;
    for second in 0..60 {
        office.exchange(&mut one, 600 - used, at(second));
        used += take(&mut one, 600 - used, at(second));
    }
    assert_eq!(used, 600, "shares of a long window grow with its use");
    office.exchange(&mut one, 0, at(60));
    // All are started anew, with other monotonic clocks, hours later.
    let text = office.stored.as_ref().expect("it was written").to_json();
    office.stored = Some(Checkpoint::from_json(&text).expect("what was written"));
    let later = Now {
        nanos: 5 * SECOND,
        unix_ms: NOON + 5 * 3_600_000,
    };
    office.take_over(5, later);
    let mut two = holder("b", &limits);
    let uses = |office: &mut Office, two: &mut Holder, from: Now, seconds: u64| {
        let use_in = |second: u64| {
            let now = Now {
                nanos: from.nanos + second * SECOND,
                unix_ms: from.unix_ms + second as i64 * 1_000,
            };
            office.exchange(two, 2_000, now);
            drain(two, now)
        };
        (0..seconds).map(use_in).sum::<u64>()
    };
    let left = uses(&mut office, &mut two, later, 60);
    assert!(
        (370..=400).contains(&left),
        "little more than what was used counts as used: {left}"
    );
    // The next day, after the margin.
    let midnight = Now {
        nanos: 20_000 * SECOND,
        unix_ms: NOON + 12 * 3_600_000 + 999,
    };
    office.exchange(&mut two, 100, midnight);
    let before = drain(&mut two, midnight);
    assert!(left + before <= 400, "{left} and {before}");
    let after = Now {
        nanos: 20_001 * SECOND,
        unix_ms: NOON + 12 * 3_600_000 + 1_000,
    };
    assert_eq!(uses(&mut office, &mut two, after, 60), 1_000);
}

#[test]
fn unreadable_checkpoints_are_refused() {
    let newer = r#"{"version":2,"term":1,"holders":{}}"#;
    assert!(matches!(
        Checkpoint::from_json(newer),
        Err(CheckpointError::Version(2))
    ));
    assert!(matches!(
        Checkpoint::from_json("{}"),
        Err(CheckpointError::Malformed(_))
    ));
}

#[test]
fn a_budget_may_be_watched_only() {
    let budget = Limit {
        enforced: false,
        ..Limit::new("budget", Resource::NanoDollars, Window::seconds(60), 100)
    };
    let limits = [budget];
    let mut one = holder("a", &limits);
    let amounts = Amounts {
        nano_dollars: 5_000,
        ..NOTHING
    };
    let Admission::Admitted(ticket) = one.try_admit(one.class("m"), amounts, 0) else {
        panic!("it does not block")
    };
    one.settle(ticket, amounts, 0);
    assert_eq!(
        one.report(0, NOON, &[]).limits["budget/NanoDollars/60000ms"].held,
        5_000
    );
}
