//! A bounded table of sessions.
//!
//! Entries lie in a slab, threaded by two lists in the order of use: those that this gateway is a home of, and
//! those it only remembers from asking. Lookup, use, insertion and removal are O(1). When the table is full, one that has been idle too
//! long goes first; then the least recently used of the remembered ones, which costs a question when it is needed again; then the least
//! recently used of its own.
//!
//! # Memory
//!
//! At most 144 bytes per entry in the slab, and a bucket of 24 bytes and a byte of control at a load between 7/16 and 7/8 in the
//! index: at most 200 bytes per entry, 13 MB for 65,536 (a slab that is just growing holds its old copy too). Nothing is
//! allocated before it is needed, and lookups allocate nothing.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;

use super::key::SessionKey;
use super::members::{MemberId, mix};
use super::route::{RevisionId, Revisions};
use super::wire::Record;

/// The end of a list.
const END: u32 = u32::MAX;
/// The share of the table that remembered entries keep when it is full: one in this many.
const REMEMBERED_SHARE: usize = 8;

/// An agent's address in 18 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Replica {
    ip: [u8; 16],
    port: NonZeroU16,
}

impl Replica {
    /// None for port 0, which no replica has.
    pub fn new(address: SocketAddr) -> Option<Self> {
        let ip = match address.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        Some(Self {
            ip: ip.octets(),
            port: NonZeroU16::new(address.port())?,
        })
    }

    pub fn address(self) -> SocketAddr {
        SocketAddr::new(Ipv6Addr::from(self.ip).to_canonical(), self.port.get())
    }
}

/// One session.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub key: SessionKey,
    /// The conversation; `key` itself unless this is one of its tasks.
    pub root: SessionKey,
    pub revision: RevisionId,
    pub number: u32,
    pub epoch: i64,
    pub replica: Option<Replica>,
    /// Others that have it with this number.
    pub holders: [Option<MemberId>; 2],
    /// Last use, in milliseconds.
    pub used: u64,
    /// When the homes were last told that it is in use, in milliseconds.
    pub announced: u64,
    /// This gateway is one of its homes.
    pub home: bool,
    /// Enough others have it; the first byte may go out.
    pub safe: bool,
    previous: u32,
    next: u32,
}

impl Entry {
    pub fn is_held_by(&self, member: MemberId) -> bool {
        self.holders.contains(&Some(member))
    }
}

/// What became of a record that was merged into a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Merged {
    /// It is in the table now.
    Taken,
    /// It was there already.
    Same,
    /// What is there is better.
    Kept,
    /// It is dead or too old, and nothing better is there.
    Refused,
}

/// Why entries went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Not used for too long.
    pub idle: u64,
    /// The table was full: entries this gateway had only asked for.
    pub remembered: u64,
    /// The table was full: entries this gateway is a home of.
    pub homes: u64,
}

#[derive(Clone, Copy, Debug)]
struct List {
    head: u32,
    tail: u32,
    length: usize,
}

impl Default for List {
    fn default() -> Self {
        Self {
            head: END,
            tail: END,
            length: 0,
        }
    }
}

/// Keys are parts of a SHA-256, but clients may choose what is hashed and so aim at one bucket; a seed that they do not
/// know spoils that.
#[derive(Clone, Copy, Debug)]
struct Seed(u64);

struct KeyHasher(u64);

impl BuildHasher for Seed {
    type Hasher = KeyHasher;

    fn build_hasher(&self) -> KeyHasher {
        KeyHasher(self.0)
    }
}

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, bits: u64) {
        self.0 = mix(self.0 ^ bits);
    }
}

/// Sessions of one shard.
#[derive(Debug)]
pub(super) struct Table {
    max_entries: usize,
    idle: u64,
    index: HashMap<SessionKey, u32, Seed>,
    slots: Vec<Option<Entry>>,
    free: Vec<u32>,
    homes: List,
    remembered: List,
    pub revisions: Revisions,
    pub removed: Removed,
}

impl Table {
    /// At most `max_entries`, forgotten `idle` milliseconds after their last use.
    pub fn new(max_entries: usize, idle: u64, seed: u64) -> Self {
        Self {
            max_entries: max_entries.clamp(1, END as usize),
            idle: idle.max(1),
            index: HashMap::with_hasher(Seed(seed)),
            slots: Vec::new(),
            free: Vec::new(),
            homes: List::default(),
            remembered: List::default(),
            revisions: Revisions::default(),
            removed: Removed::default(),
        }
    }

    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Entries that this gateway is a home of.
    pub fn homes(&self) -> usize {
        self.homes.length
    }

    pub fn idle(&self) -> u64 {
        self.idle
    }

    pub fn set_idle(&mut self, idle: u64) {
        self.idle = idle.max(1);
    }

    /// Slots, taken or not: the end of a walk by [`Table::at`].
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// The entry in a slot.
    pub fn at(&self, slot: usize) -> Option<&Entry> {
        self.slots.get(slot)?.as_ref()
    }

    /// The entry, alive or not.
    pub fn get(&self, key: SessionKey) -> Option<&Entry> {
        self.at(*self.index.get(&key)? as usize)
    }

    pub fn get_mut(&mut self, key: SessionKey) -> Option<&mut Entry> {
        self.slots.get_mut(*self.index.get(&key)? as usize)?.as_mut()
    }

    /// Whether an entry's revision serves it and it has been used lately enough. Homes learn of uses elsewhere only every quarter of
    /// the idle time, so that much is added.
    pub fn is_alive(&self, entry: &Entry, now: u64) -> bool {
        !self.is_idle(entry.used, now) && self.revisions.keeps(entry.revision, entry.epoch)
    }

    fn is_idle(&self, used: u64, now: u64) -> bool {
        now.saturating_sub(used) > self.idle + self.idle / 4
    }

    /// The entry if it is alive.
    pub fn alive(&self, key: SessionKey, now: u64) -> Option<&Entry> {
        self.get(key).filter(|entry| self.is_alive(entry, now))
    }

    /// The entry if it is alive, which is used now.
    pub fn touch(&mut self, key: SessionKey, now: u64) -> Option<&mut Entry> {
        let slot = *self.index.get(&key)?;
        let entry = self.slots.get(slot as usize)?.as_ref()?;
        if !self.is_alive(entry, now) {
            return None;
        }
        let home = entry.home;
        self.unlink(slot);
        self.link(slot, home);
        let entry = self.entry_mut(slot);
        entry.used = entry.used.max(now);
        Some(entry)
    }

    /// The entry as it travels.
    pub fn record(&self, entry: &Entry, now: u64) -> Record {
        Record {
            key: entry.key,
            root: (entry.root != entry.key).then_some(entry.root),
            revision: Box::from(&*self.revisions.name(entry.revision)),
            replica: entry.replica.map(Replica::address),
            epoch: entry.epoch,
            number: entry.number,
            age: now.saturating_sub(entry.used),
        }
    }

    /// Puts `record` in the place of whatever is there, as an entry that nobody else has.
    pub fn put(&mut self, record: &Record, home: bool, now: u64) -> &mut Entry {
        let revision = self.revisions.intern(&record.revision);
        let used = now.saturating_sub(record.age);
        let slot = match self.index.get(&record.key) {
            Some(slot) => *slot,
            None => self.insert(record.key, revision, home, now),
        };
        let old = self.entry_mut(slot).revision;
        if old != revision {
            self.revisions.count(old, -1);
            self.revisions.count(revision, 1);
        }
        self.unlink(slot);
        let entry = self.entry_mut(slot);
        let used = used.max(entry.used);
        *entry = Entry {
            key: record.key,
            root: record.root(),
            revision,
            number: record.number,
            epoch: record.epoch,
            replica: record.replica.and_then(Replica::new),
            holders: [None; 2],
            used,
            announced: now,
            home,
            safe: false,
            previous: END,
            next: END,
        };
        self.link(slot, home);
        self.entry_mut(slot)
    }

    /// Merges what another gateway has. All gateways prefer alike (see [`precedes`]) among what is alive, so that they end
    /// up with the same entry whatever the order of messages.
    pub fn merge(&mut self, record: &Record, home: bool, now: u64) -> Merged {
        let dead = self.is_idle(now.saturating_sub(record.age), now)
            || !self.revisions.keeps_name(&record.revision, record.epoch);
        let Some(entry) = self.alive(record.key, now) else {
            if dead {
                return Merged::Refused;
            }
            self.put(record, home, now);
            return Merged::Taken;
        };
        if dead {
            return Merged::Kept;
        }
        let own = self.record(entry, now);
        if precedes(record, &own) {
            self.put(record, home, now);
            return Merged::Taken;
        }
        if precedes(&own, record) {
            return Merged::Kept;
        }
        if let Some(entry) = self.get_mut(record.key) {
            entry.used = entry.used.max(now.saturating_sub(record.age));
        }
        Merged::Same
    }

    /// Moves the entry to the other list where that is due.
    pub fn set_home(&mut self, key: SessionKey, home: bool) {
        let Some(slot) = self.index.get(&key).copied() else {
            return;
        };
        if self.entry_mut(slot).home != home {
            self.unlink(slot);
            self.entry_mut(slot).home = home;
            self.link(slot, home);
        }
    }

    pub fn remove(&mut self, key: SessionKey) {
        if let Some(slot) = self.index.remove(&key) {
            self.unlink(slot);
            let revision = self.entry_mut(slot).revision;
            self.revisions.count(revision, -1);
            if let Some(place) = self.slots.get_mut(slot as usize) {
                *place = None;
            }
            self.free.push(slot);
        }
    }

    /// Generations count from `generation` again, because the status was lost: nothing was assigned under a later one.
    pub fn rebase(&mut self, generation: i64) {
        for entry in self.slots.iter_mut().flatten() {
            entry.epoch = entry.epoch.min(generation);
        }
    }

    /// Forgets at most `budget` entries that have been idle too long.
    pub fn expire(&mut self, now: u64, budget: usize) {
        for _ in 0..budget {
            let Some(key) = self.idle_tail(now) else { return };
            self.removed.idle += 1;
            self.remove(key);
        }
    }

    fn idle_tail(&self, now: u64) -> Option<SessionKey> {
        [self.remembered.tail, self.homes.tail]
            .into_iter()
            .filter_map(|tail| self.at(tail as usize))
            .find(|entry| self.is_idle(entry.used, now))
            .map(|entry| entry.key)
    }

    fn insert(&mut self, key: SessionKey, revision: RevisionId, home: bool, now: u64) -> u32 {
        while self.index.len() >= self.max_entries {
            self.evict(now);
        }
        let entry = Entry {
            key,
            root: key,
            revision,
            number: 0,
            epoch: 0,
            replica: None,
            holders: [None; 2],
            used: 0,
            announced: now,
            home,
            safe: false,
            previous: END,
            next: END,
        };
        let slot = match self.free.pop() {
            Some(slot) => {
                if let Some(place) = self.slots.get_mut(slot as usize) {
                    *place = Some(entry);
                }
                slot
            }
            None => {
                self.slots.push(Some(entry));
                (self.slots.len() - 1) as u32
            }
        };
        self.index.insert(key, slot);
        self.revisions.count(revision, 1);
        self.link(slot, home);
        slot
    }

    fn evict(&mut self, now: u64) {
        if let Some(key) = self.idle_tail(now) {
            self.removed.idle += 1;
            return self.remove(key);
        }
        let spare = self.remembered.length > self.max_entries / REMEMBERED_SHARE || self.homes.length == 0;
        let (tail, removed) = if spare {
            (self.remembered.tail, &mut self.removed.remembered)
        } else {
            (self.homes.tail, &mut self.removed.homes)
        };
        *removed += 1;
        let key = self.entry_mut(tail).key;
        self.remove(key);
    }

    fn entry_mut(&mut self, slot: u32) -> &mut Entry {
        self.slots
            .get_mut(slot as usize)
            .and_then(Option::as_mut)
            .expect("a slot that is linked or indexed is taken")
    }

    fn list_mut(&mut self, home: bool) -> &mut List {
        if home {
            &mut self.homes
        } else {
            &mut self.remembered
        }
    }

    fn link(&mut self, slot: u32, home: bool) {
        let head = self.list_mut(home).head;
        let entry = self.entry_mut(slot);
        (entry.previous, entry.next) = (END, head);
        if head != END {
            self.entry_mut(head).previous = slot;
        }
        let list = self.list_mut(home);
        list.head = slot;
        list.length += 1;
        if list.tail == END {
            list.tail = slot;
        }
    }

    fn unlink(&mut self, slot: u32) {
        let entry = self.entry_mut(slot);
        let (previous, next, home) = (entry.previous, entry.next, entry.home);
        if previous != END {
            self.entry_mut(previous).next = next;
        }
        if next != END {
            self.entry_mut(next).previous = previous;
        }
        let list = self.list_mut(home);
        list.length -= 1;
        if list.head == slot {
            list.head = next;
        }
        if list.tail == slot {
            list.tail = previous;
        }
    }
}

/// Whether `one` is to be preferred to `other`: the later move; of the same number the one assigned under the older
/// generation, who was there first; and then by name, so that every gateway prefers the same.
pub(super) fn precedes(one: &Record, other: &Record) -> bool {
    let order = |record: &Record| (std::cmp::Reverse(record.number), record.epoch);
    (order(one), &one.revision, one.replica) < (order(other), &other.revision, other.replica)
}

#[cfg(test)]
mod tests;
