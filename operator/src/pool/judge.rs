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
use flotilla_core::rollout::{Gate, Ladder, OnUndecided, Opinion, Reached, Reason, Rung, Standing};
use flotilla_core::seeded::{self, Bug};
use flotilla_crds::agent_pool::{self as api, Analysis, AnalysisMode, Approval, CanaryStep, StableScale};
use flotilla_crds::{AgentPool, AgentPoolSpec};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt as _;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::build::child_meta;
use super::dereference::Observed;
use super::memory::Memory;
use crate::runtime::{Action, Error, Key, Note, Visit};
use crate::scrape::View;

/// Key of the checkpoint in its ConfigMap.
const CHECKPOINT: &str = "checkpoint.json";
/// Reason of a gate while its evidence is being gathered.
pub const EVIDENCE_CONTINUES: &str = "EvidenceContinues";

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
        return Some(Ladder {
            rungs: steps(&canary).iter().map(rung).collect(),
            least_pods: canary.candidate_min_replicas,
            keeps_stable: canary.stable_scale == StableScale::Keep,
            scale_down_delay: seconds(canary.scale_down_delay_seconds),
            bake: seconds(canary.bake_seconds),
            on_undecided: match canary.on_undecided {
                api::OnUndecided::Hold => OnUndecided::Hold,
                api::OnUndecided::Promote => OnUndecided::Promote,
                api::OnUndecided::Abort => OnUndecided::Abort,
            },
        });
    }
    let green = spec.rollout.blue_green()?;
    Some(Ladder {
        rungs: vec![Rung {
            weight: 0,
            pods: Some(green.preview_replicas.unwrap_or(i32::MAX)),
            needs_approval: green.approval == Approval::Manual,
        }],
        least_pods: 1,
        keeps_stable: true,
        scale_down_delay: seconds(green.scale_down_delay_seconds),
        bake: seconds(green.bake_seconds),
        on_undecided: OnUndecided::Hold,
    })
}

fn metrics(analysis: &Analysis) -> Vec<Metric> {
    let mode = |mode: AnalysisMode| match mode {
        AnalysisMode::Enforce => Mode::Enforce,
        AnalysisMode::Observe => Mode::Observe,
    };
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
        strictness: match analysis.strictness {
            api::Strictness::Relaxed => evidence::Strictness::Relaxed,
            api::Strictness::Standard => evidence::Strictness::Standard,
            api::Strictness::Strict => evidence::Strictness::Strict,
        },
        metrics: metrics(&analysis),
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

/// The judgement as the decision hears it.
fn gate(judgement: &Judgement, plan: &evidence::Plan, reached: &Reached, permit: Permit) -> Gate {
    let (opinion, word) = match judgement.verdict {
        _ if reached.weight == 0 => (Opinion::Advance, "Previewed"),
        Verdict::Advance => (Opinion::Advance, "EvidenceComplete"),
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
        _ => judgement.message.clone(),
    };
    let due = plan.step.start.saturating_add(plan.step.decide_within_seconds);
    Gate {
        weight: reached.weight,
        opinion,
        reason: Reason::new(word, message),
        deadline: (opinion == Opinion::Continue)
            .then(|| Timestamp::from_second(due).ok())
            .flatten(),
    }
}

/// The weight below the step at which a release of this pool starts: where the spec names no steps, those that its traffic cannot judge in
/// time are left out. None when it starts at the first, or when nothing is known of the traffic.
pub fn left_out(spec: &AgentPoolSpec, rate: Option<evidence::Traffic>) -> Option<(i32, String)> {
    let canary = spec.rollout.canary().filter(|canary| canary.steps.is_empty())?;
    let analysis = spec.rollout.analysis();
    let strictness = match analysis.strictness {
        api::Strictness::Relaxed => evidence::Strictness::Relaxed,
        api::Strictness::Standard => evidence::Strictness::Standard,
        api::Strictness::Strict => evidence::Strictness::Strict,
    };
    let start = evidence::starting_step(&evidence::DEFAULT_STEPS, strictness, &metrics(&analysis), rate?);
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
#[derive(Debug, Default)]
pub struct Court {
    open: Mutex<HashMap<Key, Open>>,
    storm: Mutex<StormBreaker>,
}

impl Court {
    /// What the evidence says now about the rung in force; none while no rung is reached. Writes a checkpoint when a window has
    /// closed.
    ///
    /// # Errors
    /// When the checkpoint cannot be read or written: then nothing is decided, and the next visit tries again.
    pub async fn hear(
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
        let whose = evidence::Key {
            stable: stable.revision.clone(),
            candidate: candidate.revision.clone(),
            attempt: candidate.attempt,
        };
        let mut open = self.open(visit, observed, whose, epoch).await?;
        let plan = evidence_plan(spec, &ladder, reached, epoch, open.first_epoch);
        let name = observed.name();
        let scrape = Scrape {
            now: now.as_second(),
            complete: observed.gateways.iter().all(|view| !view.ready || view.fresh),
            reports: observed
                .gateways
                .iter()
                .filter_map(|view| view.stats.as_ref())
                .map(|stats| Report::of_gateway(stats, &name, &stable.revision, &candidate.revision, &plan))
                .collect(),
        };
        let update = open.evidence.update(&plan, &scrape);
        if update.applied > 0 {
            visit
                .execute(vec![Action::apply(&checkpoint(&observed.pool, &open))])
                .await?;
        }
        for metric in update.reset {
            visit.note(Note::normal(
                "EvidenceReset",
                format!("how {metric} is judged has changed, so its evidence begins anew"),
            ));
        }
        let judgement = evidence::judge(&open.evidence, &plan, now.as_second());
        let release = release_name(visit.key(), &reached.revision, reached.attempt);
        let permit = match judgement.verdict {
            Verdict::Rollback => self
                .storm
                .lock()
                .ask(&release, evidence::Cause::Evidence, now.as_second()),
            _ => Permit::RollBack,
        };
        self.open.lock().insert(visit.key().clone(), open);
        let gate = gate(&judgement, &plan, reached, permit);
        Ok(Some(Arc::new(Heard { gate, judgement })))
    }

    /// The release has ended, or another has begun.
    pub fn close(&self, key: &Key, reached: &Reached) {
        let release = release_name(key, &reached.revision, reached.attempt);
        self.storm.lock().forget(&release);
    }

    /// Drops what is known of a pool that is gone.
    pub fn forget(&self, key: &Key) {
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
        let kept = kept.filter(|_| !seeded::has(Bug::EvidenceNotRestored));
        let case = kept.and_then(|kept| kept.data?.remove(CHECKPOINT));
        let read = case.and_then(|text| match restore(&text) {
            Ok((first_epoch, evidence)) => Some(Open {
                uid: uid.clone(),
                first_epoch,
                evidence,
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
        let gate = gate(&judgement, &asked(spec, 0), &reached(0), Permit::RollBack);
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
            gate(&judgement, &plan, &reached(10), permit)
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
        assert_eq!(due.as_second(), 1_000 + 3_600);
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
