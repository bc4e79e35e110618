//! What the evidence says as the decision hears it. Pure.

use flotilla_core::evidence::{self, Judgement, Mode, Permit, Verdict};
use flotilla_core::rollout::{Gate, Opinion, Reached, Reason};
use jiff::Timestamp;

use super::Heard;
use crate::runtime::{Error, Failure as _};

/// Reason of a gate while its evidence is being gathered.
pub const EVIDENCE_CONTINUES: &str = "EvidenceContinues";
/// Reason of a gate that no metric decides, while the step lasts.
pub const STEP_LASTS: &str = "StepLasts";

/// Reason of a gate that would lead back, while many releases would.
pub(super) const ROLLBACK_STORM: &str = "RollbackStorm";

/// The judgement as the decision hears it; `due` is when the step is undecided, in seconds since the Unix epoch.
pub(super) fn gate(
    judgement: &Judgement,
    plan: &evidence::Plan,
    due: i64,
    reached: &Reached,
    permit: Permit,
) -> Gate {
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
        Verdict::Rollback if permit == Permit::Hold => (Opinion::Hold, ROLLBACK_STORM),
        Verdict::Rollback => (Opinion::RollBack, "AnalysisFailed"),
    };
    let message = match word {
        "Previewed" => "all its replicas are there".to_owned(),
        ROLLBACK_STORM => format!(
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
pub(super) fn unsaved(gate: Gate, error: &Error) -> Gate {
    if gate.opinion == Opinion::RollBack {
        return gate;
    }
    let message = format!(
        "the evidence cannot be saved, so the release waits: {}",
        error.in_full()
    );
    Gate {
        opinion: Opinion::Hold,
        reason: Reason::new(error.category(), message),
        deadline: None,
        ..gate
    }
}

/// What is heard while it is not known what the evidence was: nothing is decided by it.
pub(super) fn unread(reached: &Reached, error: &Error) -> Heard {
    let message = format!(
        "the evidence cannot be read, so the release waits: {}",
        error.in_full()
    );
    Heard {
        gate: Gate {
            weight: reached.weight,
            opinion: Opinion::Hold,
            reason: Reason::new(error.category(), message.clone()),
            deadline: None,
            by_test: false,
        },
        judgement: Judgement {
            verdict: Verdict::NoData,
            metrics: Vec::new(),
            eta_seconds: None,
            message,
        },
    }
}
