//! What else there is to say about a rung when its evidence has spoken. Pure.
//!
//! * A pool whose requests nobody counts is judged by time and approval, and status says so.
//! * A step counts only where requests follow its weight: gateways have confirmed it, and the *measured* share shows it
//!   ([`flotilla_core::evidence::share`]). Where conversations stay on their revision, requests follow late and in lumps, and the
//!   confirmation has to do.

use flotilla_core::evidence::{Judgement, share};
use flotilla_core::rollout::{Gate, Ladder, Opinion, Reached, Reason};
use flotilla_crds::AgentPoolSpec;
use flotilla_crds::agent_pool::SessionKeyType;
use jiff::{SignedDuration, Timestamp};

/// Reason of a gate whose evidence is good, but was not gathered at the weight that was asked for.
pub const WEIGHT_NOT_MEASURED: &str = "WeightNotMeasured";

/// Reason of a gate whose preview is good and whose bake has nothing to compare with yet.
pub const COUNTING_STABLE: &str = "CountingStable";
/// Four windows of counts.
const BASELINE: SignedDuration = SignedDuration::from_secs(4 * flotilla_core::stats::WINDOW_SECONDS);

/// The gate with what its evidence does not say.
pub fn tempered(mut gate: Gate, spec: &AgentPoolSpec, judgement: &Judgement) -> Gate {
    if !spec.traffic.is_counted() && judgement.metrics.is_empty() {
        gate.reason.message += &format!(
            "; with traffic.type {:?} no request is counted: time and approval decide",
            spec.traffic.type_
        );
    }
    let keeps_conversations = spec.sessions.key.type_ != SessionKeyType::None;
    if gate.opinion == Opinion::Advance
        && spec.traffic.is_counted()
        && !keeps_conversations
        && let Some(reason) = not_measured(gate.weight, judgement)
    {
        gate.opinion = Opinion::Hold;
        gate.reason = reason;
    }
    gate
}

/// A preview that lasts until the old revision has been counted for a while: the bake after it has nothing else to compare with.
pub fn with_baseline(
    gate: Gate,
    spec: &AgentPoolSpec,
    ladder: &Ladder,
    reached: &Reached,
    now: Timestamp,
) -> Gate {
    let until = reached.since.checked_add(BASELINE).unwrap_or(Timestamp::MAX);
    let is_all = ladder.rungs.iter().all(|rung| rung.weight == 0) && !ladder.rolls;
    let bakes = is_all && !ladder.bake.is_zero() && spec.traffic.is_counted();
    if !bakes || reached.weight != 0 || gate.opinion != Opinion::Advance || now >= until {
        return gate;
    }
    Gate {
        opinion: Opinion::Continue,
        reason: Reason::new(
            COUNTING_STABLE,
            "all its replicas are there; what the old revision fails is counted, for the bake to compare with",
        ),
        deadline: Some(until),
        ..gate
    }
}

fn not_measured(weight: i32, judgement: &Judgement) -> Option<Reason> {
    // What other sources count may be something else than requests.
    let errors = judgement.metrics.iter().find(|metric| metric.name == "errors")?;
    let (candidate, stable) = (errors.step.candidate.requests, errors.step.stable.requests);
    let measured = share::off(u32::try_from(weight).ok()?, candidate, stable)?;
    let message = format!(
        "the evidence is good, but the new revision had {measured:.1} % of the requests where {weight} % were asked for: \
         requests may pass the gateway by, or it has no replica that takes them; a RolloutAction of type SkipStep goes on all \
         the same"
    );
    Some(Reason::new(WEIGHT_NOT_MEASURED, message))
}

/// Requests of candidate and stable that were counted at this step, by the metric that has counted most.
pub fn counted(judgement: &Judgement) -> Option<(u64, u64)> {
    let tallies = judgement.metrics.iter().map(|metric| &metric.step);
    let counts = tallies.map(|tally| (tally.candidate.requests, tally.stable.requests));
    counts.max_by_key(|(candidate, stable)| candidate + stable)
}

#[cfg(test)]
mod tests {
    use super::super::build::fixtures::pool;
    use super::*;
    use flotilla_core::evidence::{Counts, MetricJudgement, Mode, Tally, Verdict};
    use serde_json::{Value, json};

    fn heard(spec: Value, opinion: Opinion, requests: (u64, u64)) -> Gate {
        let counts = |requests| Counts {
            requests,
            ..Counts::default()
        };
        let metric = MetricJudgement {
            name: "errors".into(),
            mode: Mode::Enforce,
            verdict: Verdict::Advance,
            advance_percent: 100,
            rollback_percent: 0,
            step: Tally {
                candidate: counts(requests.0),
                stable: counts(requests.1),
            },
            release: Tally::default(),
            eta_seconds: None,
            message: String::new(),
        };
        let judgement = Judgement {
            verdict: Verdict::Advance,
            metrics: vec![metric],
            eta_seconds: None,
            message: "good".into(),
        };
        let gate = Gate {
            weight: 10,
            opinion,
            reason: Reason::new("EvidenceComplete", "good"),
            deadline: None,
            by_test: false,
        };
        tempered(gate, &pool(spec).spec, &judgement)
    }

    #[test]
    fn a_step_counts_only_where_requests_follow_its_weight() {
        let sessions = json!({"sessions": {"key": {"type": "Cookie"}}});
        for (spec, opinion, requests, expected) in [
            (json!({}), Opinion::Advance, (100, 900), "EvidenceComplete"),
            (json!({}), Opinion::Advance, (2, 998), WEIGHT_NOT_MEASURED),
            (json!({}), Opinion::Advance, (2, 50), "EvidenceComplete"),
            (json!({}), Opinion::RollBack, (2, 998), "EvidenceComplete"),
            (sessions, Opinion::Advance, (2, 998), "EvidenceComplete"),
        ] {
            let gate = heard(spec.clone(), opinion, requests);
            assert_eq!(gate.reason.word, expected, "{spec} {requests:?}");
            let is_held = gate.opinion == Opinion::Hold;
            assert_eq!(is_held, expected == WEIGHT_NOT_MEASURED, "{spec} {requests:?}");
        }
        let message = heard(json!({}), Opinion::Advance, (2, 998)).reason.message;
        assert!(
            message.contains("0.2 % of the requests where 10 % were asked for"),
            "{message}"
        );
    }

    #[test]
    fn a_bake_needs_something_to_compare_with() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let reached = Reached {
            revision: "support-2".into(),
            attempt: 1,
            weight: 0,
            since: at(1_000),
        };
        let opinion = |spec: Value, now| {
            let spec = pool(spec).spec;
            let ladder = flotilla_core::release::ladder(&spec).unwrap();
            let gate = Gate {
                weight: 0,
                opinion: Opinion::Advance,
                reason: Reason::new("Previewed", "all its replicas are there"),
                deadline: None,
                by_test: false,
            };
            with_baseline(gate, &spec, &ladder, &reached, at(now)).opinion
        };
        let green = |bake| json!({"rollout": {"type": "BlueGreen", "blueGreen": {"bakeSeconds": bake}}});
        assert_eq!(opinion(green(600), 1_059), Opinion::Continue);
        assert_eq!(opinion(green(600), 1_060), Opinion::Advance);
        assert_eq!(opinion(green(0), 1_000), Opinion::Advance);
        // Its steps count stable.
        let canary = json!({"rollout": {"type": "Canary", "smokeTests": [{"name": "a", "type": "TCP"}]}});
        assert_eq!(opinion(canary, 1_000), Opinion::Advance);
    }

    #[test]
    fn where_nobody_counts_that_is_said() {
        let spec = json!({"traffic": {"type": "ReplicaRatio"}});
        let counted = heard(spec.clone(), Opinion::Advance, (2, 998));
        assert_eq!(
            (counted.opinion, counted.reason.message.as_str()),
            (Opinion::Advance, "good")
        );
        let judgement = Judgement {
            verdict: Verdict::Continue,
            metrics: Vec::new(),
            eta_seconds: None,
            message: String::new(),
        };
        let gate = Gate {
            weight: 10,
            opinion: Opinion::Continue,
            reason: Reason::new("StepLasts", "good so far"),
            deadline: None,
            by_test: false,
        };
        let gate = tempered(gate, &pool(spec).spec, &judgement);
        assert!(
            gate.reason
                .message
                .contains("traffic.type ReplicaRatio no request is counted")
        );
    }
}
