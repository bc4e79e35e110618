//! Releases while people talk: nobody is switched but by an abort.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use flotilla_gateway::config::{Config, PoolConfig};
use http::{Method, Request, StatusCode};
use parking_lot::RwLock;

use super::{Cluster, Node, by_header};
use crate::support::{Agent, Client, PoolExt as _, config, full, pool};

fn is_full() -> bool {
    std::env::var("FLOTILLA_FULL").is_ok_and(|value| value == "1")
}

/// Two revisions under a generation: stable and candidate by weight.
fn weights(generation: i64, stable: SocketAddr, candidate: SocketAddr, weight: u32) -> Config {
    let mut pool: PoolConfig = pool()
        .revision("stable", 100 - weight, 10_000, &[stable])
        .revision("candidate", weight, 10_000, &[candidate]);
    pool.generation = generation;
    pool.sessions = Some(by_header(&[("candidate", FIRST)]));
    config(pool)
}

/// The generation with which the candidate's weight leaves zero.
const FIRST: i64 = 2;

/// What became of the conversations.
#[derive(Default)]
struct Tally {
    turns: AtomicU64,
    /// Turns on another revision than the last one.
    switched: AtomicU64,
    /// Requests that failed and were sent again elsewhere.
    failed: AtomicU64,
}

/// People who talk: in each round everybody takes a turn at any of the gateways.
struct People {
    /// Where requests may go now.
    targets: Arc<RwLock<Vec<SocketAddr>>>,
    tally: Arc<Tally>,
    /// What each has seen.
    seen: Vec<Option<Bytes>>,
    may_fail: bool,
}

const WORKERS: usize = 16;

impl People {
    fn new(number: usize, cluster: &Cluster) -> Self {
        let targets = cluster.nodes.iter().map(|node| node.ingress).collect();
        Self {
            targets: Arc::new(RwLock::new(targets)),
            tally: Arc::default(),
            seen: vec![None; number],
            may_fail: false,
        }
    }

    fn on(&self, revision: &str) -> usize {
        self.seen
            .iter()
            .flatten()
            .filter(|seen| *seen == revision)
            .count()
    }

    fn switched(&self) -> u64 {
        self.tally.switched.load(Ordering::SeqCst)
    }

    fn failed(&self) -> u64 {
        self.tally.failed.load(Ordering::SeqCst)
    }

    /// One turn of everybody in `who`.
    async fn round(&mut self, who: std::ops::Range<usize>) {
        let mut workers = Vec::new();
        for worker in 0..WORKERS {
            let mine: Vec<(usize, Option<Bytes>)> = who
                .clone()
                .filter(|person| person % WORKERS == worker)
                .map(|person| (person, self.seen[person].clone()))
                .collect();
            let (targets, tally, may_fail) = (self.targets.clone(), self.tally.clone(), self.may_fail);
            workers.push(tokio::spawn(async move {
                let mut clients = BTreeMap::new();
                let mut after = Vec::new();
                for (person, before) in mine {
                    let now = turn(person, &targets, &mut clients, &tally, may_fail).await;
                    let switched = before.is_some_and(|before| before != now);
                    tally.switched.fetch_add(u64::from(switched), Ordering::SeqCst);
                    tally.turns.fetch_add(1, Ordering::SeqCst);
                    after.push((person, now));
                }
                after
            }));
        }
        for worker in workers {
            for (person, now) in worker.await.unwrap() {
                self.seen[person] = Some(now);
            }
        }
    }
}

/// One request, sent again elsewhere when its gateway is gone. Gives the revision that answered.
async fn turn(
    person: usize,
    targets: &RwLock<Vec<SocketAddr>>,
    clients: &mut BTreeMap<SocketAddr, Client>,
    tally: &Tally,
    may_fail: bool,
) -> Bytes {
    loop {
        let target = {
            let targets = targets.read();
            targets[rand::random_range(0..targets.len())]
        };
        let request = Request::builder()
            .method(Method::GET)
            .uri("/pools/support/")
            .header("host", "gateway")
            .header("x-session-id", format!("person-{person}"))
            .body(full(""))
            .unwrap();
        let client = match clients.remove(&target) {
            Some(client) => Some(client),
            None => match tokio::net::TcpStream::connect(target).await {
                Ok(stream) => Some(Client::over(stream).await),
                Err(_) => None,
            },
        };
        if let Some(mut client) = client {
            let answer = tokio::time::timeout(Duration::from_secs(10), client.send(request)).await;
            if let Ok(Ok(answer)) = answer {
                assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
                if !answer.closes() {
                    clients.insert(target, client);
                }
                return answer.body;
            }
        }
        assert!(may_fail, "a request of person {person} failed");
        tally.failed.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Agents, three gateways, and people.
struct Scene {
    agents: [Agent; 2],
    cluster: Cluster,
    people: People,
    turns: usize,
    starts: usize,
}

impl Scene {
    async fn new(sampled: usize) -> Self {
        let agents = [Agent::named("stable").await, Agent::named("candidate").await];
        let first = weights(1, agents[0].address, agents[1].address, 0);
        let cluster = Cluster::start(3, first).await;
        let (number, turns) = if is_full() { (10_000, 20) } else { (sampled, 5) };
        let people = People::new(number, &cluster);
        Self {
            agents,
            cluster,
            people,
            turns,
            starts: 10,
        }
    }

    fn weight(&mut self, generation: i64, weight: u32) {
        let [stable, candidate] = &self.agents;
        let config = weights(generation, stable.address, candidate.address, weight);
        self.cluster.tell(config);
    }

    fn rounds(&self) -> usize {
        self.starts + self.turns - 1
    }

    /// Round `round`: a tenth more have begun with each of the first ten, and each stops after its turns.
    async fn round(&mut self, round: usize) {
        let group = self.people.seen.len() / self.starts;
        let last = (round + 1).min(self.starts) * group;
        let first = (round + 1).saturating_sub(self.turns) * group;
        self.people.round(first..last).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_release_switches_nobody() {
    let mut scene = Scene::new(1000).await;
    let steps: BTreeMap<usize, (i64, u32)> = [
        (2, (2, 1)),
        (3, (3, 10)),
        (5, (4, 25)),
        (7, (5, 50)),
        (9, (6, 100)),
    ]
    .into();
    for round in 0..scene.rounds() {
        if let Some((generation, weight)) = steps.get(&round) {
            // Nobody waits until it is in force everywhere.
            scene.weight(*generation, *weight);
        }
        scene.round(round).await;
    }
    let number = scene.people.seen.len();
    let result = (scene.people.switched(), scene.people.failed());
    assert_eq!(result, (0, 0), "{}", scene.cluster.explain().await);
    let turns = scene.people.tally.turns.load(Ordering::SeqCst);
    assert_eq!(turns, (number * scene.turns) as u64);
    let on_candidate = scene.people.on("candidate");
    println!("{number} conversations, {turns} turns, {on_candidate} on the candidate, 0 switched");
    assert!(
        (number / 10..number * 6 / 10).contains(&on_candidate),
        "new ones go where the weights say: {on_candidate} of {number}"
    );
    for metric in ["moved", "unprotected", "split", "unanswered"] {
        let name = format!("flotilla_gateway_sessions_{metric}_total");
        assert_eq!(scene.cluster.metric(&name).await, 0, "{name}");
    }
    assert_eq!(
        scene.cluster.metric("flotilla_gateway_sessionless_total").await,
        0
    );
    assert_eq!(scene.cluster.metric("flotilla_gateway_diverted_total").await, 0);
    assert_eq!(
        scene
            .cluster
            .metric("flotilla_gateway_sessions_assigned_total")
            .await,
        number as u64,
        "each is assigned once"
    );
    check_evidence(&scene, on_candidate).await;
}

/// Conversations from before the candidate's first weight are told apart, on the only arm that has any.
async fn check_evidence(scene: &Scene, on_candidate: usize) {
    let (mut assigned, mut old, mut new) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for node in &scene.cluster.nodes {
        let stats = node.stats().await;
        let pool = &stats.pools["support"];
        let sessions = pool.sessions.as_ref().unwrap();
        assert_eq!((sessions.since_generation, sessions.moved), (FIRST, 0));
        for (name, revision) in &pool.revisions {
            *assigned.entry(name.clone()).or_insert(0) += revision.sessions_assigned;
            for window in &revision.windows {
                assert!(window.epoch >= FIRST - 1, "all older ones are one class");
                let class = if window.epoch < FIRST { &mut old } else { &mut new };
                *class.entry(name.clone()).or_insert(0) += window.started;
            }
        }
    }
    let group = scene.people.seen.len() / scene.starts;
    assert_eq!(assigned["candidate"], on_candidate as u64);
    // Two tenths began before; where the news had not arrived yet some of the third did, too.
    let before = scene.people.seen.len() as u64 - assigned["stable"] - assigned["candidate"];
    assert!((2 * group as u64..3 * group as u64).contains(&before), "{before}");
    assert!(!old.contains_key("candidate"), "{old:?}");
    if is_full() {
        // Windows are forgotten a while after the request timeout, and this takes longer.
        return;
    }
    assert_eq!(old["stable"], before * scene.turns as u64);
    assert_eq!(new["candidate"], (on_candidate * scene.turns) as u64);
    assert_eq!(new["stable"], assigned["stable"] * scene.turns as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abort_moves_everybody_to_stable_and_fails_nobody() {
    let mut scene = Scene::new(500).await;
    scene.weight(2, 50);
    scene.cluster.settle().await;
    let number = scene.people.seen.len();
    scene.people.round(0..number).await;
    let on_candidate = scene.people.on("candidate");
    assert!(
        (number / 3..number * 2 / 3).contains(&on_candidate),
        "{on_candidate}"
    );
    // The abort comes in the middle of a round.
    let [stable, candidate] = scene.agents.each_ref().map(|agent| agent.address);
    let mut aborted = weights(3, stable, candidate, 0);
    let pool = aborted.pools.get_mut("support").unwrap();
    pool.weights.retain(|(name, _)| name == "stable");
    pool.sessions.as_mut().unwrap().rejected = vec!["candidate".into()];
    let round = scene.people.round(0..number);
    let cluster = &mut scene.cluster;
    let abort = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        cluster.tell(aborted);
        cluster.settle().await;
    };
    tokio::join!(round, abort);
    scene.people.round(0..number).await;
    assert_eq!((scene.people.on("stable"), scene.people.failed()), (number, 0));
    assert_eq!(scene.people.switched(), on_candidate as u64, "each once");
    let moved = scene
        .cluster
        .metric("flotilla_gateway_sessions_moved_total")
        .await;
    assert_eq!(moved, on_candidate as u64, "each is counted once");
    // A retry of the same revision gets new conversations only.
    let mut retried = weights(5, stable, candidate, 90);
    let sessions = retried
        .pools
        .get_mut("support")
        .unwrap()
        .sessions
        .as_mut()
        .unwrap();
    sessions.since.insert("candidate".into(), 5);
    scene.cluster.tell(retried);
    scene.cluster.settle().await;
    scene.people.round(0..number).await;
    assert_eq!(scene.people.on("stable"), number);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_death_of_a_gateway_switches_nobody() {
    let mut scene = Scene::new(400).await;
    scene.people.may_fail = true;
    let steps: BTreeMap<usize, (i64, u32)> = [(1, (2, 10)), (3, (3, 50)), (8, (4, 100))].into();
    for round in 0..scene.rounds() {
        if let Some((generation, weight)) = steps.get(&round) {
            scene.weight(*generation, *weight);
        }
        if round == 5 {
            // It dies while its clients talk; the cluster learns of it later.
            let mut dead = scene.cluster.nodes.remove(0);
            let (ingress, admin) = (dead.ingress, dead.admin);
            let targets = scene.people.targets.clone();
            let death = async {
                tokio::time::sleep(Duration::from_millis(10)).await;
                dead.kill();
                tokio::time::sleep(Duration::from_millis(100)).await;
                targets.write().retain(|target| *target != ingress);
                dead
            };
            let group = scene.people.seen.len() / scene.starts;
            let who = (round + 1).saturating_sub(scene.turns) * group..(round + 1) * group;
            let ((), _dead) = tokio::join!(scene.people.round(who), death);
            assert!(!scene.cluster.listed().contains(&admin));
            continue;
        }
        if round == 6 {
            scene.cluster.relist(&scene.cluster.listed());
        }
        scene.round(round).await;
    }
    println!(
        "{} conversations, {} requests sent again, {} switched",
        scene.people.seen.len(),
        scene.people.failed(),
        scene.people.switched()
    );
    let switched = scene.people.switched();
    assert_eq!(switched, 0, "{}", scene.cluster.explain().await);
    assert!(scene.people.on("candidate") > 0 && scene.people.on("stable") > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_of_all_gateways_switches_and_fails_nobody() {
    let mut scene = Scene::new(300).await;
    scene.weight(2, 30);
    scene.cluster.settle().await;
    let number = scene.people.seen.len();
    scene.people.round(0..number).await;
    // The same people all the time, now at other weights.
    scene.weight(3, 70);
    for _ in 0..3 {
        // One more at first, as maxSurge does.
        scene.cluster.nodes.push(Node::start().await);
        scene.cluster.relist(&scene.cluster.listed());
        scene.cluster.settle().await;
        let mut leaving = scene.cluster.nodes.remove(0);
        let (targets, ingress) = (scene.people.targets.clone(), leaving.ingress);
        targets.write().push(scene.cluster.nodes.last().unwrap().ingress);
        let done = AtomicBool::new(false);
        let leave = async {
            // As endpoints do: it is still listed while it stops, but gets no new connections after a while.
            targets.write().retain(|target| *target != ingress);
            assert_eq!(leaving.stop().await, 0, "requests were cut");
            done.store(true, Ordering::SeqCst);
        };
        let people = &mut scene.people;
        let talk = async {
            loop {
                people.round(0..number).await;
                if done.load(Ordering::SeqCst) {
                    return;
                }
            }
        };
        tokio::join!(leave, talk);
        scene.cluster.relist(&scene.cluster.listed());
        scene.people.round(0..number).await;
        let result = (scene.people.switched(), scene.people.failed());
        assert_eq!(result, (0, 0), "{}", scene.cluster.explain().await);
    }
    assert_eq!(
        scene
            .cluster
            .metric("flotilla_gateway_sessions_unprotected_total")
            .await,
        0
    );
    let on_candidate = scene.people.on("candidate");
    assert!((number / 6..number / 2).contains(&on_candidate), "{on_candidate}");
    println!(
        "{} turns over three restarts",
        scene.people.tally.turns.load(Ordering::SeqCst)
    );
}
