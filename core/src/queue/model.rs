//! The rules of the queue written down as plainly as possible, to compare the real one with.
//!
//! Vectors that are searched, nothing counted along, rounds taken one by one.

use super::{Class, LEVELS};

#[derive(Clone, Debug)]
pub(super) struct Waiting {
    pub(super) id: u32,
    pub(super) tenant: u64,
    pub(super) level: usize,
    pub(super) cost: u64,
    pub(super) deadline: u64,
    joined: u64,
    passed: u64,
}

struct Lane {
    tenant: u64,
    deficit: i64,
    granted: bool,
    is_next_round: bool,
    level: usize,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Popped {
    Entry(u32),
    Short(u64),
    Nobody,
}

pub(super) struct Model {
    quantum: i64,
    ageing: u64,
    /// In the order in which they joined their level.
    pub(super) waiting: Vec<Waiting>,
    /// Those of one round and level in the order of their turns.
    lanes: Vec<Lane>,
}

impl Model {
    pub(super) fn new(quantum: i64, ageing: u64) -> Self {
        Self {
            quantum,
            ageing,
            waiting: Vec::new(),
            lanes: Vec::new(),
        }
    }

    pub(super) fn advance(&mut self, now: u64) {
        loop {
            let due = self
                .waiting
                .iter()
                .filter(|entry| entry.level < LEVELS - 1)
                .map(|entry| (entry.joined + self.ageing, entry.id))
                .min_by_key(|(time, _)| *time);
            let Some((time, id)) = due.filter(|(time, _)| *time <= now) else {
                return;
            };
            let place = self.place(id).unwrap();
            let mut entry = self.waiting.remove(place);
            entry.level += 1;
            entry.joined = time;
            let tenant = entry.tenant;
            self.insert(entry);
            self.settle(tenant);
        }
    }

    fn place(&self, id: u32) -> Option<usize> {
        self.waiting.iter().position(|entry| entry.id == id)
    }

    fn insert(&mut self, entry: Waiting) {
        let place = self
            .waiting
            .iter()
            .position(|other| other.joined > entry.joined)
            .unwrap_or(self.waiting.len());
        self.waiting.insert(place, entry);
    }

    /// The level at which an arrival starts, having waited before.
    pub(super) fn level(&self, class: Class, arrived: u64, now: u64) -> usize {
        (class as usize + ((now - arrived) / self.ageing) as usize).min(LEVELS - 1)
    }

    pub(super) fn push(&mut self, id: u32, tenant: u64, class: Class, cost: u64, times: [u64; 3]) {
        let [arrived, deadline, now] = times;
        let level = self.level(class, arrived, now);
        let entry = Waiting {
            id,
            tenant,
            level,
            cost,
            deadline,
            joined: arrived + (level - class as usize) as u64 * self.ageing,
            passed: 0,
        };
        self.insert(entry);
        self.settle(tenant);
    }

    pub(super) fn remove(&mut self, id: u32) -> bool {
        let Some(place) = self.place(id) else {
            return false;
        };
        let tenant = self.waiting.remove(place).tenant;
        self.settle(tenant);
        true
    }

    /// Entries of this tenant, first those to be served first.
    pub(super) fn of(&self, tenant: u64) -> Vec<&Waiting> {
        let mut entries: Vec<_> = self
            .waiting
            .iter()
            .filter(|entry| entry.tenant == tenant)
            .collect();
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.level));
        entries
    }

    fn settle(&mut self, tenant: u64) {
        let top = self.of(tenant).first().map(|entry| entry.level);
        let place = self.lanes.iter().position(|lane| lane.tenant == tenant);
        match (place, top) {
            (Some(place), None) => {
                self.lanes.remove(place);
            }
            (Some(place), Some(level)) if self.lanes[place].level != level => {
                let lane = self.lanes.remove(place);
                self.lanes.push(Lane { level, ..lane });
            }
            (None, Some(level)) => self.lanes.push(Lane {
                tenant,
                deficit: 0,
                granted: false,
                is_next_round: true,
                level,
            }),
            _ => {}
        }
    }

    pub(super) fn pop(&mut self, available: u64, now: u64, expired: &mut Vec<u32>) -> Popped {
        loop {
            let turns = self.turns();
            let Some(place) = turns
                .first()
                .copied()
                .filter(|place| !self.lanes[*place].is_next_round)
            else {
                if self.lanes.is_empty() {
                    return Popped::Nobody;
                }
                for lane in &mut self.lanes {
                    (lane.is_next_round, lane.granted) = (false, false);
                }
                continue;
            };
            let tenant = self.lanes[place].tenant;
            let head = self.of(tenant)[0].clone();
            if head.deadline <= now {
                expired.push(head.id);
                self.remove(head.id);
                continue;
            }
            let (cost, quantum) = (head.cost as i64, self.quantum);
            let lane = &mut self.lanes[place];
            if !lane.granted {
                lane.granted = true;
                lane.deficit = (lane.deficit + quantum).min(cost + quantum);
            }
            if lane.deficit < cost {
                let lane = self.lanes.remove(place);
                self.lanes.push(Lane {
                    is_next_round: true,
                    ..lane
                });
                continue;
            }
            if head.cost <= available {
                lane.deficit -= cost;
                self.remove(head.id);
                return Popped::Entry(head.id);
            }
            return self.past(&head, available, now);
        }
    }

    /// Places of the lanes in the order of their turns.
    fn turns(&self) -> Vec<usize> {
        let mut turns: Vec<_> = (0..self.lanes.len()).collect();
        turns.sort_by_key(|place| {
            let lane = &self.lanes[*place];
            (lane.is_next_round, std::cmp::Reverse(lane.level))
        });
        turns
    }

    fn past(&mut self, head: &Waiting, available: u64, now: u64) -> Popped {
        let fits = |entry: &Waiting| {
            entry.deadline > now && entry.cost <= available && entry.passed_with(head) <= head.cost
        };
        let own = self.of(head.tenant);
        let same_level = own
            .iter()
            .filter(|entry| entry.level == head.level && entry.id != head.id);
        let mut found = same_level
            .take(8)
            .find(|entry| fits(entry))
            .map(|entry| (entry.tenant, entry.id, entry.cost));
        if found.is_none() {
            let others = self
                .turns()
                .into_iter()
                .map(|place| &self.lanes[place])
                .filter(|lane| lane.tenant != head.tenant);
            found = others
                .take(8)
                .filter(|lane| lane.deficit >= 0)
                .map(|lane| self.of(lane.tenant)[0])
                .find(|entry| fits(entry))
                .map(|entry| (entry.tenant, entry.id, entry.cost));
        }
        let Some((tenant, id, cost)) = found else {
            return Popped::Short(head.cost);
        };
        for lane in self.lanes.iter_mut().filter(|lane| lane.tenant == tenant) {
            lane.deficit -= cost as i64;
        }
        for entry in self.waiting.iter_mut().filter(|entry| entry.id == head.id) {
            entry.passed += cost;
        }
        self.remove(id);
        Popped::Entry(id)
    }

    /// Work that will have been served when an arrival is, by the definition.
    pub(super) fn work_until_served(&self, tenant: u64, level: usize, cost: u64) -> u64 {
        let before: u64 = self
            .of(tenant)
            .iter()
            .filter(|entry| entry.level >= level)
            .map(|entry| entry.cost)
            .sum();
        let turn = before + cost;
        let others = self.lanes.iter().filter(|lane| lane.tenant != tenant);
        let alongside = others.map(|lane| {
            let work: u64 = self.of(lane.tenant).iter().map(|entry| entry.cost).sum();
            work.min(turn)
        });
        turn + alongside.sum::<u64>()
    }

    /// Whether `victim` may be displaced by an arrival of `tenant` at `level`, by the three rules.
    pub(super) fn may_displace(&self, tenant: u64, level: usize, victim: u32) -> bool {
        let Some(entry) = self.waiting.iter().find(|entry| entry.id == victim) else {
            return false;
        };
        let held = self.of(tenant).len();
        let count = self.of(entry.tenant).len();
        let most = self
            .lanes
            .iter()
            .map(|lane| self.of(lane.tenant).len())
            .max()
            .unwrap_or(0);
        let is_newest_at_its_lowest = self.of(entry.tenant).last().is_some_and(|last| last.id == victim);
        if most >= held + 2 {
            return count == most && is_newest_at_its_lowest;
        }
        if entry.tenant == tenant {
            return is_newest_at_its_lowest && entry.level < level;
        }
        let newest = self.waiting.iter().rfind(|other| other.level == entry.level);
        count > held && entry.level < level && newest.is_some_and(|newest| newest.id == victim)
    }
}

impl Waiting {
    fn passed_with(&self, head: &Self) -> u64 {
        head.passed + self.cost
    }
}
