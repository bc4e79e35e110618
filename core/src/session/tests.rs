//! Scenarios on the simulated world, and small ones by hand.

use super::simulation::{CALM, CANDIDATE, Dice, Network, Report, STABLE, World, route, settings};
use super::wire::{Message, VERSION};
use super::*;

fn full() -> bool {
    std::env::var("FLOTILLA_FULL").is_ok_and(|value| value == "1")
}

/// 1 → 10 → 25 → 50 → 100 % between `from` and `to`; the replaced revision keeps its conversations.
fn ladder(world: &mut World, first_generation: i64, from: u64, to: u64) -> i64 {
    let mut generation = first_generation;
    for (step, weight) in [1, 10, 25, 50, 100].into_iter().enumerate() {
        let shares = [
            (STABLE, 100 - weight, true, 1),
            (CANDIDATE, weight, true, first_generation),
        ];
        world.change_at(from + (to - from) * step as u64 / 5, route(generation, &shares));
        generation += 1;
    }
    generation
}

#[test]
fn ten_thousand_conversations_stay_through_a_whole_release() {
    let conversations = if full() { 10_000 } else { 600 };
    let mut world = World::new(1, 3, CALM, 100_000, 5_000);
    world.converse(conversations, 20, 60_000);
    ladder(&mut world, 2, 5_000, 60_000);
    world.run(400_000);
    let report = world.report.clone();
    assert_eq!(report.turns, conversations as u64 * 20);
    assert_eq!(
        (report.switched, report.led_away, report.served_dead),
        (0, 0, 0),
        "{report:?}"
    );
    assert_eq!(
        (
            report.unprotected,
            report.unrouted,
            report.unfinished,
            report.excused
        ),
        (0, 0, 0, 0),
        "{report:?}"
    );
    // One round trip at first sight, none after; the copy takes two more, behind the agent's own time.
    assert!(
        report.slowest_assignment <= 4 && report.slowest_release <= 12,
        "{report:?}"
    );
    assert!(report.messages < report.turns * 3 / 2, "{report:?}");
    let share = report.on_candidate as f64 / conversations as f64;
    assert!(
        (0.15..0.6).contains(&share),
        "new ones go where the weights say: {share}"
    );
    assert_eq!(world.moved(), 0);
    println!("{report:?}");
}

#[test]
fn an_abort_moves_all_and_counts_them_and_none_fails() {
    let conversations = if full() { 10_000 } else { 600 };
    let mut world = World::new(2, 3, CALM, 100_000, 5_000);
    world.converse(conversations, 20, 30_000);
    ladder(&mut world, 2, 0, 40_000);
    // At 50 % it is taken back, one turn or more before the end of any conversation.
    world.change_at(
        31_500,
        route(6, &[(STABLE, 100, true, 1), (CANDIDATE, 0, false, 2)]),
    );
    world.run(31_400);
    let before = world.report.on_candidate;
    assert!(before > conversations as u64 / 20, "{before}");
    let mut after = world;
    // The step to 100 % of the ladder comes with a generation that is over.
    after.change_at(
        31_501,
        route(7, &[(STABLE, 100, true, 1), (CANDIDATE, 0, false, 2)]),
    );
    after.run(400_000);
    let report = after.report.clone();
    assert_eq!(
        (
            report.switched,
            report.served_dead,
            report.unrouted,
            report.unfinished
        ),
        (0, 0, 0, 0),
        "{report:?}"
    );
    assert_eq!(report.on_candidate, 0);
    assert_eq!(report.turns, conversations as u64 * 20);
    let moved = after.moved();
    assert!(
        moved >= report.led_away && report.led_away >= before * 9 / 10,
        "{moved} moved, {before} before: {report:?}"
    );
    for counts in after.counts() {
        assert!(
            counts.moved.keys().all(|reason| *reason == MoveReason::Withdrawn),
            "{counts:?}"
        );
    }
    println!("{moved} moved, {before} before: {report:?}");
}

/// One run with faults of every kind but two homes dying at once.
fn faulty(seed: u64) -> (Report, Vec<Counts>) {
    let mut dice = Dice::new(seed ^ 0xf00d);
    let network = Network {
        loss_percent: [0, 0, 5, 20][dice.between(0, 3) as usize],
        double_percent: [0, 10][dice.between(0, 1) as usize],
        max_delay: [1, 5, 30][dice.between(0, 2) as usize],
    };
    let gates = dice.between(1, 5) as usize;
    let mut world = World::new(seed, gates, network, 10_000, 1_500);
    world.converse(40, 8, 6_000);
    let mut generation = 2;
    let mut time = dice.between(0, 1_500);
    for _ in 0..3 {
        let since = generation;
        for weight in [1, 10, 25, 50, 100] {
            let shares = [(STABLE, 100 - weight, true, 1), (CANDIDATE, weight, true, since)];
            world.change_at(time, route(generation, &shares));
            (time, generation) = (time + dice.between(100, 800), generation + 1);
            if dice.chance(15) {
                break;
            }
        }
        // The release is taken back; it may be tried again.
        let withdrawn = [(STABLE, 100, true, 1), (CANDIDATE, 0, false, since)];
        let kept = if dice.chance(50) {
            &withdrawn[..]
        } else {
            &withdrawn[..1]
        };
        world.change_at(time, route(generation, kept));
        (time, generation) = (time + dice.between(700, 2_500), generation + 1);
    }
    let mut time = dice.between(500, 3_000);
    while time < 12_000 {
        match dice.between(0, 3) {
            0 => world.crash_at(time, 1),
            1 => world.leave_at(time),
            _ => world.join_at(time),
        }
        if dice.chance(50) {
            // In the middle of the other change.
            let soon = time + dice.between(0, 600);
            world.join_at(soon);
        }
        // Before the next one may die, the others have noticed and copied again.
        time += dice.between(4_000, 6_000);
    }
    world.run(60_000);
    let counts = world.counts().collect();
    (world.report, counts)
}

#[test]
fn faults_switch_nobody() {
    let runs = if full() { 10_000 } else { 30 };
    let (mut turns, mut led_away, mut unprotected, mut excused, mut switched_excused, mut retried) =
        (0, 0, 0, 0, 0, 0);
    let mut slowest = 0;
    for seed in 0..runs {
        let (report, counts) = faulty(seed);
        assert_eq!(
            (report.switched, report.served_dead, report.unrouted),
            (0, 0, 0),
            "seed {seed}: {report:?}"
        );
        assert_eq!(
            (report.unfinished, report.turns, report.undrained),
            (0, 320, 0),
            "seed {seed}: {report:?}"
        );
        let split: u64 = counts.iter().map(|counts| counts.split).sum();
        assert_eq!(split, 0, "seed {seed}: {report:?}");
        slowest = slowest.max(report.slowest_assignment);
        turns += report.turns;
        led_away += report.led_away;
        unprotected += report.unprotected;
        excused += report.excused;
        switched_excused += report.switched_excused;
        retried += report.retried;
    }
    println!(
        "{runs} runs, {turns} turns: 0 switched, {led_away} led away, {retried} retried after a crash, {unprotected} unprotected, \
         {excused} excused ({switched_excused} switched), 0 split, slowest assignment {slowest} ms"
    );
    assert!(unprotected * 300 <= turns, "{unprotected} of {turns}");
}

/// What is lost when both homes die at once: only their conversations, and of these only those whom no third gateway remembers
/// and for whom today's weights choose otherwise.
#[test]
fn two_homes_at_once_cost_only_their_own_conversations() {
    let runs = if full() { 400 } else { 12 };
    let (mut excused, mut switched, mut all) = (0, 0, 0);
    for seed in 0..runs {
        let mut world = World::new(1000 + seed, 5, CALM, 10_000, 2_000);
        world.converse(200, 8, 4_000);
        ladder(&mut world, 2, 0, 10_000);
        world.crash_at(6_000, 2);
        world.run(60_000);
        let report = &world.report;
        assert_eq!(
            (report.switched, report.served_dead, report.unfinished),
            (0, 0, 0),
            "seed {seed}: {report:?}"
        );
        excused += report.excused;
        switched += report.switched_excused;
        all += 200;
    }
    println!(
        "{runs} double deaths, {all} conversations: {excused} had both homes there, {switched} switched"
    );
    // Two of five are both homes of one key in ten.
    assert!(excused * 20 > all && excused * 6 < all, "{excused} of {all}");
    assert!(switched * 3 < excused, "{switched} of {excused}");
}

/// Tables of many chunks and batches; each gateway leaves while the one that came before it is still taking over.
#[test]
fn a_rolling_restart_hands_over_thousands_of_conversations() {
    let conversations = if full() { 20_000 } else { 2_000 };
    let mut world = World::new(9, 3, CALM, 100_000, 4_000);
    world.converse(conversations, 10, 2_000);
    let swapped = [(STABLE, 30, true, 1), (CANDIDATE, 70, true, 2)];
    world.change_at(2_500, route(2, &swapped));
    for restart in 0..4 {
        world.join_at(4_000 + restart * 3_000);
        world.leave_at(4_400 + restart * 3_000);
    }
    world.run(90_000);
    let report = &world.report;
    assert_eq!(report.turns, conversations as u64 * 10);
    assert_eq!(
        (
            report.switched,
            report.led_away,
            report.unprotected,
            report.undrained
        ),
        (0, 0, 0, 0),
        "{report:?}"
    );
    println!("{report:?}");
}

#[test]
fn a_full_table_stays_within_its_bound() {
    let mut world = World::new(5, 3, CALM, 64, 2_000);
    world.converse(400, 6, 2_000);
    ladder(&mut world, 2, 500, 8_000);
    world.run(60_000);
    assert!(world.report.largest_table <= 64);
    assert_eq!(
        (world.report.unfinished, world.report.unrouted),
        (0, 0),
        "{:?}",
        world.report
    );
    assert!(
        world
            .counts()
            .all(|counts| counts.removed.homes > 0 && counts.removed.remembered > 0)
    );
}

/// Two gateways and what they say to each other, by hand.
struct Pair {
    shards: [Shard; 2],
    now: u64,
}

impl Pair {
    fn new() -> Self {
        let mut shards = ["a", "b"].map(|name| Shard::new(settings(name, 100)));
        let members = ["a", "b"].map(MemberId::of);
        let mut out = Vec::new();
        for shard in &mut shards {
            shard.set_route(0, &route(1, &[(STABLE, 100, true, 1)]), &mut out);
            shard.set_members(0, members, &mut out);
        }
        let mut pair = Self { shards, now: 0 };
        pair.deliver(out, true);
        pair
    }

    /// Delivers all, and what follows from it; returns the rest. Without `others` messages are lost.
    fn deliver(&mut self, out: Vec<Output>, others: bool) -> Vec<Output> {
        let (mut rest, mut open) = (Vec::new(), out);
        while !open.is_empty() {
            let mut next = Vec::new();
            for output in open {
                match output {
                    Output::Send(envelope) if others => {
                        let to = usize::from(envelope.to == MemberId::of("b"));
                        self.shards[to].handle(self.now, envelope, &mut next);
                    }
                    Output::Send(_) => {}
                    done => rest.push(done),
                }
            }
            open = next;
        }
        rest
    }

    fn open(&mut self, which: usize, ticket: Ticket, key: SessionKey, others: bool) -> Vec<Output> {
        let mut out = Vec::new();
        self.shards[which].open(self.now, ticket, key, &mut out);
        self.deliver(out, others)
    }

    fn tick(&mut self, which: usize, others: bool) -> Vec<Output> {
        let mut out = Vec::new();
        self.shards[which].tick(self.now, &mut out);
        self.deliver(out, others)
    }

    /// A key whose first home is `which`.
    fn key(&self, which: usize, n: u64) -> SessionKey {
        let members = ["a", "b"].map(MemberId::of);
        let mut dice = Dice::new(n);
        loop {
            let key = SessionKey::from_random(dice.bits(), dice.bits());
            if homes(members, key).first == Some(members[which]) {
                return key;
            }
        }
    }
}

fn kinds(outputs: &[Output]) -> Vec<&'static str> {
    let kind = |output: &Output| match output {
        Output::Send(_) => "send",
        Output::Assigned { .. } => "assigned",
        Output::Released { protected: true, .. } => "released",
        Output::Released { protected: false, .. } => "unprotected",
        Output::Unrouted { .. } => "unrouted",
    };
    outputs.iter().map(kind).collect()
}

#[test]
fn one_alone_decides_and_lets_go_at_once() {
    let mut shard = Shard::new(settings("a", 10));
    let key = SessionKey::from_random(1, 2);
    let mut out = Vec::new();
    shard.open(0, 1, key, &mut out);
    assert_eq!(kinds(&out), ["unrouted"], "nothing serves yet");
    out.clear();
    shard.set_route(0, &route(1, &[(STABLE, 100, true, 1)]), &mut out);
    let replica = "10.0.0.1:8080".parse().unwrap();
    shard.open(0, 2, key, &mut out);
    assert_eq!(kinds(&out), ["assigned", "released"]);
    shard.pin(0, key, replica, &mut out);
    let found = shard.lookup(key, 5).unwrap();
    assert_eq!(
        (&*found.revision, found.replica, found.epoch, found.root),
        (STABLE, Some(replica), 1, key)
    );
    assert_eq!(
        (
            shard.len(),
            shard.homes(),
            shard.sessions(STABLE),
            shard.waiting()
        ),
        (1, 1, 1, 0)
    );
}

#[test]
fn first_sight_costs_one_round_trip_and_then_none() {
    for home in [0, 1] {
        let mut pair = Pair::new();
        let key = pair.key(home, 1);
        let mut out = Vec::new();
        pair.shards[0].open(0, 7, key, &mut out);
        let asks = out
            .iter()
            .filter(|output| matches!(output, Output::Send(e) if matches!(e.message, Message::Ask { .. })))
            .count();
        assert_eq!(asks, home, "only another home is asked");
        assert_eq!(
            kinds(&out).contains(&"assigned"),
            home == 0,
            "the home itself knows at once"
        );
        let rest = pair.deliver(out, true);
        assert_eq!(kinds(&rest), ["assigned", "released"]);
        assert!(pair.shards[0].lookup(key, 1).is_some());
        // The other one has it too and needs no message.
        let mut out = Vec::new();
        pair.shards[1].open(1, 8, key, &mut out);
        assert_eq!(kinds(&out), ["assigned", "released"]);
        assert!(pair.shards[1].lookup(key, 1).is_some());
    }
}

#[test]
fn the_first_byte_waits_for_the_copy_and_not_for_ever() {
    let mut pair = Pair::new();
    let key = pair.key(0, 1);
    let guess = pair.shards[0].guess(key, 0);
    assert_eq!(kinds(&pair.open(0, 1, key, false)), ["assigned"]);
    assert_eq!(pair.shards[0].lookup(key, 0), None, "not before it is safe");
    assert_eq!(pair.shards[0].guess(key, 0), pair.shards[0].peek(key));
    assert_eq!(guess, pair.shards[0].peek(key), "that is what was to be expected");
    for time in [25, 50, 475] {
        pair.now = time;
        assert!(pair.tick(0, false).is_empty());
    }
    pair.now = 500;
    // The other one has been silent for half a second: there is nobody to copy to.
    assert_eq!(kinds(&pair.tick(0, false)), ["unprotected"]);
    assert_eq!(pair.shards[0].counts().unprotected, 1);
    assert!(pair.shards[0].lookup(key, 500).is_some());
    // When it answers again it gets its copy.
    assert_eq!(pair.shards[1].peek(key), None);
    pair.now = 1100;
    pair.tick(0, true);
    assert!(pair.shards[1].peek(key).is_some());
}

#[test]
fn a_silent_home_is_passed_over_and_an_unreachable_one_at_once() {
    let mut pair = Pair::new();
    let key = pair.key(1, 1);
    assert!(pair.open(0, 1, key, false).is_empty());
    pair.now = 499;
    assert!(pair.tick(0, false).is_empty());
    pair.now = 500;
    assert_eq!(kinds(&pair.tick(0, false)), ["assigned", "unprotected"]);
    let mut pair = Pair::new();
    let mut out = Vec::new();
    assert!(pair.open(0, 1, key, false).is_empty());
    pair.shards[0].unreachable(1, MemberId::of("b"), &mut out);
    assert_eq!(kinds(&pair.deliver(out, false)), ["assigned", "unprotected"]);
}

/// Two requests of one new conversation at two gateways at the same time.
#[test]
fn two_first_requests_get_one_revision() {
    for home in [0, 1] {
        let mut pair = Pair::new();
        let mut out = Vec::new();
        let split = route(2, &[(STABLE, 50, true, 1), (CANDIDATE, 50, true, 2)]);
        for shard in &mut pair.shards {
            shard.set_route(0, &split, &mut out);
        }
        pair.deliver(out, true);
        for n in 0..20 {
            let key = pair.key(home, n);
            let mut out = Vec::new();
            pair.shards[0].open(0, 1, key, &mut out);
            pair.shards[1].open(0, 2, key, &mut out);
            let rest = pair.deliver(out, true);
            let assigned: Vec<_> = rest
                .iter()
                .filter_map(|output| match output {
                    Output::Assigned { assignment, .. } => Some(assignment.clone()),
                    _ => None,
                })
                .collect();
            assert_eq!(assigned.len(), 2);
            assert_eq!(assigned[0], assigned[1]);
            assert_eq!(kinds(&rest).iter().filter(|kind| **kind == "released").count(), 2);
        }
    }
}

#[test]
fn a_task_follows_its_conversation() {
    let mut pair = Pair::new();
    let mut out = Vec::new();
    let both = |generation, weight, keeps| {
        route(
            generation,
            &[(STABLE, 100 - weight, true, 1), (CANDIDATE, weight, keeps, 2)],
        )
    };
    for shard in &mut pair.shards {
        shard.set_route(0, &both(2, 100, true), &mut out);
    }
    pair.deliver(out, true);
    let keyer = Keyer::new("uid");
    let body = br#"{"jsonrpc":"2.0","id":1,"result":{"task":{"id":"t-1","contextId":"c-1"}}}"#;
    let (ids, _) = a2a::response(&keyer, body);
    let (context, task) = (ids.context.unwrap(), ids.task.unwrap());
    // The first message had no name: it was routed by weight alone.
    let learnt = Assignment {
        revision: CANDIDATE.into(),
        replica: None,
        epoch: 2,
        root: context,
    };
    for (ticket, key) in [(1, context), (2, task)] {
        let mut out = Vec::new();
        pair.shards[0].learn(0, ticket, key, &learnt, &mut out);
        assert!(kinds(&out).contains(&"assigned"));
        let rest = pair.deliver(out, true);
        assert_eq!(kinds(&rest).last(), Some(&"released"));
    }
    let get = a2a::request(&keyer, br#"{"method":"GetTask","params":{"id":"t-1"}}"#)
        .key()
        .unwrap();
    assert_eq!(get, task);
    let rest = pair.open(1, 3, get, true);
    assert_eq!(kinds(&rest), ["assigned", "released"]);
    let found = pair.shards[1].lookup(get, 1).unwrap();
    assert_eq!((&*found.revision, found.root), (CANDIDATE, context));
    assert_eq!(
        pair.shards
            .iter()
            .map(|shard| shard.counts().assigned)
            .sum::<u64>(),
        2
    );
    // On an abort both move alike, and each is counted once.
    let mut out = Vec::new();
    for shard in &mut pair.shards {
        shard.set_route(2, &both(3, 0, false), &mut out);
    }
    pair.deliver(out, true);
    for key in [context, task] {
        for shard in &mut pair.shards {
            let mut out = Vec::new();
            shard.open(3, 9, key, &mut out);
            assert_eq!(kinds(&out), ["assigned", "released"]);
            let found = shard.lookup(key, 3).unwrap();
            assert_eq!((&*found.revision, found.epoch, found.root), (STABLE, 3, context));
        }
    }
    assert_eq!(
        pair.shards
            .iter()
            .map(|shard| shard.counts().moved[&MoveReason::Withdrawn])
            .sum::<u64>(),
        2
    );
}

#[test]
fn a_replica_is_pinned_again_when_it_is_gone() {
    let mut pair = Pair::new();
    let key = pair.key(0, 1);
    let [old, new] = ["10.0.0.1:80", "10.0.0.2:80"].map(|address| address.parse().unwrap());
    let mut out = Vec::new();
    pair.shards[0].open(0, 1, key, &mut out);
    pair.shards[0].pin(0, key, old, &mut out);
    pair.deliver(out, true);
    assert_eq!(pair.shards[1].peek(key).unwrap().replica, Some(old));
    let mut out = Vec::new();
    pair.shards[1].pin(1, key, new, &mut out);
    pair.shards[1].pin(1, key, new, &mut out);
    pair.deliver(out, true);
    for shard in &mut pair.shards {
        assert_eq!(
            shard
                .lookup(key, 2)
                .map_or_else(|| shard.peek(key).unwrap().replica, |found| found.replica),
            Some(new)
        );
    }
    assert_eq!(
        pair.shards.each_ref().map(|shard| shard.counts().repinned),
        [0, 1]
    );
}

/// Evidence compares conversations of one age only, so these are counted apart.
#[test]
fn conversations_are_counted_from_the_candidates_first_weight_on() {
    let mut shard = Shard::new(settings("a", 1000));
    let mut out = Vec::new();
    let mut dice = Dice::new(8);
    let mut open = |shard: &mut Shard, number: u64| {
        for _ in 0..number {
            shard.open(
                0,
                0,
                SessionKey::from_random(dice.bits(), dice.bits()),
                &mut Vec::new(),
            );
        }
    };
    shard.set_route(0, &route(1, &[(STABLE, 100, true, 1)]), &mut out);
    open(&mut shard, 20);
    assert_eq!(shard.assigned(STABLE), 20);
    let both = |generation, weight| {
        let shares = [(STABLE, 100 - weight, true, 1), (CANDIDATE, weight, true, 2)];
        route(generation, &shares)
    };
    shard.set_route(0, &both(2, 50), &mut out);
    assert_eq!((shard.assigned(STABLE), shard.assigned(CANDIDATE)), (0, 0));
    open(&mut shard, 100);
    shard.set_route(0, &both(3, 90), &mut out);
    open(&mut shard, 100);
    assert_eq!(shard.assigned(STABLE) + shard.assigned(CANDIDATE), 200);
    assert!(shard.assigned(CANDIDATE) > 100, "{}", shard.assigned(CANDIDATE));
    // A task is no conversation, and one from before is no evidence.
    let old = Assignment {
        revision: STABLE.into(),
        replica: None,
        epoch: 1,
        root: SessionKey::from_random(1, 1),
    };
    shard.learn(0, 0, old.root, &old, &mut out);
    shard.learn(0, 0, SessionKey::from_random(2, 2), &old, &mut out);
    assert_eq!(shard.assigned(STABLE) + shard.assigned(CANDIDATE), 200);
}

#[test]
fn use_at_one_gateway_keeps_a_conversation_alive_at_its_homes() {
    let mut pair = Pair::new();
    let key = pair.key(0, 1);
    pair.open(1, 1, key, true);
    let idle = 1_800_000;
    for quarter in 1..20 {
        pair.now = quarter * idle / 4;
        assert!(pair.shards[1].lookup(key, pair.now).is_some());
        pair.tick(1, true);
        pair.tick(0, true);
    }
    assert!(
        pair.shards[0].peek(key).is_some(),
        "its home has not been asked for hours"
    );
    pair.now += idle * 5 / 4 + 1;
    for which in [0, 1] {
        assert_eq!(pair.shards[which].lookup(key, pair.now), None);
        pair.tick(which, true);
        assert!(pair.shards[which].is_empty());
        assert_eq!(pair.shards[which].counts().removed.idle, 1);
    }
}

#[test]
fn one_that_leaves_hands_over_all_before_it_goes() {
    let mut pair = Pair::new();
    let keys: Vec<SessionKey> = (0..50).map(|n| pair.key(0, n)).collect();
    for key in &keys {
        let mut out = Vec::new();
        pair.shards[0].open(0, 1, *key, &mut out);
        // Nothing of that arrives, so only the one that leaves has them.
    }
    let mut out = Vec::new();
    assert!(!pair.shards[0].is_drained(0));
    pair.shards[0].leave(0, &mut out);
    assert!(!pair.shards[0].is_drained(0));
    pair.deliver(out, true);
    for time in [25, 50, 75] {
        pair.now = time;
        pair.tick(0, true);
        pair.tick(1, true);
    }
    assert!(pair.shards[0].is_drained(75));
    assert!(keys.iter().all(|key| pair.shards[1].peek(*key).is_some()));
    assert_eq!(pair.shards[1].homes(), 50);
    // It answers to the end.
    let rest = pair.open(0, 2, pair.key(0, 99), true);
    assert_eq!(kinds(&rest), ["assigned", "released"]);
}

#[test]
fn messages_for_others_and_of_other_versions_are_refused() {
    let mut pair = Pair::new();
    let mut out = Vec::new();
    pair.shards[0].open(0, 1, pair.key(1, 1), &mut out);
    let sent: Vec<_> = out
        .iter()
        .filter_map(|output| match output {
            Output::Send(envelope) => Some(envelope.clone()),
            _ => None,
        })
        .collect();
    let good = sent.first().cloned().unwrap();
    let mut out = Vec::new();
    for bad in [
        wire::Envelope {
            version: VERSION + 1,
            ..good.clone()
        },
        wire::Envelope {
            to: MemberId::of("c"),
            ..good.clone()
        },
        wire::Envelope {
            pool: 2,
            ..good.clone()
        },
        wire::Envelope {
            shard: 1,
            ..good.clone()
        },
        wire::Envelope {
            from: good.to,
            ..good.clone()
        },
        wire::Envelope {
            message: Message::Unknown,
            ..good
        },
    ] {
        pair.shards[1].handle(0, bad, &mut out);
    }
    assert!(out.is_empty(), "{out:?}");
    assert_eq!(pair.shards[1].counts().refused, 6);
}
