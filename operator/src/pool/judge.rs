//! What a candidate on its ladder is judged by: the spec as a ladder and as a plan for [`flotilla_core::evidence`], the
//! gateways' counts as evidence, and its judgement as the [`Gate`] that the decision hears.
//!
//! The evidence of a release is checkpointed in the ConfigMap `<pool>-evidence` whenever a window has closed. A restarted
//! operator reads it back and goes on as if nothing had been; a window counts once whoever reads it.

use std::collections::HashMap;
use std::sync::Arc;

use flotilla_core::evidence::{
    self, Compare, Counted, Evidence, Judgement, Metric, Mode, Permit, Question, Report, Rule, Scrape, Step,
    StormBreaker, Verdict,
};
use flotilla_core::rollout::{Gate, Ladder, OnUndecided, Opinion, Reached, Reason, Rung, Standing, shift};
use flotilla_core::seeded::{self, Bug};
use flotilla_crds::agent_pool::{
    self as api, Analysis, AnalysisMode, Approval, CanaryStep, InitialGates, StableScale,
};
use flotilla_crds::sourced_metric::SourcedMetric;
use flotilla_crds::{AgentPool, AgentPoolSpec};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt as _;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::build::child_meta;
use super::dereference::Observed;
use super::figures::{Figures, Subject};
use super::memory::Memory;
use super::trial::list;
use crate::runtime::{Action, Error, Failure as _, Key, Note, Visit};
use crate::scrape::View;

/// Key of the checkpoint in its ConfigMap.
const CHECKPOINT: &str = "checkpoint.json";
/// Reason of a gate while its evidence is being gathered.
pub const EVIDENCE_CONTINUES: &str = "EvidenceContinues";
/// Reason of a gate that no metric decides, while the step lasts.
pub const STEP_LASTS: &str = "StepLasts";

/// The steps of a canary: those of the spec, else the default ladder.
pub fn steps(canary: &api::Canary) -> Vec<CanaryStep> {
    if !canary.steps.is_empty() {
        return canary.steps.clone();
    }
    let step = |rung: &evidence::Rung| CanaryStep {
        weight: clamp(rung.weight_percent),
        rule_out_times_worse: clamp(rung.times_worse),
        min_duration_seconds: clamp(rung.min_seconds),
        decide_within_seconds: clamp(rung.decide_within_seconds),
        replicas: None,
        approval: Approval::Automatic,
        load_test: None,
    };
    evidence::DEFAULT_STEPS.iter().map(step).collect()
}

fn clamp(number: impl TryInto<i32>) -> i32 {
    number.try_into().unwrap_or(i32::MAX)
}

/// How a candidate of this pool takes over; none for batch by batch.
pub fn ladder(spec: &AgentPoolSpec) -> Option<Ladder> {
    let seconds = |seconds: i32| SignedDuration::from_secs(seconds.into());
    if let Some(canary) = spec.rollout.canary() {
        let rung = |step: &CanaryStep| Rung {
            weight: step.weight,
            pods: step.replicas,
            needs_approval: step.approval == Approval::Manual,
        };
        let steps = steps(&canary);
        let tested = list::tests_before(spec).then(|| Rung {
            weight: 0,
            pods: steps.first().and_then(|step| step.replicas),
            needs_approval: false,
        });
        return Some(Ladder {
            rungs: tested.into_iter().chain(steps.iter().map(rung)).collect(),
            least_pods: canary.candidate_min_replicas,
            keeps_stable: canary.stable_scale == StableScale::Keep,
            by_number: spec.traffic.is_by_number(),
            scale_down_delay: seconds(canary.scale_down_delay_seconds),
            bake: seconds(canary.bake_seconds),
            on_undecided: match canary.on_undecided {
                api::OnUndecided::Hold => OnUndecided::Hold,
                api::OnUndecided::Promote => OnUndecided::Promote,
                api::OnUndecided::Abort => OnUndecided::Abort,
            },
            tests_first: tests_first(spec),
            tested_after: list::tests_after(spec),
            ..Ladder::default()
        });
    }
    let Some(green) = spec.rollout.blue_green() else {
        return list::tests_before(spec).then(|| tested_batch(spec));
    };
    Some(Ladder {
        rungs: vec![Rung {
            weight: 0,
            pods: Some(green.preview_replicas.unwrap_or(i32::MAX)),
            needs_approval: green.approval == Approval::Manual,
        }],
        least_pods: 1,
        keeps_stable: true,
        by_number: spec.traffic.is_by_number(),
        scale_down_delay: seconds(green.scale_down_delay_seconds),
        bake: seconds(green.bake_seconds),
        tests_first: tests_first(spec),
        tested_after: list::tests_after(spec),
        ..Ladder::default()
    })
}

fn tests_first(spec: &AgentPoolSpec) -> bool {
    list::tests_before(spec) && spec.rollout.initial_gates == InitialGates::Enforce
}

/// A rolling update whose first batch is tested before it gets traffic.
fn tested_batch(spec: &AgentPoolSpec) -> Ladder {
    let batch = shift::surge(spec.effective_replicas(), spec.rolling_update().max_surge_percent);
    Ladder {
        rungs: vec![Rung {
            weight: 0,
            pods: Some(batch),
            needs_approval: false,
        }],
        least_pods: 1,
        keeps_stable: true,
        rolls: true,
        tests_first: tests_first(spec),
        ..Ladder::default()
    }
}

fn mode(mode: AnalysisMode) -> Mode {
    match mode {
        AnalysisMode::Enforce => Mode::Enforce,
        AnalysisMode::Observe => Mode::Observe,
    }
}

/// A metric whose numbers come from another source; none if it says nothing to judge by, which the schema does not let through.
pub fn sourced(metric: &SourcedMetric) -> Option<Metric> {
    let limit = |text: &Option<String>| {
        let value: f64 = text.as_deref()?.parse().ok()?;
        Some((value * 1e6).round() as i64)
    };
    let rule = match (&metric.counts, &metric.threshold) {
        (Some(counts), _) => Rule::Compare(Compare {
            counted: Counted::Events,
            tolerate_worse_percent: u32::try_from(counts.tolerate_worse_percent).unwrap_or_default(),
            acceptable_millionths: millionths(&counts.acceptable_percent),
            ..Compare::errors()
        }),
        (None, Some(threshold)) => Rule::Threshold(evidence::Threshold {
            minimum_millionths: limit(&threshold.minimum),
            maximum_millionths: limit(&threshold.maximum),
            failure_limit: u32::try_from(threshold.failure_limit).unwrap_or_default(),
        }),
        (None, None) => return None,
    };
    Some(Metric {
        name: metric.name.clone(),
        mode: mode(metric.mode),
        rule,
    })
}

fn metrics(analysis: &Analysis) -> Vec<Metric> {
    let percent = |number: i32| u32::try_from(number).unwrap_or_default();
    let errors = &analysis.errors;
    let mut metrics = vec![Metric {
        name: "errors".to_owned(),
        mode: mode(errors.mode),
        rule: Rule::Compare(Compare {
            tolerate_worse_percent: percent(errors.tolerate_worse_percent),
            acceptable_millionths: millionths(&errors.acceptable_error_percent),
            abort_above_millionths: errors.abort_above_percent.as_deref().map_or(0, millionths),
            ..Compare::errors()
        }),
    }];
    metrics.extend(analysis.metrics.iter().filter_map(sourced));
    metrics.extend(analysis.latency.as_ref().map(|latency| {
        let thresholds = latency.thresholds_milliseconds.iter();
        let thresholds = thresholds.filter_map(|threshold| u64::try_from(*threshold).ok());
        Metric {
            name: "latency".to_owned(),
            mode: mode(latency.mode),
            rule: Rule::Compare(Compare {
                counted: Counted::Latency(thresholds.collect()),
                tolerate_worse_percent: percent(latency.tolerate_worse_percent),
                ..Compare::latency(Vec::new())
            }),
        }
    }));
    metrics
}

/// What a release is judged by: nothing that the gateways count where they do not see the requests.
fn judged(spec: &AgentPoolSpec) -> Vec<Metric> {
    let mut metrics = metrics(&spec.rollout.analysis());
    if !spec.traffic.is_counted() {
        let is_of_gateways = |rule: &Rule| match rule {
            Rule::Compare(compare) => matches!(
                compare.counted,
                Counted::Errors | Counted::Latency(_) | Counted::FirstByte(_)
            ),
            Rule::Threshold(_) => false,
        };
        metrics.retain(|metric| !is_of_gateways(&metric.rule));
    }
    metrics
}

/// A percentage like `0.5`, which the schema has checked, in millionths of a whole.
fn millionths(percent: &str) -> u32 {
    let percent: f64 = percent.parse().unwrap_or_default();
    (percent * 10_000.0).round().clamp(0.0, 1_000_000.0) as u32
}

/// What the rung that is reached asks. `epoch` is the `trafficGeneration` that brought its weight.
fn evidence_plan(
    spec: &AgentPoolSpec,
    ladder: &Ladder,
    reached: &Reached,
    epoch: i64,
    first_epoch: i64,
) -> evidence::Plan {
    let analysis = spec.rollout.analysis();
    let canary = spec
        .rollout
        .canary()
        .map(|canary| steps(&canary))
        .unwrap_or_default();
    let step = canary.iter().find(|step| step.weight == reached.weight);
    let (question, min_seconds, decide_within_seconds) = match step {
        Some(step) => (
            Question::Advance {
                times_worse: u32::try_from(step.rule_out_times_worse).unwrap_or(2),
            },
            step.min_duration_seconds.into(),
            step.decide_within_seconds.into(),
        ),
        // A preview has no traffic to judge; what is counted meanwhile is what the bake compares with.
        None if reached.weight == 0 => (Question::Advance { times_worse: 2 }, 0, i64::MAX),
        None => (Question::Bake, ladder.bake.as_secs(), ladder.bake.as_secs()),
    };
    evidence::Plan {
        strictness: strictness(spec),
        metrics: judged(spec),
        step: Step {
            index: u32::try_from(ladder.index(reached.weight)).unwrap_or(u32::MAX),
            question,
            epoch,
            start: reached.since.as_second(),
            min_seconds,
            decide_within_seconds,
        },
        first_epoch,
        request_timeout_seconds: spec.traffic.request_timeout_seconds.into(),
        warmup_seconds: analysis.warmup_seconds.into(),
        bakes: !ladder.bake.is_zero(),
    }
}

/// The judgement as the decision hears it; `due` is when the step is undecided, in seconds since the Unix epoch.
fn gate(judgement: &Judgement, plan: &evidence::Plan, due: i64, reached: &Reached, permit: Permit) -> Gate {
    let (opinion, word) = match judgement.verdict {
        _ if reached.weight == 0 => (Opinion::Advance, "Previewed"),
        Verdict::Advance => (Opinion::Advance, "EvidenceComplete"),
        Verdict::Continue if plan.metrics.iter().all(|metric| metric.mode == Mode::Observe) => {
            (Opinion::Continue, STEP_LASTS)
        }
        Verdict::Continue => (Opinion::Continue, EVIDENCE_CONTINUES),
        Verdict::NoData => (Opinion::Hold, "NoData"),
        Verdict::CommonMode => (Opinion::Hold, "StableDegraded"),
        Verdict::Undecided => (Opinion::Undecided, "Undecided"),
        Verdict::Rollback if permit == Permit::Hold => (Opinion::Hold, "RollbackStorm"),
        Verdict::Rollback => (Opinion::RollBack, "AnalysisFailed"),
    };
    let message = match word {
        "Previewed" => "all its replicas are there".to_owned(),
        "RollbackStorm" => format!(
            "{}; but many releases fail at once, which no candidate explains: a person has to decide, with a \
             RolloutAction of type Abort or SkipStep",
            judgement.message
        ),
        "NoData" if reached.weight >= 100 => {
            format!("{}; without data the bake ends at its time", judgement.message)
        }
        "NoData" => format!(
            "{}; the release waits until there is, or for a RolloutAction of type SkipStep or Abort",
            judgement.message
        ),
        "StableDegraded" => format!(
            "{}; the release waits until that has been over for some minutes",
            judgement.message
        ),
        _ => judgement.message.clone(),
    };
    Gate {
        weight: reached.weight,
        opinion,
        reason: Reason::new(word, message),
        deadline: (opinion == Opinion::Continue)
            .then(|| Timestamp::from_second(due).ok())
            .flatten(),
        by_test: false,
    }
}

/// The gate while the evidence behind it cannot be saved: a restart would lose it, so nothing advances by it.
fn unsaved(gate: Gate, error: &Error) -> Gate {
    if gate.opinion == Opinion::RollBack {
        return gate;
    }
    let message = format!("the evidence cannot be saved, so the release waits: {error}");
    Gate {
        opinion: Opinion::Hold,
        reason: Reason::new(error.category(), message),
        deadline: None,
        ..gate
    }
}

/// Where a release of this pool starts that starts now, see [`left_out`].
pub fn start(observed: &Observed) -> Option<(i32, String)> {
    let spec = &observed.pool.spec;
    spec.rollout.canary().filter(|canary| canary.steps.is_empty())?;
    let records = observed.revisions.iter().map(|known| &known.record);
    let stable = records
        .filter(|record| record.standing == Standing::Stable)
        .max_by_key(|record| record.order)?;
    let traffic = traffic(&observed.gateways, &observed.name(), &stable.revision);
    left_out(spec, traffic)
}

fn strictness(spec: &AgentPoolSpec) -> evidence::Strictness {
    match spec.rollout.analysis().strictness {
        api::Strictness::Relaxed => evidence::Strictness::Relaxed,
        api::Strictness::Standard => evidence::Strictness::Standard,
        api::Strictness::Strict => evidence::Strictness::Strict,
    }
}

/// How long a step is expected to take at this traffic, see [`evidence::expected_seconds`].
pub fn expected_seconds(
    spec: &AgentPoolSpec,
    rung: &evidence::Rung,
    traffic: evidence::Traffic,
) -> Option<i64> {
    evidence::expected_seconds(rung, strictness(spec), &judged(spec), traffic)
}

/// The weight below the step at which a release of this pool starts: where the spec names no steps, those that its traffic cannot judge in
/// time are left out. None when it starts at the first, or when nothing is known of the traffic.
pub fn left_out(spec: &AgentPoolSpec, rate: Option<evidence::Traffic>) -> Option<(i32, String)> {
    let canary = spec.rollout.canary().filter(|canary| canary.steps.is_empty())?;
    let start = evidence::starting_step(&evidence::DEFAULT_STEPS, strictness(spec), &judged(spec), rate?);
    let before = steps(&canary).get(start.step.checked_sub(1)?)?.weight;
    Some((before, start.message))
}

/// What the gateways have counted of a revision in the windows they keep.
pub fn traffic(views: &[View], pool: &str, revision: &str) -> Option<evidence::Traffic> {
    let (mut requests, mut failed) = (0u64, 0u64);
    let (mut first, mut last) = (i64::MAX, i64::MIN);
    for view in views {
        let pool = view.stats.as_ref().and_then(|stats| stats.pools.get(pool));
        let windows = pool
            .and_then(|pool| pool.revisions.get(revision))
            .map(|found| &found.windows);
        for window in windows.into_iter().flatten() {
            requests += window.started;
            failed += window.failed;
            first = first.min(window.start);
            last = last.max(window.start + flotilla_core::stats::WINDOW_SECONDS);
        }
    }
    (last > first).then(|| evidence::Traffic {
        requests_per_second: requests as f64 / (last - first) as f64,
        stable: evidence::Arm {
            requests,
            events: failed.min(requests),
        },
    })
}

/// The evidence of one release as kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Case {
    /// `trafficGeneration` with which the release began to count.
    first_epoch: i64,
    /// The checkpoint's text.
    evidence: String,
}

#[derive(Clone, Debug)]
struct Open {
    uid: String,
    first_epoch: i64,
    evidence: Evidence,
    /// It is ahead of its checkpoint.
    unsaved: bool,
}

/// What was heard about the rung in force.
#[derive(Clone, Debug, PartialEq)]
pub struct Heard {
    /// For the decision.
    pub gate: Gate,
    /// For status.
    pub judgement: Judgement,
}

/// Judges all pools' releases.
#[derive(Debug)]
pub struct Court {
    open: Mutex<HashMap<Key, Open>>,
    storm: Mutex<StormBreaker>,
    figures: Figures,
}

impl Court {
    /// Hears `figures` beside the gateways.
    pub fn new(figures: Figures) -> Self {
        Self {
            open: Mutex::default(),
            storm: Mutex::default(),
            figures,
        }
    }

    /// What the evidence says now about the rung in force; none while no rung is reached. Writes a checkpoint when a window has
    /// closed.
    ///
    /// A checkpoint that cannot be written for longer (its name is taken, a quota) stops the release where it stands, but
    /// for harm that is shown: that is in the record of the revision as soon as it is acted on.
    ///
    /// # Errors
    /// When the API server cannot be asked: then nothing is decided, and the next visit tries again.
    pub async fn hear(
        &self,
        visit: &Visit,
        observed: &Observed,
        memory: &Memory,
        now: Timestamp,
    ) -> Result<Option<Arc<Heard>>, Error> {
        let heard = self.judge(visit, observed, memory, now).await?;
        if heard.is_none() {
            self.figures.follow(visit.key(), None);
        }
        Ok(heard)
    }

    async fn judge(
        &self,
        visit: &Visit,
        observed: &Observed,
        memory: &Memory,
        now: Timestamp,
    ) -> Result<Option<Arc<Heard>>, Error> {
        let spec = &observed.pool.spec;
        let (Some(ladder), Some(reached), Some(epoch)) =
            (ladder(spec), &memory.reached, observed.status.traffic_generation)
        else {
            return Ok(None);
        };
        let newest = |standing| {
            let records = observed.revisions.iter().map(|known| &known.record);
            records
                .filter(|record| record.standing == standing)
                .max_by_key(|record| record.order)
        };
        let (Some(stable), Some(candidate)) = (newest(Standing::Stable), newest(Standing::Candidate)) else {
            return Ok(None);
        };
        if candidate.revision != reached.revision || candidate.attempt != reached.attempt {
            return Ok(None);
        }
        // Before its first traffic there is nothing to count, but for what a blue-green's bake compares with.
        if reached.weight == 0 && spec.rollout.blue_green().is_none() {
            return Ok(None);
        }
        let whose = evidence::Key {
            stable: stable.revision.clone(),
            candidate: candidate.revision.clone(),
            attempt: candidate.attempt,
        };
        let mut open = self.open(visit, observed, whose, epoch).await?;
        let plan = evidence_plan(spec, &ladder, reached, epoch, open.first_epoch);
        let name = observed.name();
        let subject = Subject {
            uid: observed.pool.uid().unwrap_or_default(),
            stable: stable.revision.clone(),
            candidate: candidate.revision.clone(),
            attempt: candidate.attempt,
            metrics: spec.rollout.analysis().metrics,
        };
        self.figures.follow(visit.key(), Some((subject, epoch)));
        let read = self.figures.reports(visit.key(), now.as_second(), plan.closes(0));
        let scrape = Scrape {
            now: now.as_second(),
            complete: observed.gateways.iter().all(|view| !view.ready || view.fresh),
            reports: observed
                .gateways
                .iter()
                .filter_map(|view| view.stats.as_ref())
                .map(|stats| Report::of_gateway(stats, &name, &stable.revision, &candidate.revision, &plan))
                .chain(read)
                .collect(),
        };
        let update = open.evidence.update(&plan, &scrape);
        let mut refusal = None;
        if update.applied > 0 || open.unsaved {
            let save = Action::apply(&checkpoint(&observed.pool, &open));
            open.unsaved = match visit.execute(vec![save]).await {
                Ok(_) => false,
                Err(
                    error @ (Error::NameTaken { .. } | Error::Refused { .. } | Error::BeingCollected { .. }),
                ) => {
                    refusal = Some(error);
                    true
                }
                Err(error) => return Err(error),
            };
        }
        for metric in update.reset {
            visit.note(Note::normal(
                "EvidenceReset",
                format!("how {metric} is judged has changed, so its evidence begins anew"),
            ));
        }
        let judgement = evidence::judge(&open.evidence, &plan, now.as_second());
        let due = open.evidence.due(&plan);
        let release = release_name(visit.key(), &reached.revision, reached.attempt);
        let permit = match judgement.verdict {
            Verdict::Rollback => self
                .storm
                .lock()
                .ask(&release, evidence::Cause::Evidence, now.as_second()),
            _ => Permit::RollBack,
        };
        self.open.lock().insert(visit.key().clone(), open);
        let gate = gate(&judgement, &plan, due, reached, permit);
        let gate = super::gate::tempered(gate, spec, &judgement);
        let gate = super::gate::with_baseline(gate, spec, &ladder, reached, now);
        let mut gate = match refusal {
            Some(error) => unsaved(gate, &error),
            None => gate,
        };
        let is_open = !matches!(gate.opinion, Opinion::Advance | Opinion::RollBack);
        if let Some(problem) = self.figures.problem(visit.key()).filter(|_| is_open) {
            gate.reason.message = format!("{}; metric {problem}", gate.reason.message);
        }
        Ok(Some(Arc::new(Heard { gate, judgement })))
    }

    /// The release has ended, or another has begun.
    pub fn close(&self, key: &Key, reached: &Reached) {
        let release = release_name(key, &reached.revision, reached.attempt);
        self.storm.lock().forget(&release);
    }

    /// Drops what is known of a pool that is gone.
    pub fn forget(&self, key: &Key) {
        self.figures.follow(key, None);
        self.open.lock().remove(key);
    }

    async fn open(
        &self,
        visit: &Visit,
        observed: &Observed,
        whose: evidence::Key,
        epoch: i64,
    ) -> Result<Open, Error> {
        let uid = observed.pool.uid().unwrap_or_default();
        let fits = |open: &Open| {
            open.uid == uid && (*open.evidence.key() == whose || seeded::has(Bug::EvidenceOfAnother))
        };
        let known = self.open.lock().get(visit.key()).cloned();
        if let Some(open) = known.filter(fits) {
            return Ok(open);
        }
        let key = Key::new(&visit.key().namespace, config_map_name(&observed.name()));
        let kept = visit.read::<ConfigMap>(&key).await?;
        let is_ours = |kept: &ConfigMap| kept.owner_references().iter().any(|owner| owner.uid == uid);
        let case = kept
            .filter(is_ours)
            .filter(|_| !seeded::has(Bug::EvidenceNotRestored))
            .and_then(|kept| kept.data?.remove(CHECKPOINT));
        let read = case.and_then(|text| match restore(&text) {
            Ok((first_epoch, evidence)) => Some(Open {
                uid: uid.clone(),
                first_epoch,
                evidence,
                unsaved: false,
            }),
            Err(error) => {
                warn!(%error, "the evidence of this release begins anew");
                None
            }
        });
        Ok(read.filter(fits).unwrap_or_else(|| Open {
            uid,
            first_epoch: epoch,
            evidence: Evidence::new(whose),
            unsaved: false,
        }))
    }
}

fn restore(text: &str) -> Result<(i64, Evidence), evidence::state::CheckpointError> {
    let case: Case = serde_json::from_str(text)?;
    Ok((case.first_epoch, Evidence::from_checkpoint(&case.evidence)?))
}

fn release_name(key: &Key, revision: &str, attempt: i32) -> String {
    format!("{}/{revision}#{attempt}", key.namespace)
}

fn config_map_name(pool: &str) -> String {
    format!("{pool}-evidence")
}

fn checkpoint(pool: &AgentPool, open: &Open) -> ConfigMap {
    let case = Case {
        first_epoch: open.first_epoch,
        evidence: open.evidence.to_checkpoint(),
    };
    let text = serde_json::to_string(&case).unwrap_or_default();
    ConfigMap {
        metadata: child_meta(pool, config_map_name(&pool.name_any()), None),
        data: Some([(CHECKPOINT.to_owned(), text)].into()),
        ..ConfigMap::default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::build::fixtures::pool;
    use super::*;
    use serde_json::json;

    fn reached(weight: i32) -> Reached {
        Reached {
            revision: "support-2".into(),
            attempt: 1,
            weight,
            since: Timestamp::from_second(1_000).unwrap(),
        }
    }

    fn asked(spec: serde_json::Value, weight: i32) -> evidence::Plan {
        let pool = pool(spec);
        let ladder = ladder(&pool.spec).unwrap();
        evidence_plan(&pool.spec, &ladder, &reached(weight), 7, 5)
    }

    #[test]
    fn a_canary_without_settings_has_the_default_ladder() {
        let ladder = ladder(&pool(json!({"rollout": {"type": "Canary"}})).spec).unwrap();
        let weights: Vec<_> = ladder.rungs.iter().map(|rung| rung.weight).collect();
        assert_eq!(
            (weights, ladder.least_pods, ladder.keeps_stable),
            (vec![1, 10, 25, 50], 2, true)
        );
        assert_eq!(ladder.bake, SignedDuration::from_secs(600));
        assert_eq!(super::ladder(&pool(json!({})).spec), None);
    }

    #[test]
    fn tests_before_traffic_are_a_rung_of_their_own() {
        let tests = json!([{"name": "health", "type": "HTTP", "when": "BeforeAndAfter"}]);
        let ladder_of = |rollout: serde_json::Value| {
            let mut spec = json!({"replicas": 8, "rollout": rollout});
            spec["rollout"]["smokeTests"] = tests.clone();
            ladder(&pool(spec).spec).unwrap()
        };
        let canary =
            ladder_of(json!({"type": "Canary", "canary": {"steps": [{"weight": 5, "replicas": 3}]}}));
        let rungs: Vec<_> = canary.rungs.iter().map(|rung| (rung.weight, rung.pods)).collect();
        assert_eq!(rungs, [(0, Some(3)), (5, Some(3))]);
        assert!(canary.tested_after && !canary.rolls);
        let green = ladder_of(json!({"type": "BlueGreen"}));
        assert_eq!((green.rungs.len(), green.tested_after), (1, true));
        let rolling = ladder_of(json!({}));
        assert_eq!((rolling.rungs[0].pods, rolling.rolls), (Some(2), true));
    }

    #[test]
    fn each_rung_asks_what_its_step_says_and_the_last_one_bakes() {
        let spec = json!({"rollout": {
            "type": "Canary",
            "canary": {"bakeSeconds": 90, "steps": [
                {"weight": 20, "ruleOutTimesWorse": 4, "minDurationSeconds": 10, "decideWithinSeconds": 100},
            ]},
            "analysis": {"strictness": "Strict", "warmupSeconds": 3, "errors": {"acceptableErrorPercent": "0.5", "abortAbovePercent": "12.5"},
                "latency": {"thresholdsMilliseconds": [100, 200], "mode": "Observe"}},
        }, "traffic": {"requestTimeoutSeconds": 9}});
        let plan = asked(spec.clone(), 20);
        assert_eq!(plan.step.question, Question::Advance { times_worse: 4 });
        assert_eq!(
            (plan.step.min_seconds, plan.step.decide_within_seconds),
            (10, 100)
        );
        assert_eq!(
            (plan.step.epoch, plan.first_epoch, plan.step.start),
            (7, 5, 1_000)
        );
        assert_eq!(
            (plan.request_timeout_seconds, plan.warmup_seconds, plan.bakes),
            (9, 3, true)
        );
        assert_eq!(plan.strictness, evidence::Strictness::Strict);
        let Rule::Compare(errors) = &plan.metrics[0].rule else {
            panic!()
        };
        assert_eq!(
            (errors.acceptable_millionths, errors.abort_above_millionths),
            (5_000, 125_000)
        );
        let Rule::Compare(latency) = &plan.metrics[1].rule else {
            panic!()
        };
        assert_eq!(latency.counted, Counted::Latency(vec![100, 200]));
        assert_eq!(
            (plan.metrics[1].mode, latency.tolerate_worse_percent),
            (Mode::Observe, 5)
        );
        let bake = asked(spec, 100);
        assert_eq!(
            (bake.step.question, bake.step.min_seconds, bake.step.index),
            (Question::Bake, 90, 1)
        );
    }

    #[test]
    fn metrics_of_other_sources_are_compared_or_held_against_limits() {
        let plan = asked(
            json!({"rollout": {"type": "Canary", "analysis": {"metrics": [
                {"name": "checkouts", "source": {"type": "Prometheus", "name": "main"},
                    "counts": {"requests": "a{{revision}}", "events": "b{{revision}}", "acceptablePercent": "0.5"}},
                {"name": "p95", "mode": "Observe", "source": {"type": "JSON", "name": "own"},
                    "threshold": {"value": "/x#/y", "minimum": "-1", "maximum": "4.5", "failureLimit": 2}},
            ]}}}),
            10,
        );
        let Rule::Compare(checkouts) = &plan.metrics[1].rule else {
            panic!()
        };
        assert_eq!(
            (
                &checkouts.counted,
                checkouts.acceptable_millionths,
                checkouts.tolerate_worse_percent
            ),
            (&Counted::Events, 5_000, 20)
        );
        let expected = evidence::Threshold {
            minimum_millionths: Some(-1_000_000),
            maximum_millionths: Some(4_500_000),
            failure_limit: 2,
        };
        assert_eq!(
            (&plan.metrics[2].rule, plan.metrics[2].mode),
            (&Rule::Threshold(expected), Mode::Observe)
        );
    }

    #[test]
    fn blue_green_previews_without_traffic_and_asks_nothing_of_it() {
        let spec = json!({"replicas": 4, "rollout": {"type": "BlueGreen", "blueGreen": {"previewReplicas": 2, "approval": "Manual"}}});
        let ladder = ladder(&pool(spec.clone()).spec).unwrap();
        assert_eq!(ladder.pods(ladder.rungs.first(), 4), 2);
        assert!(ladder.rungs[0].needs_approval);
        let judgement = Judgement {
            verdict: Verdict::NoData,
            metrics: Vec::new(),
            eta_seconds: None,
            message: "errors: no closed window".into(),
        };
        let gate = gate(
            &judgement,
            &asked(spec, 0),
            i64::MAX,
            &reached(0),
            Permit::RollBack,
        );
        assert_eq!((gate.opinion, gate.weight), (Opinion::Advance, 0));
    }

    #[test]
    fn a_verdict_becomes_an_opinion_and_a_storm_holds() {
        let plan = asked(json!({"rollout": {"type": "Canary"}}), 10);
        let heard = |verdict, permit| {
            let judgement = Judgement {
                verdict,
                metrics: Vec::new(),
                eta_seconds: None,
                message: "errors: worse".into(),
            };
            gate(&judgement, &plan, 4_600, &reached(10), permit)
        };
        for (verdict, opinion, word) in [
            (Verdict::Advance, Opinion::Advance, "EvidenceComplete"),
            (Verdict::Continue, Opinion::Continue, EVIDENCE_CONTINUES),
            (Verdict::NoData, Opinion::Hold, "NoData"),
            (Verdict::CommonMode, Opinion::Hold, "StableDegraded"),
            (Verdict::Undecided, Opinion::Undecided, "Undecided"),
            (Verdict::Rollback, Opinion::RollBack, "AnalysisFailed"),
        ] {
            let gate = heard(verdict, Permit::RollBack);
            assert_eq!((gate.opinion, gate.reason.word.as_str()), (opinion, word));
        }
        let held = heard(Verdict::Rollback, Permit::Hold);
        assert_eq!(held.opinion, Opinion::Hold);
        assert!(
            held.reason
                .message
                .starts_with("errors: worse; but many releases")
        );
        let due = heard(Verdict::Continue, Permit::RollBack).deadline.unwrap();
        assert_eq!(due.as_second(), 4_600);
    }

    #[test]
    fn evidence_that_cannot_be_saved_holds_but_for_harm() {
        let plan = asked(json!({"rollout": {"type": "Canary"}}), 10);
        let error = Error::NameTaken {
            kind: "ConfigMap".into(),
            name: "support-evidence".into(),
            owner: "nobody".into(),
        };
        for (verdict, opinion, word) in [
            (Verdict::Advance, Opinion::Hold, "NameTaken"),
            (Verdict::Continue, Opinion::Hold, "NameTaken"),
            (Verdict::Rollback, Opinion::RollBack, "AnalysisFailed"),
        ] {
            let judgement = Judgement {
                verdict,
                metrics: Vec::new(),
                eta_seconds: None,
                message: String::new(),
            };
            let gate = unsaved(
                gate(&judgement, &plan, 4_600, &reached(10), Permit::RollBack),
                &error,
            );
            assert_eq!((gate.opinion, gate.reason.word.as_str()), (opinion, word));
        }
    }

    #[test]
    fn little_traffic_leaves_steps_out_only_where_none_are_named() {
        let rate = |requests_per_second| {
            Some(evidence::Traffic {
                requests_per_second,
                stable: evidence::Arm {
                    requests: 100_000,
                    events: 500,
                },
            })
        };
        let default = pool(json!({"rollout": {"type": "Canary"}})).spec;
        assert_eq!(left_out(&default, rate(1_000.0)), None);
        let (weight, why) = left_out(&default, rate(2.0)).unwrap();
        assert!(
            [1, 10, 25].contains(&weight) && why.starts_with("starts at "),
            "{weight} {why}"
        );
        assert_eq!(left_out(&default, None), None);
        let named = pool(json!({"rollout": {"type": "Canary", "canary": {"steps": [{"weight": 5}]}}})).spec;
        assert_eq!(left_out(&named, rate(2.0)), None);
    }

    #[test]
    fn a_checkpoint_reads_back_and_nonsense_does_not() {
        let whose = evidence::Key {
            stable: "support-1".into(),
            candidate: "support-2".into(),
            attempt: 1,
        };
        let open = Open {
            uid: "u-1".into(),
            first_epoch: 9,
            evidence: Evidence::new(whose),
            unsaved: false,
        };
        let kept = checkpoint(&pool(json!({})), &open);
        assert_eq!(kept.metadata.name.as_deref(), Some("support-evidence"));
        assert_eq!(
            restore(&kept.data.unwrap()[CHECKPOINT]).unwrap(),
            (9, open.evidence)
        );
        assert!(restore("{}").is_err());
    }
}
