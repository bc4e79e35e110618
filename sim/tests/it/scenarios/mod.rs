//! The scenario catalogue of rollouts.md 8.4, told in the language of [`Scene`]: a pool named `support` of the image
//! `agent:1` on the simulated cluster, under the real operator.
//!
//! [`Scene::until`] and [`Scene::stays`] speak of the pool's revisions as `1=3@75 2=1@25`: three available pods of `agent:1`
//! with 75 % of the traffic, and one of `agent:2` with 25 %; `2=0/1@25` has one pod that is wanted and not available. A
//! revision without pods and traffic is not named. At the end of every story the operator must be silent for a minute, must
//! never have panicked, and every [invariant](flotilla_sim::invariants) must have held.
//!
//! The table of rows and tests is in `sim/README.md`.

mod analysis;
mod autoscalers;
mod batches;
mod blue_green;
mod canary;
mod commands;
mod duration;
mod flagger;
mod gates;
mod kruise;
mod lifecycle;
mod regressions;
mod rollback_window;
mod sources;
mod specs;
mod traffic;
mod workers;
mod world;

use std::sync::Arc;
use std::time::Duration;

use flotilla_sim::Cluster;
use flotilla_sim::controllers::{Controllers, Fate};
use flotilla_sim::faults::{Line, Plan};
use flotilla_sim::gateways::{Gateways, Manner};
use flotilla_sim::invariants::violations;
use flotilla_sim::run::{World, last_words};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::operator::{panics, start_asking};
use specs::{blue_green, canary, merged, of_canary, rolling};
use world::{Answer, Number, Shared, fate_of, tag};

const POOLS: &str = "/apis/flotilla.dev/v1alpha1/namespaces/shop/agentpools";
const POOL: &str = "/apis/flotilla.dev/v1alpha1/namespaces/shop/agentpools/support";
const ACTIONS: &str = "/apis/flotilla.dev/v1alpha1/namespaces/shop/rolloutactions";
/// How often a story looks when nothing changes.
const LOOK: Duration = Duration::from_secs(5);
/// Longer than any wait of a story that is not about waiting.
const LIMIT: Duration = Duration::from_secs(1800);
/// So long nothing may be written at the end.
const SILENCE: Duration = Duration::from_secs(60);

/// A pool on a simulated cluster, with its operator.
pub struct Scene {
    cluster: Cluster,
    line: Line,
    world: World,
    process: JoinHandle<()>,
    script: Shared,
    commands: usize,
    _controllers: Controllers,
}

/// Tells a story about a pool, from its first `Ready` to silence.
pub fn scenario(spec: Value, story: impl AsyncFnOnce(&mut Scene)) {
    unready_scenario(spec, async |scene: &mut Scene| {
        scene.says("Ready").await;
        story(scene).await;
    });
}

/// The same from the moment the pool is made.
pub fn unready_scenario(spec: Value, story: impl AsyncFnOnce(&mut Scene)) {
    let before = panics();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime can be made");
    runtime.block_on(async {
        let mut scene = Scene::new(&spec);
        story(&mut scene).await;
        scene.end().await;
    });
    assert_eq!(panics(), before, "the operator panicked");
}

/// A story that fails tells what was asked last.
impl Drop for Scene {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("the last requests:\n{}", last_words(&self.line.transcript()));
        }
    }
}

impl Scene {
    fn new(spec: &Value) -> Self {
        let cluster = Cluster::new(1);
        cluster.namespace("shop");
        let script = Shared::default();
        let fates = script.clone();
        let controllers = Controllers::start(
            &cluster,
            Arc::new(move |cluster: &Cluster, pod: &Value| fate_of(&fates, cluster, pod)),
        );
        let line = Line::new(&cluster, Plan::none(1));
        let gateways = Gateways::new(&cluster, Arc::new(script.clone()), Duration::from_millis(50), 1);
        let world = World {
            cluster: cluster.clone(),
            gateways,
        };
        let process = start_asking(
            &world,
            line.connect(),
            Arc::new(script.clone()),
            Arc::new(script.clone()),
        );
        let pool = json!({"metadata": {"name": "support"}, "spec": spec});
        cluster
            .create(POOLS, &pool)
            .unwrap_or_else(|failure| panic!("{}", failure.message));
        Self {
            cluster,
            line,
            world,
            process,
            script,
            commands: 0,
            _controllers: controllers,
        }
    }

    // === what the user and the world do ===

    /// Merges into the pool's spec.
    pub fn set(&self, spec: Value) {
        let patched = self.cluster.patch(POOL, json!({"spec": spec}));
        patched.unwrap_or_else(|failure| panic!("{}", failure.message));
    }

    /// Why the API server refuses a change of the spec.
    pub fn refused(&self, spec: Value) -> String {
        match self.cluster.patch(POOL, json!({"spec": spec})) {
            Ok(_) => panic!("it was not refused"),
            Err(failure) => failure.message,
        }
    }

    /// Another image.
    pub fn image(&self, tag: &str) {
        self.set(json!({"agent": {"image": format!("agent:{tag}")}}));
    }

    /// Another size.
    pub fn scale(&self, replicas: i32) {
        self.set(json!({"replicas": replicas}));
    }

    /// The pool goes.
    pub fn delete(&self) {
        self.cluster.delete(POOL).expect("the pool is there");
    }

    /// What becomes of an image's pods from now on.
    pub fn fate(&self, tag: &str, fate: Fate) {
        self.script
            .with(|script| script.fates.insert(tag.to_owned(), fate));
    }

    /// Pods of this image never become ready.
    pub fn never_ready(&self, tag: &str) {
        self.fate(tag, Fate::Unready);
    }

    /// Pods of this image take so long to become ready.
    pub fn slow_start(&self, tag: &str, seconds: u64) {
        self.fate(tag, Fate::Ready(Duration::from_secs(seconds)));
    }

    /// Pods of this image end again and again.
    pub fn crashes(&self, tag: &str) {
        self.fate(
            tag,
            Fate::Exits {
                after: Duration::from_millis(500),
                code: 1,
                message: "no".into(),
            },
        );
    }

    /// Requests per second from now on.
    pub fn traffic(&self, rate: f64) {
        self.script.with(|script| script.rate = rate);
    }

    /// The share of an image's requests that fail from now on.
    pub fn fails(&self, tag: &str, share: f64) {
        self.manner(tag, |manner| manner.failing = share);
    }

    /// An image's median latency from now on.
    pub fn answers_in(&self, tag: &str, milliseconds: f64) {
        self.manner(tag, |manner| manner.latency = milliseconds);
    }

    /// The part of a request's time after which an image's first byte comes from now on.
    pub fn first_byte_after(&self, tag: &str, part: f64) {
        self.manner(tag, |manner| manner.first_byte = part);
    }

    /// Of the requests that an image's weight asks for only this part reaches it from now on.
    pub fn is_reached_by(&self, tag: &str, part: f64) {
        self.manner(tag, |manner| manner.reaching = part);
    }

    fn manner(&self, tag: &str, change: impl FnOnce(&mut Manner)) {
        self.script
            .with(|script| change(script.manners.entry(tag.to_owned()).or_default()));
    }

    /// How candidates answer tests of this path from now on; `None` as they should.
    pub fn answers(&self, path: &str, answer: Option<Answer>) {
        self.script.with(|script| match answer {
            Some(answer) => script.answers.insert(path.to_owned(), answer),
            None => script.answers.remove(path),
        });
    }

    /// What the source answers to questions with this part from now on.
    pub fn number(&self, part: &str, number: Number) {
        self.script
            .with(|script| script.numbers.push((part.to_owned(), number)));
    }

    /// Kills the operator and starts it again.
    pub async fn restart_operator(&mut self) {
        self.line.kill();
        self.process.abort();
        sleep(Duration::from_secs(1)).await;
        let (candidates, figures) = (Arc::new(self.script.clone()), Arc::new(self.script.clone()));
        self.process = start_asking(&self.world, self.line.connect(), candidates, figures);
    }

    /// Gives a command about what the pool's status shows now; its answer, and the sentence.
    pub async fn command(&mut self, type_: &str) -> (String, String) {
        let status = self.status();
        let revision = match type_ {
            "Retry" => status["rejected"][0]["revision"].clone(),
            "Restart" => status["stable"]["revision"].clone(),
            _ => status["candidate"]["revision"].clone(),
        };
        let mut expect = json!({"revision": revision});
        if matches!(type_, "Promote" | "SkipStep") {
            expect["step"] = status["rollout"]["step"]["index"].clone();
        }
        self.command_for(type_, expect).await
    }

    /// The same with these expectations.
    pub async fn command_for(&mut self, type_: &str, expect: Value) -> (String, String) {
        let name = self.give(type_, expect);
        self.answer(&name).await
    }

    /// Gives a command and does not wait; its name.
    pub fn give(&mut self, type_: &str, expect: Value) -> String {
        self.commands += 1;
        let name = format!("command-{:02}", self.commands);
        let spec = json!({"poolRef": {"name": "support"}, "type": type_, "expect": expect});
        self.cluster
            .create(ACTIONS, &json!({"metadata": {"name": name}, "spec": spec}))
            .unwrap_or_else(|failure| panic!("{}", failure.message));
        name
    }

    /// The answer to a command, and the sentence.
    pub async fn answer(&self, name: &str) -> (String, String) {
        let path = format!("{ACTIONS}/{name}");
        let status = |scene: &Self| scene.cluster.get(&path).unwrap_or_default()["status"].clone();
        self.wait_for(name, |scene| status(scene)["result"].is_string())
            .await;
        let status = status(self);
        let word = |field: &str| status[field].as_str().unwrap_or_default().to_owned();
        (word("result"), word("message"))
    }

    /// Gives a command that must be carried out.
    pub async fn does(&mut self, type_: &str) {
        let (result, message) = self.command(type_).await;
        assert_eq!(result, "Applied", "{type_}: {message}");
    }

    // === what is seen ===

    /// The pool.
    pub fn pool(&self) -> Arc<Value> {
        self.cluster.object(POOL).unwrap_or_default()
    }

    /// Its status.
    pub fn status(&self) -> Value {
        self.pool()["status"].clone()
    }

    /// The status of a condition, `reason` with it: `True Ready`.
    pub fn condition(&self, type_: &str) -> String {
        let pool = self.pool();
        let mut conditions = pool["status"]["conditions"].as_array().into_iter().flatten();
        let found = conditions.find(|condition| condition["type"] == type_);
        let found = found.unwrap_or(&Value::Null);
        let word = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
        format!("{} {}", word("status"), word("reason"))
    }

    /// The sentence of `Ready`.
    pub fn sentence(&self) -> String {
        let status = self.status();
        let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
        let ready = conditions.iter().find(|condition| condition["type"] == "Ready");
        ready
            .and_then(|ready| ready["message"].as_str())
            .unwrap_or_default()
            .to_owned()
    }

    /// The pool's revisions, as in the module's doc.
    pub fn arms(&self) -> String {
        let pool = self.pool();
        let status = &pool["status"];
        let sets = self.cluster.objects("/apis/apps/v1/namespaces/shop/replicasets");
        let mut arms: Vec<String> = sets
            .iter()
            .filter(|set| set["metadata"]["labels"]["flotilla.dev/revision"].is_string())
            .filter_map(|set| {
                let shares = status["traffic"].as_array().into_iter().flatten();
                let mut own = shares.filter(|share| share["revision"] == set["metadata"]["name"]);
                let weight = own
                    .next()
                    .and_then(|share| share["weight"].as_i64())
                    .unwrap_or_default();
                let wanted = set["spec"]["replicas"].as_i64().unwrap_or_default();
                let available = set["status"]["availableReplicas"].as_i64().unwrap_or_default();
                let existing = set["status"]["replicas"].as_i64().unwrap_or_default();
                if (wanted, weight, existing) == (0, 0, 0) {
                    return None;
                }
                let image = set.pointer("/spec/template/spec/containers/0/image")?.as_str()?;
                let pods = if available == wanted && existing == wanted {
                    wanted.to_string()
                } else {
                    format!("{available}/{wanted}")
                };
                Some(format!("{}={pods}@{weight}", tag(image)))
            })
            .collect();
        arms.sort();
        arms.join(" ")
    }

    /// Agents that are ready and stay: of this image, and of all.
    pub fn ready(&self, tag: &str) -> (usize, usize) {
        let pods = self.cluster.objects("/api/v1/namespaces/shop/pods");
        let is_ready = |pod: &Value| {
            let mut conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
            conditions.any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
        };
        let image = |pod: &Value| pod["spec"]["containers"][0]["image"].as_str().map(str::to_owned);
        let ready = pods
            .iter()
            .filter(|pod| is_ready(pod) && !pod["metadata"]["deletionTimestamp"].is_string());
        let images: Vec<String> = ready
            .filter_map(|pod| image(pod))
            .filter(|image| image.starts_with("agent:"))
            .collect();
        let own = images.iter().filter(|image| **image == format!("agent:{tag}"));
        (own.count(), images.len())
    }

    /// The name of an image's revision.
    pub fn revision(&self, of: &str) -> String {
        let sets = self.cluster.objects("/apis/apps/v1/namespaces/shop/replicasets");
        let found = sets.iter().find(|set| {
            let image = set["spec"]["template"]["spec"]["containers"][0]["image"].as_str();
            image == Some(&format!("agent:{of}"))
        });
        found
            .and_then(|set| set["metadata"]["name"].as_str())
            .unwrap_or_else(|| panic!("no revision of {of}"))
            .to_owned()
    }

    /// Reasons of the pool's events, in their order.
    pub fn events(&self) -> Vec<String> {
        let mut events = self.cluster.list("/api/v1/namespaces/shop/events");
        events.retain(|event| event["involvedObject"]["kind"] == "AgentPool");
        let version = |event: &Value| {
            let text = event["metadata"]["resourceVersion"].as_str();
            text.and_then(|text| text.parse::<u64>().ok()).unwrap_or_default()
        };
        events.sort_by_key(version);
        let reasons = events.iter().filter_map(|event| event["reason"].as_str());
        reasons.map(str::to_owned).collect()
    }

    /// Writes of the operator so far.
    pub fn writes(&self) -> u64 {
        self.line.writes()
    }

    // === waiting ===

    /// Lets time go by.
    pub async fn pass(&self, seconds: u64) {
        sleep(Duration::from_secs(seconds)).await;
    }

    /// Waits for something; what is said when it does not come.
    pub async fn wait_for(&self, what: &str, is_there: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + LIMIT;
        let mut changes = self.cluster.changes();
        while !is_there(self) {
            assert!(!self.process.is_finished(), "the operator ended");
            assert!(
                Instant::now() < deadline,
                "{what} does not come: {} is {} {:#}",
                self.arms(),
                self.condition("Ready"),
                self.status()
            );
            // Every change is looked at, and what comes by itself in time.
            let _ = timeout(LOOK, changes.changed()).await;
        }
    }

    /// Waits for these revisions.
    pub async fn until(&self, arms: &str) {
        self.wait_for(arms, |scene| scene.arms() == arms).await;
    }

    /// These revisions stay for so many seconds.
    pub async fn stays(&self, arms: &str, seconds: u64) {
        let end = Instant::now() + Duration::from_secs(seconds);
        let mut changes = self.cluster.changes();
        while Instant::now() < end {
            assert_eq!(self.arms(), arms, "it does not stay: {:#}", self.status());
            let _ = timeout_at(end, changes.changed()).await;
        }
    }

    /// Waits for this word of `Ready`, about the present spec.
    pub async fn says(&self, word: &str) {
        let says = |scene: &Self| {
            let pool = scene.pool();
            let is_current = pool["status"]["observedGeneration"] == pool["metadata"]["generation"];
            is_current && scene.condition("Ready").ends_with(&format!(" {word}"))
        };
        self.wait_for(word, says).await;
    }

    /// Waits until the candidate has reached a step and is judged there.
    pub async fn judged_at(&self, weight: i32) {
        let is_there = |scene: &Self| {
            let status = scene.status();
            status["rollout"]["step"]["weight"] == weight && status["candidate"]["weight"] == weight
        };
        self.wait_for(&format!("the step of {weight} %"), is_there).await;
    }

    async fn end(&mut self) {
        // What is still to come comes.
        let mut seen = (self.line.writes(), Instant::now());
        let deadline = Instant::now() + LIMIT;
        while seen.1.elapsed() < SILENCE {
            sleep(Duration::from_secs(1)).await;
            if self.line.writes() != seen.0 {
                seen = (self.line.writes(), Instant::now());
            }
            assert!(!self.process.is_finished(), "the operator ended");
            assert!(
                Instant::now() < deadline,
                "it never falls silent: {:#}",
                self.status()
            );
        }
        self.process.abort();
        let broken = violations(&self.cluster, &self.world.gateways.timeline(), 0);
        assert!(broken.is_empty(), "{}", broken.join("\n"));
        let idle = self.line.idle();
        assert!(idle.is_empty(), "writes that changed nothing: {idle:#?}");
    }
}
