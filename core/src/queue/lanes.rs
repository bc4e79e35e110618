//! Tenants and their lanes, the rings in which lanes take turns, and who holds how much.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher};

use super::LEVELS;
use super::rate::Rate;
use super::slab::{List, NIL};

/// Whom a request is for: what fairness is between.
///
/// Only a hash is kept, so a tenant costs no memory beyond its lane, however long its name. Two tenants with one hash
/// would share a lane; with 64 bits and a secret key (`RandomState`) nobody can aim for that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tenant(u64);

impl Tenant {
    /// The tenant of all requests that name none.
    pub const ABSENT: Self = Self(0);

    /// The tenant with this name. Use one `hasher`, with a random key, for the life of a queue.
    pub fn named(name: &[u8], hasher: &impl BuildHasher) -> Self {
        Self(hasher.hash_one(name).max(1))
    }
}

/// A tenant is a hash already.
#[derive(Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

/// What a lane has waiting at one level.
#[derive(Clone, Copy, Default)]
pub(super) struct Share {
    pub(super) entries: List,
    /// Sum of the entries' costs.
    pub(super) work: u64,
}

pub(super) struct Lane {
    tenant: Tenant,
    /// It belongs to one tenant and goes when that one waits no more.
    is_own: bool,
    /// Entries at all levels.
    count: u32,
    /// Neighbours among the lanes with the same count.
    peers: (u32, u32),
    pub(super) levels: [Share; LEVELS],
    /// Sum of the costs at all levels.
    pub(super) work: u64,
    /// What it may still spend. Negative after its entries were let past a larger one.
    pub(super) deficit: i64,
    /// How fast it is served while it has something waiting.
    pub(super) rate: Rate,
    /// The round in which it was last given its quantum.
    pub(super) granted: u64,
    /// The ring it is in; none while it has no entry.
    ring: Option<(usize, usize)>,
    /// Neighbours in the ring.
    previous: u32,
    next: u32,
}

impl Lane {
    fn new(tenant: Tenant, is_own: bool) -> Self {
        Self {
            tenant,
            is_own,
            count: 0,
            peers: (NIL, NIL),
            levels: [Share::default(); LEVELS],
            work: 0,
            deficit: 0,
            rate: Rate::new(1, 0),
            granted: 0,
            ring: None,
            previous: NIL,
            next: NIL,
        }
    }

    /// The highest level at which it has an entry.
    fn top(&self) -> Option<usize> {
        (0..LEVELS)
            .rev()
            .find(|level| !self.levels[*level].entries.is_empty())
    }

    /// The lowest level at which it has an entry.
    pub(super) fn lowest(&self) -> Option<usize> {
        (0..LEVELS).find(|level| !self.levels[*level].entries.is_empty())
    }

    /// Its entry to be served next.
    pub(super) fn head(&self) -> Option<u32> {
        Some(self.levels[self.top()?].entries.head)
    }
}

/// Lanes that wait for their turn: in this round and in the next one, by the level of their next entry.
pub(super) struct Rounds {
    /// Their fronts, [`NIL`] where there is none.
    rings: [[u32; LEVELS]; 2],
    /// Which of the two sets is this round's.
    current: usize,
    /// The number of this round, from 1.
    pub(super) number: u64,
}

impl Rounds {
    pub(super) fn new() -> Self {
        Self {
            rings: [[NIL; LEVELS]; 2],
            current: 0,
            number: 1,
        }
    }

    /// The lane whose turn it is in this round.
    pub(super) fn front(&self) -> Option<u32> {
        self.rings[self.current]
            .into_iter()
            .rev()
            .find(|front| *front != NIL)
    }

    /// The fronts of all rings in the order of their turns.
    pub(super) fn fronts(&self) -> impl Iterator<Item = u32> {
        let [this, next] = [self.current, 1 - self.current].map(|set| self.rings[set].into_iter().rev());
        this.chain(next).filter(|front| *front != NIL)
    }

    /// Goes on to the next round when nobody is left in this one; false when nobody waits at all.
    pub(super) fn begin_next(&mut self) -> bool {
        self.current = 1 - self.current;
        self.number += 1;
        self.front().is_some()
    }

    /// Ends the lane's turn: it comes again in the next round.
    pub(super) fn defer(&mut self, lanes: &mut Lanes, lane: u32) {
        if let Some((_, level)) = lanes.lane(lane).ring {
            self.leave(lanes, lane);
            self.enter(lanes, lane, 1 - self.current, level);
        }
    }

    /// Puts the lane where its next entry belongs. One that had none comes in the next round, so that nobody gets two
    /// turns in a round by coming and going.
    pub(super) fn settle(&mut self, lanes: &mut Lanes, lane: u32) {
        let Lane { ring, .. } = *lanes.lane(lane);
        match (ring, lanes.lane(lane).top()) {
            (Some((_, old)), Some(level)) if old == level => {}
            (Some((set, _)), Some(level)) => {
                self.leave(lanes, lane);
                self.enter(lanes, lane, set, level);
            }
            (None, Some(level)) => {
                let this = lanes.lane_mut(lane);
                (this.deficit, this.granted) = (0, 0);
                self.enter(lanes, lane, 1 - self.current, level);
            }
            (Some(_), None) => self.leave(lanes, lane),
            (None, None) => {}
        }
    }

    fn enter(&mut self, lanes: &mut Lanes, lane: u32, set: usize, level: usize) {
        let front = &mut self.rings[set][level];
        if *front == NIL {
            *front = lane;
            lanes.link(lane, lane);
        } else {
            let last = lanes.lane(*front).previous;
            lanes.link(last, lane);
            lanes.link(lane, *front);
        }
        lanes.lane_mut(lane).ring = Some((set, level));
    }

    fn leave(&mut self, lanes: &mut Lanes, lane: u32) {
        let Lane { previous, next, .. } = *lanes.lane(lane);
        if let Some((set, level)) = lanes.lane_mut(lane).ring.take() {
            let front = &mut self.rings[set][level];
            if *front == lane {
                *front = if next == lane { NIL } else { next };
            }
            lanes.link(previous, next);
        }
    }
}

/// All lanes. Lane 0 is that of [`Tenant::ABSENT`], then come the shared ones, then those that belong to one tenant.
pub(super) struct Lanes {
    lanes: Vec<Lane>,
    own: HashMap<Tenant, u32, BuildHasherDefault<AsIs>>,
    max_own: usize,
    shared: u64,
    free: Vec<u32>,
    /// By count, a lane with so many entries; its `peers` chain the others.
    by_count: Vec<u32>,
    max_count: u32,
    /// Lanes with an entry.
    pub(super) active: usize,
}

impl Lanes {
    /// At most `max_own` tenants have a lane to themselves at a time; further ones share `shared`.
    pub(super) fn new(max_own: usize, shared: usize) -> Self {
        let shared = shared.max(1);
        Self {
            lanes: (0..=shared).map(|_| Lane::new(Tenant::ABSENT, false)).collect(),
            own: HashMap::default(),
            max_own,
            shared: shared as u64,
            free: Vec::new(),
            by_count: Vec::new(),
            max_count: 0,
            active: 0,
        }
    }

    /// Where this tenant's entries go; none while it would get a lane of its own and has none yet.
    pub(super) fn find(&self, tenant: Tenant) -> Option<u32> {
        if tenant == Tenant::ABSENT {
            return Some(0);
        }
        if let Some(lane) = self.own.get(&tenant) {
            return Some(*lane);
        }
        let shared = ((u128::from(tenant.0) * u128::from(self.shared)) >> 64) as u32;
        (self.own.len() >= self.max_own).then_some(1 + shared)
    }

    /// The same, with a lane made where there is none.
    pub(super) fn find_or_open(&mut self, tenant: Tenant) -> u32 {
        if let Some(lane) = self.find(tenant) {
            return lane;
        }
        let opened = Lane::new(tenant, true);
        let lane = match self.free.pop() {
            Some(lane) => {
                self.lanes[lane as usize] = opened;
                lane
            }
            None => {
                self.lanes.push(opened);
                self.lanes.len() as u32 - 1
            }
        };
        self.own.insert(tenant, lane);
        lane
    }

    pub(super) fn lane(&self, lane: u32) -> &Lane {
        &self.lanes[lane as usize]
    }

    pub(super) fn lane_mut(&mut self, lane: u32) -> &mut Lane {
        &mut self.lanes[lane as usize]
    }

    /// The lane after this one in its ring.
    pub(super) fn next(&self, lane: u32) -> u32 {
        self.lane(lane).next
    }

    fn link(&mut self, before: u32, after: u32) {
        self.lane_mut(before).next = after;
        self.lane_mut(after).previous = before;
    }

    pub(super) fn count(&self, lane: u32) -> u32 {
        self.lanes[lane as usize].count
    }

    /// A lane with the most entries and how many; none while there is no entry.
    pub(super) fn fullest(&self) -> Option<(u32, u32)> {
        let lane = *self.by_count.get(self.max_count as usize)?;
        (lane != NIL && self.max_count > 0).then_some((lane, self.max_count))
    }

    pub(super) fn one_more(&mut self, lane: u32) {
        let count = self.count(lane);
        if count == 0 {
            self.active += 1;
        } else {
            self.forget_count(lane);
        }
        self.record_count(lane, count + 1);
    }

    /// Closes the lane with its last entry.
    pub(super) fn one_less(&mut self, lane: u32) {
        self.forget_count(lane);
        let count = self.count(lane) - 1;
        if count > 0 {
            self.record_count(lane, count);
        } else {
            self.lanes[lane as usize].count = 0;
            self.active -= 1;
            if self.lanes[lane as usize].is_own {
                self.own.remove(&self.lanes[lane as usize].tenant);
                self.free.push(lane);
            }
        }
        // Counts change by one, so the new maximum is at most one below the old one.
        if self.max_count > 0 && self.by_count[self.max_count as usize] == NIL {
            self.max_count -= 1;
        }
    }

    fn record_count(&mut self, lane: u32, count: u32) {
        if self.by_count.len() <= count as usize {
            self.by_count.resize(count as usize + 1, NIL);
        }
        let first = std::mem::replace(&mut self.by_count[count as usize], lane);
        if first != NIL {
            self.lanes[first as usize].peers.0 = lane;
        }
        let this = &mut self.lanes[lane as usize];
        this.count = count;
        this.peers = (NIL, first);
        self.max_count = self.max_count.max(count);
    }

    fn forget_count(&mut self, lane: u32) {
        let this = &self.lanes[lane as usize];
        let (previous, next) = this.peers;
        match previous {
            NIL => self.by_count[this.count as usize] = next,
            _ => self.lanes[previous as usize].peers.1 = next,
        }
        if next != NIL {
            self.lanes[next as usize].peers.0 = previous;
        }
    }
}

/// How much the lanes have waiting, by powers of two, for predictions in constant time.
pub(super) struct Backlog {
    lanes: [u32; 64],
    work: [u64; 64],
    /// Bit `b`: a lane has between `2^b` and `2^(b+1) - 1` waiting.
    used: u64,
}

impl Default for Backlog {
    fn default() -> Self {
        Self {
            lanes: [0; 64],
            work: [0; 64],
            used: 0,
        }
    }
}

impl Backlog {
    /// A lane's backlog has changed.
    pub(super) fn change(&mut self, before: u64, after: u64) {
        if let Some(bucket) = before.checked_ilog2() {
            let bucket = bucket as usize;
            self.lanes[bucket] -= 1;
            self.work[bucket] -= before;
            if self.lanes[bucket] == 0 {
                self.used &= !(1 << bucket);
            }
        }
        if let Some(bucket) = after.checked_ilog2() {
            let bucket = bucket as usize;
            self.lanes[bucket] += 1;
            self.work[bucket] += after;
            self.used |= 1 << bucket;
        }
    }

    /// What the lanes get served while one of them gets `turn` served: the sum over them of the smaller of their backlog
    /// and `turn`. Never too small; too large by less than a factor of two, and that only for the lanes whose backlog is
    /// within a factor of two of `turn`.
    pub(super) fn served_alongside(&self, turn: u64) -> u64 {
        let own = turn.checked_ilog2().unwrap_or(0);
        let mut sum = 0u64;
        let mut rest = self.used;
        while rest != 0 {
            let bucket = rest.trailing_zeros();
            rest &= rest - 1;
            let (lanes, work) = (self.lanes[bucket as usize], self.work[bucket as usize]);
            let turns = u64::from(lanes).saturating_mul(turn);
            sum = sum.saturating_add(match bucket.cmp(&own) {
                std::cmp::Ordering::Less => work,
                std::cmp::Ordering::Equal => work.min(turns),
                std::cmp::Ordering::Greater => turns,
            });
        }
        sum
    }
}
