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
        by_number: false,
        scale_down_delay: SignedDuration::from_secs(30),
        bake: SignedDuration::from_secs(300),
        ..Ladder::default()
    }
}

fn said(weight: i32, opinion: Opinion) -> Gate {
    Gate {
        weight,
        opinion,
        reason: Reason::new("AnalysisFailed", "errors: 9 of 10 failed"),
        deadline: None,
        by_test: false,
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

/// Each wait has an end by itself, or its sentence says who or what ends it.
#[test]
fn every_state_says_what_it_waits_for_and_until_when() {
    let wait_of = |situation: &Situation| {
        let decision = decide(situation);
        let waiting = decision.waiting.unwrap_or_else(|| panic!("{situation:?}"));
        (decision.state, waiting)
    };
    let since = |situation: Situation| situation.waiting_since(1000);
    let first = |situation: Situation| Situation {
        progress: Some(Progress {
            subject: Subject::Serving,
            start: at(1000),
            moved: Some(at(1000)),
            best: 0,
        }),
        ..situation
    };
    let returning = pool(4).with(STABLE, Standing::Stable, ready(4), Some(75)).with(
        CANDIDATE,
        Standing::Rejected,
        ready(1),
        Some(25),
    );
    let approval = Ladder {
        rungs: vec![Rung {
            needs_approval: true,
            ..rung(10)
        }],
        ..ladder()
    };
    let delayed = Ladder {
        bake: SignedDuration::ZERO,
        scale_down_delay: SignedDuration::from_secs(300),
        ..ladder()
    };
    let ends = |situation: Situation, state: State, until: i64| (situation, state, Some(until), "");
    let asks = |situation: Situation, state: State, who: &'static str| (situation, state, None, who);
    for (situation, state, until, who) in [
        ends(first(pool(2).serving(ready(1))), State::Starting, 1_600),
        ends(
            first(pool(2).serving(ready(2)).gateways(Gateways::Pending)),
            State::Starting,
            1_600,
        ),
        ends(
            pool(4).serving(ready(4)).resting_until(CANDIDATE, 1_003),
            State::Settling,
            1_003,
        ),
        ends(
            since(pool(4).releasing(ready(4), stuck(1), 0)),
            State::Releasing,
            1_600,
        ),
        ends(
            pool(10).releasing(ready(10), stuck(1), 0).climbing(ladder()),
            State::Releasing,
            1_600,
        ),
        ends(returning, State::Returning, 1_600),
        ends(baking(), State::Baking, 1_200),
        ends(baking().hearing(100, Opinion::Hold), State::Baking, 1_200),
        ends(baking().climbing(delayed), State::Baking, 1_200),
        asks(pool(4).serving(ready(5)), State::Shrinking, "are stopping"),
        asks(
            pool(4).stopped().serving(ready(1)),
            State::Stopped,
            "are stopping",
        ),
        asks(
            pool(4).serving(ready(4)).asking(CANDIDATE).paused(),
            State::Paused,
            "spec.rollout.paused",
        ),
        asks(
            pool(4).releasing(ready(4), ready(1), 0).paused(),
            State::Paused,
            "spec.rollout.paused",
        ),
        asks(
            first_rung().climbing(approval).hearing(10, Opinion::Advance),
            State::Judging,
            "RolloutAction",
        ),
        asks(
            first_rung().hearing(10, Opinion::Undecided),
            State::Judging,
            "RolloutAction",
        ),
    ] {
        let (is, waiting) = wait_of(&situation);
        assert_eq!((&is, waiting.deadline), (&state, until.map(at)), "{waiting:?}");
        assert!(waiting.reason.message.contains(who), "{waiting:?}");
    }
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
fn a_retry_begins_at_the_smallest_rung_that_the_traffic_can_judge() {
    let starting = Ladder {
        starts_above: Some(10),
        ..ladder()
    };
    let situation = pool(10).releasing(ready(10), ready(5), 0).climbing(starting);
    let decision = decide(&situation);
    assert_eq!(
        (decision.passed.clone(), decision.left_out),
        (Some((CANDIDATE.to_owned(), 10)), true)
    );
    assert_eq!(traffic(&decision), [(STABLE, 50), (CANDIDATE, 50)]);
    // A new candidate gets it with its record.
    let decision = decide(&Situation {
        members: vec![situation.members[0].clone()],
        ..situation.clone()
    });
    assert_eq!(changes(&decision), [(CANDIDATE, Standing::Candidate)]);
    assert_eq!(decision.passed, Some((CANDIDATE.to_owned(), 10)));
    // Traffic is never taken back for it.
    let mut judged = situation;
    judged.members[1].weight = Some(10);
    assert_eq!((decide(&judged).passed, decide(&judged).left_out), (None, false));
}

#[test]
fn all_the_traffic_is_not_the_end_before_its_tests_are_passed() {
    let tested = || Ladder {
        tested_after: true,
        bake: SignedDuration::ZERO,
        scale_down_delay: SignedDuration::ZERO,
        ..ladder()
    };
    let heard = |opinion, by_test| {
        let situation = baking().climbing(tested());
        Situation {
            gate: Some(Gate {
                by_test,
                ..said(100, opinion)
            }),
            ..situation
        }
    };
    let unheard = decide(&baking().climbing(tested()));
    assert_eq!(
        (unheard.state.clone(), word(&unheard)),
        (State::Baking, Some("Testing"))
    );
    for opinion in [Opinion::Continue, Opinion::Hold] {
        let waiting = decide(&heard(opinion, true));
        assert_eq!(
            (waiting.state.clone(), changes(&waiting)),
            (State::Baking, vec![])
        );
        // The way back needs no new pods.
        assert_eq!(scale(&waiting, STABLE), Some(10));
    }
    let failed = decide(&heard(Opinion::RollBack, true));
    assert_eq!(changes(&failed), [(CANDIDATE, Standing::Rejected)]);
    assert_eq!(traffic(&failed), [(STABLE, 100)]);
    let passed = decide(&heard(Opinion::Advance, false));
    assert_eq!(
        changes(&passed),
        [(CANDIDATE, Standing::Stable), (STABLE, Standing::Verified)]
    );
}

#[test]
fn a_rolling_update_is_tested_by_its_first_batch_and_then_rolls() {
    let tested = || Ladder {
        rungs: vec![Rung {
            pods: Some(2),
            ..rung(0)
        }],
        least_pods: 1,
        keeps_stable: true,
        rolls: true,
        ..Ladder::default()
    };
    let fresh = decide(&pool(8).releasing(ready(8), ready(0), 0).climbing(tested()));
    assert_eq!(
        (scale(&fresh, CANDIDATE), traffic(&fresh)),
        (Some(2), vec![(STABLE, 100), (CANDIDATE, 0)])
    );
    let there = || {
        pool(8)
            .releasing(ready(8), ready(2), 0)
            .climbing(tested())
            .at_rung(None, 0, 900)
    };
    let judged = decide(&there());
    assert_eq!(
        (judged.state.clone(), judged.passed.clone()),
        (State::Judging, None)
    );
    let failed = decide(&there().hearing(0, Opinion::RollBack));
    assert_eq!(changes(&failed), [(CANDIDATE, Standing::Rejected)]);
    let passed = decide(&there().hearing(0, Opinion::Advance));
    assert_eq!(passed.passed, Some((CANDIDATE.to_owned(), 0)));
    assert_eq!(
        (passed.state.clone(), traffic(&passed)),
        (State::Releasing, vec![(STABLE, 75), (CANDIDATE, 25)])
    );
    // What has traffic is not asked again, even if the mark was lost.
    let rolling = decide(&pool(8).releasing(ready(6), ready(4), 25).climbing(tested()));
    assert_eq!(rolling.state, State::Releasing);
    assert_eq!(traffic(&rolling), [(STABLE, 50), (CANDIDATE, 50)]);
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

#[test]
fn where_nothing_of_stable_serves_the_candidate_may_be_the_fix() {
    let down = |trouble: bool, seconds: i64| {
        let mut situation = pool(10).releasing(stuck(10), ready(3), 0).climbing(ladder());
        let now = situation.now.as_second();
        let stable = &mut situation.members[0];
        stable.down_since = Some(at(now - seconds));
        stable.trouble = trouble.then(|| Trouble {
            reason: Reason::new("CrashLoop", "because"),
            is_final: true,
        });
        situation
    };
    // Without a word from its pods they may only be late, and what lasts for a moment may be a late probe: the ladder holds.
    for held in [down(false, 3_600), down(true, 0), down(true, 59)] {
        assert_eq!(traffic(&decide(&held)), [(STABLE, 90), (CANDIDATE, 10)]);
    }
    assert_eq!(traffic(&decide(&down(true, 60))), [(STABLE, 70), (CANDIDATE, 30)]);
    // Once stable serves again the ladder goes on, at the first rung that is not below the weight in force.
    let mut recovered = down(true, 60);
    recovered.members[0].arm = ready(10);
    recovered.members[1].weight = Some(30);
    recovered.members[0].weight = Some(70);
    assert_eq!(traffic(&decide(&recovered)), [(STABLE, 70), (CANDIDATE, 30)]);
}

#[test]
fn a_first_revision_with_tests_serves_nobody_before_it_has_passed_them() {
    let ladder = Ladder {
        rungs: vec![rung(0), rung(10)],
        tests_first: true,
        ..ladder()
    };
    let first = pool(4).asking(CANDIDATE).climbing(ladder.clone());
    let begun = decide(&first);
    assert_eq!(changes(&begun), [(CANDIDATE, Standing::Candidate)]);
    assert_eq!((scale(&begun, CANDIDATE), traffic(&begun)), (Some(4), vec![]));
    assert_eq!((begun.stable.as_deref(), &begun.state), (None, &State::Starting));

    let tested = |arm, opinion: Option<Opinion>| {
        let situation = first.clone().with(CANDIDATE, Standing::Candidate, arm, None);
        let situation = situation.at_rung(None, 0, 900);
        decide(&match opinion {
            Some(opinion) => situation.hearing(0, opinion),
            None => situation,
        })
    };
    assert_eq!(word(&tested(ready(3), None)), Some("ReplicasAvailable"));
    assert_eq!(word(&tested(ready(4), None)), Some("Testing"));
    let waits = tested(ready(4), Some(Opinion::Continue));
    assert_eq!((&waits.state, traffic(&waits)), (&State::Judging, vec![]));
    let passed = tested(ready(4), Some(Opinion::Advance));
    assert_eq!(changes(&passed), [(CANDIDATE, Standing::Stable)]);
    assert_eq!(traffic(&passed), [(CANDIDATE, 100)]);
    let failed = tested(ready(4), Some(Opinion::RollBack));
    assert_eq!(changes(&failed), [(CANDIDATE, Standing::Rejected)]);
    assert!(matches!(failed.state, State::Rejected(_)) && traffic(&failed).is_empty());
    assert_eq!(scale(&failed, CANDIDATE), Some(0));

    // A corrected spec begins anew; without tests it is stable from the start.
    let failed = first.with(CANDIDATE, Standing::Rejected, ready(0), None);
    let corrected = decide(&failed.clone().asking("p-c"));
    assert_eq!(changes(&corrected), [("p-c", Standing::Candidate)]);
    let untested = failed.climbing(Ladder {
        tests_first: false,
        ..ladder
    });
    assert_eq!(changes(&decide(&untested)), [(CANDIDATE, Standing::Stable)]);
}
