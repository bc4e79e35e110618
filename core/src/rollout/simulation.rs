//! [`decide`](super::decide) against a model of a cluster: ReplicaSets, pods that need time, gateways that lag, and an
//! operator that dies between any two writes.

use proptest::prelude::*;

use super::shift::{share, surge};
use super::*;

/// A source of choices that shrinks well: a plain linear congruential generator over a seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit.max(1)
    }
}

#[derive(Clone, Debug)]
struct Pod {
    id: u64,
    /// Ticks until it is available; never for `None`.
    available_in: Option<u64>,
}

#[derive(Clone, Debug, Default)]
struct Revision {
    name: String,
    standing: Standing,
    rejected: Option<Reason>,
    passed: Option<i32>,
    order: i64,
    wanted: i32,
    pods: Vec<Pod>,
    /// Pods from this position on never become available.
    breaks_after: Option<usize>,
}

#[derive(Clone, Debug, Default)]
struct Gateway {
    generation: i64,
    seen: Vec<u64>,
}

struct World {
    tick: i64,
    dice: Dice,
    replicas: i32,
    surge_percent: i32,
    target: String,
    revisions: Vec<Revision>,
    traffic: Vec<(String, i32)>,
    generation: i64,
    gateways: Vec<Gateway>,
    progress: Option<Progress>,
    next_pod: u64,
    /// Since a scale-up the pods need time before the floor holds again.
    floor: i32,
    crashes: bool,
    ladder: Option<Ladder>,
    reached: Option<Reached>,
    /// A candidate is found to be bad at this weight.
    is_bad_at: Option<i32>,
}

/// Ticks after which a rung is judged.
const JUDGING: i64 = 7;

impl World {
    fn new(seed: u64, replicas: i32, surge_percent: i32, gateways: usize, crashes: bool) -> Self {
        Self {
            tick: 0,
            dice: Dice(seed),
            replicas,
            surge_percent,
            target: "p-a".into(),
            revisions: Vec::new(),
            traffic: Vec::new(),
            generation: 0,
            gateways: vec![Gateway::default(); gateways],
            progress: None,
            next_pod: 0,
            floor: 0,
            crashes,
            ladder: None,
            reached: None,
            is_bad_at: None,
        }
    }

    fn climbing(self, weights: &[i32], keeps_stable: bool, delay: i64, bake: i64) -> Self {
        let rung = |weight: &i32| Rung {
            weight: *weight,
            pods: (*weight == 0).then_some(self.replicas),
            needs_approval: false,
        };
        let ladder = Ladder {
            rungs: weights.iter().map(rung).collect(),
            least_pods: 2,
            keeps_stable,
            by_number: false,
            scale_down_delay: SignedDuration::from_secs(delay),
            bake: SignedDuration::from_secs(bake),
            ..Ladder::default()
        };
        Self {
            ladder: Some(ladder),
            ..self
        }
    }

    fn gate(&self) -> Option<Gate> {
        let reached = self.reached.as_ref()?;
        let is_over = self.tick - reached.since.as_second() >= JUDGING;
        let opinion = match self.is_bad_at {
            Some(weight) if reached.weight >= weight && is_over => Opinion::RollBack,
            _ if is_over => Opinion::Advance,
            _ => Opinion::Continue,
        };
        Some(Gate {
            weight: reached.weight,
            opinion,
            reason: Reason::new("AnalysisFailed", "errors"),
            deadline: None,
            by_test: false,
        })
    }

    fn revision(&mut self, name: &str) -> &mut Revision {
        if let Some(at) = self.revisions.iter().position(|revision| revision.name == name) {
            return &mut self.revisions[at];
        }
        self.revisions.push(Revision {
            name: name.into(),
            ..Revision::default()
        });
        self.revisions.last_mut().unwrap()
    }

    fn situation(&self) -> Situation {
        let members = self.revisions.iter().map(|revision| {
            let available = || revision.pods.iter().filter(|pod| pod.available_in == Some(0));
            let seen =
                available().filter(|pod| self.gateways.iter().all(|gateway| gateway.seen.contains(&pod.id)));
            Member {
                revision: revision.name.clone(),
                standing: revision.standing,
                order: revision.order,
                arm: Arm {
                    wanted: revision.wanted,
                    existing: revision.pods.len() as i32,
                    available: available().count() as i32,
                    seen: seen.count() as i32,
                },
                weight: self
                    .traffic
                    .iter()
                    .find(|(name, _)| *name == revision.name)
                    .map(|(_, weight)| *weight),
                trouble: None,
                down_since: None,
                rejected: revision.rejected.clone(),
                passed: revision.passed,
                is_trusted: false,
                has_conversations: false,
                drain_until: None,
            }
        });
        let confirmed = self
            .gateways
            .iter()
            .all(|gateway| gateway.generation == self.generation);
        Situation {
            now: Timestamp::from_second(self.tick).unwrap(),
            replicas: self.replicas,
            surge_percent: self.surge_percent,
            paused: false,
            stopped: false,
            deadline: SignedDuration::from_secs(60),
            target: Target::Revision {
                revision: self.target.clone(),
                settles: None,
            },
            attempt: 1,
            members: members.collect(),
            gateways: if confirmed {
                Gateways::Confirmed
            } else {
                Gateways::Pending
            },
            progress: self.progress.clone(),
            ladder: self.ladder.clone(),
            gate: self.gate(),
            reached: self.reached.clone(),
            max_drain: None,
        }
    }

    /// One look of the operator; it may die before any of its writes.
    fn operate(&mut self) -> Decision {
        let situation = self.situation();
        let decision = decide(&situation);
        self.check(&situation, &decision);
        let writes = decision.changes.len() + decision.scale.len() + 1;
        let mut left = if self.crashes && self.dice.below(4) == 0 {
            self.dice.below(writes as u64)
        } else {
            99
        };
        let mut may_write = || {
            let may = left > 0;
            left = left.saturating_sub(1);
            may
        };
        let mut order = self
            .revisions
            .iter()
            .map(|revision| revision.order)
            .max()
            .unwrap_or_default();
        for change in &decision.changes {
            if !may_write() {
                return decision;
            }
            order += 1;
            let revision = self.revision(&change.revision);
            revision.standing = change.standing;
            revision.rejected = change.reason.clone();
            if change.standing == Standing::Candidate {
                revision.order = order;
                revision.passed = None;
            }
        }
        if let Some((name, weight)) = &decision.passed {
            if !may_write() {
                return decision;
            }
            self.revision(name).passed = Some(*weight);
        }
        for (name, replicas) in &decision.scale {
            if !may_write() {
                return decision;
            }
            self.revision(name).wanted = *replicas;
        }
        if !may_write() {
            return decision;
        }
        if self.traffic != decision.traffic {
            self.traffic = decision.traffic.clone();
            self.generation += 1;
        }
        self.progress = decision.progress.clone();
        self.reached = decision.reached.clone();
        decision
    }

    fn check(&self, before: &Situation, decision: &Decision) {
        if decision.traffic.is_empty() {
            return;
        }
        assert_eq!(
            decision.traffic.iter().map(|(_, weight)| weight).sum::<i32>(),
            100,
            "{decision:?}"
        );
        assert!(decision.traffic.iter().filter(|(_, weight)| *weight > 0).count() <= 2);
        if matches!(decision.state, State::Releasing | State::Judging | State::Baking) {
            let candidate = decision.candidate.as_ref().unwrap();
            let weight = decision
                .traffic
                .iter()
                .find(|(name, _)| name == candidate)
                .map_or(0, |(_, weight)| *weight);
            if let Some(member) = before.members.iter().find(|member| member.revision == *candidate) {
                let reachable = share(member.arm.available.min(member.arm.seen), before.replicas);
                assert!(
                    weight <= member.weight.unwrap_or(0).max(reachable),
                    "{weight} of {member:?}"
                );
                let passed = decision
                    .passed
                    .as_ref()
                    .map(|(_, weight)| *weight)
                    .or(member.passed);
                let rungs = before.ladder.iter().flat_map(|ladder| &ladder.rungs);
                let unanswered = rungs
                    .map(|rung| rung.weight)
                    .find(|rung| passed.is_none_or(|passed| *rung > passed));
                assert!(
                    weight <= unanswered.unwrap_or(100),
                    "{weight} before {unanswered:?}"
                );
            }
        }
    }

    /// Everything but the operator moves by one tick.
    fn cluster(&mut self) {
        self.tick += 1;
        for at in 0..self.revisions.len() {
            let revision = &mut self.revisions[at];
            while (revision.pods.len() as i32) < revision.wanted {
                let is_bad = revision
                    .breaks_after
                    .is_some_and(|good| revision.pods.len() >= good);
                let available_in = (!is_bad).then(|| 1 + self.dice.below(5));
                self.next_pod += 1;
                revision.pods.push(Pod {
                    id: self.next_pod,
                    available_in,
                });
            }
            while revision.pods.len() as i32 > revision.wanted {
                // As the ReplicaSet controller: pods that are not ready first.
                let unready = revision.pods.iter().position(|pod| pod.available_in != Some(0));
                let victim = unready.unwrap_or_else(|| self.dice.below(revision.pods.len() as u64) as usize);
                revision.pods.remove(victim);
            }
            for pod in &mut revision.pods {
                pod.available_in = pod.available_in.map(|ticks| ticks.saturating_sub(1));
            }
        }
        let live: Vec<u64> = self
            .revisions
            .iter()
            .flat_map(|revision| &revision.pods)
            .filter_map(|pod| (pod.available_in == Some(0)).then_some(pod.id))
            .collect();
        for gateway in &mut self.gateways {
            if self.dice.below(3) == 0 {
                gateway.generation = self.generation;
            }
            if self.dice.below(3) == 0 {
                gateway.seen.clone_from(&live);
            }
        }
    }

    fn available(&self) -> i32 {
        let pods = self.revisions.iter().flat_map(|revision| &revision.pods);
        pods.filter(|pod| pod.available_in == Some(0)).count() as i32
    }

    /// Runs until the state is `end`; checks the floor of available pods at each tick.
    fn run_until(&mut self, end: impl Fn(&State) -> bool) {
        for _ in 0..20_000 {
            let decision = self.operate();
            if end(&decision.state) && decision.changes.is_empty() && self.is_at_rest() {
                return;
            }
            self.cluster();
            if self.available() >= self.replicas {
                self.floor = self.replicas;
            }
            assert!(
                self.available() >= self.floor,
                "{} < {} at {}",
                self.available(),
                self.floor,
                self.tick
            );
            let room = match &self.ladder {
                Some(_) => 2 * self.replicas + surge(self.replicas, self.surge_percent),
                None => self.replicas + surge(self.replicas, self.surge_percent),
            };
            let pods: usize = self.revisions.iter().map(|revision| revision.pods.len()).sum();
            assert!(pods as i32 <= room, "{pods} pods in a room of {room}");
        }
        panic!("not there after 20,000 ticks: {:?}", decide(&self.situation()));
    }

    /// Nothing to write any more.
    fn is_at_rest(&self) -> bool {
        let situation = self.situation();
        let decision = decide(&situation);
        situation.gateways == Gateways::Confirmed
            && decision.traffic == self.traffic
            && decision.scale.iter().all(|(name, replicas)| {
                self.revisions
                    .iter()
                    .any(|revision| revision.name == *name && revision.wanted == *replicas)
            })
    }

    fn weight(&self, name: &str) -> i32 {
        self.traffic
            .iter()
            .find(|(revision, _)| revision == name)
            .map_or(0, |(_, weight)| *weight)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_good_release_ends_with_capacity_all_the_way(
        seed in any::<u64>(), replicas in 1..=12, percent in 1..=100, gateways in 1_usize..=3, crashes: bool,
    ) {
        let mut world = World::new(seed, replicas, percent, gateways, crashes);
        world.run_until(|state| *state == State::Ready);
        world.target = "p-b".into();
        let mut last = 0;
        for _ in 0..20_000 {
            world.operate();
            world.cluster();
            prop_assert!(world.weight("p-b") >= last, "the weight fell");
            last = world.weight("p-b");
            prop_assert!(world.available() >= world.floor);
            if decide(&world.situation()).state == State::Ready { break }
        }
        world.run_until(|state| *state == State::Ready);
        prop_assert_eq!(world.weight("p-b"), 100);
        prop_assert_eq!(world.revision("p-a").standing, Standing::Verified);
        prop_assert_eq!(world.revision("p-a").pods.len(), 0);
    }

    #[test]
    fn a_release_that_breaks_anywhere_leaves_stable_serving(
        seed in any::<u64>(), replicas in 1..=12, percent in 1..=100, good in 0_usize..=12, crashes: bool,
    ) {
        let good = good.min(replicas as usize - 1);
        let mut world = World::new(seed, replicas, percent, 2, crashes);
        world.run_until(|state| *state == State::Ready);
        world.target = "p-b".into();
        world.revision("p-b").breaks_after = Some(good);
        world.run_until(|state| matches!(state, State::Rejected(_)));
        prop_assert_eq!(world.weight("p-a"), 100);
        world.cluster();
        prop_assert_eq!(world.revision("p-b").pods.len(), 0);
        // A return to what serves clears it; nothing was retried in between.
        world.target = "p-a".into();
        world.run_until(|state| *state == State::Ready);
    }

    #[test]
    fn superseding_at_any_moment_ends_with_the_last(
        seed in any::<u64>(), replicas in 1..=8, percent in 1..=100, moments in prop::collection::vec(0_usize..60, 1..4),
    ) {
        let mut world = World::new(seed, replicas, percent, 2, true);
        world.run_until(|state| *state == State::Ready);
        for (number, moment) in moments.iter().enumerate() {
            world.target = format!("p-{number}");
            for _ in 0..*moment {
                world.operate();
                world.cluster();
                prop_assert!(world.available() >= world.floor);
            }
        }
        let last = world.target.clone();
        world.run_until(|state| *state == State::Ready);
        prop_assert_eq!(world.weight(&last), 100);
        prop_assert_eq!(world.revisions.iter().filter(|revision| revision.standing == Standing::Stable).count(), 1);
    }

    #[test]
    fn scaling_at_any_moment_ends_at_the_last_size(
        seed in any::<u64>(), first in 0..=8, second in 0..=8, percent in 1..=100, moment in 0_usize..60,
    ) {
        let mut world = World::new(seed, first, percent, 2, true);
        world.run_until(|state| *state == State::Ready);
        world.target = "p-b".into();
        for _ in 0..moment {
            world.operate();
            world.cluster();
        }
        world.replicas = second;
        world.floor = 0;
        for _ in 0..20_000 {
            world.operate();
            world.cluster();
            if decide(&world.situation()).state == State::Ready { break }
        }
        world.run_until(|state| *state == State::Ready);
        prop_assert_eq!(world.revision("p-b").pods.len() as i32, second);
        prop_assert_eq!(world.available(), second);
    }

    #[test]
    fn a_good_candidate_climbs_every_ladder_and_is_judged_on_each_rung(
        seed in any::<u64>(), replicas in 1..=12, keeps: bool, delay in 0..20_i64, bake in 0..20_i64, crashes: bool,
        weights in prop::sample::select(vec![vec![0], vec![50], vec![1, 10, 25, 50], vec![0, 5, 95]]),
    ) {
        let mut world = World::new(seed, replicas, 25, 2, crashes);
        world.run_until(|state| *state == State::Ready);
        world = world.climbing(&weights, keeps, delay, bake);
        world.target = "p-b".into();
        let mut judged = Vec::new();
        for _ in 0..20_000 {
            let decision = world.operate();
            world.cluster();
            prop_assert!(world.available() >= world.floor);
            if decision.state == State::Judging {
                judged.push(decision.reached.unwrap().weight);
            }
            if decide(&world.situation()).state == State::Ready { break }
        }
        judged.dedup();
        prop_assert_eq!(judged, weights);
        world.run_until(|state| *state == State::Ready);
        prop_assert_eq!(world.weight("p-b"), 100);
        prop_assert_eq!(world.revision("p-a").standing, Standing::Verified);
        prop_assert_eq!(world.revision("p-a").pods.len(), 0);
    }

    #[test]
    fn a_bad_candidate_goes_back_from_every_rung_and_from_the_bake(
        seed in any::<u64>(), replicas in 1..=12, keeps: bool, delay in 0..20_i64, crashes: bool,
        bad in prop::sample::select(vec![0, 1, 10, 25, 50, 100]),
    ) {
        let mut world = World::new(seed, replicas, 25, 2, crashes);
        world.run_until(|state| *state == State::Ready);
        world = world.climbing(&[0, 1, 10, 25, 50], keeps, delay, 60);
        world.target = "p-b".into();
        world.is_bad_at = Some(bad);
        world.run_until(|state| matches!(state, State::Rejected(_)));
        prop_assert_eq!(world.weight("p-a"), 100);
        world.cluster();
        prop_assert_eq!(world.revision("p-b").pods.len(), 0);
        prop_assert_eq!(world.revision("p-a").pods.len() as i32, replicas);
    }

    #[test]
    fn superseding_on_any_rung_begins_below_the_first_and_ends_with_the_last(
        seed in any::<u64>(), replicas in 1..=8, keeps: bool, moments in prop::collection::vec(0_usize..120, 1..4),
    ) {
        let mut world = World::new(seed, replicas, 25, 2, true);
        world.run_until(|state| *state == State::Ready);
        world = world.climbing(&[1, 25, 50], keeps, 5, 5);
        for (number, moment) in moments.iter().enumerate() {
            world.target = format!("p-{number}");
            for _ in 0..*moment {
                world.operate();
                world.cluster();
                prop_assert!(world.available() >= world.floor);
            }
        }
        let last = world.target.clone();
        world.run_until(|state| *state == State::Ready);
        prop_assert_eq!(world.weight(&last), 100);
    }
}
