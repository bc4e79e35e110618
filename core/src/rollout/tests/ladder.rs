//! What happens on a rung, by what is said about it.

use super::super::ladder::{Ladder, OnUndecided, Rung};
use super::*;

fn rung(weight: i32) -> Rung {
    Rung {
        weight,
        pods: None,
        needs_approval: false,
    }
}

fn ladder() -> Ladder {
    Ladder {
        rungs: vec![rung(10), rung(50)],
        least_pods: 1,
        keeps_stable: true,
        scale_down_delay: SignedDuration::from_secs(30),
        bake: SignedDuration::from_secs(300),
        on_undecided: OnUndecided::Hold,
    }
}

fn said(weight: i32, opinion: Opinion) -> Gate {
    Gate {
        weight,
        opinion,
        reason: Reason::new("AnalysisFailed", "errors: 9 of 10 failed"),
        deadline: None,
    }
}

impl Situation {
    fn climbing(self, ladder: Ladder) -> Self {
        Self {
            ladder: Some(ladder),
            ..self
        }
    }

    /// The candidate reached `weight` at `since`, and all before it is passed.
    fn at_rung(mut self, passed: Option<i32>, weight: i32, since: i64) -> Self {
        let candidate = self.members.last_mut().unwrap();
        candidate.passed = passed;
        self.reached = Some(Reached {
            revision: CANDIDATE.into(),
            attempt: 1,
            weight,
            since: at(since),
        });
        self
    }

    fn hearing(self, weight: i32, opinion: Opinion) -> Self {
        Self {
            gate: Some(said(weight, opinion)),
            ..self
        }
    }
}

/// Ten replicas, the candidate at 10 % since 900.
fn first_rung() -> Situation {
    pool(10)
        .releasing(ready(10), ready(1), 10)
        .climbing(ladder())
        .at_rung(None, 10, 900)
}

/// The candidate has everything since 900; stable's pods are still there.
fn baking() -> Situation {
    pool(10)
        .releasing(ready(10), ready(10), 100)
        .climbing(ladder())
        .at_rung(Some(50), 100, 900)
}

#[test]
fn a_rung_is_reached_when_every_gateway_has_applied_its_weight() {
    let arrived = Situation {
        reached: None,
        ..first_rung()
    };
    let pending = decide(&arrived.clone().gateways(Gateways::Pending));
    assert_eq!(
        (pending.reached.as_ref(), word(&pending)),
        (None, Some("TrafficConfirmed"))
    );
    let reached = decide(&arrived).reached.unwrap();
    assert_eq!((reached.weight, reached.since), (10, at(1000)));
    // A gateway that is replaced later does not begin it anew.
    let again = decide(&first_rung().gateways(Gateways::Pending));
    assert_eq!(again.reached.unwrap().since, at(900));
    assert_eq!(again.state, State::Releasing);
}

#[test]
fn every_opinion_on_a_rung() {
    let manual = Ladder {
        rungs: vec![
            Rung {
                needs_approval: true,
                ..rung(10)
            },
            rung(50),
        ],
        ..ladder()
    };
    let undecided = |on_undecided| Ladder {
        on_undecided,
        ..ladder()
    };
    for (ladder, opinion, passed, waits) in [
        (ladder(), Opinion::Continue, None, "AnalysisFailed"),
        (ladder(), Opinion::Hold, None, "AnalysisFailed"),
        (ladder(), Opinion::Advance, Some(10), "CandidateAvailable"),
        (manual.clone(), Opinion::Advance, None, "ApprovalNeeded"),
        (manual.clone(), Opinion::Continue, None, "AnalysisFailed"),
        (
            undecided(OnUndecided::Hold),
            Opinion::Undecided,
            None,
            "AnalysisFailed",
        ),
        (
            undecided(OnUndecided::Promote),
            Opinion::Undecided,
            Some(10),
            "CandidateAvailable",
        ),
    ] {
        let decision = decide(&first_rung().climbing(ladder).hearing(10, opinion));
        assert_eq!(
            decision.passed,
            passed.map(|weight| (CANDIDATE.into(), weight)),
            "{opinion:?}"
        );
        assert_eq!(word(&decision), Some(waits), "{opinion:?}");
        assert_eq!(changes(&decision), [], "{opinion:?}");
        assert_eq!(decision.stalled, None, "{opinion:?}");
        // Capacity before weight.
        assert_eq!(traffic(&decision), [(STABLE, 90), (CANDIDATE, 10)], "{opinion:?}");
        let pods = if passed.is_some() { 5 } else { 1 };
        assert_eq!(scale(&decision, CANDIDATE), Some(pods), "{opinion:?}");
    }
}

#[test]
fn a_bad_candidate_and_one_that_may_not_stay_undecided_are_led_back_at_once() {
    let abort = Ladder {
        on_undecided: OnUndecided::Abort,
        ..ladder()
    };
    for situation in [
        first_rung().hearing(10, Opinion::RollBack),
        first_rung().climbing(abort).hearing(10, Opinion::Undecided),
        baking().hearing(100, Opinion::RollBack),
    ] {
        let decision = decide(&situation);
        assert_eq!(changes(&decision), [(CANDIDATE, Standing::Rejected)]);
        let reason = decision.changes.first().and_then(|change| change.reason.as_ref());
        assert_eq!(reason, Some(&said(10, Opinion::Continue).reason));
        assert_eq!(traffic(&decision), [(STABLE, 100)], "stable has all its pods");
        assert_eq!((decision.state, decision.passed), (State::Returning, None));
    }
}

#[test]
fn an_opinion_about_another_rung_is_not_heard() {
    for gate in [50, 100, 0] {
        let decision = decide(&first_rung().hearing(gate, Opinion::RollBack));
        assert_eq!(changes(&decision), []);
        assert_eq!(decision.state, State::Judging);
    }
    // Nor one about an earlier attempt.
    let retried = Situation {
        attempt: 2,
        ..first_rung()
    };
    let decision = decide(&retried.hearing(10, Opinion::RollBack));
    assert_eq!(changes(&decision), []);
    assert_eq!(decision.reached.unwrap().since, at(1000));
}

#[test]
fn a_hard_fault_needs_no_opinion_unless_stable_has_it_too() {
    let crashing = first_rung().in_trouble("CrashLoop", true);
    assert_eq!(changes(&decide(&crashing)), [(CANDIDATE, Standing::Rejected)]);
    assert_eq!(changes(&decide(&crashing.clone().paused())), []);
    let mut both = crashing;
    both.members[0].trouble = both.members[1].trouble.clone();
    assert_eq!(
        (changes(&decide(&both)), decide(&both).state),
        (vec![], State::Judging)
    );
}

#[test]
fn readiness_lost_takes_the_traffic_away_and_in_time_the_release() {
    let lost = |moved, weight| {
        pool(10)
            .releasing(ready(10), stuck(1), weight)
            .climbing(ladder())
            .at_rung(None, 10, 900)
            .waiting_since(moved)
    };
    let decision = decide(&lost(900, 10));
    assert_eq!(traffic(&decision), [(STABLE, 100), (CANDIDATE, 0)]);
    assert_eq!(word(&decision), Some("CandidateAvailable"));
    assert_eq!(decision.reached, None);
    assert_eq!(changes(&decide(&lost(100, 0))), [(CANDIDATE, Standing::Rejected)]);
}

#[test]
fn the_bake_and_the_delay_keep_the_way_back_open_and_end() {
    for (now, state, stable_pods, waits) in [
        (910, State::Baking, Some(10), Some("Baking")),
        (940, State::Baking, Some(0), Some("Baking")),
    ] {
        let decision = decide(&Situation {
            now: at(now),
            ..baking().hearing(100, Opinion::Continue)
        });
        assert_eq!((decision.state.clone(), word(&decision)), (state, waits), "{now}");
        assert_eq!(scale(&decision, STABLE), stable_pods, "{now}");
        assert_eq!(decision.waiting.unwrap().deadline, Some(at(1200)), "{now}");
    }
    let delayed = Ladder {
        bake: SignedDuration::ZERO,
        ..ladder()
    };
    let decision = decide(&Situation {
        now: at(910),
        ..baking().climbing(delayed)
    });
    assert_eq!(word(&decision), Some("ScaleDownDelay"));
    // No data is no accusation.
    for opinion in [Opinion::Hold, Opinion::Advance, Opinion::Continue] {
        let decision = decide(&Situation {
            now: at(1200),
            ..baking().hearing(100, opinion)
        });
        assert_eq!(
            changes(&decision),
            [(CANDIDATE, Standing::Stable), (STABLE, Standing::Verified)]
        );
    }
}

#[test]
fn a_lead_back_after_the_pods_are_gone_grows_them_first() {
    let decision = decide(
        &pool(10)
            .releasing(ready(0), ready(10), 100)
            .climbing(ladder())
            .at_rung(Some(50), 100, 900)
            .hearing(100, Opinion::RollBack),
    );
    assert_eq!(changes(&decision), [(CANDIDATE, Standing::Rejected)]);
    assert_eq!(traffic(&decision), [(STABLE, 0), (CANDIDATE, 100)]);
    assert_eq!(
        (scale(&decision, STABLE), scale(&decision, CANDIDATE)),
        (Some(3), Some(10))
    );
}

#[test]
fn rungs_edited_on_the_way_keep_the_weight() {
    let edited = Ladder {
        rungs: vec![rung(5), rung(20), rung(60)],
        ..ladder()
    };
    let decision = decide(&first_rung().climbing(edited));
    assert_eq!(traffic(&decision), [(STABLE, 90), (CANDIDATE, 10)]);
    assert_eq!(scale(&decision, CANDIDATE), Some(2));
    // Passed before the edit.
    let mut gone = first_rung().climbing(Ladder {
        rungs: vec![rung(5)],
        ..ladder()
    });
    gone.members[1].passed = Some(10);
    assert_eq!(scale(&decide(&gone), CANDIDATE), Some(10));
}

#[test]
fn a_trusted_revision_takes_over_batch_by_batch() {
    let mut situation = pool(4).releasing(ready(4), ready(1), 0).climbing(ladder());
    situation.members[1].is_trusted = true;
    let decision = decide(&situation);
    assert_eq!(traffic(&decision), [(STABLE, 75), (CANDIDATE, 25)]);
    assert_eq!(decision.state, State::Releasing);
}

#[test]
fn nothing_is_remembered_of_a_superseded_candidate() {
    let decision = decide(&first_rung().asking("p-c").hearing(10, Opinion::Advance));
    assert_eq!(changes(&decision), [(CANDIDATE, Standing::Unproved)]);
    assert_eq!(traffic(&decision), [(STABLE, 100)]);
    assert_eq!((decision.passed, decision.reached), (None, None));
}
