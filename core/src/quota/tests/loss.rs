//! What is set aside for a replica that is lost, and what the witness knows.

use super::*;

/// One request each second, headers and end at once; `second` is when the last one came.
fn one_each_second(office: &mut Office, one: &mut Holder, seconds: std::ops::Range<u64>) {
    for second in seconds {
        office.exchange(one, 1, at(second));
        assert_eq!(take(one, 1, at(second)), 1, "{second}");
    }
}

/// What a newcomer may use at each of these seconds, if it asks for everything.
fn left_for(office: &mut Office, other: &mut Holder, seconds: impl Iterator<Item = u64>) -> Vec<u64> {
    seconds
        .map(|second| {
            office.exchange(other, 1_000, at(second));
            other.usage(0, at(second).nanos).expect("a limit").1
        })
        .collect()
}

#[test]
fn what_a_lost_replica_had_in_use_is_free_when_it_said() {
    let limits = [requests(60, 60)];
    let (mut office, mut one) = (Office::new(&limits), holder("a", &limits));
    // 41 of 60 are in use, given back at 60, 61 …, the last at 100; its lease ends at 50.
    one_each_second(&mut office, &mut one, 0..41);
    let mut two = holder("b", &limits);
    let left = left_for(&mut office, &mut two, [49, 66, 81, 103, 112].into_iter());
    let share = 60 - left[0];
    assert!((41..=45).contains(&share), "{left:?}");
    // A report lags by a second, buckets take four half seconds, and units reported last were not settled for certain.
    assert!(left[1] >= left[0] + 3 && left[1] <= left[0] + 7, "{left:?}");
    assert!(left[2] >= left[0] + 17 && left[2] <= left[0] + 22, "{left:?}");
    assert!(left[3] >= left[0] + 37, "{left:?}");
    assert_eq!(left[4], 60, "lease, answer and window are over");
}

#[test]
fn the_next_allocator_knows_it_from_the_record() {
    let limits = [requests(60, 60)];
    let (mut office, mut one) = (Office::new(&limits), holder("a", &limits));
    one_each_second(&mut office, &mut one, 0..41);
    // Read at 42; what was written last is at most half a lease old, and so far ahead.
    office.take_over(42, at(42));
    let mut two = holder("b", &limits);
    let left = left_for(&mut office, &mut two, [43, 81, 103, 119].into_iter());
    assert!(left[1] >= left[0] + 14, "{left:?}");
    assert!(left[2] >= left[0] + 30, "{left:?}");
    assert_eq!(left[3], 60, "{left:?}");
}

#[test]
fn what_is_granted_first_is_written_though_the_record_has_room() {
    let limits = [requests(60, 60)];
    let (mut office, mut one) = (Office::new(&limits), holder("a", &limits));
    one_each_second(&mut office, &mut one, 0..41);
    // Read much too late, so what the record says to be free at 150 and later was so long ago, and may be used again.
    office.take_over(130, at(130));
    let actions = office.allocator.tick(at(130));
    office.carry_out(actions, at(130));
    office.exchange(&mut one, 10, at(131));
    let used = drain(&mut one, at(131));
    assert!((10..=41).contains(&used), "{used}");
    office.take_over(132, at(132));
    let mut two = holder("b", &limits);
    let left = left_for(&mut office, &mut two, [133, 170, 189, 230].into_iter());
    assert!(
        left[..3].iter().all(|left| left + used <= 60),
        "{left:?} beside {used}"
    );
    assert_eq!(left[3], 60, "{left:?}");
}

#[test]
fn the_last_word_of_one_that_leaves_counts_whomever_it_was_for() {
    let limits = [requests(60, 60)];
    let (mut office, mut one) = (Office::new(&limits), holder("a", &limits));
    one_each_second(&mut office, &mut one, 0..41);
    let word = one.leave(at(41).nanos, NOON);
    office.take_over(41, at(41));
    let actions = office.allocator.handle(&word, at(42));
    assert_eq!(office.carry_out(actions, at(42)), None, "it asks for nothing");
    let mut two = holder("b", &limits);
    let left = left_for(&mut office, &mut two, [43, 66, 81, 103].into_iter());
    assert_eq!(left[0], 19, "what it did not use is free at once");
    // It came a second after it was said, and buckets take half a second.
    assert!((19 + 4..=19 + 7).contains(&left[1]), "{left:?}");
    assert!((19 + 19..=19 + 22).contains(&left[2]), "{left:?}");
    assert_eq!(left[3], 60, "{left:?}");
    // That of one that only rests may be followed by another, and does not count.
    let early = two.report(at(105).nanos, NOON, &[]);
    assert!(early.released && !early.leaving);
    office.take_over(105, at(105));
    let actions = office.allocator.handle(&early, at(106));
    assert!(matches!(office.carry_out(actions, at(106)), Some(Reply::Term(_))));
}

#[test]
fn a_floor_counts_until_a_window_after_its_process_has_ended() {
    let limits = [Limit {
        floor: 5,
        ..requests(60, 60)
    }];
    let (mut office, mut one) = (Office::new(&limits), holder("a", &limits));
    office.exchange(&mut one, 30, at(0));
    office.allocator.tick(at(200));
    // Cut off for long, it goes on with its floor, the last time right before it ends.
    assert_eq!(take(&mut one, 60, at(400)), 5);
    office.allocator.gone("a", at(401));
    let mut two = holder("b", &limits);
    let left = left_for(&mut office, &mut two, [402, 403, 455, 463].into_iter());
    assert_eq!(left, [55, 55, 55, 60], "what it used last still counts");
}

/// Two holders, one of them beside the allocator.
fn with_witness(limits: &[Limit]) -> (Office, Holder, Holder) {
    let mut office = Office::new(limits);
    office.allocator = Allocator::new(limits, terms(), None, 0, at(0)).beside("own/");
    let (mut own, mut other) = (holder("own/0", limits), holder("other/0", limits));
    office.exchange(&mut other, 5, at(0));
    assert_eq!(office.vouches, [], "nobody needs a witness yet");
    office.exchange(&mut own, 5, at(0));
    let (by, vouch) = office.vouches.pop().expect("it was asked");
    assert_eq!((by.as_str(), vouch.holder.as_str()), ("other/0", "own/0"));
    assert!(!own.has_lease(0), "not before the witness knows");
    let record = office.stored.as_ref().expect("it was written");
    assert_eq!(
        record.witness.as_ref().map(|witness| witness.by.as_str()),
        Some("other/0"),
        "and not before the record names it"
    );
    assert!(other.vouch(vouch.clone(), 0));
    let sent = office.allocator.vouched("own/0", vouch.seq);
    let [Action::Send(to, reply)] = sent.as_slice() else {
        panic!("{sent:?}")
    };
    assert_eq!(to, "own/0");
    own.on_reply(reply, 0);
    assert!(own.has_lease(0));
    assert_eq!(office.allocator.vouched("own/0", vouch.seq), [], "once");
    (office, own, other)
}

#[test]
fn a_witness_tells_the_next_allocator_when_the_lease_ended() {
    let limits = [requests(60, 60)];
    // By the witness its lease may go on until 10, by the record until 15; then come its last answer and a window.
    for (remembers, free_at) in [(true, 72), (false, 77)] {
        let (mut office, mut own, mut other) = with_witness(&limits);
        assert!(take(&mut own, 60, at(0)) >= 5);
        // Its process ends, and the allocator with it.
        office.take_over(0, at(1));
        if !remembers {
            let last = other.leave(at(1).nanos, NOON);
            assert!(last.testimony.is_none(), "it has heard of no other allocator");
            other = holder("other/1", &limits);
        }
        office.exchange(&mut other, 0, at(1));
        let last = other.leave(at(1).nanos, NOON);
        let actions = office.allocator.handle(&last, at(1));
        office.carry_out(actions, at(1));
        let mut two = holder("two/0", &limits);
        let left = left_for(&mut office, &mut two, 2..=free_at);
        let last = left.len() - 1;
        assert!(left[last - 2] < 60, "{remembers}: {left:?}");
        assert_eq!(left[last], 60, "{remembers}: {left:?}");
    }
}

#[test]
fn a_witness_of_the_past_confirms_nothing() {
    let limits = [requests(60, 60)];
    let (mut office, mut own, mut other) = with_witness(&limits);
    office.exchange(&mut own, 5, at(1));
    let (_, vouch) = office.vouches.pop().expect("each grant");
    assert!(other.vouch(vouch.clone(), SECOND));
    let older = Vouch {
        seq: vouch.seq - 1,
        ..vouch.clone()
    };
    assert!(!other.vouch(older, SECOND), "it knows more");
    other.on_reply(&Reply::Term(2), SECOND);
    assert!(!other.vouch(vouch.clone(), SECOND), "a later allocator is there");
    let told = other
        .report(3 * SECOND, NOON, &[])
        .testimony
        .expect("it is asked");
    assert_eq!((told.term, told.seq), (1, vouch.seq));
    assert_eq!(
        told.state.expires_in_ms,
        vouch.state.expires_in_ms - 1_999,
        "it ages"
    );
}

#[test]
fn one_that_rests_is_a_witness_too() {
    let limits = [requests(60, 60)];
    let mut office = Office::new(&limits);
    office.allocator = Allocator::new(&limits, terms(), None, 0, at(0)).beside("own/");
    let (mut own, mut other) = (holder("own/0", &limits), holder("other/0", &limits));
    office.exchange(&mut other, 5, at(0));
    office.exchange(&mut other, 0, at(20));
    assert_eq!(other.next_report(), None, "it rests");
    office.allocator =
        Allocator::new(&limits, terms(), office.stored.as_ref(), 20 * SECOND, at(21)).beside("own/");
    other.greet(at(21).nanos);
    assert_eq!(other.next_report(), Some(at(21).nanos));
    office.exchange(&mut other, 0, at(21));
    office.exchange(&mut own, 5, at(21));
    let (by, vouch) = office.vouches.pop().expect("it was asked");
    assert_eq!(by, "other/0");
    assert!(other.vouch(vouch.clone(), at(21).nanos));
    let sent = office.allocator.vouched("own/0", vouch.seq);
    assert!(matches!(sent.as_slice(), [Action::Send(..)]), "{sent:?}");
    office.take_over(21, at(22));
    office.exchange(&mut other, 5, at(22));
    let recorded = &office.stored.as_ref().expect("it was written").holders["own/0"];
    assert!(recorded.expires_in_ms < 10_000, "it told: {recorded:?}");
    let last = other.leave(at(23).nanos, NOON);
    assert!(last.leaving && last.released);
}

#[test]
fn what_a_witness_was_told_before_it_was_named_again_is_worth_nothing() {
    let limits = [requests(60, 60)];
    let (mut office, mut own, mut other) = with_witness(&limits);
    for second in 1..3 {
        office.exchange(&mut own, 5, at(second));
        let (_, vouch) = office.vouches.pop().expect("each grant");
        let actions = office.allocator.not_vouched("own/0", vouch.seq, at(second));
        office.carry_out(actions, at(second));
    }
    office.exchange(&mut own, 5, at(10));
    assert!(own.has_lease(at(19).nanos), "by the record");
    office.vouches.clear();
    // Its time of being passed over ends; the process ends before it is told anything.
    office.exchange(&mut other, 5, at(11));
    office.exchange(&mut other, 5, at(13));
    office.exchange(&mut own, 5, at(13));
    assert!(!office.vouches.is_empty(), "it is witness again");
    office.take_over(13, at(14));
    office.exchange(&mut other, 5, at(14));
    assert!(own.has_lease(at(19).nanos));
    let recorded = &office.stored.as_ref().expect("it was written").holders["own/0"];
    assert!(recorded.expires_in_ms >= 5_000, "{recorded:?}");
}

#[test]
fn one_that_cannot_be_asked_is_witness_no_more() {
    let limits = [requests(60, 60)];
    let (mut office, mut own, _) = with_witness(&limits);
    for second in 1..3 {
        office.exchange(&mut own, 5, at(second));
        let (_, vouch) = office.vouches.pop().expect("each grant");
        let actions = office.allocator.not_vouched("own/0", vouch.seq, at(second));
        office.carry_out(actions, at(second));
    }
    assert_eq!(office.stored.as_ref().expect("it was written").witness, None);
    office.vouches.clear();
    office.exchange(&mut own, 5, at(3));
    assert_eq!(office.vouches, [], "the record speaks for it");
    assert!(own.has_lease(at(12).nanos));
    let recorded = &office.stored.as_ref().expect("it was written").holders["own/0"];
    assert!(recorded.expires_in_ms > 10_000, "{recorded:?}");
}

/// With leases of 2 s at the least.
fn brief(limits: &[Limit]) -> Office {
    let terms = Terms {
        shortest_lease: 2 * SECOND,
        ..terms()
    };
    Office {
        allocator: Allocator::new(limits, terms, None, 0, at(0)),
        ..Office::new(limits)
    }
}

#[test]
fn leases_are_short_where_there_is_too_little() {
    let limits = [requests(60, 60)];
    let (mut office, mut one) = (brief(&limits), holder("a", &limits));
    office.exchange(&mut one, 5, at(0));
    assert!(one.has_lease(at(9).nanos));
    office.exchange(&mut one, 500, at(1));
    assert!(one.has_lease(at(2).nanos) && !one.has_lease(at(3).nanos));
    assert_eq!(one.next_report(), Some(SECOND + SECOND / 4));
    office.exchange(&mut one, 5, at(2));
    assert!(one.has_lease(at(11).nanos), "and long again");
}

#[test]
fn leases_are_short_where_the_loss_of_the_holder_would_leave_too_little() {
    let limits = [requests(60, 60)];
    let (mut office, mut one, mut two) = (brief(&limits), holder("a", &limits), holder("b", &limits));
    one_each_second(&mut office, &mut one, 0..10);
    office.exchange(&mut two, 1, at(10));
    office.exchange(&mut one, 0, at(10));
    assert!(one.has_lease(at(19).nanos), "there is enough without it");
    one_each_second(&mut office, &mut one, 10..45);
    office.exchange(&mut two, 1, at(45));
    office.exchange(&mut one, 0, at(45));
    assert!(two.has_lease(at(54).nanos), "nobody would miss its share");
    assert!(
        one.has_lease(at(46).nanos) && !one.has_lease(at(47).nanos),
        "nobody waits, but few are left"
    );
    // So nearly all that it had comes back when it is counted no more: at 61, 62 …
    let left = left_for(&mut office, &mut two, [46, 75, 103].into_iter());
    assert!(left[1] >= left[0] + 11 && left[2] >= 50, "{left:?}");
}

/// The same for one gateway that is alone.
fn alone(limits: &[Limit]) -> Office {
    let office = brief(limits);
    Office {
        allocator: office.allocator.beside("own/"),
        ..office
    }
}

#[test]
fn one_that_is_alone_takes_little_with_it_though_nobody_waits() {
    let limits = [requests(60, 60)];
    let (mut office, mut own) = (alone(&limits), holder("own/0", &limits));
    one_each_second(&mut office, &mut own, 0..10);
    assert!(own.has_lease(at(14).nanos), "there is enough without it");
    one_each_second(&mut office, &mut own, 10..46);
    assert!(!own.has_lease(at(48).nanos), "few are left without it");
    // Of 46 those that are given back while its lease may last are set aside until it must have been counted.
    office.take_over(45, at(46));
    let mut other = holder("other/0", &limits);
    let left = left_for(&mut office, &mut other, [47, 80, 107].into_iter());
    assert!(left[1] >= left[0] + 14 && left[2] >= 48, "{left:?}");
}

#[test]
fn one_that_is_alone_writes_seldom_in_the_long_run() {
    let limits = [requests(60, 60), per_day(1_000_000)];
    let terms = Terms {
        shortest_lease: SECOND / 2,
        lease: 15 * SECOND,
        ..terms()
    };
    let mut office = Office::new(&limits);
    office.allocator = Allocator::new(&limits, terms, None, 0, at(0)).beside("own/");
    let mut own = Holder::new("own/0", 1, &limits, terms, 0);
    // More waits than there is, so it reports four times a second.
    let mut minute = |number: u64| {
        let before = office.writes;
        for quarter in number * 240..(number + 1) * 240 {
            let now = Now {
                nanos: quarter * SECOND / 4,
                unix_ms: NOON + quarter as i64 * 250,
            };
            assert!(quarter == 0 || own.has_lease(now.nanos), "{quarter}");
            office.exchange(&mut own, 500, now);
            drain(&mut own, now);
        }
        office.writes - before
    };
    let (first, second) = (minute(0), minute(1));
    let last = (2..20).map(minute).last().expect("minutes");
    assert!(
        first <= 90 && second <= first && last <= 15,
        "{first}, {second}, {last}"
    );
    let recorded = &office.stored.as_ref().expect("it was written").holders["own/0"];
    let (used, day) = (
        own.usage(1, own.next_report().unwrap_or(0)),
        "rpd/Requests/Day@UTC",
    );
    assert!(recorded.granted[day] >= used.expect("a limit").0, "{recorded:?}");
}

#[test]
fn silent_holders_are_bounded() {
    let limits = [requests(60, 60), per_day(100_000)];
    let mut office = Office::new(&limits);
    for number in 0..500u64 {
        let now = at(number * 12);
        let mut one = Holder::new(format!("gateway-{number}"), 1, &limits, terms(), now.nanos);
        office.exchange(&mut one, 3, now);
        assert_eq!(take(&mut one, 1, now), 1, "{number}");
        let last = one.leave(now.nanos, now.unix_ms);
        let actions = office.allocator.handle(&last, now);
        office.carry_out(actions, now);
    }
    let checkpoint = office.stored.as_ref().expect("it was written");
    assert!(checkpoint.holders.len() <= allocator::MAX_HOLDERS);
    assert!(checkpoint.to_json().len() < 16_384);
    let (held_or_granted, day) = (office.allocator.usage(at(6_000)), "rpd/Requests/Day@UTC");
    assert!(
        held_or_granted[day].outstanding >= 500,
        "what they used still counts: {held_or_granted:?}"
    );
}
