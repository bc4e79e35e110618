//! Which revision a new conversation gets, and which conversations must leave theirs.
//!
//! # Choice
//!
//! A race of exponential variables: revision `r` draws `E_r` from hash(key, r), and the smallest `E_r / weight_r` wins. That
//! is weighted rendezvous hashing (Schindelhauer, Schomaker: "Weighted distributed hash tables", SPAA 2005; the logarithmic
//! method): each revision gets exactly its share, two gateways that cannot reach each other agree without a word, and
//! raising one weight moves keys only *to* that revision. An interval of one hash would do as much for two revisions, but
//! then the same keys would be the first to try every candidate for ever. The logarithm is the one of
//! [`crate::load::random`], which is equal to the last bit on every platform.
//!
//! # Lives of a revision
//!
//! A candidate that was aborted may come back under the same name. Conversations that were led away from it must not
//! return because some gateway still has an old copy of an entry. So each revision has a *floor*: entries assigned under
//! an older traffic generation are dead. A revision that serves no longer gets the present generation as its floor. Floors only rise
//! and are merged by maximum, so they may be lost, repeated and reordered between gateways.
//!
//! # Evidence
//!
//! An entry keeps the generation under which it was assigned. On both arms only conversations assigned since the candidate's
//! weight left zero are compared; [`evidence_epoch`] folds all older ones into one class.

use std::sync::Arc;

use crate::load::random::Stream;

use super::key::SessionKey;

/// Revisions remembered at most beyond those that are routed to or have sessions.
const REMEMBERED: usize = 64;

/// One revision of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// Its name.
    pub revision: Arc<str>,
    /// Its part of the new conversations; only the ratio between weights counts.
    pub weight: u32,
    /// Whether conversations that have it stay although it gets no new ones: true for a stable revision that was replaced and
    /// is being drained, false for a candidate that was aborted. Any weight above 0 implies it.
    pub keeps: bool,
    /// The generation at which its present life began, if the operator says so: conversations assigned before are
    /// of an earlier attempt. 0 where that is not known.
    pub since: i64,
}

/// Where new conversations go and which may stay, as one gateway has it from the pool's status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// `status.trafficGeneration`; -1 before there is one.
    pub generation: i64,
    /// All revisions that have a weight or keep conversations, each once.
    pub shares: Vec<Share>,
}

impl Route {
    /// The generation since which all revisions with a weight have had theirs: with which the candidate's left zero.
    pub fn since(&self) -> i64 {
        let weighted = self.shares.iter().filter(|share| share.weight > 0);
        weighted.map(|share| share.since).max().unwrap_or(0)
    }
}

/// Why a conversation had to leave its revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MoveReason {
    /// The revision is in the route and keeps none: an abort.
    Withdrawn,
    /// The revision is not in the route any more.
    Gone,
    /// The revision serves again, but the conversation was of an earlier attempt.
    EarlierAttempt,
}

impl MoveReason {
    /// A stable word for metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Withdrawn => "withdrawn",
            Self::Gone => "gone",
            Self::EarlierAttempt => "earlier_attempt",
        }
    }
}

/// The revision for a new conversation among (name, weight); none when no weight is above 0.
///
/// Takes about 0.1 µs per revision and allocates nothing.
pub fn choose<'a>(key: SessionKey, shares: impl IntoIterator<Item = (&'a str, u32)>) -> Option<&'a str> {
    shares
        .into_iter()
        .filter(|(_, weight)| *weight > 0)
        .map(|(name, weight)| {
            let draw = Stream::new(key.bits(), name_bits(name)).exponential(0) / f64::from(weight);
            (draw, name)
        })
        .min_by(|(one, a), (other, b)| one.total_cmp(other).then_with(|| a.cmp(b)))
        .map(|(_, name)| name)
}

/// FNV-1a: names come from the operator, not from clients, and [`Stream`] mixes the result.
fn name_bits(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |bits, byte| {
        (bits ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The assignment epoch for statistics: `assigned` itself for conversations assigned at or after `since` (the generation at
/// which the candidate's weight left zero), else `since - 1`. So a release has as many epochs as it had changes of weight, and
/// one more, whatever the ages of the conversations; those from `since` on are evidence, on both arms.
pub fn evidence_epoch(assigned: i64, since: i64) -> i64 {
    assigned.max(since.saturating_sub(1))
}

/// A revision in a table: small, and valid while the table has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct RevisionId(u32);

#[derive(Debug)]
struct Slot {
    name: Arc<str>,
    entries: u32,
    /// Conversations assigned since [`Revisions::since`].
    assigned: u64,
    weight: u32,
    kept: bool,
    listed: bool,
    floor: i64,
}

/// All revisions that a shard knows: names, what the route says of each, and how many entries it has.
#[derive(Debug)]
pub(super) struct Revisions {
    generation: i64,
    /// The newest `since` of the route.
    since: i64,
    floors_version: u64,
    slots: Vec<Slot>,
}

impl Default for Revisions {
    fn default() -> Self {
        Self {
            generation: -1,
            since: 0,
            floors_version: 0,
            slots: Vec::new(),
        }
    }
}

impl Revisions {
    pub fn generation(&self) -> i64 {
        self.generation
    }

    /// Counts the changes of any floor.
    pub fn floors_version(&self) -> u64 {
        self.floors_version
    }

    /// All floors that exist.
    pub fn floors(&self) -> impl Iterator<Item = (&Arc<str>, i64)> {
        let raised = self.slots.iter().filter(|slot| slot.floor > i64::MIN);
        raised.map(|slot| (&slot.name, slot.floor))
    }

    /// Takes over `route`. True when some entries may have died by it.
    ///
    /// A generation below the present one means that the status was lost and is being rebuilt: then floors mean nothing
    /// any more and are forgotten.
    pub fn apply(&mut self, route: &Route) -> bool {
        if route.generation < self.generation {
            self.slots.iter_mut().for_each(|slot| slot.floor = i64::MIN);
        }
        self.generation = route.generation;
        let since = route.since();
        if std::mem::replace(&mut self.since, since) != since {
            self.slots.iter_mut().for_each(|slot| slot.assigned = 0);
        }
        let before: Vec<bool> = self.slots.iter().map(|slot| slot.kept).collect();
        for slot in &mut self.slots {
            (slot.weight, slot.kept, slot.listed) = (0, false, false);
        }
        let mut changed = false;
        for share in &route.shares {
            let id = self.intern(&share.revision);
            let slot = &mut self.slots[id.0 as usize];
            slot.weight = share.weight;
            slot.kept = share.keeps || share.weight > 0;
            slot.listed = true;
            if share.since > slot.floor.max(0) {
                slot.floor = share.since;
                changed = true;
            }
        }
        for (index, slot) in self.slots.iter_mut().enumerate() {
            let was_kept = before.get(index).copied().unwrap_or(false) || slot.entries > 0;
            if !slot.kept && was_kept && slot.floor < route.generation {
                slot.floor = route.generation;
                changed = true;
            }
        }
        self.floors_version += u64::from(changed);
        changed
    }

    /// Entries of `name` from before `floor` are dead. True when that is news.
    pub fn raise_floor(&mut self, name: &str, floor: i64) -> bool {
        let id = self.intern(name);
        let slot = &mut self.slots[id.0 as usize];
        let news = floor > slot.floor;
        if news {
            slot.floor = floor;
            self.floors_version += 1;
        }
        news
    }

    pub fn intern(&mut self, name: &str) -> RevisionId {
        if let Some(id) = self.find(name) {
            return id;
        }
        let unused = |slot: &Slot| slot.entries == 0 && !slot.listed;
        let slot = Slot {
            name: name.into(),
            entries: 0,
            assigned: 0,
            weight: 0,
            kept: false,
            listed: false,
            floor: i64::MIN,
        };
        let oldest = self
            .slots
            .iter()
            .enumerate()
            .filter(|(_, slot)| unused(slot))
            .min_by_key(|(_, slot)| slot.floor)
            .map(|(index, _)| index);
        match oldest {
            Some(index) if self.slots.iter().filter(|slot| unused(slot)).count() >= REMEMBERED => {
                self.slots[index] = slot;
                RevisionId(index as u32)
            }
            _ => {
                self.slots.push(slot);
                RevisionId((self.slots.len() - 1) as u32)
            }
        }
    }

    fn find(&self, name: &str) -> Option<RevisionId> {
        let index = self.slots.iter().position(|slot| &*slot.name == name)?;
        Some(RevisionId(index as u32))
    }

    fn slot(&self, id: RevisionId) -> Option<&Slot> {
        self.slots.get(id.0 as usize)
    }

    pub fn name(&self, id: RevisionId) -> Arc<str> {
        self.slot(id)
            .map_or_else(|| Arc::from(""), |slot| slot.name.clone())
    }

    /// Entries of the revision called `name`.
    pub fn entries(&self, name: &str) -> u32 {
        self.find(name)
            .and_then(|id| self.slot(id))
            .map_or(0, |slot| slot.entries)
    }

    /// See [`super::Shard::assigned`].
    pub fn assigned(&self, name: &str) -> u64 {
        self.find(name)
            .and_then(|id| self.slot(id))
            .map_or(0, |slot| slot.assigned)
    }

    pub fn count_assigned(&mut self, name: &str, epoch: i64) {
        if epoch >= self.since {
            let id = self.intern(name);
            self.slots[id.0 as usize].assigned += 1;
        }
    }

    pub fn count(&mut self, id: RevisionId, change: i32) {
        if let Some(slot) = self.slots.get_mut(id.0 as usize) {
            slot.entries = slot.entries.saturating_add_signed(change);
        }
    }

    /// Whether a conversation assigned to this revision under `epoch` stays. What was assigned under a newer generation than
    /// the one known here stays too: whoever assigned it knows more.
    pub fn keeps(&self, id: RevisionId, epoch: i64) -> bool {
        self.slot(id)
            .is_some_and(|slot| epoch >= slot.floor && (slot.kept || epoch > self.generation))
    }

    /// [`Revisions::keeps`] by name, also for a revision that is not known here.
    pub fn keeps_name(&self, name: &str, epoch: i64) -> bool {
        match self.find(name) {
            Some(id) => self.keeps(id, epoch),
            None => epoch > self.generation,
        }
    }

    /// Why an entry that is not kept has to move.
    pub fn reason(&self, id: RevisionId) -> MoveReason {
        match self.slot(id) {
            // Others know of a later generation that withdrew it.
            Some(slot) if slot.floor > self.generation => MoveReason::Withdrawn,
            Some(slot) if slot.kept => MoveReason::EarlierAttempt,
            Some(slot) if slot.listed => MoveReason::Withdrawn,
            _ => MoveReason::Gone,
        }
    }

    /// The revision for `key`: by weight, or where no weight is left that is not dead, any that keeps its conversations.
    pub fn choose(&self, key: SessionKey) -> Option<Arc<str>> {
        let usable = || {
            self.slots
                .iter()
                .filter(|slot| slot.kept && slot.floor <= self.generation)
        };
        let weighted = choose(key, usable().map(|slot| (&*slot.name, slot.weight)));
        weighted
            .or_else(|| choose(key, usable().map(|slot| (&*slot.name, 1))))
            .map(Arc::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn keys(n: u64) -> impl Iterator<Item = SessionKey> {
        let stream = Stream::new(3, 9);
        (0..n).map(move |i| SessionKey::from_random(stream.at(2 * i), stream.at(2 * i + 1)))
    }

    fn share(revision: &str, weight: u32, keeps: bool) -> Share {
        Share {
            revision: revision.into(),
            weight,
            keeps,
            since: 0,
        }
    }

    fn route(generation: i64, shares: &[(&str, u32, bool)]) -> Route {
        let shares = shares
            .iter()
            .map(|(name, weight, keeps)| share(name, *weight, *keeps))
            .collect();
        Route { generation, shares }
    }

    #[test]
    fn shares_are_the_weights() {
        for weights in [[99u32, 1], [90, 10], [75, 25], [50, 50], [0, 100]] {
            let n = 100_000;
            let candidate = keys(n)
                .filter(|key| choose(*key, [("a-1", weights[0]), ("a-2", weights[1])]) == Some("a-2"))
                .count() as f64;
            let expected = n as f64 * f64::from(weights[1]) / 100.0;
            let four_sigma = 4.0 * (expected * f64::from(weights[0]) / 100.0).sqrt() + 1e-9;
            assert!(
                (candidate - expected).abs() <= four_sigma,
                "{weights:?}: {candidate}"
            );
        }
        let key = SessionKey::from_random(1, 1);
        assert_eq!(choose(key, []), None);
        assert_eq!(choose(key, [("a", 0)]), None);
    }

    /// Who tries one candidate first is not who tried the last one.
    #[test]
    fn each_candidate_has_its_own_first_conversations() {
        let first = |candidate: &str| {
            let chosen = |key: &SessionKey| choose(*key, [("a-1", 90), (candidate, 10)]) == Some(candidate);
            keys(20_000)
                .filter(chosen)
                .collect::<std::collections::BTreeSet<_>>()
        };
        let (one, other) = (first("a-2"), first("a-3"));
        let both = one.intersection(&other).count() as f64 / one.len() as f64;
        // A little above the 10 % of independence: the draw of a-1 is the same in both races.
        assert!(both < 0.2, "{both}");
    }

    proptest! {
        #[test]
        fn raising_a_weight_moves_only_to_that_revision(
            weights in proptest::collection::vec(0u32..=100, 2..5),
            raised in 0usize..4,
            by in 1u32..100,
            seed in 0u64..1000,
        ) {
            let names = ["a-1", "a-2", "a-3", "a-4"];
            let raised = raised % weights.len();
            let mut after = weights.clone();
            after[raised] += by;
            for key in keys(300).map(|key| SessionKey::from_random(0, key.bits() ^ seed)) {
                let old = choose(key, names.into_iter().zip(weights.iter().copied()));
                let new = choose(key, names.into_iter().zip(after.iter().copied()));
                prop_assert!(old == new || new == Some(names[raised]));
                // Only the ratio counts.
                let scaled = choose(key, names.into_iter().zip(weights.iter().map(|weight| weight * 8)));
                prop_assert_eq!(old, scaled);
            }
        }
    }

    #[test]
    fn a_ladder_keeps_everybody_and_an_abort_nobody() {
        let mut revisions = Revisions::default();
        assert!(revisions.keeps_name("s", 0), "before any route");
        assert!(!revisions.apply(&route(1, &[("s", 100, true)])));
        for (generation, weight) in [(2, 1), (3, 10), (4, 25), (5, 50), (6, 100)] {
            assert!(!revisions.apply(&route(
                generation,
                &[("s", 100 - weight, true), ("c", weight, true)]
            )));
            assert!(revisions.keeps_name("s", 1) && revisions.keeps_name("c", 2));
        }
        assert!(revisions.apply(&route(7, &[("s", 100, true), ("c", 0, false)])));
        assert!(revisions.keeps_name("s", 1) && !revisions.keeps_name("c", 6));
        let id = revisions.intern("c");
        assert_eq!(revisions.reason(id), MoveReason::Withdrawn);
        // The next attempt serves, but not those of the first.
        assert!(!revisions.apply(&route(9, &[("s", 99, true), ("c", 1, true)])));
        assert!(revisions.keeps_name("c", 9) && !revisions.keeps_name("c", 6));
        assert_eq!(revisions.reason(id), MoveReason::EarlierAttempt);
        assert!(revisions.apply(&route(10, &[("s", 100, true)])));
        assert_eq!(revisions.reason(id), MoveReason::Gone);
    }

    #[test]
    fn floors_of_others_and_of_the_operator() {
        let mut revisions = Revisions::default();
        revisions.apply(&route(4, &[("s", 90, true), ("c", 10, true)]));
        // A peer has seen the abort already: nothing new goes there, although the weights here say so.
        assert!(
            revisions.raise_floor("c", 5) && !revisions.raise_floor("c", 5) && !revisions.raise_floor("c", 3)
        );
        assert!(keys(100).all(|key| revisions.choose(key).as_deref() == Some("s")));
        assert!(
            !revisions.keeps_name("c", 4) && revisions.keeps_name("c", 5),
            "assigned by one who knows more"
        );
        assert_eq!(
            revisions
                .floors()
                .map(|(name, floor)| (&**name, floor))
                .collect::<Vec<_>>(),
            [("c", 5)]
        );
        // Both generations in between were missed; the operator says when the present life began.
        let mut late = Revisions::default();
        late.apply(&route(4, &[("s", 90, true), ("c", 10, true)]));
        let mut retried = route(9, &[("s", 90, true), ("c", 10, true)]);
        retried.shares[1].since = 8;
        assert!(late.apply(&retried));
        assert!(!late.keeps_name("c", 4) && late.keeps_name("c", 8));
    }

    #[test]
    fn a_lost_status_makes_floors_void() {
        let mut revisions = Revisions::default();
        revisions.apply(&route(30, &[("s", 90, true), ("c", 10, true)]));
        revisions.apply(&route(31, &[("s", 100, true)]));
        assert!(!revisions.keeps_name("c", 30));
        revisions.apply(&route(2, &[("s", 90, true), ("c", 10, true)]));
        assert!(revisions.keeps_name("c", 2));
    }

    #[test]
    fn without_weight_one_that_keeps_is_chosen_and_else_none() {
        let mut revisions = Revisions::default();
        let key = SessionKey::from_random(1, 1);
        assert_eq!(revisions.choose(key), None);
        revisions.apply(&route(1, &[("s", 0, true), ("c", 0, false)]));
        assert_eq!(revisions.choose(key).as_deref(), Some("s"));
    }

    #[test]
    fn names_are_forgotten_but_for_those_in_use() {
        let mut revisions = Revisions::default();
        let used = revisions.intern("used");
        revisions.count(used, 1);
        for n in 0..1000 {
            revisions.raise_floor(&format!("r-{n}"), n);
        }
        assert!(
            revisions.slots.len() <= REMEMBERED + 2,
            "{}",
            revisions.slots.len()
        );
        assert_eq!(&*revisions.name(used), "used");
        assert_eq!(revisions.entries("used"), 1);
        assert!(revisions.floors().any(|(name, _)| &**name == "r-999"));
    }

    #[test]
    fn older_conversations_are_one_class() {
        for (assigned, since, epoch) in [
            (3, 7, 6),
            (6, 7, 6),
            (7, 7, 7),
            (9, 7, 9),
            (-1, 0, -1),
            (5, i64::MIN, 5),
        ] {
            assert_eq!(evidence_epoch(assigned, since), epoch, "{assigned} since {since}");
        }
    }
}
