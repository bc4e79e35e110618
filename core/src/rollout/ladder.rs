//! One step of a candidate on a ladder of weights: canary and blue-green.
//!
//! A rung is a weight with the pods it needs. With `n` replicas, on the way to the next rung:
//!
//! 1. the candidate grows to the rung's pods while stable keeps its own: capacity before weight;
//! 2. once they are available and seen by every gateway, the weight becomes the rung's, in one write;
//! 3. once every gateway has applied it the rung is reached, and what it asks is judged ([`super::Gate`]).
//!
//! After the last rung comes all the traffic. Stable's pods stay for a while, so that the way back needs no new pods. Blue-green
//! is a ladder whose only rung has a weight of 0 and all the pods.
//!
//! Which rung is next follows from the highest weight whose question was answered (`passed`, kept with the revision) and from
//! the weight in force. No index is kept: so when the rungs are edited in the middle, the release goes on at the first one that is
//! not below the weight in force, and a lost status judges the present rung once more.

use jiff::SignedDuration;

use super::shift::{Arm, Step, Wait, carried, share};
use crate::seeded::{self, Bug};

/// A weight that the candidate must prove itself with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rung {
    /// In percent: 1 to 99, or 0 for one that is tested before it gets traffic.
    pub weight: i32,
    /// Candidate pods; none for as many as the weight needs. Never more than replicas.
    pub pods: Option<i32>,
    /// A person has to agree, too.
    pub needs_approval: bool,
}

/// What happens when a rung is not decided in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnUndecided {
    /// Waits for a person, for ever.
    #[default]
    Hold,
    /// Goes on.
    Promote,
    /// Rejects the candidate.
    Abort,
}

/// How a candidate takes over, rung by rung.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ladder {
    /// Weights strictly ascending; all the traffic is implied.
    pub rungs: Vec<Rung>,
    /// A candidate that has had no traffic yet leaves out the rungs up to this weight, but for one of weight 0: the traffic
    /// cannot judge them in time.
    pub starts_above: Option<i32>,
    /// Least pods of a candidate with traffic: one pod on a bad node must not decide. Never more than replicas.
    pub least_pods: i32,
    /// Stable keeps all its pods until the candidate has all the traffic; else it gives up what the candidate carries.
    pub keeps_stable: bool,
    /// The numbers of pods are the weight, see [`super::ratio`]: nobody sends requests by weights.
    pub by_number: bool,
    /// How long stable's pods stay after the candidate has all the traffic.
    pub scale_down_delay: SignedDuration,
    /// How long the candidate is still judged with all the traffic before it is stable.
    pub bake: SignedDuration,
    /// When a rung is not decided in time.
    pub on_undecided: OnUndecided,
    /// A pool's first revision, too, has tests to pass before it serves.
    pub tests_first: bool,
    /// With all the traffic there are tests to pass, however short the bake is.
    pub tested_after: bool,
    /// After a rung of weight 0 it goes on batch by batch ([`super::Shift`]); there are no further ones.
    pub rolls: bool,
}

impl Ladder {
    /// The rung to reach or to judge: the first one above what has `passed` and not below the `weight` in force; none for all the
    /// traffic.
    pub fn rung(&self, passed: Option<i32>, weight: i32) -> Option<&Rung> {
        let mut rungs = self.rungs.iter();
        rungs.find(|rung| passed.is_none_or(|passed| rung.weight > passed) && rung.weight >= weight)
    }

    /// The weight up to which rungs are left out now, by a candidate without traffic; none once it has passed a rung with
    /// traffic, while one without is still to be passed, and where nothing is to be left out.
    pub fn left_out(&self, passed: Option<i32>) -> Option<i32> {
        let next = self.rung(passed, 0)?;
        let has_begun = passed.is_some_and(|passed| passed > 0);
        self.starts_above
            .filter(|above| !has_begun && next.weight > 0 && next.weight <= *above)
    }

    /// Position of a rung of this weight, from 0; the number of rungs for all the traffic.
    pub fn index(&self, weight: i32) -> usize {
        self.rungs.iter().take_while(|rung| rung.weight < weight).count()
    }

    /// Candidate pods for a rung; for all the traffic without one.
    pub fn pods(&self, rung: Option<&Rung>, replicas: i32) -> i32 {
        let Some(rung) = rung else { return replicas };
        let carry = pods_for(rung.weight, replicas);
        let wanted = rung.pods.unwrap_or(carry).max(self.least_pods);
        wanted.max(carry).min(replicas)
    }
}

/// The fewest pods of `replicas` that carry `weight` percent with no more than `1/replicas` each.
fn pods_for(weight: i32, replicas: i32) -> i32 {
    let pods = (i64::from(replicas.max(0)) * i64::from(weight.clamp(0, 100)) + 99) / 100;
    i32::try_from(pods).unwrap_or(i32::MAX)
}

/// A candidate on its ladder, as measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Climb<'a> {
    /// The ladder.
    pub ladder: &'a Ladder,
    /// Replicas that should serve.
    pub replicas: i32,
    /// The candidate.
    pub incoming: Arm,
    /// The stable revision.
    pub outgoing: Arm,
    /// The candidate's weight in force, in percent.
    pub weight: i32,
    /// The rung to reach; none for all the traffic.
    pub rung: Option<&'a Rung>,
    /// Whether every gateway has applied the weights in force.
    pub confirmed: bool,
    /// Weights stay; only a change of `replicas` is followed.
    pub hold: bool,
    /// Stable's pods are still kept although the candidate has all the traffic.
    pub keeps_outgoing: bool,
    /// Pods of a former candidate that still exist: with them there are never more than twice the replicas and the surge.
    pub others: i32,
    /// Pods that may run beyond twice the replicas while a former candidate goes, see [`super::shift::surge`].
    pub surge: i32,
}

impl Climb<'_> {
    /// The next step; [`Wait::Nothing`] once the rung is reached.
    pub fn step(&self) -> Step {
        if self.ladder.by_number {
            return self.step_by_number();
        }
        let needed = self.ladder.pods(self.rung, self.replicas);
        let incoming = self.incoming_replicas(needed);
        let weight = self.next_weight(needed);
        Step {
            incoming,
            outgoing: self.outgoing_replicas(),
            weight,
            wait: self.wait(needed, incoming, weight),
        }
    }

    pub(super) fn goal(&self) -> i32 {
        self.rung.map_or(100, |rung| rung.weight)
    }

    fn incoming_replicas(&self, needed: i32) -> i32 {
        if self.hold {
            let carry = pods_for(self.weight, self.replicas);
            return self.incoming.wanted.min(self.replicas).max(carry);
        }
        let wanted = needed.max(pods_for(self.weight, self.replicas));
        let outgoing = self.outgoing.wanted.max(self.outgoing.existing);
        let room = 2 * self.replicas + self.surge - outgoing - self.others;
        wanted.min(room.max(self.incoming.wanted))
    }

    fn outgoing_replicas(&self) -> i32 {
        let Self {
            replicas,
            incoming,
            outgoing,
            weight,
            ..
        } = *self;
        if self.hold {
            let floor = (replicas - carried(weight, replicas).min(incoming.available)).max(0);
            return outgoing.wanted.clamp(floor, floor.max(replicas));
        }
        if weight >= 100 && self.confirmed && self.rung.is_none() && !self.keeps_outgoing {
            return 0;
        }
        if self.ladder.keeps_stable || !self.confirmed {
            return if self.ladder.keeps_stable {
                replicas
            } else {
                outgoing.wanted.min(replicas)
            };
        }
        let gone = carried(weight, replicas).min(incoming.available.min(incoming.seen));
        (replicas - gone).max(0)
    }

    fn next_weight(&self, needed: i32) -> i32 {
        let Self {
            replicas,
            incoming,
            outgoing,
            weight,
            ..
        } = *self;
        if self.hold {
            return weight;
        }
        if incoming.available.min(incoming.seen) >= needed || seeded::has(Bug::WeightBeforePods) {
            return self.goal();
        }
        // Pods were lost, or the pool grew: the candidate carries no more than as large a part of the pods that there are.
        let others = if self.ladder.keeps_stable {
            outgoing.available
        } else {
            outgoing.available + incoming.available
        };
        weight.min(share(incoming.available, others.clamp(1, replicas.max(1))))
    }

    fn wait(&self, needed: i32, incoming: i32, weight: i32) -> Wait {
        let arm = &self.incoming;
        if incoming < needed && arm.available >= incoming {
            Wait::Room
        } else if arm.available < needed {
            Wait::Available {
                have: arm.available,
                want: needed,
            }
        } else if arm.seen < needed {
            Wait::Seen {
                have: arm.seen,
                want: needed,
            }
        } else if weight != self.weight || !self.confirmed {
            Wait::Confirmation
        } else {
            Wait::Nothing
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn ladder(weights: &[i32]) -> Ladder {
        let rung = |weight: &i32| Rung {
            weight: *weight,
            pods: None,
            needs_approval: false,
        };
        Ladder {
            rungs: weights.iter().map(rung).collect(),
            least_pods: 2,
            keeps_stable: true,
            by_number: false,
            scale_down_delay: SignedDuration::ZERO,
            bake: SignedDuration::ZERO,
            ..Ladder::default()
        }
    }

    fn arm(wanted: i32, available: i32) -> Arm {
        Arm {
            wanted,
            existing: wanted,
            available,
            seen: available,
        }
    }

    fn climb(
        ladder: &Ladder,
        passed: impl Into<Option<i32>>,
        incoming: Arm,
        outgoing: Arm,
        weight: i32,
    ) -> Climb<'_> {
        Climb {
            ladder,
            replicas: 8,
            incoming,
            outgoing,
            weight,
            rung: ladder.rung(passed.into(), weight),
            confirmed: true,
            hold: false,
            keeps_outgoing: false,
            others: 0,
            surge: 2,
        }
    }

    #[test]
    fn a_canary_of_eight_rung_by_rung() {
        let ladder = ladder(&[1, 25, 50]);
        let rows = [
            // passed, candidate, stable, weight -> candidate, stable, weight, reached
            (None, arm(0, 0), arm(8, 8), 0, (2, 8, 0), false),
            (None, arm(2, 1), arm(8, 8), 0, (2, 8, 0), false),
            (None, arm(2, 2), arm(8, 8), 0, (2, 8, 1), false),
            (None, arm(2, 2), arm(8, 8), 1, (2, 8, 1), true),
            (Some(1), arm(2, 2), arm(8, 8), 1, (2, 8, 25), false),
            (Some(1), arm(2, 2), arm(8, 8), 25, (2, 8, 25), true),
            (Some(25), arm(2, 2), arm(8, 8), 25, (4, 8, 25), false),
            (Some(25), arm(4, 4), arm(8, 8), 50, (4, 8, 50), true),
            (Some(50), arm(4, 4), arm(8, 8), 50, (8, 8, 50), false),
            (Some(50), arm(8, 8), arm(8, 8), 50, (8, 8, 100), false),
            (Some(50), arm(8, 8), arm(8, 8), 100, (8, 0, 100), true),
        ];
        for (passed, incoming, outgoing, weight, expected, is_reached) in rows {
            let step = climb(&ladder, passed, incoming, outgoing, weight).step();
            assert_eq!(
                (step.incoming, step.outgoing, step.weight),
                expected,
                "{passed:?} {incoming:?} {weight}"
            );
            assert_eq!(
                step.wait == Wait::Nothing,
                is_reached,
                "{passed:?} {incoming:?} {weight}"
            );
        }
    }

    #[test]
    fn a_ladder_that_shrinks_stable_gives_up_what_the_candidate_carries() {
        let ladder = Ladder {
            keeps_stable: false,
            ..ladder(&[25, 50])
        };
        let reached = climb(&ladder, None, arm(2, 2), arm(8, 8), 25);
        assert_eq!(reached.step().outgoing, 6);
        let unconfirmed = Climb {
            confirmed: false,
            ..reached
        };
        assert_eq!(unconfirmed.step().outgoing, 8);
        assert_eq!(climb(&ladder, 25, arm(4, 4), arm(6, 6), 50).step().outgoing, 4);
        // A lost pod gives its part of the weight back.
        assert_eq!(climb(&ladder, 25, arm(4, 3), arm(4, 4), 50).step().weight, 42);
    }

    #[test]
    fn blue_green_has_all_pods_before_it_has_traffic_and_swaps_in_one_write() {
        let mut ladder = ladder(&[0]);
        ladder.rungs[0].pods = Some(8);
        let preview = climb(&ladder, None, arm(0, 0), arm(8, 8), 0).step();
        assert_eq!((preview.incoming, preview.outgoing, preview.weight), (8, 8, 0));
        assert_eq!(
            climb(&ladder, None, arm(8, 8), arm(8, 8), 0).step().wait,
            Wait::Nothing
        );
        assert_eq!(climb(&ladder, 0, arm(8, 8), arm(8, 8), 0).step().weight, 100);
        let kept = Climb {
            keeps_outgoing: true,
            ..climb(&ladder, 0, arm(8, 8), arm(8, 8), 100)
        };
        assert_eq!(kept.step().outgoing, 8);
    }

    #[test]
    fn edited_rungs_go_on_at_the_first_one_not_below_the_weight_in_force() {
        let ladder = ladder(&[5, 20, 60]);
        for (passed, weight, expected) in [
            (Some(10), 10, Some(20)),
            (None, 25, Some(60)),
            (None, 20, Some(20)),
            (Some(20), 20, Some(60)),
            (Some(70), 70, None),
            (Some(60), 60, None),
        ] {
            let rung = ladder.rung(passed, weight).map(|rung| rung.weight);
            assert_eq!(rung, expected, "{passed:?} {weight}");
        }
        assert_eq!([5, 20, 60, 100].map(|weight| ladder.index(weight)), [0, 1, 2, 3]);
    }

    #[test]
    fn lost_pods_take_their_weight_along_and_none_leaves_none() {
        let ladder = ladder(&[50]);
        assert_eq!(climb(&ladder, None, arm(4, 2), arm(8, 8), 50).step().weight, 25);
        assert_eq!(climb(&ladder, None, arm(4, 0), arm(8, 8), 50).step().weight, 0);
        // A pool that grows keeps the weight: stable has no more pods yet than before.
        let grown = Climb {
            replicas: 40,
            ..climb(&ladder, None, arm(4, 4), arm(8, 8), 50)
        };
        assert_eq!((grown.step().incoming, grown.step().weight), (20, 50));
    }

    #[test]
    fn a_former_candidates_pods_are_waited_for() {
        let ladder = ladder(&[50]);
        let crowded = Climb {
            others: 8,
            ..climb(&ladder, None, arm(0, 0), arm(8, 8), 0)
        };
        assert_eq!(
            (crowded.step().incoming, crowded.step().wait),
            (2, Wait::Available { have: 0, want: 4 })
        );
        let started = Climb {
            incoming: arm(2, 2),
            ..crowded
        };
        assert_eq!((started.step().incoming, started.step().wait), (2, Wait::Room));
        assert_eq!(Climb { others: 3, ..started }.step().incoming, 4);
    }

    #[test]
    fn what_the_traffic_cannot_judge_is_left_out_before_the_first_traffic_and_never_later() {
        let ladder = Ladder {
            starts_above: Some(10),
            ..ladder(&[1, 10, 25])
        };
        for (passed, left_out) in [
            (None, Some(10)),
            (Some(1), None),
            (Some(10), None),
            (Some(100), None),
        ] {
            assert_eq!(ladder.left_out(passed), left_out, "{passed:?}");
        }
        let tested = Ladder {
            rungs: super::tests::ladder(&[0, 1, 10, 25]).rungs,
            ..ladder.clone()
        };
        assert_eq!(
            (tested.left_out(None), tested.left_out(Some(0))),
            (None, Some(10))
        );
        let from_the_first = Ladder {
            starts_above: None,
            ..ladder
        };
        assert_eq!(from_the_first.left_out(None), None);
    }

    #[test]
    fn a_held_climb_follows_only_the_scale() {
        let ladder = ladder(&[25, 50]);
        let held = Climb {
            hold: true,
            ..climb(&ladder, None, arm(2, 2), arm(8, 8), 25)
        };
        let step = held.step();
        assert_eq!((step.incoming, step.outgoing, step.weight), (2, 8, 25));
        let grown = Climb { replicas: 16, ..held }.step();
        assert_eq!((grown.incoming, grown.outgoing, grown.weight), (4, 14, 25));
        let shrunk = Climb { replicas: 4, ..held }.step();
        assert_eq!((shrunk.incoming, shrunk.outgoing), (2, 4));
    }

    #[test]
    fn a_rung_never_needs_more_pods_than_there_are_replicas() {
        let mut ladder = ladder(&[1]);
        ladder.rungs[0].pods = Some(5);
        for (replicas, pods) in [(0, 0), (1, 1), (3, 3), (9, 5)] {
            assert_eq!(ladder.pods(ladder.rungs.first(), replicas), pods);
            assert_eq!(ladder.pods(None, replicas), replicas);
        }
    }
}
