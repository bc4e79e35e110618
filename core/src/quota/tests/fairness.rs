//! Headers, slopes, large requests, and what it costs.

use super::*;

#[test]
fn headers_correct_downwards_for_a_while() {
    let limits = [
        requests(60, 60),
        Limit {
            name: "rph".to_owned(),
            ..requests(100_000, 3_600)
        },
    ];
    let (mut office, mut one) = (Office::new(&limits), holder("a", &limits));
    let class = one.class("m");
    office.exchange(&mut one, 100, at(0));
    let hint = |text: &[(&'static str, &'static str)]| {
        parse(text.iter().map(|(name, value)| (*name, value.as_bytes())), NOON)
    };
    let share = |one: &mut Holder, second| [0, 1].map(|i| one.usage(i, at(second).nanos).expect("a limit").1);
    // Nothing is used here, but somebody uses the same key.
    let foreign = hint(&[
        ("x-ratelimit-limit-requests", "60"),
        ("x-ratelimit-remaining-requests", "0"),
        ("x-ratelimit-reset-requests", "5s"),
    ]);
    one.apply(class, &foreign, SECOND);
    office.exchange(&mut one, 100, at(1));
    let before = share(&mut one, 1)[0];
    assert_eq!(
        before, 60,
        "what we hold ourselves may be what the provider counts"
    );
    let lower = hint(&[
        ("x-ratelimit-limit-requests", "20"),
        ("x-ratelimit-reset-requests", "5s"),
    ]);
    one.apply(class, &lower, 2 * SECOND);
    office.exchange(&mut one, 100, at(2));
    assert_eq!(share(&mut one, 2)[0], 20, "and the hour's limit is another one");
    assert!(share(&mut one, 2)[1] > 100);
    one.apply(
        class,
        &hint(&[("x-ratelimit-limit-requests", "9000")]),
        3 * SECOND,
    );
    office.exchange(&mut one, 100, at(8));
    assert_eq!(
        share(&mut one, 8)[0],
        60,
        "never upwards, and over when it is over"
    );
    one.apply(class, &hint(&[("retry-after", "4")]), 9 * SECOND);
    assert_eq!(
        one.try_admit(class, NOTHING, 10 * SECOND),
        Admission::Wait {
            limit: 0,
            until: Some(13 * SECOND)
        }
    );
    assert!(matches!(
        one.try_admit(class, NOTHING, 13 * SECOND),
        Admission::Admitted(_)
    ));
}

#[test]
fn a_long_wait_is_tried_with_one_request_an_hour() {
    let limits = [requests(60, 60)];
    let (mut office, mut one) = (Office::new(&limits), holder("a", &limits));
    let class = one.class("m");
    let wait = |text: &'static str| parse([("retry-after", text.as_bytes())], NOON);
    // What may go at this second, of three.
    let mut go = |one: &mut Holder, second: u64| {
        office.exchange(one, 3, at(second));
        let now = at(second).nanos;
        let admitted = (0..3).map_while(|_| match one.try_admit(class, NOTHING, now) {
            Admission::Admitted(ticket) => Some(ticket),
            _ => None,
        });
        admitted.collect::<Vec<_>>()
    };
    let end = |one: &mut Holder, tickets: Vec<Ticket>, second: u64| {
        for mut ticket in tickets {
            one.headers(&mut ticket, at(second).nanos, at(second).nanos);
            one.settle(ticket, NOTHING, at(second).nanos);
        }
    };
    let mut before = go(&mut one, 0);
    let late = before.pop().expect("three may go");
    end(&mut one, before, 0);
    one.apply(class, &wait("2678400"), at(1).nanos);
    one.probed(&late);
    end(&mut one, vec![late], 2);
    assert_eq!(go(&mut one, 3_600).len(), 0, "an older answer says nothing");
    // The provider says so again.
    let probe = go(&mut one, 3_601);
    assert_eq!(probe.len(), 1);
    one.probed(&probe[0]);
    one.apply(class, &wait("2674800"), at(3_602).nanos);
    end(&mut one, probe, 3_602);
    assert_eq!(go(&mut one, 3_700).len(), 0);
    // Nothing is heard of the next one; the one after it is answered.
    let lost = go(&mut one, 7_202);
    assert_eq!((lost.len(), go(&mut one, 7_261).len()), (1, 0));
    end(&mut one, lost, 7_261);
    let probe = go(&mut one, 7_262);
    assert_eq!(probe.len(), 1);
    one.probed(&probe[0]);
    end(&mut one, probe, 7_262);
    assert_eq!(go(&mut one, 7_263).len(), 3, "it was a mistake");
    // An hour or less is believed.
    one.apply(class, &wait("3600"), at(7_264).nanos);
    assert_eq!((go(&mut one, 10_863).len(), go(&mut one, 10_864).len()), (0, 3));
}

#[test]
fn a_slope_holds_for_all_replicas_together() {
    let slope = Slope {
        base: 10,
        step_percent: 50,
        memory: 6,
    };
    let limits = [Limit {
        slope: Some(slope),
        ..requests(1_000, 10)
    }];
    let mut office = Office::new(&limits);
    let mut holders = [holder("a", &limits), holder("b", &limits)];
    let mut per_window = vec![0u64; 6];
    for second in 0..60 {
        for holder in &mut holders {
            office.exchange(holder, 500, at(second));
            per_window[second as usize / 10] += drain(holder, at(second));
        }
    }
    assert!(per_window[0] <= 10, "{per_window:?}");
    let grows_slowly = per_window
        .windows(2)
        .all(|pair| pair[1] <= pair[0] + pair[0] / 2 + 1);
    assert!(grows_slowly && per_window[5] > 30, "{per_window:?}");
}

#[test]
fn a_large_request_gets_its_turn() {
    let limits = [Limit {
        within: SECOND,
        ..Limit::new("tpm", Resource::Tokens, Window::seconds(10), 1_000)
    }];
    let mut office = Office::new(&limits);
    let mut holders = [holder("a", &limits), holder("b", &limits), holder("c", &limits)];
    let mut served = [0u32; 3];
    let mut since = [0u64; 3];
    for second in 0..300 {
        for (i, holder) in holders.iter_mut().enumerate() {
            let (class, now) = (holder.class("m"), at(second));
            // Each asks for 700 of 1,000: only one at a time can have that.
            let large = tokens(700, 0);
            let oldest = (second - since[i]) * SECOND;
            let wish = Waiting {
                class,
                requests: 1,
                total: large,
                largest: large,
                oldest,
            };
            for _ in 0..2 {
                let report = holder.report(now.nanos, now.unix_ms, &[wish]);
                let actions = office.allocator.handle(&report, now);
                if let Some(reply) = office.carry_out(actions, now) {
                    holder.on_reply(&reply, now.nanos);
                }
            }
            if let Admission::Admitted(ticket) = holder.try_admit(class, large, now.nanos) {
                holder.settle(ticket, large, now.nanos);
                served[i] += 1;
                since[i] = second;
            }
        }
    }
    assert!(served.iter().all(|count| *count >= 6), "{served:?}");
}

#[test]
fn an_idle_replica_rests_and_wakes() {
    let limits = [requests(60, 60)];
    let (mut office, mut one) = (Office::new(&limits), holder("a", &limits));
    office.exchange(&mut one, 1, at(0));
    assert_eq!(drain(&mut one, at(0)).min(1), 1);
    let mut second = 1;
    while let Some(at_nanos) = one.next_report() {
        assert!(second < 30, "it never rests");
        assert!(at_nanos <= at(second).nanos);
        office.exchange(&mut one, 0, at(second));
        second += 1;
    }
    let writes = office.writes;
    let allocator = &mut office.allocator;
    assert!(
        (second..600).all(|second| allocator.tick(at(second)).is_empty()),
        "silence costs nothing"
    );
    assert_eq!(office.writes, writes);
    let class = one.class("m");
    assert!(matches!(
        one.try_admit(class, NOTHING, at(600).nanos),
        Admission::Wait { .. }
    ));
    assert_eq!(one.next_report(), Some(at(600).nanos));
    office.exchange(&mut one, 1, at(600));
    assert!(matches!(
        one.try_admit(class, NOTHING, at(600).nanos),
        Admission::Admitted(_)
    ));
    let last = one.leave(at(601).nanos, NOON);
    assert!(last.released);
    assert!(matches!(
        one.try_admit(class, NOTHING, at(601).nanos),
        Admission::Wait { .. }
    ));
    assert_eq!(one.next_report(), None);
}

/// What the hot path costs; prints, and fails only if it is a hundred times what it should be.
#[test]
fn admission_is_cheap() {
    let limits = [
        requests(1_000_000_000, 60),
        Limit::new("tpm", Resource::Tokens, Window::seconds(60), 1 << 50),
        per_day(1 << 50),
        Limit::new("open", Resource::Concurrency, Window::None, 1 << 40),
    ];
    let mut one = holder("a", &limits);
    let share = Share {
        share: 1 << 49,
        epoch: None,
    };
    let grant = Grant {
        term: 0,
        seq: 1,
        lease_ms: 1 << 40,
        at: 0,
        report_ms: 0,
        floored: false,
        limits: limits.iter().map(|limit| (limit.key(), share)).collect(),
    };
    let _ = one.report(0, NOON, &[]);
    assert!(one.on_reply(&Reply::Grant(grant), 1));
    let class = one.class("m");
    let rounds = if cfg!(debug_assertions) {
        20_000u64
    } else {
        5_000_000
    };
    let start = std::time::Instant::now();
    for round in 0..rounds {
        let now = round * 20_000;
        let Admission::Admitted(mut ticket) = one.try_admit(class, tokens(500, 500), now) else {
            panic!("there is room")
        };
        one.headers(&mut ticket, now + 5_000, now + 5_000);
        one.settle(ticket, tokens(480, 300), now + 10_000);
    }
    let each = start.elapsed().as_nanos() as f64 / rounds as f64;
    println!("admit, headers and settle under 4 limits: {each:.0} ns");
    assert!(each < 100_000.0);
}
