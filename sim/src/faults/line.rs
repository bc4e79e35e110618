//! What all lives of one client share: the plan, the counts, the record of requests.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::sync::Notify;

use super::plan::{Fault, Plan};
use super::wire::Wire;
use crate::api::request::Request;
use crate::cluster::Cluster;

/// One request and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Milliseconds since the beginning of the cluster.
    pub at: u64,
    /// Verb, path, query and body.
    pub request: String,
    /// The verb.
    pub method: String,
    /// The path.
    pub path: String,
    /// The status it was answered with; 0 for none.
    pub code: u16,
    /// Whether it was a write that counts.
    pub counted: bool,
    /// Whether it was carried out and changed nothing.
    pub idle: bool,
}

/// The line between a client and the cluster. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Line(pub(super) Arc<Shared>);

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) cluster: Cluster,
    pub(super) plan: Plan,
    pub(super) state: Mutex<State>,
    pub(super) crash: Notify,
}

#[derive(Debug)]
pub(super) struct State {
    random: StdRng,
    writes: u64,
    events: u64,
    pub(super) life: u64,
    pub(super) crashed: bool,
    records: Vec<Record>,
}

/// What is to become of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doom {
    None,
    CrashBefore,
    CrashAfter,
    Lost,
    Refused(u16),
    Hang(bool),
}

/// What is to become of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EventDoom {
    None,
    Gone,
    Twice,
    Broken,
}

impl Line {
    /// A line with a plan.
    pub fn new(cluster: &Cluster, plan: Plan) -> Self {
        let random = StdRng::seed_from_u64(plan.seed);
        Self(Arc::new(Shared {
            cluster: cluster.clone(),
            plan,
            state: Mutex::new(State {
                random,
                writes: 0,
                events: 0,
                life: 0,
                crashed: false,
                records: Vec::new(),
            }),
            crash: Notify::new(),
        }))
    }

    /// What goes wrong on it.
    pub fn plan(&self) -> &Plan {
        &self.0.plan
    }

    /// The next life of the client. Earlier ones are dead from now on.
    pub fn connect(&self) -> Wire {
        let mut state = self.0.state.lock();
        state.life += 1;
        state.crashed = false;
        Wire::new(self.clone(), state.life, self.0.cluster.age())
    }

    /// Whether the plan has killed the present life.
    pub fn crashed(&self) -> bool {
        self.0.state.lock().crashed
    }

    /// Comes back when the plan kills the present life, from now on.
    pub async fn crash(&self) {
        self.0.crash.notified().await;
    }

    /// Kills the present life, whatever the plan says.
    pub fn kill(&self) {
        self.0.state.lock().crashed = true;
        self.0.crash.notify_waiters();
    }

    /// How many lives there were.
    pub fn lives(&self) -> u64 {
        self.0.state.lock().life
    }

    /// How many writes were counted.
    pub fn writes(&self) -> u64 {
        self.0.state.lock().writes
    }

    /// How many requests were recorded.
    pub fn len(&self) -> usize {
        self.0.state.lock().records.len()
    }

    /// Whether there was none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The requests since the first `skip`.
    pub fn records(&self, skip: usize) -> Vec<Record> {
        self.0.state.lock().records.iter().skip(skip).cloned().collect()
    }

    /// Everything that was asked and answered, one request a line: the same for the same seed.
    pub fn transcript(&self) -> String {
        let state = self.0.state.lock();
        let lines = state
            .records
            .iter()
            .map(|record| format!("{} {} -> {}\n", record.at, record.request, record.code));
        lines.collect()
    }

    pub(super) fn is_alive(&self, life: u64) -> bool {
        let state = self.0.state.lock();
        state.life == life && !state.crashed
    }

    /// How long a request is on its way.
    pub(super) fn latency(&self) -> Duration {
        Duration::from_micros(self.0.state.lock().random.random_range(500..4_000))
    }

    pub(super) fn record(&self, request: &Request, counted: bool) -> usize {
        let query = if request.raw_query.is_empty() {
            String::new()
        } else {
            format!("?{}", request.raw_query)
        };
        let body = if request.body.is_null() {
            String::new()
        } else {
            format!(" {}", request.body)
        };
        let record = Record {
            at: u64::try_from(self.0.cluster.age().as_millis()).unwrap_or(u64::MAX),
            request: format!("{} {}{query}{body}", request.method, request.path),
            method: request.method.to_string(),
            path: request.path.clone(),
            code: 0,
            counted,
            idle: false,
        };
        let mut state = self.0.state.lock();
        state.records.push(record);
        state.records.len() - 1
    }

    pub(super) fn answered(&self, record: usize, code: u16, has_changed: bool) {
        if let Some(record) = self.0.state.lock().records.get_mut(record) {
            record.code = code;
            record.idle = record.counted && code < 300 && !has_changed;
        }
    }

    /// Writes that were carried out and changed nothing.
    pub fn idle(&self) -> Vec<Record> {
        let state = self.0.state.lock();
        state
            .records
            .iter()
            .filter(|record| record.idle)
            .cloned()
            .collect()
    }

    /// Counts a write and draws its lot.
    pub(super) fn doom(&self) -> Doom {
        let mut state = self.0.state.lock();
        let now = state.writes;
        state.writes += 1;
        for fault in &self.0.plan.faults {
            let doom = match fault {
                Fault::CrashBefore(at) if *at == now => Doom::CrashBefore,
                Fault::CrashAfter(at) if *at == now => Doom::CrashAfter,
                Fault::Lost(at) if *at == now => Doom::Lost,
                Fault::Refused { at, count, code } if (*at..at + count).contains(&now) => {
                    Doom::Refused(*code)
                }
                Fault::Flaky { percent, code } => {
                    if state.random.random_range(0..100) < *percent {
                        Doom::Refused(*code)
                    } else {
                        Doom::None
                    }
                }
                Fault::Hang { at, applied } if *at == now => Doom::Hang(*applied),
                _ => Doom::None,
            };
            if doom != Doom::None {
                return doom;
            }
        }
        Doom::None
    }

    /// Counts an event and draws its lot.
    pub(super) fn event(&self) -> EventDoom {
        let mut state = self.0.state.lock();
        state.events += 1;
        let now = state.events;
        let is_due = |each: u64| each > 0 && now.is_multiple_of(each);
        let dooms = self.0.plan.faults.iter().map(|fault| match fault {
            Fault::Gone(each) if is_due(*each) => EventDoom::Gone,
            Fault::Twice(each) if is_due(*each) => EventDoom::Twice,
            Fault::Broken(each) if is_due(*each) => EventDoom::Broken,
            _ => EventDoom::None,
        });
        dooms
            .into_iter()
            .find(|doom| *doom != EventDoom::None)
            .unwrap_or(EventDoom::None)
    }
}
