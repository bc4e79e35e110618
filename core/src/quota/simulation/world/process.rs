//! A process: its clocks, its holder, and the allocator where it is elected.

use std::collections::{BTreeMap, VecDeque};

use super::super::plan::{Dice, Plan};
use super::super::{MIDNIGHT_MS, MS, ORIGIN};
use super::World;
use crate::quota::*;

pub(super) struct Asked {
    pub(super) class: Class,
    pub(super) estimate: Amounts,
    pub(super) actual: Amounts,
    pub(super) since: u64,
}

pub(super) struct Running {
    pub(super) ticket: Ticket,
    pub(super) actual: Amounts,
    pub(super) counted: bool,
}

/// An allocator in its process.
pub(super) struct Office {
    /// Tells it from earlier ones of the same process.
    pub(super) number: u64,
    pub(super) allocator: Allocator,
    pub(super) record: Record<u64, Option<Checkpoint>>,
}

pub(super) struct Process {
    pub(super) id: String,
    pub(super) up: bool,
    /// Millionths by which its clock is fast.
    pub(super) fast_ppm: i64,
    pub(super) born: u64,
    pub(super) origin: u64,
    pub(super) clock: WallClock,
    pub(super) system_ahead_ms: i64,
    pub(super) holder: Holder,
    pub(super) allocator: Option<Office>,
    /// The latest term that a holder was heard to speak to.
    pub(super) heard: u64,
    /// The newest version of the store it has seen, and when.
    pub(super) seen: (u64, u64),
    /// Which slot it takes for the allocator's.
    pub(super) leader: usize,
    pub(super) queue: VecDeque<Asked>,
    /// When one of each class was admitted last.
    pub(super) served: Vec<(Class, u64)>,
    pub(super) running: BTreeMap<u64, Running>,
    pub(super) leaving: bool,
    pub(super) admitted_late: u64,
}

fn mono(process: &Process, now: u64) -> u64 {
    let passed = i128::from(now - process.born);
    process.origin + (passed + passed * i128::from(process.fast_ppm) / 1_000_000) as u64
}

fn wall_ms(plan: &Plan, now: u64) -> i64 {
    MIDNIGHT_MS + (now as i64 - plan.midnight as i64) / MS as i64
}

pub(super) fn process(plan: &Plan, dice: &mut Dice, slot: usize, life: u64, now: u64) -> Process {
    // Two clocks, each off by less than half of the drift.
    let half = (plan.terms.drift_ppm * 99 / 200) as i64;
    let fast_ppm = dice.below(2 * half as u64 + 1) as i64 - half;
    let system_ahead_ms = dice.below(301) as i64 - 150;
    let origin = ORIGIN + dice.below(1_000 * SECOND);
    let id = format!("{slot}-{life}");
    let mut holder = Holder::new(id.clone(), 1, &plan.limits, plan.terms, origin);
    holder.fault = plan.fault;
    Process {
        id,
        up: true,
        fast_ppm,
        born: now,
        origin,
        clock: WallClock::new(origin, wall_ms(plan, now) + system_ahead_ms),
        system_ahead_ms,
        holder,
        allocator: None,
        heard: 0,
        seen: (0, origin),
        leader: 0,
        queue: VecDeque::new(),
        served: Vec::new(),
        running: BTreeMap::new(),
        leaving: false,
        admitted_late: 0,
    }
}

impl World {
    pub(super) fn mono(&self, slot: usize) -> u64 {
        mono(&self.processes[slot], self.now)
    }

    fn system_ms(&self, slot: usize) -> i64 {
        wall_ms(&self.plan, self.now) + self.processes[slot].system_ahead_ms
    }

    pub(super) fn clock(&mut self, slot: usize) -> Now {
        let (nanos, system) = (self.mono(slot), self.system_ms(slot));
        Now {
            nanos,
            unix_ms: self.processes[slot].clock.observe(nanos, system),
        }
    }
}
