//! One step of moving a pool's capacity and traffic from one revision to another.
//!
//! Measured: for each of the two revisions how many pods are wanted, exist and are available, and for the incoming
//! one how many of the available every gateway sees. From these alone, and the weight in force, follows what may
//! change now; no step number is kept, so a restarted operator goes on where the cluster stands.
//!
//! With `n` replicas and a surge of `s`:
//!
//! 1. the incoming revision grows into the room that is left: all pods together stay within `n + s`;
//! 2. once its batch is available and seen by every gateway, its weight becomes its share of `n` (not of all pods that
//!    happen to run: each pod then carries at most `1/n` of the traffic, as it does when nothing is released);
//! 3. once every gateway has applied that weight, as many outgoing pods go. Those that are left are enough for
//!    the rest of the traffic, and all together are never fewer than `n`.
//!
//! The same function leads back: a release that is stopped is a shift whose incoming revision is the stable one. It is
//! then `urgent`: it does not wait for whole batches, and it takes traffic from pods that cannot carry it.
//!
//! Weights are whole percents, so for more than 100 replicas the pods that a weight stands for are known to within one
//! percent; the number of available pods bounds them from above.

use crate::seeded::{self, Bug};

/// The pods of one revision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arm {
    /// `spec.replicas` of its ReplicaSet.
    pub wanted: i32,
    /// Pods that exist and are not being deleted.
    pub existing: i32,
    /// Pods that are available.
    pub available: i32,
    /// Available pods whose endpoints every gateway sees; 0 while that is not known.
    pub seen: i32,
}

/// The state of a shift.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shift {
    /// Replicas that must be available all the time.
    pub replicas: i32,
    /// Pods that may run in addition, see [`surge`].
    pub surge: i32,
    /// The revision that gains traffic.
    pub incoming: Arm,
    /// The revision that loses traffic.
    pub outgoing: Arm,
    /// Pods of further revisions that still exist; they take room.
    pub others: i32,
    /// The incoming revision's weight in force, in percent.
    pub weight: i32,
    /// Whether every gateway has applied the weights in force.
    pub confirmed: bool,
    /// The release is held: weights stay, only a change of `replicas` is followed.
    pub hold: bool,
    /// Lead back from a revision that is not wanted any more.
    pub urgent: bool,
}

/// What a shift waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// It is complete: all traffic is on the incoming revision, and the outgoing one is scaled to zero.
    Nothing,
    /// Every gateway applying the weights in force.
    Confirmation,
    /// Incoming pods becoming available.
    Available {
        /// So many are.
        have: i32,
        /// So many must be.
        want: i32,
    },
    /// Every gateway seeing the endpoints of the available pods.
    Seen {
        /// So many every gateway sees.
        have: i32,
        /// So many are available.
        want: i32,
    },
    /// Pods of the outgoing revision stopping, to make room.
    Room,
}

/// What may be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// `spec.replicas` for the incoming revision.
    pub incoming: i32,
    /// `spec.replicas` for the outgoing revision.
    pub outgoing: i32,
    /// The incoming revision's weight, in percent.
    pub weight: i32,
    /// What must happen before the next step.
    pub wait: Wait,
}

/// Pods that may run beyond `replicas`: `percent` of them, rounded up; 0 for 0 replicas.
pub fn surge(replicas: i32, percent: i32) -> i32 {
    let pods = (i64::from(replicas.max(0)) * i64::from(percent.clamp(0, 100)) + 99) / 100;
    i32::try_from(pods).unwrap_or(i32::MAX)
}

/// The share of `replicas` that `pods` are, in whole percents rounded down, at most 100; 100 when no replica is wanted.
pub fn share(pods: i32, replicas: i32) -> i32 {
    if pods >= replicas {
        return 100;
    }
    i32::try_from(i64::from(pods.max(0)) * 100 / i64::from(replicas)).unwrap_or(100)
}

/// The most pods whose [`share`] of `replicas` is not above `weight`: those a weight stands for.
pub fn carried(weight: i32, replicas: i32) -> i32 {
    match weight {
        ..=0 => 0,
        100.. => replicas,
        _ => {
            let pods = (i64::from(weight + 1) * i64::from(replicas) + 99) / 100 - 1;
            i32::try_from(pods.max(0)).unwrap_or(replicas).min(replicas)
        }
    }
}

impl Shift {
    /// The next step; equal to the state when there is nothing to do but wait.
    pub fn step(&self) -> Step {
        let outgoing = self.outgoing_replicas();
        let incoming = self.incoming_replicas(outgoing);
        let weight = self.next_weight();
        Step {
            incoming,
            outgoing,
            weight,
            wait: self.wait(incoming, outgoing, weight),
        }
    }

    /// The outgoing revision keeps what the incoming one does not carry yet.
    fn outgoing_replicas(&self) -> i32 {
        let Self {
            replicas,
            incoming,
            outgoing,
            ..
        } = self;
        let carried = match seeded::has(Bug::ScaleDownFirst) {
            true => incoming.available,
            false => incoming.available.min(carried(self.weight, *replicas)),
        };
        // Nothing goes to a revision whose weight is zero, so leading back needs none of its pods.
        let floor = if self.urgent && self.weight >= 100 {
            0
        } else {
            (replicas - carried).max(0)
        };
        if outgoing.wanted < floor {
            // The pool was scaled up, or incoming pods were lost: the weight in force needs more here.
            let room = self.replicas + self.surge - incoming.wanted.max(incoming.existing) - self.others;
            return floor.min(room).max(outgoing.wanted);
        }
        let ceiling = if self.confirmed && !self.hold {
            floor
        } else {
            floor.max(*replicas)
        };
        outgoing.wanted.min(ceiling)
    }

    fn incoming_replicas(&self, outgoing_next: i32) -> i32 {
        let wanted = self
            .incoming
            .wanted
            .min(self.replicas)
            .min(self.batch(outgoing_next));
        if self.hold {
            return wanted;
        }
        let taken = self
            .outgoing
            .wanted
            .max(self.outgoing.existing)
            .max(outgoing_next)
            + self.others;
        let room = self.replicas + self.surge - taken;
        wanted.max(room.min(self.replicas))
    }

    /// The most incoming pods there may be. A pool that has shrunk has a smaller surge, and of a batch that was made for the larger
    /// one the pods that are not available would be too many, and all of them waited for. Not where the
    /// outgoing pods fail: then each of these may be the one that serves.
    fn batch(&self, outgoing_next: i32) -> i32 {
        if self.urgent || self.outgoing.available < outgoing_next {
            return self.replicas;
        }
        let room = self.replicas + self.surge - outgoing_next;
        room.max(self.incoming.available)
    }

    fn next_weight(&self) -> i32 {
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
        let ready = match seeded::has(Bug::WeightBeforeBatch) {
            true => incoming.wanted,
            false => incoming.available.min(incoming.seen),
        };
        // What the outgoing pods cannot carry.
        let forced = 100 - share(outgoing.available, replicas);
        if self.urgent {
            return weight.max(share(ready, replicas)).max(forced);
        }
        let is_batch_ready = ready >= incoming.wanted.min(replicas);
        let reachable = if is_batch_ready { share(ready, replicas) } else { 0 };
        if reachable > weight {
            reachable
        } else {
            // Pods were lost: give back what the outgoing ones can carry.
            weight.min(share(incoming.available, replicas).max(forced))
        }
    }

    fn wait(&self, incoming: i32, outgoing: i32, weight: i32) -> Wait {
        let arm = &self.incoming;
        let is_moved = weight == 100 && self.weight == 100 && self.outgoing.wanted == 0 && outgoing == 0;
        if is_moved && self.confirmed && (self.urgent || arm.available >= self.replicas) {
            Wait::Nothing
        } else if weight != self.weight || (!self.confirmed && arm.available >= incoming) {
            Wait::Confirmation
        } else if arm.available < incoming {
            Wait::Available {
                have: arm.available,
                want: incoming,
            }
        } else if arm.seen < arm.available && weight < share(arm.available, self.replicas) {
            Wait::Seen {
                have: arm.seen,
                want: arm.available,
            }
        } else {
            Wait::Room
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arm(wanted: i32, available: i32) -> Arm {
        Arm {
            wanted,
            existing: wanted,
            available,
            seen: available,
        }
    }

    fn shift(incoming: Arm, outgoing: Arm, weight: i32) -> Shift {
        Shift {
            replicas: 4,
            surge: 1,
            incoming,
            outgoing,
            others: 0,
            weight,
            confirmed: true,
            hold: false,
            urgent: false,
        }
    }

    /// The whole release of four replicas with a surge of one, state by state.
    #[test]
    fn four_replicas_in_four_batches() {
        let rows = [
            // incoming, outgoing, weight -> incoming, outgoing, weight
            (arm(0, 0), arm(4, 4), 0, (1, 4, 0)),
            (arm(1, 0), arm(4, 4), 0, (1, 4, 0)),
            (arm(1, 1), arm(4, 4), 0, (1, 4, 25)),
            (arm(1, 1), arm(4, 4), 25, (1, 3, 25)),
            (arm(1, 1), arm(3, 3), 25, (2, 3, 25)),
            (arm(2, 2), arm(3, 3), 25, (2, 3, 50)),
            (arm(2, 2), arm(3, 3), 50, (2, 2, 50)),
            (arm(3, 3), arm(2, 2), 50, (3, 2, 75)),
            (arm(4, 4), arm(1, 1), 75, (4, 1, 100)),
            (arm(4, 4), arm(1, 1), 100, (4, 0, 100)),
            (arm(4, 4), arm(0, 0), 100, (4, 0, 100)),
        ];
        for (incoming, outgoing, weight, expected) in rows {
            let step = shift(incoming, outgoing, weight).step();
            assert_eq!(
                (step.incoming, step.outgoing, step.weight),
                expected,
                "{incoming:?} {outgoing:?} {weight}"
            );
        }
        assert_eq!(shift(arm(4, 4), arm(0, 0), 100).step().wait, Wait::Nothing);
    }

    #[test]
    fn every_wait_says_for_what() {
        let hidden = Arm { seen: 0, ..arm(1, 1) };
        let unconfirmed = Shift {
            confirmed: false,
            ..shift(arm(1, 1), arm(4, 4), 25)
        };
        for (state, expected) in [
            (
                shift(arm(1, 0), arm(4, 4), 0),
                Wait::Available { have: 0, want: 1 },
            ),
            (shift(hidden, arm(4, 4), 0), Wait::Seen { have: 0, want: 1 }),
            (shift(arm(1, 1), arm(4, 4), 0), Wait::Confirmation),
            (unconfirmed, Wait::Confirmation),
            (
                shift(
                    arm(1, 1),
                    Arm {
                        existing: 4,
                        ..arm(3, 3)
                    },
                    25,
                ),
                Wait::Room,
            ),
        ] {
            assert_eq!(state.step().wait, expected, "{state:?}");
        }
    }

    #[test]
    fn nothing_goes_before_every_gateway_has_applied_the_weight() {
        let state = Shift {
            confirmed: false,
            ..shift(arm(1, 1), arm(4, 4), 25)
        };
        assert_eq!(state.step().outgoing, 4);
    }

    #[test]
    fn a_held_release_follows_only_the_scale() {
        let held = Shift {
            hold: true,
            ..shift(arm(1, 1), arm(4, 4), 25)
        };
        assert_eq!(
            held.step(),
            Step {
                incoming: 1,
                outgoing: 4,
                weight: 25,
                wait: Wait::Room
            }
        );
        let grown = Shift {
            replicas: 8,
            surge: 2,
            ..held
        };
        assert_eq!((grown.step().incoming, grown.step().outgoing), (1, 7));
        let shrunk = Shift { replicas: 2, ..held };
        assert_eq!((shrunk.step().incoming, shrunk.step().outgoing), (1, 2));
    }

    #[test]
    fn a_scale_up_keeps_the_capacity_for_the_weight_in_force_and_the_surge() {
        let grown = Shift {
            replicas: 8,
            surge: 2,
            ..shift(arm(2, 1), arm(3, 3), 25)
        };
        let step = grown.step();
        assert_eq!((step.incoming, step.outgoing), (3, 7));
    }

    /// Eight replicas with a surge of two that become four with a surge of one.
    #[test]
    fn a_scale_down_takes_what_is_not_available_of_a_batch_that_has_become_too_large() {
        for (incoming, outgoing, weight, expected) in [
            (arm(2, 0), arm(8, 8), 0, (1, 4)),
            (arm(2, 1), arm(8, 8), 0, (1, 4)),
            // What is available is used.
            (arm(2, 2), arm(8, 8), 0, (2, 4)),
            // Outgoing pods that are missing are not replaced by fewer.
            (arm(2, 0), arm(8, 3), 0, (2, 4)),
            // 25 % stand for one of four.
            (arm(4, 2), arm(6, 6), 25, (2, 3)),
        ] {
            let step = shift(incoming, outgoing, weight).step();
            assert_eq!(
                (step.incoming, step.outgoing),
                expected,
                "{incoming:?} {outgoing:?} {weight}"
            );
            let held = Shift {
                hold: true,
                ..shift(incoming, outgoing, weight)
            };
            assert_eq!(
                held.step().incoming,
                expected.0,
                "{incoming:?} {outgoing:?}, held"
            );
        }
    }

    #[test]
    fn lost_pods_give_their_weight_back_as_far_as_the_others_can_carry_it() {
        assert_eq!(shift(arm(1, 0), arm(4, 4), 25).step().weight, 0);
        assert_eq!(shift(arm(2, 1), arm(2, 2), 50).step().weight, 50);
        assert_eq!(shift(arm(3, 1), arm(3, 3), 75).step().weight, 25);
    }

    #[test]
    fn leading_back_needs_no_whole_batch_and_takes_from_pods_that_cannot_carry() {
        let urgent = |incoming, outgoing, weight| {
            Shift {
                urgent: true,
                ..shift(incoming, outgoing, weight)
            }
            .step()
        };
        assert_eq!(urgent(arm(4, 3), arm(1, 0), 75).weight, 100);
        assert_eq!(
            urgent(arm(2, 2), arm(3, 2), 50),
            Step {
                incoming: 2,
                outgoing: 2,
                weight: 50,
                wait: Wait::Room
            }
        );
        assert_eq!(urgent(arm(4, 3), arm(1, 1), 100).outgoing, 0);
    }

    #[test]
    fn no_replicas_need_no_pods() {
        let none = Shift {
            replicas: 0,
            surge: 0,
            ..shift(arm(0, 0), arm(0, 0), 0)
        };
        assert_eq!(none.step().weight, 100);
        assert_eq!(Shift { weight: 100, ..none }.step().wait, Wait::Nothing);
    }

    #[test]
    fn shares_and_the_pods_they_stand_for() {
        for (pods, replicas, percent) in [
            (0, 3, 0),
            (1, 3, 33),
            (2, 3, 66),
            (3, 3, 100),
            (5, 4, 100),
            (-1, 4, 0),
            (9, 1000, 0),
        ] {
            assert_eq!(share(pods, replicas), percent, "{pods} of {replicas}");
        }
        for replicas in 1..=100 {
            for pods in 0..=replicas {
                assert_eq!(
                    carried(share(pods, replicas), replicas),
                    pods,
                    "{pods} of {replicas}"
                );
            }
        }
        for (replicas, percent, pods) in [
            (4, 25, 1),
            (1, 1, 1),
            (10, 25, 3),
            (0, 25, 0),
            (1000, 1, 10),
            (4, 100, 4),
        ] {
            assert_eq!(surge(replicas, percent), pods, "{percent} % of {replicas}");
        }
    }
}
