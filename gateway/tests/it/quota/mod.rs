//! A provider's quota held by several gateways, as the provider counts it.

mod redis;
mod sockets;
mod world;

use std::sync::atomic::Ordering;
use std::time::Duration;

use flotilla_gateway::egress::quota::{Ask, NotAdmitted, Permit, Used, Why};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::Instant;
use world::{Load, World};

const SECOND: Duration = Duration::from_secs(1);
const WINDOW: Duration = Duration::from_secs(60);

fn requests(limit: u64) -> serde_json::Value {
    json!({"name": "rpm", "resource": "Requests", "limit": limit, "windowSeconds": 60})
}

fn load(pool: &'static str, agents: usize) -> Load {
    Load {
        pool,
        agents,
        pause: Duration::from_millis(100),
        open: false,
    }
}

/// A request of no size that waits so long.
fn ask(patience: Duration) -> Ask<'static> {
    Ask {
        pool: "support",
        model: Some("mini"),
        bytes: 0,
        max_tokens: None,
        deadline: Instant::now() + patience,
    }
}

/// Saturated, in steady state: units used of those there were, in percent.
fn utilisation(world: &World, limit: u64, from: Duration, to: Duration) -> f64 {
    let there = limit as f64 * (to - from).as_secs_f64() / WINDOW.as_secs_f64();
    100.0 * world.provider.between(from, to) as f64 / there
}

#[tokio::test(start_paused = true)]
async fn skewed_load_uses_a_window_up_and_never_more() {
    for replicas in 1..=5 {
        let mut world = World::new(requests(600));
        for number in 0..replicas {
            // One replica has ten times the load of the others.
            let agents = if number == 0 { 40 } else { 4 };
            world.start(&format!("g-{number}"), &[load("support", agents)]);
        }
        tokio::time::sleep(5 * WINDOW).await;
        let most = world.provider.most(WINDOW);
        let used = utilisation(&world, 600, WINDOW, 5 * WINDOW);
        println!("{replicas} replicas: at most {most} of 600 in 60 s, {used:.1} % used");
        assert!(most <= 600, "{replicas} replicas: {most}");
        assert!(used >= 95.0, "{replicas} replicas: {used:.1} %");
        assert_eq!(world.refused(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_quota_of_a_shorter_window_spreads_the_first() {
    let mut world = World::new(requests(6_000));
    world.add(json!({"name": "spread", "resource": "Requests", "limit": 1_000, "windowSeconds": 10}));
    for (number, agents) in [250, 100, 50].into_iter().enumerate() {
        world.start(&format!("g-{number}"), &[load("support", agents)]);
    }
    tokio::time::sleep(4 * WINDOW).await;
    let (most, at_once) = (world.provider.most(WINDOW), world.provider.most(10 * SECOND));
    let used = utilisation(&world, 6_000, WINDOW, 4 * WINDOW);
    println!("at most {most} of 6000 in 60 s, {at_once} in 10 s, {used:.1} % used");
    assert!(most <= 6_000 && at_once <= 1_000, "{most} {at_once}");
    assert!(used >= 95.0, "{used:.1} %");
    assert_eq!(world.refused(), 0);
}

#[tokio::test(start_paused = true)]
async fn tokens_are_reserved_by_estimate_and_settled_by_usage() {
    let quota = json!({"name": "tpm", "resource": "Tokens", "limit": 60_000, "window": "Minute"});
    let mut world = World::new(quota);
    for number in 0..3 {
        world.start(&format!("g-{number}"), &[load("support", 20)]);
    }
    tokio::time::sleep(5 * WINDOW).await;
    let most = world.provider.most(WINDOW);
    let error = world.provider.largest_error.load(Ordering::SeqCst);
    let used = utilisation(&world, 60_000, 2 * WINDOW, 5 * WINDOW);
    println!("at most {most} of 60000 tokens in 60 s, {used:.1} % used, one estimate was {error} too low");
    assert!(most <= 60_000 + error.max(600), "{most}");
    assert!(used >= 95.0, "{used:.1} %");
    assert_eq!(world.refused(), 0);
}

#[tokio::test(start_paused = true)]
async fn killing_whoever_deals_it_out_gives_nothing_out_twice() {
    let mut world = World::new(requests(600));
    for number in 0..4 {
        world.start(&format!("g-{number}"), &[load("support", 15)]);
    }
    for round in 0..12u64 {
        tokio::time::sleep(20 * SECOND).await;
        let Some(elected) = world.elected() else { continue };
        // A container is restarted under its pod's name; a pod that was deleted comes back under another.
        let pod = if round % 2 == 0 {
            world.kill(&elected);
            elected
        } else {
            world.vanish(&elected);
            format!("g-{}", 10 + round)
        };
        // The system's clocks jump as well; only windows of the calendar would care.
        world
            .clock_error
            .store((round as i64 - 6) * 3_600_000, Ordering::SeqCst);
        tokio::time::sleep(SECOND).await;
        world.start(&pod, &[load("support", 15)]);
    }
    tokio::time::sleep(20 * SECOND).await;
    let most = world.provider.most(WINDOW);
    // Whole windows: what goes in bursts comes round once in each.
    let used = utilisation(&world, 600, WINDOW, 4 * WINDOW);
    println!(
        "killed 12 times: at most {most} of 600 in 60 s, {used:.1} % used, {} refused",
        world.refused()
    );
    assert!(most <= 600, "{most}");
    assert!(used >= 95.0, "{used:.1} %");
    assert_eq!(world.refused(), 0, "they wait");
}

/// Clients that take all that there is at once use a window up in a moment, and then all wait for the rest of it: where a gateway
/// is killed and started again, many wait before it knows what share it will have.
#[tokio::test(start_paused = true)]
async fn bursts_through_kills_use_the_quota_and_refuse_nobody() {
    const LIMIT: u64 = 3_000;
    let mut world = World::new(requests(LIMIT));
    let own = Load {
        pool: "modest",
        agents: 1,
        pause: WINDOW * 6 / LIMIT as u32,
        open: true,
    };
    let greedy = |number: usize| load("greedy", [250, 100, 50][number]);
    for number in 0..3 {
        world.start(&format!("g-{number}"), &[own, greedy(number)]);
    }
    tokio::time::sleep(2 * WINDOW).await;
    for _ in 0..30 {
        let elected = world.elected().expect("somebody deals out");
        let number = elected[2..].parse::<usize>().unwrap();
        world.kill(&elected);
        world.start(&elected, &[own, greedy(number)]);
        tokio::time::sleep(20 * SECOND).await;
    }
    let most = world.provider.most(WINDOW);
    let used = utilisation(&world, LIMIT, 2 * WINDOW, 12 * WINDOW);
    println!(
        "killed 30 times: at most {most} of {LIMIT} in 60 s, {used:.1} % used, {} refused",
        world.refused()
    );
    assert!(most <= LIMIT, "{most}");
    assert!(used >= 95.0, "{used:.1} %");
    assert_eq!(world.refused(), 0, "they wait");
}

/// Five of six requests a second that there are, so that nobody waits before the loss; where the other has none it rests.
async fn the_one_that_deals_out_is_lost(others: u32, lives_on: Option<Duration>) {
    let quota = json!({"name": "rps", "resource": "Requests", "limit": 60, "windowSeconds": 10});
    let mut world = World::new(quota);
    world.start("g-0", &[]);
    tokio::time::sleep(SECOND).await;
    world.start("g-1", &[]);
    tokio::time::sleep(SECOND).await;
    assert_eq!(world.elected().as_deref(), Some("g-0"));
    let streams: Vec<_> = [("g-0", 300 - others), ("g-1", others)]
        .into_iter()
        .filter(|(_, count)| *count > 0)
        .map(|(pod, count)| world.stream(pod, WINDOW / count, 30 * SECOND, count))
        .collect();
    tokio::time::sleep(20 * SECOND).await;
    match lives_on {
        Some(afterlife) => world.delete("g-0", afterlife).await,
        None => world.vanish("g-0"),
    }
    tokio::time::sleep(SECOND).await;
    world.start("h-0", &[]);
    for stream in streams {
        stream.await.unwrap();
    }
    let most = world.provider.most(10 * SECOND);
    let all = world.provider.between(Duration::ZERO, 200 * SECOND);
    let wait = Duration::from_millis(world.provider.longest_wait.load(Ordering::SeqCst));
    println!(
        "{others} of 300 at the other, {lives_on:?}: at most {most} of 60 in 10 s, {all} answered, {} refused, after {wait:?} at most",
        world.refused()
    );
    assert!(most <= 60, "{others}: {most}");
    assert_eq!((all, world.refused()), (300, 0), "{others}");
    assert!(wait < 4 * SECOND, "{others}: {wait:?}");
}

#[tokio::test(start_paused = true)]
async fn the_loss_of_the_gateway_that_has_nearly_all_leaves_enough_for_the_others() {
    for others in [0, 30, 150] {
        the_one_that_deals_out_is_lost(others, None).await;
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_lives_on_when_its_pod_is_deleted_takes_nothing_with_it() {
    // Nobody listens to it any more, so it has no witness at its end.
    for (others, afterlife) in [(0, 2 * SECOND), (30, SECOND / 2), (150, 2 * SECOND)] {
        the_one_that_deals_out_is_lost(others, Some(afterlife)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn requests_that_are_given_up_leave_their_turn_to_others() {
    let quota = json!({"name": "rps", "resource": "Requests", "limit": 10, "windowSeconds": 10});
    let mut world = World::new(quota);
    world.start("g-0", &[]);
    let quotas = world.processes["g-0"].quotas.clone();
    let ask = |patience: u64| Ask {
        pool: "support",
        model: None,
        bytes: 0,
        max_tokens: None,
        deadline: Instant::now() + Duration::from_millis(patience),
    };
    let sent = |permit: Option<Permit>| {
        let mut permit = permit.expect("there is a quota");
        permit.answered(StatusCode::OK, &HeaderMap::new());
        permit.settle(Used::default());
    };
    for _ in 0..10 {
        sent(quotas.reserve("main", ask(5_000)).await.unwrap());
    }
    // Their time ends, or their client goes, before and while the quota comes back after 10 s.
    let mut waiting = JoinSet::new();
    for number in 0..400u64 {
        let (quotas, ask) = (quotas.clone(), ask(9_000 + number * 10));
        waiting.spawn(async move {
            let patience = Duration::from_millis(if number % 2 == 0 {
                8_000 + number * 10
            } else {
                60_000
            });
            let reserved = tokio::time::timeout(patience, quotas.reserve("main", ask)).await;
            if let Ok(Ok(Some(permit))) = reserved {
                permit.cancel();
            }
        });
    }
    while waiting.join_next().await.is_some() {}
    let (before, mut at_once) = (Instant::now(), 0);
    for _ in 0..10 {
        sent(quotas.reserve("main", ask(5_000)).await.unwrap());
        at_once += u32::from(before.elapsed() < SECOND);
    }
    assert_eq!(at_once, 10, "none of them has used anything");
}

/// What a provider asks for by mistake stops a gateway for an hour, not for a month.
#[tokio::test(start_paused = true)]
async fn after_an_hour_one_request_asks_whether_a_long_wait_is_still_meant() {
    let mut world = World::new(requests(60));
    world.start("g-0", &[]);
    let quotas = world.processes["g-0"].quotas.clone();
    let reserve = async |patience: Duration| quotas.reserve("main", ask(patience)).await.ok().flatten();
    let answered = |permit: Option<Permit>, status, headers: &HeaderMap| {
        let mut permit = permit.expect("it was admitted");
        permit.answered(status, headers);
        permit.settle(Used::default());
    };
    let month = HeaderMap::from_iter([(header::RETRY_AFTER, HeaderValue::from(31 * 86_400))]);
    answered(reserve(WINDOW).await, StatusCode::TOO_MANY_REQUESTS, &month);
    let before = Instant::now();
    assert!(reserve(600 * SECOND).await.is_none());
    assert!(before.elapsed() < SECOND, "it would wait in vain");
    tokio::time::sleep(3_590 * SECOND).await;
    assert!(reserve(5 * SECOND).await.is_none());
    let probe = reserve(10 * SECOND).await;
    assert!(
        probe.is_some() && reserve(10 * SECOND).await.is_none(),
        "one alone"
    );
    // A 429 that does not say for how long says nothing new; the next one a minute later is answered.
    answered(probe, StatusCode::TOO_MANY_REQUESTS, &HeaderMap::new());
    assert!(reserve(10 * SECOND).await.is_none());
    let probe = reserve(WINDOW).await;
    assert!(reserve(SECOND).await.is_none(), "one alone");
    answered(probe, StatusCode::OK, &HeaderMap::new());
    for _ in 0..10 {
        answered(reserve(SECOND).await, StatusCode::OK, &HeaderMap::new());
    }
    let pools = quotas.pools("main");
    assert_eq!((pools[0].1.refused, pools[0].1.passed_over), (5, 0));

    // Whoever has somebody else to ask does not wait, and is not counted as refused.
    for _ in 0..60 {
        drop(reserve(Duration::ZERO).await);
    }
    let pools = quotas.pools("main");
    let counts = &pools[0].1;
    assert_eq!((counts.refused, counts.waiting), (5, 0));
    assert!((10..60).contains(&counts.passed_over), "{counts:?}");
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_in_vain_for_the_next_day() {
    let mut world = World::new(json!({"name": "rpd", "resource": "Requests", "limit": 20, "window": "Day"}));
    for number in 0..2 {
        world.start(&format!("g-{number}"), &[]);
    }
    let reserve = async |pod: &str, patience: Duration| {
        let quotas = world.processes[pod].quotas.clone();
        quotas.reserve("main", ask(patience)).await.map(|permit| {
            let mut permit = permit.expect("there is a quota");
            permit.answered(StatusCode::OK, &HeaderMap::new());
            permit.settle(Used::default());
        })
    };
    for _ in 0..20 {
        reserve("g-0", WINDOW).await.unwrap();
    }
    // The first waits, in case somebody gives something back.
    let (first, second) = tokio::join!(reserve("g-0", 600 * SECOND), async {
        tokio::time::sleep(30 * SECOND).await;
        (reserve("g-0", 600 * SECOND).await, Instant::now())
    });
    let waited = second.1.elapsed();
    let Err(NotAdmitted::Refused(refused)) = second.0 else {
        panic!("{second:?}");
    };
    assert_eq!(refused.why, Why::WouldTimeOut);
    // It is noon.
    let hours = refused.retry_after.as_secs() / 3_600;
    assert!((11..=12).contains(&hours), "{:?}", refused.retry_after);
    assert!(first.is_err() && waited >= 500 * SECOND, "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn a_partition_uses_its_share_up_and_falls_to_its_floor() {
    for floor in [0u64, 5] {
        let mut world = World::new(json!({
            "name": "rpm", "resource": "Requests", "limit": 300, "windowSeconds": 60, "floor": floor,
        }));
        for number in 0..3 {
            world.start(&format!("g-{number}"), &[load("support", 10)]);
        }
        tokio::time::sleep(2 * WINDOW).await;
        let elected = world.elected().expect("somebody deals out");
        let other = world
            .processes
            .keys()
            .find(|pod| **pod != elected)
            .expect("three")
            .clone();
        // First one that only uses it, then the one that deals it out.
        world.cut(&other, true);
        tokio::time::sleep(2 * WINDOW).await;
        world.cut(&other, false);
        tokio::time::sleep(SECOND).await;
        world.cut(&elected, true);
        tokio::time::sleep(2 * WINDOW).await;
        assert!(
            world.elected().is_some_and(|now| now != elected),
            "another deals out"
        );
        world.cut(&elected, false);
        tokio::time::sleep(2 * WINDOW).await;
        let most = world.provider.most(WINDOW);
        let healed = utilisation(&world, 300, 7 * WINDOW, 8 * WINDOW);
        println!("floor {floor}: at most {most} of 300 in 60 s, {healed:.1} % used after it healed");
        assert!(most <= 300, "floor {floor}: {most}");
        assert!(healed >= 90.0, "floor {floor}: {healed:.1} %");
    }
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_sends_twenty_times_its_share_leaves_the_other_its_own() {
    let mut world = World::new(requests(600));
    // Half of it each is fair: 300 a window. One sends just that, whatever happens to it, the other as fast as it is served.
    let own = Load {
        pool: "modest",
        agents: 1,
        pause: Duration::from_millis(400),
        open: true,
    };
    for number in 0..2 {
        world.start(&format!("g-{number}"), &[own, load("greedy", 100)]);
    }
    tokio::time::sleep(WINDOW).await;
    let admitted = |world: &World, pool: &str| -> u64 {
        let all = world
            .processes
            .values()
            .map(|process| process.quotas.stats("main").1);
        all.filter_map(|pools| pools.get(pool).copied())
            .map(|pool| pool.admitted + pool.waited)
            .sum()
    };
    let before = (admitted(&world, "modest"), admitted(&world, "greedy"));
    tokio::time::sleep(3 * WINDOW).await;
    let (modest, greedy) = (
        admitted(&world, "modest") - before.0,
        admitted(&world, "greedy") - before.1,
    );
    println!("in three windows of 600: {modest} of the modest pool, {greedy} of the greedy one");
    assert!(world.provider.most(WINDOW) <= 600);
    assert!(modest >= 855, "95 % of its own: {modest}");
    assert!(
        modest + greedy >= 1_710,
        "nothing is wasted on fairness: {modest} + {greedy}"
    );
}

/// A machine that is taken away gives its pods less time than a drain may take.
#[tokio::test(start_paused = true)]
async fn one_that_drains_deals_out_no_more_and_may_vanish_before_it_has_ended() {
    let mut world = World::new(requests(600));
    for number in 0..3 {
        world.start(&format!("g-{number}"), &[load("support", 15)]);
    }
    tokio::time::sleep(2 * WINDOW).await;
    let before = world.elected().expect("somebody deals out");
    world.processes[&before].quotas.stand_aside();
    tokio::time::sleep(5 * SECOND).await;
    assert!(
        world.elected().is_some_and(|now| now != before),
        "another deals out"
    );
    tokio::time::sleep(15 * SECOND).await;
    let elected = world.elected();
    world.vanish(&before);
    tokio::time::sleep(40 * SECOND).await;
    assert_eq!(world.elected(), elected, "its end changes nothing");
    let most = world.provider.most(WINDOW);
    let used = utilisation(&world, 600, 2 * WINDOW, 3 * WINDOW);
    println!("at most {most} of 600 in 60 s, {used:.1} % used");
    assert!(most <= 600, "{most}");
    assert!(used >= 95.0, "{used:.1} %");
    assert_eq!(world.refused(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_rolling_restart_hands_shares_over() {
    let mut world = World::new(requests(600));
    for number in 0..3 {
        world.start(&format!("g-{number}"), &[load("support", 15)]);
    }
    tokio::time::sleep(2 * WINDOW).await;
    for number in 0..3 {
        world.start(&format!("h-{number}"), &[load("support", 15)]);
        tokio::time::sleep(5 * SECOND).await;
        world.leave(&format!("g-{number}")).await;
        tokio::time::sleep(5 * SECOND).await;
    }
    tokio::time::sleep(2 * WINDOW).await;
    let most = world.provider.most(WINDOW);
    let used = utilisation(&world, 600, 150 * SECOND, 270 * SECOND);
    println!("rolling restart: at most {most} of 600 in 60 s, {used:.1} % used");
    assert!(most <= 600, "{most}");
    assert_eq!(world.refused(), 0);
    assert!(world.elected().is_some_and(|pod| pod.starts_with('h')));
}

/// An object that is deleted and applied again, or a quota that is taken away for a moment, must not make anybody forget.
#[tokio::test(start_paused = true)]
async fn a_quota_that_is_taken_away_and_put_back_knows_what_was_used() {
    let mut world = World::new(json!({"name": "rpd", "resource": "Requests", "limit": 200, "window": "Day"}));
    for pod in ["g-0", "g-1"] {
        world.start(pod, &[]);
    }
    let stream = |world: &World| world.stream("g-0", SECOND / 10, SECOND, 150);
    stream(&world).await.unwrap();
    assert_eq!(world.provider.between(Duration::ZERO, WINDOW), 150);
    world.set(None);
    tokio::time::sleep(SECOND).await;
    world.set(Some(
        json!({"name": "rpd", "resource": "Requests", "limit": 200, "window": "Day"}),
    ));
    tokio::time::sleep(SECOND).await;
    stream(&world).await.unwrap();
    let all = world.provider.between(Duration::ZERO, 10 * WINDOW);
    println!("{all} of 200 a day");
    assert!(all <= 200, "{all}");
    assert!(all >= 190, "little is lost: {all}");
}

#[tokio::test(start_paused = true)]
async fn a_change_of_a_quota_holds_nobody_up() {
    let mut world = World::new(requests(600));
    for number in 0..3 {
        world.start(&format!("g-{number}"), &[load("support", 15)]);
    }
    tokio::time::sleep(2 * WINDOW).await;
    for limit in [900, 600] {
        world.set(Some(requests(limit)));
        tokio::time::sleep(2 * WINDOW).await;
    }
    let used = utilisation(&world, 900, 2 * WINDOW, 4 * WINDOW);
    let after = utilisation(&world, 600, 4 * WINDOW, 6 * WINDOW);
    println!("{used:.1} % and {after:.1} % used after a change");
    assert!(world.provider.most(WINDOW) <= 900);
    assert!(used >= 95.0 && after >= 95.0, "{used:.1} %, {after:.1} %");
    assert_eq!(world.refused(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_days_count_survives_the_end_of_all_gateways() {
    let mut world = World::new(json!({"name": "rpd", "resource": "Requests", "limit": 200, "window": "Day"}));
    world.start("g-0", &[load("support", 4)]);
    world.start("g-1", &[load("support", 4)]);
    tokio::time::sleep(10 * SECOND).await;
    for pod in ["g-0", "g-1"] {
        world.kill(pod);
    }
    tokio::time::sleep(30 * SECOND).await;
    world.start("h-0", &[load("support", 8)]);
    world.start("h-1", &[load("support", 8)]);
    tokio::time::sleep(3_600 * SECOND).await;
    let all = world.provider.between(Duration::ZERO, 4_000 * SECOND);
    println!("{all} of 200 a day were sent through two lives");
    assert!(all <= 200, "{all}");
    assert!(all >= 180, "little is lost: {all}");
}

/// What the lease path costs: prints it, and fails only if it is a hundred times what it should be.
#[tokio::test]
async fn admission_is_cheap() {
    let mut world = World::new(
        json!({"name": "tpm", "resource": "Tokens", "limit": 1_000_000_000_000_u64, "window": "Minute"}),
    );
    world.start("g-0", &[]);
    let quotas = world.processes["g-0"].quotas.clone();
    let ask = Ask {
        pool: "support",
        model: Some("mini"),
        bytes: 1_024,
        max_tokens: Some(100),
        deadline: Instant::now() + WINDOW,
    };
    let used = Used {
        input: Some(250),
        output: Some(80),
    };
    let headers = HeaderMap::new();
    let rounds = if cfg!(debug_assertions) { 2_000u32 } else { 200_000 };
    let (mut reserving, mut all, mut at_once) = (Duration::ZERO, Duration::ZERO, 0u32);
    for _ in 0..rounds {
        let start = std::time::Instant::now();
        let mut permit = quotas.reserve("main", ask).await.unwrap().unwrap();
        let reserved = start.elapsed();
        permit.answered(StatusCode::OK, &headers);
        let waited = !permit.waited().is_zero();
        permit.settle(used);
        if !waited {
            at_once += 1;
            reserving += reserved;
            all += start.elapsed();
        }
    }
    assert!(at_once > rounds / 2, "{at_once} of {rounds} found a lease");
    let (reserving, all) = (reserving / at_once, all / at_once);
    println!("admission takes {reserving:?}, with head and end {all:?}");
    assert!(reserving < Duration::from_micros(500), "{reserving:?}");
}
