//! One run: a workload, a plan, a process under test that is killed and started again, and what is checked.
//!
//! The process is whatever `start` makes of a [`Wire`]: in the tests here the whole operator. A run ends when every step
//! of the workload was reached and the cluster has come to rest; it fails when a step takes too long, when the process
//! ends by itself, when it still writes after everything is done, or when one of the [`invariants`] was broken on the way.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::cluster::Cluster;
use crate::controllers::{Controllers, Fates};
use crate::faults::{Line, Plan, Record, Wire};
use crate::gateways::{Gateways, Traffic};
use crate::pulse::Changes;
use crate::{invariants, outcome};

/// The namespace of every workload.
pub const NAMESPACE: &str = "shop";
/// How soon after a change a run looks whether a step is reached.
const LOOK: Duration = Duration::from_millis(50);
/// How often it looks when nothing changes.
const QUIET_LOOK: Duration = Duration::from_secs(1);
/// From a crash to the next start.
const RESTART: Duration = Duration::from_secs(1);
/// The longest a run waits for rest.
const REST_LIMIT: Duration = Duration::from_secs(300);
/// So long nothing is written before a run counts as at rest.
const REST: Duration = Duration::from_secs(20);
/// So long nothing may be written afterwards.
const SILENCE: Duration = Duration::from_secs(60);
/// Requests that are shown with what went wrong.
const LAST_WORDS: usize = 20;
/// Characters of each.
const WIDTH: usize = 200;

/// Whether a step is reached; a sentence says what is missing.
pub type Reached = Arc<dyn Fn(&Cluster) -> Result<(), String> + Send + Sync>;
/// What the user does.
pub type Act = Arc<dyn Fn(&Cluster) + Send + Sync>;

/// Something the user does, and what must come of it.
#[derive(Clone)]
pub struct Step {
    /// In words.
    pub name: &'static str,
    /// Done first.
    pub act: Act,
    /// Must come.
    pub reached: Reached,
    /// Within this time.
    pub limit: Duration,
}

/// What a run is about.
#[derive(Clone)]
pub struct Workload {
    /// In words.
    pub name: &'static str,
    /// What becomes of pods.
    pub fates: Fates,
    /// What users ask.
    pub traffic: Arc<dyn Traffic>,
    /// What is done, in order.
    pub steps: Vec<Step>,
    /// Ends of JSON pointers to sentences whose numbers may differ between two good runs.
    pub counted: &'static [&'static str],
    /// Resources of which some may go and be made anew, or stay, as it happens: only how many are left is compared.
    pub renewed: &'static [&'static str],
}

impl fmt::Debug for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Workload({}, {} steps)", self.name, self.steps.len())
    }
}

/// What a run left.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// What went wrong.
    pub plan: Plan,
    /// Objects by path, without what is drawn by lot.
    pub end: BTreeMap<String, Value>,
    /// Objects made and gone by kind.
    pub counts: BTreeMap<String, (u64, u64)>,
    /// Writes of the process.
    pub writes: u64,
    /// Those of them that changed nothing.
    pub idle: Vec<Record>,
    /// Lives of the process.
    pub lives: u64,
    /// Virtual time until rest.
    pub took: Duration,
    /// Everything that was asked and answered.
    pub transcript: String,
}

/// Why a run is not good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// What was broken.
    pub what: String,
    /// Everything that was asked and answered until that was seen.
    pub transcript: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

/// The end of a transcript without watches, each line cut to what a terminal shows.
pub fn last_words(transcript: &str) -> String {
    let lines = transcript.lines().filter(|line| !line.contains("watch=true"));
    let lines: Vec<&str> = lines.collect();
    let last = lines.iter().skip(lines.len().saturating_sub(LAST_WORDS));
    last.map(|line| format!("    {}\n", line.chars().take(WIDTH).collect::<String>()))
        .collect()
}

/// What a process is started in.
#[derive(Clone, Debug)]
pub struct World {
    /// The cluster, for its clock.
    pub cluster: Cluster,
    /// The gateways.
    pub gateways: Gateways,
}

/// Starts a process on a wire; it runs until it is aborted.
pub type Start<'a> = &'a dyn Fn(&World, Wire) -> JoinHandle<()>;

/// How long gateways take to apply a change.
const GATEWAY_LAG: Duration = Duration::from_millis(50);

/// Runs a workload under a plan. Needs tokio's time to be paused.
///
/// # Errors
/// The first [`Violation`], with the step and the state it was found in.
pub async fn run(workload: &Workload, plan: &Plan, start: Start<'_>) -> Result<Outcome, Violation> {
    let cluster = Cluster::new(plan.seed);
    let line = Line::new(&cluster, plan.clone());
    let run = live(workload, &cluster, &line, start).await;
    let transcript = line.transcript();
    match run {
        Ok(took) => Ok(Outcome {
            plan: plan.clone(),
            end: outcome::end_state(&cluster, NAMESPACE),
            counts: outcome::counts(&cluster),
            writes: line.writes(),
            idle: line.idle(),
            lives: line.lives(),
            took,
            transcript,
        }),
        Err(what) => Err(Violation { what, transcript }),
    }
}

/// Lives through a workload; how long it took to come to rest, or what was broken.
async fn live(
    workload: &Workload,
    cluster: &Cluster,
    line: &Line,
    start: Start<'_>,
) -> Result<Duration, String> {
    cluster.namespace(NAMESPACE);
    let plan = line.plan();
    let _controllers = Controllers::start(cluster, Arc::clone(&workload.fates));
    let gateways = Gateways::new(cluster, Arc::clone(&workload.traffic), GATEWAY_LAG, plan.seed);
    let world = World {
        cluster: cluster.clone(),
        gateways,
    };
    let mut process = Process {
        handle: start(&world, line.connect()),
    };
    let mut changes = cluster.changes();
    for step in &workload.steps {
        (step.act)(cluster);
        let deadline = Instant::now() + step.limit;
        loop {
            look(&mut changes, line).await;
            process.keep_alive(&world, line, start).await?;
            match (step.reached)(cluster) {
                Ok(()) => break,
                Err(missing) if Instant::now() >= deadline => {
                    let limit = step.limit;
                    return Err(format!(
                        "{:?} was not reached within {limit:?}: {missing}",
                        step.name
                    ));
                }
                Err(_) => {}
            }
        }
    }
    let limit = Instant::now() + REST_LIMIT;
    let (mut seen, mut since) = (line.writes(), Instant::now());
    while since.elapsed() < REST {
        look(&mut changes, line).await;
        process.keep_alive(&world, line, start).await?;
        if line.writes() != seen {
            (seen, since) = (line.writes(), Instant::now());
        }
        if Instant::now() >= limit {
            return Err(format!(
                "it never came to rest; the last write was {:?}",
                written(line, 0).last()
            ));
        }
    }
    let took = cluster.age().saturating_sub(REST);
    let before = line.len();
    let quiet_until = Instant::now() + SILENCE;
    while Instant::now() < quiet_until {
        look(&mut changes, line).await;
        process.keep_alive(&world, line, start).await?;
    }
    let noise = written(line, before);
    if let Some(first) = noise.first() {
        return Err(format!(
            "{} writes in the minute of silence, the first: {} {}",
            noise.len(),
            first.request,
            first.code
        ));
    }
    if let Some(step) = workload.steps.last() {
        (step.reached)(cluster).map_err(|missing| format!("{:?} did not last: {missing}", step.name))?;
    }
    let stale = plan.stale().unwrap_or_default();
    let broken = invariants::violations(cluster, &world.gateways.timeline(), stale);
    match broken.is_empty() {
        true => Ok(took),
        false => Err(broken.join("; ")),
    }
}

/// Compares a run under a plan with the run without faults.
///
/// # Errors
/// What differs.
pub fn compare(workload: &Workload, expected: &Outcome, found: &Outcome) -> Result<(), Violation> {
    let broken = |what| {
        let transcript = found.transcript.clone();
        Err(Violation { what, transcript })
    };
    let differences = outcome::differences(&expected.end, &found.end, workload.counted);
    if !differences.is_empty() {
        return broken(format!("another end: {}", differences.join("; ")));
    }
    // Who hears late that a pool is gone makes its children again, which are collected again.
    let hears_late = !found.plan.late("agentpools").is_zero();
    let made = |resource: &str, outcome: &Outcome| {
        let (made, gone) = outcome.counts.get(resource).copied().unwrap_or_default();
        if hears_late || workload.renewed.contains(&resource) {
            (made - gone, 0)
        } else {
            (made, gone)
        }
    };
    let resources: BTreeSet<&String> = expected.counts.keys().chain(found.counts.keys()).collect();
    let differing: Vec<String> = resources
        .into_iter()
        .map(|resource| (resource, made(resource, expected), made(resource, found)))
        .filter(|(_, expected, found)| expected != found)
        .map(|(resource, expected, found)| format!("{resource}: {expected:?} became {found:?}"))
        .collect();
    if differing.is_empty() {
        Ok(())
    } else {
        broken(format!("objects made and gone: {}", differing.join("; ")))
    }
}

/// Waits for something to look at: a change a moment ago, a crash, or some time.
async fn look(changes: &mut Changes, line: &Line) {
    tokio::select! {
        biased;
        () = line.crash() => {}
        () = changes.changed() => {
            sleep(LOOK).await;
            changes.mark_seen();
        }
        () = sleep(QUIET_LOOK) => {}
    }
}

fn written(line: &Line, skip: usize) -> Vec<Record> {
    let mut records = line.records(skip);
    records.retain(|record| record.counted);
    records
}

/// The process under test.
struct Process {
    handle: JoinHandle<()>,
}

impl Process {
    /// Starts it again after a planned crash.
    async fn keep_alive(&mut self, world: &World, line: &Line, start: Start<'_>) -> Result<(), String> {
        if line.crashed() {
            self.handle.abort();
            sleep(RESTART).await;
            self.handle = start(world, line.connect());
        } else if self.handle.is_finished() {
            return Err("the process ended by itself (a panic?)".to_owned());
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.handle.abort();
    }
}
