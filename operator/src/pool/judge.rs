//! What a candidate on its ladder is judged by: the spec as a ladder and as a plan for [`flotilla_core::evidence`], the
//! gateways' counts as evidence, and its judgement as the [`Gate`] that the decision hears.
//!
//! The evidence of a release is checkpointed in the ConfigMap `<pool>-evidence` whenever a window has closed. A restarted
//! operator reads it back and goes on as if nothing had been; a window counts once whoever reads it.

mod opinion;
mod plan;
mod start;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;

use flotilla_core::evidence::{self, Evidence, Judgement, Permit, Report, Scrape, StormBreaker, Verdict};
use flotilla_core::release::ladder;
use flotilla_core::rollout::{Gate, Opinion, Reached, Standing};
use flotilla_core::seeded::{self, Bug};
use flotilla_crds::{AgentPool, AgentPoolStatus};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt as _;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::build::child_meta;
use super::dereference::Observed;
use super::figures::{Figures, Subject};
use super::memory::Memory;
use crate::runtime::{Action, Error, Key, Note, Visit};
pub use opinion::{EVIDENCE_CONTINUES, STEP_LASTS};
use opinion::{ROLLBACK_STORM, gate, unread, unsaved};
use plan::evidence_plan;
pub use start::{start, traffic};

/// Key of the checkpoint in its ConfigMap.
const CHECKPOINT: &str = "checkpoint.json";

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
    /// A checkpoint that can be neither read nor written (its name is taken, a quota, the API server does not answer) stops the
    /// release where it stands, and nothing else: the visit goes on, so that what its pods and tests show is acted on. So is
    /// harm that the evidence shows while only writing fails, since that is in the record of the revision as soon as it is
    /// acted on.
    pub async fn hear(
        &self,
        visit: &Visit,
        observed: &Observed,
        memory: &Memory,
        now: Timestamp,
    ) -> Option<Arc<Heard>> {
        let heard = self.judge(visit, observed, memory, now).await;
        if heard.is_none() {
            self.figures.follow(visit.key(), None);
        }
        heard.map(Arc::new)
    }

    async fn judge(
        &self,
        visit: &Visit,
        observed: &Observed,
        memory: &Memory,
        now: Timestamp,
    ) -> Option<Heard> {
        let spec = &observed.pool.spec;
        let ladder = ladder(spec)?;
        let reached = memory.reached.as_ref()?;
        let epoch = observed.status.traffic_generation?;
        let newest = |standing| {
            let records = observed.revisions.iter().map(|known| &known.record);
            records
                .filter(|record| record.standing == standing)
                .max_by_key(|record| record.order)
        };
        let (stable, candidate) = (newest(Standing::Stable)?, newest(Standing::Candidate)?);
        if candidate.revision != reached.revision || candidate.attempt != reached.attempt {
            return None;
        }
        // Before its first traffic there is nothing to count, but for what a blue-green's bake compares with.
        if reached.weight == 0 && spec.rollout.blue_green().is_none() {
            return None;
        }
        let whose = evidence::Key {
            stable: stable.revision.clone(),
            candidate: candidate.revision.clone(),
            attempt: candidate.attempt,
        };
        let mut open = match self.open(visit, observed, whose, epoch).await {
            Ok(open) => open,
            Err(error) => return Some(unread(reached, &error)),
        };
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
            refusal = visit.execute(vec![save]).await.err();
            open.unsaved = refusal.is_some();
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
            Verdict::Rollback => {
                let mut storm = self.storm.lock();
                if was_held(&observed.status, reached) {
                    storm.recall(&release, now.as_second());
                }
                storm.ask(&release, evidence::Cause::Evidence, now.as_second())
            }
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
        Some(Heard { gate, judgement })
    }

    /// The release has ended, or another has begun.
    pub fn close(&self, key: &Key, reached: &Reached) {
        let release = release_name(key, &reached.revision, reached.attempt);
        self.storm.lock().forget(&release);
    }

    /// Drops what is known of a pool that is gone.
    pub fn forget(&self, key: &Key) {
        self.figures.follow(key, None);
        if let Some(open) = self.open.lock().remove(key) {
            let evidence::Key {
                candidate, attempt, ..
            } = open.evidence.key();
            self.storm.lock().forget(&release_name(key, candidate, *attempt));
        }
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
                let key = &key.name;
                visit.note(Note::warning(
                    "EvidenceReset",
                    format!("ConfigMap {key} cannot be understood, so the evidence of this release begins anew: {error}"),
                ));
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

/// Whether status says that this release waits for a person because many fail at once.
fn was_held(status: &AgentPoolStatus, reached: &Reached) -> bool {
    let waiting = status
        .rollout
        .as_ref()
        .and_then(|rollout| rollout.waiting_for.as_ref());
    let candidate = status.candidate.as_ref();
    waiting.is_some_and(|waiting| waiting.reason == ROLLBACK_STORM)
        && candidate.is_some_and(|of| of.revision == reached.revision && of.attempt == reached.attempt)
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
