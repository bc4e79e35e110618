//! Weights by numbers of replicas, for pools whose work nobody hands out (`traffic.type: ReplicaRatio`): each ready replica takes
//! its part of a queue, of either revision alike. So the weight of a rung can only be approximated, by numbers.
//!
//! # Which numbers
//!
//! Of all pairs (candidate, stable) that a pool of `n` replicas may have, the one whose share `candidate / (candidate + stable)`
//! comes nearest to the weight; of equally near ones the one with fewer pods, then the one with more of the candidate's. Between
//! 1 and 99 % neither side is 0, so 1 % of 4 replicas is in truth 20 % or 25 %: it is never refused, and always shown
//! ([`Split::percent`]).
//!
//! * Where stable keeps its pods, there are `n` of them, up to 50 %; above, the candidate has `n` and stable gives way.
//! * Where it shrinks, both together are `n`, or `n + 1` where that comes nearer.
//!
//! # The way
//!
//! There is no moment at which a weight is switched: a replica that becomes ready works. So the candidate grows first; once its pods
//! are available the weight counts as in force, stable shrinks to what is left for it, and when its pods are gone the rung is reached.
//! On the way the share is never above the rung's, and available pods are never fewer than `n` but by pods that fail. For the same
//! reason no pods of stable can be kept after 100 %: they would go on working.

use super::ladder::{Climb, Ladder};
use super::shift::{Step, Wait};

/// Numbers of pods that stand for a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    /// The candidate's.
    pub candidate: i32,
    /// The stable revision's.
    pub stable: i32,
}

impl Split {
    /// The candidate's share in percent; 0 where there are no pods.
    pub fn percent(self) -> f64 {
        let all = self.candidate + self.stable;
        if all > 0 {
            f64::from(self.candidate) * 100.0 / f64::from(all)
        } else {
            0.0
        }
    }

    /// How far the share is from `weight` percent, as a fraction: numerator and denominator.
    fn distance(self, weight: i32) -> (i64, i64) {
        let (candidate, all) = (
            i64::from(self.candidate),
            i64::from(self.candidate) + i64::from(self.stable),
        );
        ((candidate * 100 - i64::from(weight) * all).abs(), all.max(1))
    }

    /// Whether it stands better for `weight` than `other`.
    fn is_better(self, other: Self, weight: i32) -> bool {
        let ((mine, of_mine), (theirs, of_theirs)) = (self.distance(weight), other.distance(weight));
        let (left, right) = (mine * of_theirs, theirs * of_mine);
        let pods = |split: Self| (split.candidate + split.stable, -split.candidate);
        (left, pods(self)) < (right, pods(other))
    }
}

impl Ladder {
    /// The numbers of pods that stand for `weight` percent of a pool of `replicas`.
    ///
    /// At least [`Ladder::least_pods`] and the rung's own pods are the candidate's, though never more than `replicas`. So are those
    /// of a rung of weight 0, beside all of stable's: what is to be looked at has to run, and what runs works.
    pub fn split(&self, weight: i32, replicas: i32) -> Split {
        let n = replicas.max(0);
        let pair = |candidate: i32, stable: i32| Split { candidate, stable };
        if n == 0 || weight >= 100 {
            return pair(n, 0);
        }
        let own = self.rungs.iter().find(|rung| rung.weight == weight);
        let least = own.and_then(|rung| rung.pods).unwrap_or(0).max(self.least_pods);
        if weight <= 0 {
            let candidate = own.map_or(0, |_| least.clamp(0, n));
            return pair(candidate, n);
        }
        let least = least.clamp(1, n);
        let mut best = pair(n, 1);
        let mut weigh = |split: Split| {
            let is_possible = (1..=n).contains(&split.stable) && split.candidate >= least;
            if is_possible && split.is_better(best, weight) {
                best = split;
            }
        };
        for candidate in least..=n {
            if self.keeps_stable {
                weigh(pair(candidate, n));
            } else {
                weigh(pair(candidate, n - candidate));
                weigh(pair(candidate, n + 1 - candidate));
            }
        }
        if self.keeps_stable {
            (1..=n).for_each(|stable| weigh(pair(n, stable)));
        }
        best
    }
}

impl Climb<'_> {
    /// The next step where numbers are the weight; [`Wait::Nothing`] once the rung is reached.
    pub(super) fn step_by_number(&self) -> Step {
        let Self {
            replicas,
            incoming,
            outgoing,
            weight,
            hold,
            ..
        } = *self;
        let target = self.ladder.split(self.goal(), replicas);
        let in_force = self.ladder.split(weight, replicas);
        let wanted = match (hold, weight) {
            (true, ..=0) => incoming.wanted.min(replicas),
            (true, _) => in_force.candidate,
            (false, _) => {
                let others = outgoing.wanted.max(outgoing.existing) + self.others;
                let room = 2 * replicas + self.surge - others;
                target.candidate.min(room.max(incoming.wanted))
            }
        };
        // Pods that were lost are made up for, as far as stable can.
        let missing = (replicas - incoming.available).max(0);
        let stays = in_force.stable.max(missing).min(replicas);
        let next = if hold || incoming.available < target.candidate {
            weight
        } else {
            self.goal()
        };
        let wait = if wanted < target.candidate && incoming.available >= wanted {
            Wait::Room
        } else if incoming.available < target.candidate {
            Wait::Available {
                have: incoming.available,
                want: target.candidate,
            }
        } else if next != weight || !self.confirmed {
            Wait::Confirmation
        } else if incoming.existing > target.candidate
            || outgoing.wanted != stays
            || outgoing.existing > stays
        {
            Wait::Room
        } else {
            Wait::Nothing
        };
        Step {
            incoming: wanted,
            outgoing: stays,
            weight: next,
            wait,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::ladder::{OnUndecided, Rung};
    use super::super::shift::Arm;
    use super::*;
    use jiff::SignedDuration;

    fn ladder(weights: &[i32], keeps_stable: bool, least_pods: i32) -> Ladder {
        let rung = |weight: &i32| Rung {
            weight: *weight,
            pods: None,
            needs_approval: false,
        };
        Ladder {
            rungs: weights.iter().map(rung).collect(),
            least_pods,
            keeps_stable,
            by_number: true,
            scale_down_delay: SignedDuration::from_secs(60),
            bake: SignedDuration::ZERO,
            on_undecided: OnUndecided::Hold,
            ..Ladder::default()
        }
    }

    #[test]
    fn numbers_come_as_near_to_a_weight_as_they_can() {
        for (weight, replicas, keeps, expected, percent) in [
            (0, 10, true, (0, 10), "0.0"),
            (100, 10, true, (10, 0), "100.0"),
            (50, 0, true, (0, 0), "0.0"),
            // Stable keeps its pods.
            (1, 12, true, (1, 12), "7.7"),
            (10, 10, true, (1, 10), "9.1"),
            (25, 10, true, (3, 10), "23.1"),
            (50, 10, true, (10, 10), "50.0"),
            (75, 10, true, (10, 3), "76.9"),
            (1, 1, true, (1, 1), "50.0"),
            (99, 1, true, (1, 1), "50.0"),
            // It shrinks: 12 in all, or 13.
            (1, 12, false, (1, 12), "7.7"),
            (25, 12, false, (3, 9), "25.0"),
            (50, 12, false, (6, 6), "50.0"),
            (50, 7, false, (4, 4), "50.0"),
            (99, 12, false, (12, 1), "92.3"),
            (10, 1, false, (1, 1), "50.0"),
        ] {
            let split = ladder(&[], keeps, 1).split(weight, replicas);
            let what = format!("{weight} % of {replicas}, keeps {keeps}");
            assert_eq!((split.candidate, split.stable), expected, "{what}");
            assert_eq!(format!("{:.1}", split.percent()), percent, "{what}");
        }
    }

    #[test]
    fn the_least_and_a_rungs_own_pods_are_kept() {
        let mut ladder = ladder(&[10], false, 2);
        let numbers = |ladder: &Ladder| {
            let split = ladder.split(10, 10);
            (split.candidate, split.stable)
        };
        assert_eq!(numbers(&ladder), (2, 9));
        ladder.rungs[0].pods = Some(4);
        assert_eq!(numbers(&ladder), (4, 7));
        ladder.rungs[0].pods = Some(40);
        assert_eq!(numbers(&ladder), (10, 1), "never more than replicas");
    }

    #[test]
    fn a_rung_without_weight_has_its_pods_beside_all_of_stables() {
        let mut ladder = ladder(&[0, 10], false, 1);
        let numbers = |ladder: &Ladder, weight| {
            let split = ladder.split(weight, 10);
            (split.candidate, split.stable)
        };
        assert_eq!(numbers(&ladder, 0), (1, 10));
        ladder.rungs[0].pods = Some(3);
        assert_eq!(numbers(&ladder, 0), (3, 10));
        ladder.rungs.remove(0);
        assert_eq!(numbers(&ladder, 0), (0, 10));
        let mut pool = Pool::new(self::ladder(&[0, 10], false, 3), 10);
        assert_eq!(pool.reach(None, 10), (3, 10, 0));
    }

    /// A pool in miniature: pods become available one at a time, and go at once.
    struct Pool {
        ladder: Ladder,
        replicas: i32,
        candidate: Arm,
        stable: Arm,
        weight: i32,
    }

    impl Pool {
        fn new(ladder: Ladder, replicas: i32) -> Self {
            Self {
                ladder,
                replicas,
                candidate: Arm::default(),
                stable: Arm {
                    wanted: replicas,
                    existing: replicas,
                    available: replicas,
                    seen: replicas,
                },
                weight: 0,
            }
        }

        fn climb(&self, passed: Option<i32>, hold: bool) -> Climb<'_> {
            Climb {
                ladder: &self.ladder,
                replicas: self.replicas,
                incoming: self.candidate,
                outgoing: self.stable,
                weight: self.weight,
                rung: self.ladder.rung(passed, self.weight),
                confirmed: true,
                hold,
                keeps_outgoing: true,
                others: 0,
                surge: 1,
            }
        }

        /// Steps until the rung is reached; checks capacity and share at each.
        fn reach(&mut self, passed: Option<i32>, floor: i32) -> (i32, i32, i32) {
            for _ in 0..200 {
                let step = self.climb(passed, false).step();
                (self.candidate.wanted, self.stable.wanted, self.weight) =
                    (step.incoming, step.outgoing, step.weight);
                for arm in [&mut self.candidate, &mut self.stable] {
                    let grows = i32::from(arm.available < arm.wanted);
                    arm.existing = arm.wanted;
                    arm.available = (arm.available + grows).min(arm.wanted);
                    arm.seen = arm.available;
                }
                let (candidate, stable) = (self.candidate.available, self.stable.available);
                assert!(candidate + stable >= floor, "{candidate} and {stable}");
                assert!(self.candidate.existing + self.stable.existing <= 2 * self.replicas + 1);
                if step.wait == Wait::Nothing {
                    return (candidate, stable, self.weight);
                }
            }
            panic!("{:?} {:?} at {} %", self.candidate, self.stable, self.weight);
        }
    }

    #[test]
    fn a_canary_of_eight_rung_by_rung() {
        for (keeps, expected) in [
            (true, [(1, 8, 10), (8, 8, 50), (8, 0, 100)]),
            (false, [(1, 8, 10), (4, 4, 50), (8, 0, 100)]),
        ] {
            let mut pool = Pool::new(ladder(&[10, 50], keeps, 1), 8);
            let reached = [None, Some(10), Some(50)].map(|passed| pool.reach(passed, 8));
            assert_eq!(reached, expected, "keeps {keeps}");
        }
    }

    #[test]
    fn a_scale_in_the_middle_keeps_the_share() {
        let mut pool = Pool::new(ladder(&[50], false, 1), 4);
        assert_eq!(pool.reach(None, 4), (2, 2, 50));
        pool.replicas = 10;
        assert_eq!(pool.reach(None, 4), (5, 5, 50));
        pool.replicas = 2;
        assert_eq!(pool.reach(None, 2), (1, 1, 50));
    }

    #[test]
    fn held_it_follows_only_the_scale() {
        let mut pool = Pool::new(ladder(&[25, 50], false, 1), 8);
        assert_eq!(pool.reach(None, 8), (2, 6, 25));
        let numbers = |pool: &Pool| {
            let step = pool.climb(Some(25), true).step();
            (step.incoming, step.outgoing, step.weight)
        };
        assert_eq!(numbers(&pool), (2, 6, 25), "not yet on its way to 50 %");
        pool.replicas = 4;
        assert_eq!(numbers(&pool), (1, 3, 25));
        pool.replicas = 16;
        assert_eq!(
            numbers(&pool),
            (4, 14, 25),
            "until the candidate's two more are there"
        );
    }

    #[test]
    fn lost_pods_are_made_up_for_by_stable() {
        let mut pool = Pool::new(ladder(&[50], false, 1), 8);
        assert_eq!(pool.reach(None, 8), (4, 4, 50));
        pool.candidate.available = 1;
        let step = pool.climb(None, false).step();
        assert_eq!((step.incoming, step.outgoing, step.weight), (4, 7, 50));
        assert_eq!(step.wait, Wait::Available { have: 1, want: 4 });
    }
}
