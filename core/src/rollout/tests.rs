//! The rules of the module doc as a table of situations.

mod ladder;

use super::*;

const STABLE: &str = "p-a";
const CANDIDATE: &str = "p-b";

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn ready(pods: i32) -> Arm {
    Arm {
        wanted: pods,
        existing: pods,
        available: pods,
        seen: pods,
    }
}

fn stuck(pods: i32) -> Arm {
    Arm {
        wanted: pods,
        existing: pods,
        available: 0,
        seen: 0,
    }
}

/// A pool that reads like a sentence: `pool(4).serving(STABLE, ready(4))`.
fn pool(replicas: i32) -> Situation {
    Situation {
        now: at(1000),
        replicas,
        surge_percent: 25,
        paused: false,
        stopped: false,
        deadline: SignedDuration::from_secs(600),
        target: Target::Revision {
            revision: STABLE.into(),
            settles: None,
        },
        attempt: 1,
        members: Vec::new(),
        gateways: Gateways::Confirmed,
        progress: None,
        ladder: None,
        gate: None,
        reached: None,
    }
}

impl Situation {
    fn with(mut self, revision: &str, standing: Standing, arm: Arm, weight: Option<i32>) -> Self {
        let order = self.members.len() as i64 + 1;
        self.members.push(Member {
            order,
            arm,
            weight,
            ..Member::new(revision, standing)
        });
        self
    }

    fn serving(self, arm: Arm) -> Self {
        self.with(STABLE, Standing::Stable, arm, Some(100))
    }

    fn releasing(mut self, stable: Arm, candidate: Arm, weight: i32) -> Self {
        self.target = Target::Revision {
            revision: CANDIDATE.into(),
            settles: None,
        };
        self.with(STABLE, Standing::Stable, stable, Some(100 - weight))
            .with(CANDIDATE, Standing::Candidate, candidate, Some(weight))
    }

    fn asking(mut self, revision: &str) -> Self {
        self.target = Target::Revision {
            revision: revision.into(),
            settles: None,
        };
        self
    }

    fn resting_until(mut self, revision: &str, second: i64) -> Self {
        self.target = Target::Revision {
            revision: revision.into(),
            settles: Some(at(second)),
        };
        self
    }

    fn paused(mut self) -> Self {
        self.paused = true;
        self
    }

    fn stopped(mut self) -> Self {
        (self.stopped, self.replicas) = (true, 0);
        self
    }

    fn gateways(mut self, gateways: Gateways) -> Self {
        self.gateways = gateways;
        self
    }

    fn waiting_since(mut self, second: i64) -> Self {
        let subject = Subject::Release {
            revision: CANDIDATE.into(),
            attempt: 1,
        };
        self.progress = Some(Progress {
            subject,
            start: at(second),
            moved: Some(at(second)),
            best: 0,
        });
        self
    }

    fn in_trouble(mut self, word: &str, is_final: bool) -> Self {
        let member = self.members.last_mut().unwrap();
        member.trouble = Some(Trouble {
            reason: Reason::new(word, "because"),
            is_final,
        });
        self
    }
}

fn scale(decision: &Decision, revision: &str) -> Option<i32> {
    decision
        .scale
        .iter()
        .find(|(name, _)| name == revision)
        .map(|(_, replicas)| *replicas)
}

fn traffic(decision: &Decision) -> Vec<(&str, i32)> {
    decision
        .traffic
        .iter()
        .map(|(name, weight)| (name.as_str(), *weight))
        .collect()
}

fn changes(decision: &Decision) -> Vec<(&str, Standing)> {
    decision
        .changes
        .iter()
        .map(|change| (change.revision.as_str(), change.standing))
        .collect()
}

fn word(decision: &Decision) -> Option<&str> {
    decision
        .waiting
        .as_ref()
        .map(|waiting| waiting.reason.word.as_str())
}

#[test]
fn the_first_revision_is_stable_at_once() {
    let decision = decide(&pool(2));
    assert_eq!(changes(&decision), [(STABLE, Standing::Stable)]);
    assert_eq!(traffic(&decision), [(STABLE, 100)]);
    assert_eq!(
        (scale(&decision, STABLE), decision.state),
        (Some(2), State::Starting)
    );
}

#[test]
fn nothing_is_known_nothing_is_done() {
    let decision = decide(&Situation {
        target: Target::Unknown,
        ..pool(2)
    });
    assert_eq!(
        decision,
        Decision {
            state: State::Empty,
            ..decide(&Situation {
                target: Target::Unknown,
                ..pool(9)
            })
        }
    );
    assert!(decision.scale.is_empty() && decision.traffic.is_empty());
}

#[test]
fn a_serving_pool_says_what_is_missing() {
    let unreachable = Gateways::Unreachable("there is no gateway".into());
    for (situation, state, waits) in [
        (pool(2).serving(ready(2)), State::Ready, None),
        (
            pool(2).serving(ready(1)),
            State::Starting,
            Some("ReplicasAvailable"),
        ),
        (
            pool(2).serving(ready(2)).gateways(Gateways::Pending),
            State::Starting,
            Some("TrafficConfirmed"),
        ),
        (
            pool(2).serving(ready(2)).gateways(unreachable),
            State::Starting,
            Some("GatewayUnconfirmed"),
        ),
        (pool(2).serving(ready(3)), State::Shrinking, Some("PodsStop")),
        (
            pool(2).stopped().serving(ready(2)),
            State::Stopped,
            Some("PodsStop"),
        ),
        (pool(2).stopped().serving(ready(0)), State::Stopped, None),
    ] {
        let decision = decide(&situation);
        assert_eq!(
            (decision.state.clone(), word(&decision)),
            (state, waits),
            "{situation:?}"
        );
    }
}

#[test]
fn a_new_target_waits_for_rest_and_for_pause() {
    let resting = decide(&pool(4).serving(ready(4)).resting_until(CANDIDATE, 1003));
    assert_eq!(
        (resting.state, resting.waiting.unwrap().deadline),
        (State::Settling, Some(at(1003)))
    );
    let rested = decide(&pool(4).serving(ready(4)).resting_until(CANDIDATE, 1000));
    assert_eq!(changes(&rested), [(CANDIDATE, Standing::Candidate)]);
    assert_eq!(
        (scale(&rested, CANDIDATE), scale(&rested, STABLE)),
        (Some(1), Some(4))
    );
    assert_eq!(traffic(&rested), [(STABLE, 100), (CANDIDATE, 0)]);
    let paused = decide(&pool(4).serving(ready(4)).asking(CANDIDATE).paused());
    assert_eq!((paused.state, paused.changes.len()), (State::Paused, 0));
}

#[test]
fn a_finished_release_is_promoted_in_two_writes_new_one_first() {
    let decision = decide(&pool(4).releasing(ready(0), ready(4), 100));
    assert_eq!(
        changes(&decision),
        [(CANDIDATE, Standing::Stable), (STABLE, Standing::Verified)]
    );
    assert_eq!(
        (decision.stable.as_deref(), decision.state.clone()),
        (Some(CANDIDATE), State::Ready)
    );
    assert_eq!(traffic(&decision), [(CANDIDATE, 100)]);
}

#[test]
fn a_promotion_cut_short_is_finished() {
    let cut = pool(4)
        .with(STABLE, Standing::Stable, ready(0), None)
        .with(CANDIDATE, Standing::Stable, ready(4), Some(100))
        .asking(CANDIDATE);
    assert_eq!(changes(&decide(&cut)), [(STABLE, Standing::Verified)]);
}

#[test]
fn a_candidate_is_rejected_at_its_deadline_or_at_once_when_it_cannot_mend() {
    let stuck = || pool(4).releasing(ready(4), stuck(1), 0);
    let early = decide(&stuck().waiting_since(900).in_trouble("ImagePull", false));
    assert_eq!(
        (early.state.clone(), changes(&early).len()),
        (State::Releasing, 0)
    );
    assert_eq!(early.waiting.unwrap().deadline, Some(at(1500)));
    for (situation, expected) in [
        (
            stuck().waiting_since(400).in_trouble("ImagePull", false),
            "ImagePull",
        ),
        (stuck().waiting_since(400), "ProgressDeadlineExceeded"),
        (
            stuck().waiting_since(999).in_trouble("CrashLoop", true),
            "CrashLoop",
        ),
    ] {
        let decision = decide(&situation);
        assert_eq!(changes(&decision), [(CANDIDATE, Standing::Rejected)]);
        assert_eq!(
            decision.stalled.as_ref().map(|reason| reason.word.as_str()),
            Some(expected)
        );
        assert_eq!(
            (scale(&decision, CANDIDATE), scale(&decision, STABLE)),
            (Some(0), Some(4))
        );
        assert_eq!(traffic(&decision), [(STABLE, 100)]);
    }
}

#[test]
fn progress_moves_the_clock_but_flapping_does_not() {
    let mut situation = pool(8)
        .releasing(
            ready(8),
            Arm {
                available: 1,
                seen: 1,
                ..stuck(2)
            },
            0,
        )
        .waiting_since(400);
    assert_eq!(decide(&situation).progress.unwrap().moved, Some(at(1000)));
    situation.progress.as_mut().unwrap().best = 1;
    assert_eq!(changes(&decide(&situation)), [(CANDIDATE, Standing::Rejected)]);
}

#[test]
fn a_gateway_that_cannot_be_reached_holds_and_never_rejects() {
    let mut situation = pool(4)
        .releasing(ready(4), ready(1), 25)
        .waiting_since(100)
        .gateways(Gateways::Unreachable("gateway g-1 does not answer".into()));
    situation.progress.as_mut().unwrap().best = 1;
    let decision = decide(&situation);
    assert_eq!((changes(&decision).len(), scale(&decision, STABLE)), (0, Some(4)));
    assert_eq!(decision.stalled.unwrap().word, "GatewayUnconfirmed");
}

#[test]
fn a_late_release_returns_batch_by_batch() {
    let mut situation = pool(4)
        .with(STABLE, Standing::Stable, ready(2), Some(50))
        .with(
            CANDIDATE,
            Standing::Rejected,
            Arm {
                existing: 3,
                wanted: 3,
                ..ready(2)
            },
            Some(50),
        )
        .asking(CANDIDATE);
    let first = decide(&situation);
    assert_eq!(
        (scale(&first, CANDIDATE), scale(&first, STABLE)),
        (Some(2), Some(2))
    );
    assert_eq!(first.state, State::Returning);
    situation.members[1].arm = ready(2);
    assert_eq!(scale(&decide(&situation), STABLE), Some(3));
    situation.members[0].arm = ready(3);
    assert_eq!(traffic(&decide(&situation)), [(STABLE, 75), (CANDIDATE, 25)]);
}

#[test]
fn a_superseded_candidate_goes_back_before_the_next_begins() {
    let carrying = decide(&pool(4).releasing(ready(3), ready(1), 25).asking("p-c"));
    assert_eq!(changes(&carrying), [(CANDIDATE, Standing::Unproved)]);
    assert_eq!(
        (carrying.state.clone(), scale(&carrying, STABLE)),
        (State::Returning, Some(4))
    );
    let idle = decide(&pool(4).releasing(ready(4), stuck(1), 0).asking("p-c"));
    assert_eq!(
        changes(&idle),
        [(CANDIDATE, Standing::Unproved), ("p-c", Standing::Candidate)]
    );
    assert_eq!(scale(&idle, CANDIDATE), Some(0));
    assert_eq!(
        scale(&idle, "p-c"),
        Some(0),
        "the old candidate's pod still takes the room"
    );
}

#[test]
fn going_back_to_stable_cancels_the_release() {
    let decision = decide(&pool(4).releasing(ready(4), ready(1), 0).asking(STABLE));
    assert_eq!(changes(&decision), [(CANDIDATE, Standing::Unproved)]);
    assert_eq!(
        (traffic(&decision), scale(&decision, CANDIDATE)),
        (vec![(STABLE, 100)], Some(0))
    );
}

#[test]
fn a_held_release_keeps_weights_pods_and_stops_the_clock() {
    for situation in [
        pool(4)
            .releasing(ready(4), ready(1), 25)
            .waiting_since(100)
            .paused(),
        pool(4)
            .releasing(ready(4), ready(1), 25)
            .waiting_since(100)
            .paused()
            .asking("p-c"),
    ] {
        let decision = decide(&situation);
        assert_eq!(
            (scale(&decision, CANDIDATE), scale(&decision, STABLE)),
            (Some(1), Some(4))
        );
        assert_eq!(traffic(&decision), [(STABLE, 75), (CANDIDATE, 25)]);
        assert_eq!(
            (decision.state, decision.progress.unwrap().moved),
            (State::Paused, None)
        );
    }
    let stopped = decide(&pool(4).releasing(ready(3), ready(1), 25).stopped());
    assert_eq!(
        (scale(&stopped, CANDIDATE), scale(&stopped, STABLE)),
        (Some(0), Some(0))
    );
    assert_eq!(
        traffic(&stopped),
        [(STABLE, 75), (CANDIDATE, 25)],
        "traffic stays"
    );
}

#[test]
fn an_unknown_target_lets_a_release_go_on() {
    let decision = decide(&Situation {
        target: Target::Unknown,
        ..pool(4).releasing(ready(4), ready(1), 25)
    });
    assert_eq!((decision.state, decision.changes.len()), (State::Releasing, 0));
}

#[test]
fn pods_of_a_forgotten_revision_go_once_no_gateway_uses_them() {
    let forgotten = |gateways| {
        let situation = pool(2)
            .serving(ready(2))
            .with("p-x", Standing::Verified, ready(2), None)
            .gateways(gateways);
        scale(&decide(&situation), "p-x")
    };
    assert_eq!(
        (forgotten(Gateways::Confirmed), forgotten(Gateways::Pending)),
        (Some(0), None)
    );
}

#[test]
fn labels_survive_their_words() {
    for standing in [
        Standing::Unproved,
        Standing::Candidate,
        Standing::Stable,
        Standing::Verified,
        Standing::Rejected,
    ] {
        assert_eq!(Standing::from_label(standing.label()), standing);
    }
    assert_eq!(Standing::from_label(Some("later")), Standing::Unproved);
}
