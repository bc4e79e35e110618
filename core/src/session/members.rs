//! Who the gateways are, and which two of them keep a conversation.
//!
//! Rendezvous hashing (Thaler, Ravishankar: "Using name-based mappings to increase hit rates", IEEE/ACM Transactions on
//! Networking 1998): every gateway scores every key, the highest score is the first home and the next one the second.
//! A gateway that joins takes over only keys for which it scores highest, one that goes gives up only its own, and then the
//! second home *is* the new first one, so the copy is where everybody looks next. A ring of virtual nodes does the same
//! with more memory and worse balance at this number of members.

use std::fmt;
use std::num::NonZeroU64;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::key::{SessionKey, first_eight};

/// One gateway process: the hash of its instance id. A restarted process has another one, because its memory is empty.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MemberId(NonZeroU64);

impl fmt::Debug for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl MemberId {
    /// The member with this instance id (as in `/stats`).
    pub fn of(instance: &str) -> Self {
        let bits = first_eight(&Sha256::digest(instance));
        Self(NonZeroU64::new(bits).unwrap_or(NonZeroU64::MIN))
    }

    /// How much this member wants `key`: uniform over all 64 bits, independent between members.
    fn score(self, key: SessionKey) -> u64 {
        mix(mix(self.0.get() ^ key.bits()).wrapping_add(key.bits().rotate_left(32)))
    }
}

/// The finaliser of SplitMix64: every input bit changes every output bit with probability ½.
pub(super) fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The homes of one key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Homes {
    /// Who is asked; none when nobody is there.
    pub first: Option<MemberId>,
    /// Who has the copy; none with fewer than two members.
    pub second: Option<MemberId>,
}

impl Homes {
    /// Whether `member` is one of them.
    pub fn contains(&self, member: MemberId) -> bool {
        self.iter().any(|home| home == member)
    }

    /// First, then second.
    pub fn iter(&self) -> impl Iterator<Item = MemberId> + use<> {
        self.first.into_iter().chain(self.second)
    }
}

/// The first and second home of `key` among `members`, each of which should be named once.
///
/// One pass, two multiplications per member, nothing allocated.
pub fn homes(members: impl IntoIterator<Item = MemberId>, key: SessionKey) -> Homes {
    let mut best: Option<(u64, MemberId)> = None;
    let mut next: Option<(u64, MemberId)> = None;
    for member in members {
        let scored = Some((member.score(key), member));
        if scored > best {
            (best, next) = (scored, best);
        } else if scored > next {
            next = scored;
        }
    }
    Homes {
        first: best.map(|(_, member)| member),
        second: next.map(|(_, member)| member),
    }
}

/// Whether `one` comes before `other` in the order of those who keep `key`.
pub(super) fn outranks(one: MemberId, other: MemberId, key: SessionKey) -> bool {
    (one.score(key), one) > (other.score(key), other)
}

/// Who is there, as one gateway sees it. Gateways learn of changes at different times, so a view has a name that all who
/// see the same members agree on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    id: u64,
    members: Box<[MemberId]>,
}

impl View {
    /// The view of these members; order and repetition do not matter.
    pub fn new(members: impl IntoIterator<Item = MemberId>) -> Self {
        let mut members: Vec<MemberId> = members.into_iter().collect();
        members.sort_unstable();
        members.dedup();
        let id = members
            .iter()
            .fold(members.len() as u64, |id, member| mix(id ^ member.0.get()));
        Self {
            id,
            members: members.into(),
        }
    }

    /// Equal for views of the same members, and for hardly any other.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// In the order of their ids.
    pub fn members(&self) -> &[MemberId] {
        &self.members
    }

    /// Whether `member` is there.
    pub fn contains(&self, member: MemberId) -> bool {
        self.members.binary_search(&member).is_ok()
    }

    /// The homes of `key` in this view.
    pub fn homes(&self, key: SessionKey) -> Homes {
        homes(self.members.iter().copied(), key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::random::Stream;
    use proptest::prelude::*;

    fn member(n: usize) -> MemberId {
        MemberId::of(&format!("gateway-{n}"))
    }

    fn keys(n: u64) -> impl Iterator<Item = SessionKey> {
        let stream = Stream::new(5, 5);
        (0..n).map(move |i| SessionKey::from_random(stream.at(2 * i), stream.at(2 * i + 1)))
    }

    #[test]
    fn nobody_alone_and_two() {
        let key = SessionKey::from_random(1, 2);
        assert_eq!(homes([], key), Homes::default());
        let alone = homes([member(1)], key);
        assert_eq!((alone.first, alone.second), (Some(member(1)), None));
        let both = homes([member(1), member(2)], key);
        assert!(both.contains(member(1)) && both.contains(member(2)) && both.first != both.second);
        assert_eq!(homes([member(2), member(1)], key), both);
    }

    /// Each of N is first home, and second home, of 1/N of the keys.
    #[test]
    fn keys_are_spread_evenly() {
        for n in [2usize, 3, 5, 20] {
            let view = View::new((0..n).map(member));
            let mut counts = std::collections::BTreeMap::new();
            let total = 40_000;
            for key in keys(total) {
                let homes = view.homes(key);
                *counts.entry((homes.first, 1)).or_insert(0u64) += 1;
                *counts.entry((homes.second, 2)).or_insert(0u64) += 1;
            }
            let fair = total as f64 / n as f64;
            for (place, count) in counts {
                assert!(
                    (count as f64 / fair - 1.0).abs() < 0.12,
                    "{place:?} of {n}: {count}"
                );
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// One more member takes over only what it is a home of now, at most 2/(N+1) + 2 % of the keys, and who was home
        /// before and is pushed out was the second.
        #[test]
        fn joining_and_leaving_disturb_little(n in 1usize..8) {
            let before = View::new((0..n).map(member));
            let after = View::new((0..=n).map(member));
            let mut moved = 0u32;
            for key in keys(2000) {
                let (old, new) = (before.homes(key), after.homes(key));
                if old != new {
                    moved += 1;
                    prop_assert!(new.contains(member(n)));
                    prop_assert!(new.contains(old.first.unwrap()));
                    if new.first == Some(member(n)) {
                        prop_assert_eq!(new.second, old.first);
                    }
                    // The other way round: when that member goes, its key's next home had the copy.
                    let stays = new.iter().find(|home| *home != member(n));
                    prop_assert_eq!(stays, old.first);
                }
            }
            prop_assert!(f64::from(moved) / 2000.0 <= 2.0 / (n as f64 + 1.0) + 0.02);
        }

        #[test]
        fn the_order_is_that_of_the_homes(n in 2usize..8, high: u64, low: u64) {
            let key = SessionKey::from_random(high, low);
            let view = View::new((0..n).map(member));
            let homes = view.homes(key);
            prop_assert!(outranks(homes.first.unwrap(), homes.second.unwrap(), key));
            for other in view.members().iter().filter(|other| !homes.contains(**other)) {
                prop_assert!(outranks(homes.second.unwrap(), *other, key));
            }
        }
    }

    #[test]
    fn a_view_is_named_by_its_members() {
        let view = View::new([member(1), member(2), member(1)]);
        assert_eq!(view, View::new([member(2), member(1)]));
        assert_eq!(view.members().len(), 2);
        assert!(view.contains(member(1)) && !view.contains(member(3)));
        let names = [
            view.id(),
            View::new([member(1)]).id(),
            View::new([member(2)]).id(),
            View::new([]).id(),
        ];
        assert!((1..names.len()).all(|n| !names[..n].contains(&names[n])));
    }
}
