//! A pool's status out of the plan. Pure.
//!
//! `Ready`'s reason is the one word people see in `kubectl get`, so it is chosen for them: what is wrong where something
//! is, else where the pool stands. Live counts are in fields of their own, never in sentences: each other sentence would
//! be a write.

use flotilla_core::release;
use flotilla_core::rollout::{Decision, Member, Reason, Standing, State};
use flotilla_core::seeded::{self, Bug};
use flotilla_crds::agent_pool::{
    CandidateStatus, CountStatus, LastAction, LastRelease, MetricStatus, RejectedRevision, RestartStatus,
    RolloutStatus, StableStatus, StepStatus, TrafficShare, WaitingFor,
};
use flotilla_crds::common::{LocalRef, condition};
use flotilla_crds::release_test::TestStatus;
use flotilla_crds::rollout_action::ActionResult;
use flotilla_crds::{AgentPoolStatus, names};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::ResourceExt as _;

use super::dereference::{Observed, is_ready};
use super::plan::{Plan, deadline, weights};
use super::routing;
use super::validate::Problem;
use super::{forecast, gate, judge};
use crate::runtime::conditions::truncate;
use crate::runtime::{Conditions, StatusWrite};

/// Longest message in a status field, by its schema.
const MAX_MESSAGE: usize = 1024;
/// Rejected revisions shown.
const MAX_REJECTED: usize = 10;
/// What changes by itself while pods come and go. It rides along with everything else and causes a write of its own
/// every few seconds only: a HorizontalPodAutoscaler looks every 15 s.
const LAZY: &[&str] = &[
    "/replicas",
    "/ready",
    "/stable/replicas",
    "/stable/readyReplicas",
    "/candidate/replicas",
    "/candidate/readyReplicas",
    "/rollout/progressTime",
    "/rollout/waitingFor/deadlineTime",
    "/rollout/waitingFor/message",
    "/rollout/measuredWeightPercent",
    "/rollout/metrics",
    "/restart/replaced",
    "/plan/steps",
    "/plan/message",
];
/// See [`LAZY`].
const LAZY_EVERY: std::time::Duration = std::time::Duration::from_secs(5);

/// The status, and how it is to be written. `blocked` is what kept the plan from being carried out.
pub fn build(
    observed: &Observed,
    plan: &Plan,
    blocked: Option<&Problem>,
    now: Timestamp,
) -> (AgentPoolStatus, StatusWrite) {
    let Plan {
        decision,
        members,
        restarting,
        ..
    } = plan;
    let old = &observed.status;
    let (traffic, traffic_generation) = traffic(observed, decision, now);
    let is_rerouted = old.traffic_generation != traffic_generation;
    let stable = decision.stable.as_deref().map(|name| (name, arm(members, name)));
    let candidate = decision
        .candidate
        .as_deref()
        .map(|name| (name, arm(members, name)));
    let problem = blocked.or(plan.problem.as_ref());
    let wanted = observed.pool.spec.effective_replicas();
    let ready = stable
        .iter()
        .chain(&candidate)
        .map(|(_, arm)| arm.available)
        .sum::<i32>();
    let status = AgentPoolStatus {
        conditions: conditions(observed, plan, problem, now),
        observed_generation: observed.pool.metadata.generation.unwrap_or_default(),
        replicas: stable.map(|(_, arm)| arm.existing),
        selector: stable
            .map(|(name, _)| format!("{}={},{}={name}", names::POOL, observed.name(), names::REVISION)),
        ready: stable.map(|_| format!("{ready}/{wanted}")),
        stable: stable.map(|(name, arm)| StableStatus {
            revision: name.to_owned(),
            replicas: arm.existing,
            ready_replicas: arm.available,
        }),
        candidate: candidate.map(|(name, arm)| CandidateStatus {
            revision: name.to_owned(),
            attempt: observed.record(name).map_or(1, |record| record.attempt),
            weight: weights(decision).get(name).copied().unwrap_or_default(),
            replicas: arm.existing,
            ready_replicas: arm.available,
        }),
        gateway_port: observed.port,
        traffic_generation,
        traffic,
        rollout: rollout(observed, plan, problem, now),
        rejected: rejected(observed, decision, now),
        last_release: last_release(observed),
        last_action: last_action(observed),
        plan: plan.forecast.clone(),
        restart: restarting.as_ref().map(|restart| RestartStatus {
            time: Some(Time(restart.before)),
            replaced: Some(format!("{}/{}", restart.replaced, restart.of)),
        }),
    };
    (
        status,
        StatusWrite {
            urgent: is_rerouted,
            lazy: LAZY,
            lazy_every: LAZY_EVERY,
        },
    )
}

fn arm(members: &[Member], revision: &str) -> flotilla_core::rollout::Arm {
    members
        .iter()
        .find(|member| member.revision == revision)
        .map(|member| member.arm)
        .unwrap_or_default()
}

/// The weights, under a new generation when they have changed. A lost generation goes on far beyond any that a gateway
/// may still have, so that none of them confirms what it has not seen.
pub(super) fn traffic(
    observed: &Observed,
    decision: &Decision,
    now: Timestamp,
) -> (Vec<TrafficShare>, Option<i64>) {
    let old = &observed.status;
    if decision.traffic.is_empty() {
        return (old.traffic.clone(), old.traffic_generation);
    }
    let weighted = |share: &TrafficShare| (share.revision.clone(), share.weight);
    let is_same = old
        .traffic
        .iter()
        .map(weighted)
        .eq(decision.traffic.iter().cloned());
    let generation = match old.traffic_generation {
        Some(generation) if is_same || seeded::has(Bug::GenerationStays) => generation,
        Some(generation) => generation.saturating_add(1),
        None if observed.revisions.is_empty() || seeded::has(Bug::GenerationRestarts) => 1,
        None => now.as_second().max(1),
    };
    let since = |revision: &String, weight: i32| {
        let before = old.traffic.iter().find(|share| share.revision == *revision);
        match before {
            // With a weight from before this field: since when is not known, and nothing follows from it.
            Some(share) if share.weight > 0 || share.since_generation.is_some() => share.since_generation,
            // Nobody's life begins because a status was lost.
            _ => (weight > 0 && !old.traffic.is_empty()).then_some(generation),
        }
    };
    let new = decision.traffic.iter().map(|(revision, weight)| TrafficShare {
        revision: revision.clone(),
        weight: *weight,
        since_generation: since(revision, *weight),
        preview: is_previewed(observed, decision, revision),
        drain_deadline_time: decision
            .draining
            .iter()
            .find(|(name, _)| name == revision)
            .map(|(_, until)| Time(*until)),
    });
    (new.collect(), Some(generation))
}

/// Whether testers are led to this revision: it is being released, and has a replica that can answer.
fn is_previewed(observed: &Observed, decision: &Decision, revision: &str) -> bool {
    let is_released = matches!(
        decision.state,
        State::Releasing | State::Judging | State::Baking | State::Paused
    );
    let is_candidate = decision.candidate.as_deref() == Some(revision);
    let wants = observed.pool.spec.rollout.preview.is_some();
    wants && is_released && is_candidate && observed.pods_of(revision).iter().any(|pod| is_ready(pod))
}

/// The word and sentence for `Ready`, and whether it is True.
fn readiness(observed: &Observed, plan: &Plan, problem: Option<&Problem>) -> (bool, String, String) {
    let Plan { decision, .. } = plan;
    if let Some(problem) = problem {
        return (false, problem.word.to_owned(), problem.sentence.clone());
    }
    let waiting = decision.waiting.as_ref();
    let sentence = waiting
        .map(|waiting| waiting.reason.message.clone())
        .unwrap_or_default();
    let stable = decision.stable.as_deref().unwrap_or_default();
    let is_at_gateways = waiting.is_some_and(|waiting| {
        let word = waiting.reason.word.as_str();
        matches!(
            word,
            "GatewayUnconfirmed" | routing::GATEWAY_API_MISSING | routing::ROUTE_NOT_ACCEPTED
        )
    });
    let trouble = |revision: Option<&str>| {
        let member = plan
            .members
            .iter()
            .find(|member| Some(member.revision.as_str()) == revision);
        member
            .and_then(|member| member.trouble.as_ref())
            .map(|trouble| trouble.reason.word.clone())
    };
    if plan.restarting.is_some() && !is_at_gateways {
        return (
            false,
            "Restarting".into(),
            format!("pods of {stable} are replaced, batch by batch"),
        );
    }
    match &decision.state {
        State::Ready => (true, "Ready".into(), format!("{stable} serves")),
        State::Stopped if waiting.is_none() => (
            true,
            "Stopped".into(),
            "no pod runs, because spec.stopped is true".into(),
        ),
        State::Stopped => (false, "Stopped".into(), sentence),
        State::Empty | State::Paused
            if waiting.is_some_and(|waiting| waiting.reason.word == forecast::DRY_RUN_HOLDS) =>
        {
            (false, forecast::DRY_RUN_HOLDS.into(), sentence)
        }
        State::Empty => (
            false,
            "Progressing".into(),
            "the first revision is being made".into(),
        ),
        _ if is_at_gateways => {
            let word = waiting.map(|waiting| waiting.reason.word.clone());
            (false, word.unwrap_or_default(), sentence)
        }
        State::Starting => {
            let word = trouble(decision.stable.as_deref()).unwrap_or_else(|| "Progressing".into());
            (false, word, sentence)
        }
        State::Releasing | State::Shrinking => (false, "Progressing".into(), sentence),
        State::Returning => (false, "Returning".into(), sentence),
        // Live percentages are in `status.rollout`; here they would be a write each.
        State::Judging => {
            let candidate = decision.candidate.as_deref().unwrap_or_default();
            let weight = decision.reached.as_ref().map_or(0, |reached| reached.weight);
            let word = waiting
                .map(|waiting| waiting.reason.word.as_str())
                .unwrap_or_default();
            match word {
                judge::EVIDENCE_CONTINUES | judge::STEP_LASTS | "Judging" => (
                    false,
                    "Judging".into(),
                    format!("{candidate} is judged at {weight} %; status.rollout shows its evidence"),
                ),
                word => (
                    false,
                    word.into(),
                    format!("{candidate} stays at {weight} %; status.rollout says what it waits for"),
                ),
            }
        }
        State::Baking => (
            true,
            "Baking".into(),
            format!(
                "{} serves; it is still judged and can be led back",
                decision.candidate.as_deref().unwrap_or_default()
            ),
        ),
        State::Settling => (false, "Settling".into(), sentence),
        State::Paused => (false, "Paused".into(), sentence),
        State::Rejected(reason) => {
            let rejected = observed.revisions.iter().map(|known| &known.record);
            let target = rejected.max_by_key(|record| (record.standing == Standing::Rejected, record.order));
            let name = target.map(|record| record.revision.as_str()).unwrap_or_default();
            let serves = if stable.is_empty() { "nothing" } else { stable };
            let sentence = format!(
                "{name} was stopped and {serves} serves: {}; change spec.agent, or create a RolloutAction of type Retry",
                reason.message
            );
            (false, reason.word.clone(), sentence)
        }
    }
}

/// What the spec's progress has stopped on.
fn stalled(observed: &Observed, plan: &Plan, problem: Option<&Problem>, now: Timestamp) -> Option<Reason> {
    match problem {
        Some(problem) => {
            let since = plan.memory.waiting_since.or(plan.memory.blocked_since);
            let is_late = since.is_some_and(|since| now.duration_since(since) >= deadline(observed));
            (!problem.may_mend || is_late).then(|| Reason::new(problem.word, problem.sentence.clone()))
        }
        None => plan.decision.stalled.clone(),
    }
}

fn conditions(observed: &Observed, plan: &Plan, problem: Option<&Problem>, now: Timestamp) -> Vec<Condition> {
    let generation = observed.pool.metadata.generation;
    let mut conditions = Conditions::new(&observed.status.conditions, generation, now);
    let (is_ready, word, sentence) = readiness(observed, plan, problem);
    conditions.set(condition::READY, is_ready, &word, &sentence);

    let weights = weights(&plan.decision);
    let serving = plan
        .members
        .iter()
        .filter(|member| weights.get(member.revision.as_str()).is_some_and(|w| *w > 0));
    let capacity = serving.map(|member| member.arm.available).sum::<i32>();
    let replicas = observed.pool.spec.replicas;
    if observed.pool.spec.stopped {
        conditions.set(
            condition::AVAILABLE,
            false,
            "Stopped",
            "no pod runs, because spec.stopped is true",
        );
    } else if !weights.is_empty() && capacity >= replicas {
        conditions.set(
            condition::AVAILABLE,
            true,
            "CapacityAvailable",
            "every wanted replica is available",
        );
    } else {
        let message = "fewer replicas are available than are wanted";
        conditions.set(condition::AVAILABLE, false, "CapacityMissing", message);
    }

    let ladder = release::ladder(&observed.pool.spec).filter(|ladder| !ladder.rolls);
    if ladder.is_some() || conditions.get(condition::BAKING).is_some() {
        let bakes = plan.decision.state == State::Baking;
        let message = if bakes { sentence.as_str() } else { "" };
        conditions.set(
            condition::BAKING,
            bakes,
            if bakes { "Baking" } else { "NotBaking" },
            message,
        );
    }

    let stalled = stalled(observed, plan, problem, now);
    if is_ready || stalled.is_some() {
        conditions.set(
            condition::RECONCILING,
            false,
            if is_ready { "Settled" } else { "Stalled" },
            "",
        );
    } else {
        conditions.set(condition::RECONCILING, true, &word, &sentence);
    }
    match stalled {
        Some(reason) => {
            // For a rejected revision the sentence of `Ready` says what to do as well.
            let message = if reason.word == word {
                sentence
            } else {
                reason.message
            };
            conditions.set(condition::STALLED, true, &reason.word, message);
        }
        None => conditions.set(condition::STALLED, false, "Progressing", ""),
    }
    conditions.into_vec()
}

fn rollout(
    observed: &Observed,
    plan: &Plan,
    problem: Option<&Problem>,
    now: Timestamp,
) -> Option<RolloutStatus> {
    let progress = plan.decision.progress.as_ref();
    let waiting = match problem {
        Some(problem) => {
            let since = plan
                .memory
                .waiting_since
                .or(plan.memory.blocked_since.filter(|_| problem.may_mend));
            let until = since.and_then(|since| since.checked_add(deadline(observed)).ok());
            Some(waiting(problem.word, &problem.sentence, until, now))
        }
        None => plan
            .decision
            .waiting
            .as_ref()
            .map(|wait| waiting(&wait.reason.word, &wait.reason.message, wait.deadline, now)),
    };
    let start = progress
        .map(|progress| progress.start)
        .or(plan.memory.waiting_since)
        .or(plan.memory.blocked_since);
    let moved = progress.and_then(|progress| progress.moved);
    (waiting.is_some() || progress.is_some()).then(|| RolloutStatus {
        start_time: start.map(Time),
        progress_time: moved.map(Time),
        waiting_for: waiting,
        step: step(observed, plan),
        measured_weight_percent: measured_weight(observed, plan),
        top_up_ref: top_up(plan),
        tests: tests(plan),
        metrics: metrics(plan),
    })
}

fn step(observed: &Observed, plan: &Plan) -> Option<StepStatus> {
    let reached = plan.decision.reached.as_ref()?;
    let ladder = release::ladder(&observed.pool.spec)?;
    Some(StepStatus {
        index: i32::try_from(ladder.index(reached.weight)).unwrap_or(i32::MAX),
        weight: reached.weight,
        start_time: Some(Time(reached.since)),
    })
}

/// The tests of the rung that is still in force.
fn tests(plan: &Plan) -> Vec<TestStatus> {
    let sitting = plan.memory.sitting.as_deref().zip(plan.decision.reached.as_ref());
    let sitting = sitting.filter(|(sitting, reached)| sitting.is_of(reached));
    sitting.map(|(sitting, _)| sitting.status()).unwrap_or_default()
}

/// The LoadTest that sends synthetic requests for it.
fn top_up(plan: &Plan) -> Option<LocalRef> {
    plan.decision.reached.as_ref()?;
    let name = plan.memory.top_up.clone()?;
    Some(LocalRef { name })
}

/// The judgement of this visit, if it is about the rung that is still in force.
fn judgement(plan: &Plan) -> Option<&flotilla_core::evidence::Judgement> {
    let reached = plan.decision.reached.as_ref()?;
    let heard = plan.memory.heard.as_ref()?;
    (heard.gate.weight == reached.weight).then_some(&heard.judgement)
}

/// The candidate's share of the counted requests, from the metric that has counted most; where nobody counts, of the ready
/// replicas.
fn measured_weight(observed: &Observed, plan: &Plan) -> Option<String> {
    let percent = |part: f64, all: f64| (all > 0.0).then(|| format!("{:.1}", part * 100.0 / all));
    if observed.pool.spec.traffic.is_by_number() {
        let ready = |revision: &Option<String>| {
            let arm = arm(&plan.members, revision.as_deref()?);
            Some(f64::from(arm.available))
        };
        let candidate = ready(&plan.decision.candidate)?;
        return percent(candidate, candidate + ready(&plan.decision.stable)?);
    }
    let (candidate, stable) = gate::counted(judgement(plan)?)?;
    percent(candidate as f64, (candidate + stable) as f64)
}

fn metrics(plan: &Plan) -> Vec<MetricStatus> {
    let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let counts = |counts: &flotilla_core::evidence::Counts| {
        let arm = counts.arm(0);
        (arm.requests > 0).then(|| CountStatus {
            requests: number(arm.requests),
            events: number(arm.events),
        })
    };
    let judged = judgement(plan)
        .into_iter()
        .flat_map(|judgement| &judgement.metrics);
    judged
        .map(|metric| MetricStatus {
            name: metric.name.clone(),
            verdict: metric.verdict.word().to_owned(),
            advance_percent: metric.advance_percent.into(),
            rollback_percent: metric.rollback_percent.into(),
            candidate: counts(&metric.step.candidate),
            stable: counts(&metric.step.stable),
        })
        .collect()
}

/// What is waited for; where the wait has an end the sentence says when, for those who see nothing else of it.
fn waiting(reason: &str, message: &str, until: Option<Timestamp>, now: Timestamp) -> WaitingFor {
    let end = until.map_or(String::new(), |until| {
        let how = if now < until { "until" } else { "overdue since" };
        let second = Timestamp::from_second(until.as_second()).unwrap_or(until);
        format!("; {how} {second}")
    });
    WaitingFor {
        reason: reason.to_owned(),
        message: format!("{}{end}", truncate(message, MAX_MESSAGE - end.len())),
        deadline_time: until.map(Time),
    }
}

/// Rejected revisions, newest first, as recorded and as just decided.
fn rejected(observed: &Observed, decision: &Decision, now: Timestamp) -> Vec<RejectedRevision> {
    let standing = |revision: &str| {
        decision
            .changes
            .iter()
            .rev()
            .find(|change| change.revision == revision)
    };
    let recorded = observed.revisions.iter().filter_map(|known| {
        let (reason, time) = known.record.rejected.clone()?;
        standing(&known.record.revision)
            .is_none()
            .then(|| (known.record.revision.clone(), reason, time))
    });
    let decided = decision.changes.iter().filter_map(|change| {
        let reason = change.reason.clone()?;
        Some((change.revision.clone(), reason, Some(now)))
    });
    let mut all: Vec<_> = recorded.chain(decided).collect();
    all.sort_by(|a, b| (b.2, &b.0).cmp(&(a.2, &a.0)));
    all.dedup_by(|a, b| a.0 == b.0);
    all.truncate(MAX_REJECTED);
    let shown = all.into_iter().map(|(revision, reason, time)| RejectedRevision {
        revision,
        reason: reason.word,
        message: truncate(&reason.message, MAX_MESSAGE).to_owned(),
        time: time.map(Time),
    });
    shown.collect()
}

/// The newest release that has ended, as recorded: a status that was lost is no end of it.
fn last_release(observed: &Observed) -> Option<LastRelease> {
    let records = observed.revisions.iter().map(|known| &known.record);
    let ended = records.filter_map(|record| Some((record, record.started_at?, record.ended_at?)));
    let (record, start, end) = ended.max_by_key(|(record, _, end)| (*end, record.order))?;
    let result = match record.standing {
        Standing::Stable | Standing::Verified => "Promoted",
        Standing::Rejected => "Stopped",
        Standing::Candidate | Standing::Unproved => "Superseded",
    };
    Some(LastRelease {
        revision: record.revision.clone(),
        attempt: record.attempt,
        result: result.to_owned(),
        start_time: Some(Time(start)),
        completion_time: Some(Time(end)),
    })
}

/// The newest command that was decided.
fn last_action(observed: &Observed) -> Option<LastAction> {
    let decided = observed.actions.iter().filter_map(|action| {
        let result = action.status.as_ref()?.result?;
        Some((action, result))
    });
    let newest = decided.max_by_key(|(action, _)| (action.creation_timestamp(), action.name_any()));
    // Commands are deleted after a while; what the last one was stays known.
    newest.map_or_else(
        || observed.status.last_action.clone(),
        |(action, result)| {
            Some(LastAction {
                name: action.name_any(),
                type_: action.spec.type_.as_str().to_owned(),
                result: match result {
                    ActionResult::Applied => "Applied".to_owned(),
                    ActionResult::Rejected => "Rejected".to_owned(),
                },
                time: action.status.as_ref().and_then(|status| status.time.clone()),
            })
        },
    )
}
