//! The scheduler and kubelet of all nodes: pods are bound, start, become ready or do not, and stop.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Controller, Found, all, condition, conditioned, delete, is_over, request, write_status};
use crate::cluster::{Cluster, seconds};

/// From creation to a node.
const BIND: Duration = Duration::from_millis(50);
/// From a node to a running container.
const START: Duration = Duration::from_millis(800);
/// From the signal to the end of a container that heeds it, its preStop hook aside.
const STOP: Duration = Duration::from_millis(300);
/// Kubelet's first pause between restarts; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// What becomes of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is ready this long after its containers run.
    Ready(Duration),
    /// Its containers run and never become ready.
    Unready,
    /// It is ready for a while after each start, and then no more.
    Breaks {
        /// From running to ready.
        ready: Duration,
        /// How long it is ready.
        lasts: Duration,
        /// Whether its containers end, to be started again; else only its readiness is lost.
        exits: bool,
    },
    /// Its containers end this long after each start, and are started again if the pod says so.
    Exits {
        /// How long they run.
        after: Duration,
        /// With what.
        code: i64,
        /// Their termination message.
        message: String,
    },
    /// Its image cannot be pulled.
    ImagePull(String),
    /// No node fits.
    Unschedulable(String),
}

/// Says what becomes of each pod, when it is first seen.
pub type Fates = Arc<dyn Fn(&Cluster, &Value) -> Fate + Send + Sync>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Unbound,
    Bound,
    Running,
    Settled,
    /// Ended, and started again later.
    Waiting,
    Stopping,
}

struct Life {
    stage: Stage,
    due: Option<Instant>,
    address: String,
    fate: Fate,
    restarts: u32,
    ready: bool,
    last: Value,
    started: String,
}

/// All kubelets and the scheduler.
pub(super) struct Kubelet {
    fates: Fates,
    lives: BTreeMap<String, Life>,
    addresses: u32,
}

impl fmt::Debug for Kubelet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kubelet({} pods)", self.lives.len())
    }
}

impl Controller for Kubelet {
    fn kinds(&self) -> &'static [&'static str] {
        &["/api/v1/pods"]
    }

    fn pass(&mut self, cluster: &Cluster) -> Option<Instant> {
        let pods = all(cluster, "/api/v1/pods");
        self.lives
            .retain(|uid, _| pods.iter().any(|pod| pod.uid() == uid));
        for pod in &pods {
            self.advance(cluster, pod);
        }
        self.lives.values().filter_map(|life| life.due).min()
    }
}

impl Kubelet {
    /// With what becomes of pods.
    pub(super) fn new(fates: Fates) -> Self {
        Self {
            fates,
            lives: BTreeMap::new(),
            addresses: 0,
        }
    }

    fn advance(&mut self, cluster: &Cluster, pod: &Found) {
        let now = Instant::now();
        if !self.lives.contains_key(pod.uid()) {
            self.addresses += 1;
            let count = self.addresses;
            let life = Life {
                stage: Stage::Unbound,
                due: Some(now + BIND),
                address: format!("10.244.{}.{}", count / 250, count % 250 + 1),
                fate: (self.fates)(cluster, &pod.object),
                restarts: 0,
                ready: false,
                last: Value::Null,
                started: String::new(),
            };
            self.lives.insert(pod.uid().to_owned(), life);
        }
        let Some(life) = self.lives.get_mut(pod.uid()) else {
            return;
        };
        if pod.is_deleting() && life.stage != Stage::Stopping {
            life.stage = Stage::Stopping;
            life.due = Some(if is_over(&pod.object) {
                now
            } else {
                now + stop_time(&pod.object)
            });
        }
        if life.due.is_some_and(|due| due <= now) {
            life.step(cluster, pod, now);
        }
    }
}

/// How long a pod takes to stop: its preStop sleep and a moment, at most its grace period.
fn stop_time(pod: &Value) -> Duration {
    let containers = pod.pointer("/spec/containers").and_then(Value::as_array);
    let sleep = containers
        .into_iter()
        .flatten()
        .filter_map(|container| container.pointer("/lifecycle/preStop/sleep/seconds")?.as_u64())
        .max();
    let grace = pod["metadata"]["deletionGracePeriodSeconds"].as_u64();
    (Duration::from_secs(sleep.unwrap_or_default()) + STOP)
        .min(Duration::from_secs(grace.unwrap_or_default()))
}

impl Life {
    fn step(&mut self, cluster: &Cluster, pod: &Found, now: Instant) {
        self.due = None;
        let time = seconds(cluster.now());
        match (self.stage, self.fate.clone()) {
            (Stage::Unbound, Fate::Unschedulable(message)) => {
                let before = condition(&pod.object, "PodScheduled");
                let scheduled =
                    conditioned(before, "PodScheduled", "False", "Unschedulable", &message, &time);
                let mut status = pod.object["status"].clone();
                status["conditions"] = json!([scheduled]);
                write_status(cluster, pod, status);
            }
            (Stage::Unbound, fate) => {
                let bound = request(
                    cluster,
                    Method::PATCH,
                    &pod.path,
                    json!({"spec": {"nodeName": "node-1"}}),
                );
                self.stage = Stage::Bound;
                if let Fate::ImagePull(message) = fate {
                    let waiting = json!({"waiting": {"reason": "ImagePullBackOff", "message": message}});
                    self.tell(cluster, pod, "Pending", waiting, &time);
                } else if bound.is_ok() {
                    let waiting = json!({"waiting": {"reason": "ContainerCreating"}});
                    self.tell(cluster, pod, "Pending", waiting, &time);
                    self.due = Some(now + START);
                }
            }
            (Stage::Bound | Stage::Waiting, fate) => {
                self.stage = Stage::Running;
                self.restarts += u32::from(!self.last.is_null());
                self.started = time.clone();
                self.due = match &fate {
                    Fate::Ready(after) | Fate::Exits { after, .. } | Fate::Breaks { ready: after, .. } => {
                        Some(now + *after)
                    }
                    _ => None,
                };
                self.run(cluster, pod, &time);
            }
            (Stage::Running, Fate::Ready(_)) => {
                self.stage = Stage::Settled;
                self.ready = true;
                self.run(cluster, pod, &time);
            }
            (Stage::Running, Fate::Breaks { lasts, .. }) => {
                self.stage = Stage::Settled;
                self.ready = true;
                self.due = Some(now + lasts);
                self.run(cluster, pod, &time);
            }
            (Stage::Settled, Fate::Breaks { exits: true, .. }) => {
                self.end(cluster, pod, (1, "broken"), now, &time);
            }
            (Stage::Settled, Fate::Breaks { .. }) => {
                self.ready = false;
                self.run(cluster, pod, &time);
            }
            (Stage::Running, Fate::Exits { code, message, .. }) => {
                self.end(cluster, pod, (code, &message), now, &time);
            }
            (Stage::Stopping, _) => self.stop(cluster, pod, &time),
            (Stage::Running | Stage::Settled, _) => {}
        }
    }

    fn run(&self, cluster: &Cluster, pod: &Found, time: &str) {
        let running = json!({"running": {"startedAt": self.started}});
        self.tell(cluster, pod, "Running", running, time);
    }

    fn end(
        &mut self,
        cluster: &Cluster,
        pod: &Found,
        (code, message): (i64, &str),
        now: Instant,
        time: &str,
    ) {
        let terminated = self.terminated(code, message, time);
        self.ready = false;
        let restarts = match pod.object["spec"]["restartPolicy"].as_str() {
            Some("Never") => false,
            Some("OnFailure") => code != 0,
            _ => true,
        };
        if !restarts {
            self.stage = Stage::Settled;
            let phase = if code == 0 { "Succeeded" } else { "Failed" };
            self.tell(cluster, pod, phase, terminated, time);
            return;
        }
        self.stage = Stage::Waiting;
        self.last = terminated;
        let pause = match self.restarts {
            0 => Duration::from_secs(1),
            restarts => (FIRST_PAUSE * 2_u32.saturating_pow((restarts - 1).min(5))).min(LONGEST_PAUSE),
        };
        let waiting = json!({"waiting": {
            "reason": "CrashLoopBackOff", "message": format!("back-off {}s restarting failed container", pause.as_secs()),
        }});
        self.tell(cluster, pod, "Running", waiting, time);
        self.due = Some(now + pause);
    }

    fn terminated(&self, code: i64, message: &str, time: &str) -> Value {
        let mut state = json!({
            "exitCode": code, "reason": if code == 0 { "Completed" } else { "Error" }, "finishedAt": time,
        });
        // One whose image was never there never started.
        if !self.started.is_empty() {
            state["startedAt"] = json!(self.started);
        }
        if !message.is_empty() {
            state["message"] = json!(message);
        }
        json!({"terminated": state})
    }

    fn stop(&mut self, cluster: &Cluster, pod: &Found, time: &str) {
        let has_finalizers = pod.object["metadata"]["finalizers"].is_array();
        if has_finalizers && !is_over(&pod.object) {
            self.ready = false;
            let phase = if pod.object["spec"]["restartPolicy"] == "Never" {
                "Failed"
            } else {
                "Succeeded"
            };
            let code = if phase == "Failed" { 143 } else { 0 };
            let terminated = self.terminated(code, "", time);
            self.tell(cluster, pod, phase, terminated, time);
        }
        delete(cluster, pod, Some(0));
    }

    /// Writes what kubelet writes: phase, addresses, conditions, containers.
    fn tell(&self, cluster: &Cluster, pod: &Found, phase: &str, state: Value, time: &str) {
        // Binding has changed the pod meanwhile.
        let Some(object) = cluster.object(&pod.path) else {
            return;
        };
        let ready = if self.ready { "True" } else { "False" };
        let condition_of =
            |type_: &str, status: &str| conditioned(condition(&object, type_), type_, status, "", "", time);
        let mut status = object["status"].clone();
        status["phase"] = json!(phase);
        if phase == "Running" || status["podIP"].is_string() {
            status["podIP"] = json!(self.address);
            status["podIPs"] = json!([{"ip": self.address}]);
            status["hostIP"] = json!("192.168.0.1");
        }
        status["startTime"] = match &status["startTime"] {
            Value::Null => json!(time),
            started => started.clone(),
        };
        status["conditions"] = json!([
            condition_of("PodScheduled", "True"),
            condition_of("Initialized", "True"),
            condition_of("ContainersReady", ready),
            condition_of("Ready", ready),
        ]);
        let containers = object.pointer("/spec/containers").and_then(Value::as_array);
        let containers: Vec<Value> = containers
            .into_iter()
            .flatten()
            .map(|container| {
                let mut one = json!({
                    "name": container["name"], "image": container["image"], "imageID": "", "ready": self.ready,
                    "restartCount": self.restarts, "state": state, "started": state.get("running").is_some(),
                });
                if !self.last.is_null() {
                    one["lastState"] = self.last.clone();
                }
                one
            })
            .collect();
        status["containerStatuses"] = json!(containers);
        let found = Found {
            object,
            ..pod.clone()
        };
        write_status(cluster, &found, status);
    }
}
