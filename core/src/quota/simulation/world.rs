//! The world: processes, messages, the store, and what goes wrong with them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use super::MS;
use super::plan::{Dice, Plan};
use crate::quota::provider_model::Counted as Counts;
use crate::quota::*;

mod acts;
mod judge;
mod process;

use process::{Asked, Office, Process, Running, process};

enum Event {
    Tick {
        slot: usize,
        life: u64,
    },
    Arrive {
        slot: usize,
    },
    Report {
        to: usize,
        from: usize,
        report: Report,
    },
    Reply {
        to: usize,
        id: String,
        reply: Reply,
    },
    Land {
        slot: usize,
        life: u64,
        office: u64,
        over: u64,
        checkpoint: Checkpoint,
    },
    Written {
        slot: usize,
        life: u64,
        office: u64,
        /// Whether it was, where that was answered.
        landed: Option<bool>,
    },
    See {
        slot: usize,
        version: u64,
    },
    Vouch {
        to: usize,
        by: String,
        slot: usize,
        life: u64,
        office: u64,
        vouch: Vouch,
    },
    Vouched {
        slot: usize,
        life: u64,
        office: u64,
        holder: String,
        seq: u64,
        agreed: bool,
    },
    /// The allocator's process ends, for the nth time.
    Kill(u64),
    Headers {
        slot: usize,
        life: u64,
        request: u64,
    },
    End {
        slot: usize,
        life: u64,
        request: u64,
    },
    Crash {
        slot: usize,
    },
    Start {
        slot: usize,
    },
    Leave {
        slot: usize,
    },
    Elect {
        slot: usize,
    },
    /// The elected one starts again.
    Reopen {
        slot: usize,
    },
    Learn {
        slot: usize,
        leader: usize,
    },
    Cut {
        a: usize,
        b: usize,
        on: bool,
    },
    Jump {
        slot: usize,
    },
    Gone {
        id: String,
    },
}

pub(super) struct World {
    plan: Plan,
    dice: Dice,
    now: u64,
    events: BinaryHeap<Reverse<(u64, u64)>>,
    bodies: BTreeMap<u64, Event>,
    numbers: u64,
    processes: Vec<Process>,
    lives: Vec<u64>,
    /// Pairs of slots that cannot speak; the slot number `slots` is the store.
    cut: Vec<(usize, usize)>,
    version: u64,
    stored: Option<Checkpoint>,
    leader: usize,
    counts: Vec<Counts>,
    /// The same, of each request at most what it was estimated at.
    sure: Vec<Counts>,
    intervals: Vec<(u64, u64)>,
    largest_error: Vec<u64>,
    writes: u64,
}

/// What a run showed.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// By limit: units over it, by the worst way of counting, where of no request more is counted than was estimated.
    pub(super) over: Vec<u64>,
    /// The same of what the requests did use.
    pub(super) over_by_estimates: Vec<u64>,
    /// By limit: units counted.
    pub(super) counted: Vec<u64>,
    /// By limit: the largest amount by which one estimate was too small.
    pub(super) largest_error: Vec<u64>,
    pub(super) admitted: u64,
    /// By slot: admitted in the calm at the end; waiting at the end, since the calm began or before.
    pub(super) late: Vec<(u64, usize)>,
    pub(super) writes: u64,
}

impl World {
    pub(super) fn new(plan: Plan) -> Self {
        let mut dice = Dice::new(plan.seed);
        let processes = (0..plan.slots)
            .map(|slot| process(&plan, &mut dice, slot, 0, 0))
            .collect();
        let count = plan.limits.len();
        let mut world = Self {
            dice,
            now: 0,
            events: BinaryHeap::new(),
            bodies: BTreeMap::new(),
            numbers: 0,
            processes,
            lives: vec![0; plan.slots],
            cut: Vec::new(),
            version: 0,
            stored: None,
            leader: 0,
            counts: (0..count).map(|_| Counts::default()).collect(),
            sure: (0..count).map(|_| Counts::default()).collect(),
            intervals: Vec::new(),
            largest_error: vec![0; count],
            writes: 0,
            plan,
        };
        for slot in 0..world.plan.slots {
            world.after(0, Event::Tick { slot, life: 0 });
            world.after(0, Event::Arrive { slot });
        }
        world.after(0, Event::Elect { slot: 0 });
        if !world.plan.calm {
            world.trouble();
        }
        if let Some(kills) = world.plan.kills {
            world.after(kills.every, Event::Kill(0));
        }
        world
    }

    /// Everything that goes wrong is drawn beforehand.
    fn trouble(&mut self) {
        let (slots, until) = (self.plan.slots as u64, self.plan.calm_from);
        let (least, most) = self.plan.troubles;
        for _ in 0..self.dice.between(least, most) {
            let at = self.dice.below(until);
            let slot = self.dice.below(slots) as usize;
            let event = match self.dice.below(10) {
                0..=2 => Event::Crash { slot },
                3..=5 => Event::Elect { slot },
                6 => Event::Leave { slot },
                7 => Event::Jump { slot },
                _ => {
                    // The one past the last slot is the store.
                    let b = self.dice.below(slots + 1) as usize;
                    let length = self.dice.below(until / 2);
                    let end = (at + length).min(until);
                    self.at(
                        end,
                        Event::Cut {
                            a: slot,
                            b,
                            on: false,
                        },
                    );
                    Event::Cut { a: slot, b, on: true }
                }
            };
            self.at(at, event);
        }
        for _ in 0..self.plan.partitions {
            let at = self.dice.below(until);
            let (a, b) = (self.dice.below(slots) as usize, self.dice.below(slots) as usize);
            let end = (at + self.dice.between(SECOND, 4 * SECOND)).min(until);
            self.at(at, Event::Cut { a, b, on: true });
            self.at(end, Event::Cut { a, b, on: false });
        }
        // Whatever happened, in the end there is an allocator.
        let slot = self.dice.below(slots) as usize;
        self.at(until + 1, Event::Elect { slot });
    }

    fn at(&mut self, at: u64, event: Event) {
        self.numbers += 1;
        self.events.push(Reverse((at.max(self.now), self.numbers)));
        self.bodies.insert(self.numbers, event);
    }

    fn after(&mut self, length: u64, event: Event) {
        self.at(self.now + length, event);
    }

    fn is_calm(&self) -> bool {
        self.plan.calm || self.now >= self.plan.calm_from
    }

    fn can_speak(&self, a: usize, b: usize) -> bool {
        !self.cut.contains(&(a, b)) && !self.cut.contains(&(b, a))
    }

    /// Sends what `make` makes: none, once or twice.
    fn send(&mut self, a: usize, b: usize, make: impl Fn() -> Event) {
        if !self.can_speak(a, b) {
            return;
        }
        let calm = self.is_calm();
        let copies = match self.dice.below(100) {
            0..=4 if !calm => 0,
            5..=9 if !calm => 2,
            _ => 1,
        };
        for _ in 0..copies {
            let (percent, lateness) = self.plan.late;
            let late = !calm && self.dice.percent(percent);
            let delay = if a == b {
                MS / 10
            } else {
                MS / 2 + self.dice.exponential(if late { lateness } else { 2 * MS })
            };
            self.after(delay.min(2 * SECOND), make());
        }
    }

    pub(super) fn run(mut self) -> Outcome {
        while let Some(Reverse((at, number))) = self.events.pop() {
            if at > self.plan.length {
                break;
            }
            self.now = at;
            if let Some(event) = self.bodies.remove(&number) {
                self.step(event);
            }
        }
        self.judge()
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::Tick { slot, life } if self.alive(slot, life) => self.tick(slot, life),
            Event::Arrive { slot } => {
                let asked = self.request(slot);
                let gap = self.plan.gaps[slot];
                let process = &mut self.processes[slot];
                if process.up && !process.leaving && process.queue.len() < 50 {
                    process.queue.push_back(asked);
                    self.serve(slot);
                }
                let gap = self.dice.exponential(gap) + 1;
                self.after(gap, Event::Arrive { slot });
            }
            Event::Report { to, from, report } if self.processes[to].up => {
                let now = self.clock(to);
                let Some(office) = &mut self.processes[to].allocator else {
                    return;
                };
                let actions = office.allocator.handle(&report, now);
                self.act(to, from, actions);
            }
            Event::Reply { to, id, reply } if self.processes[to].up && self.processes[to].id == id => {
                let now = self.mono(to);
                if self.processes[to].holder.on_reply(&reply, now) {
                    self.serve(to);
                }
                self.report(to);
            }
            Event::Land {
                slot,
                life,
                office,
                over,
                checkpoint,
            } => {
                let reached = self.can_speak(slot, self.plan.slots);
                let calm = self.is_calm();
                let lost = !calm && self.dice.percent(3);
                let landed = reached && !lost && self.version == over;
                if landed {
                    // What is written is read as JSON, which takes as long as all the rest.
                    self.stored = Some(if self.version.is_multiple_of(8) {
                        Checkpoint::from_json(&checkpoint.to_json()).expect("what was written")
                    } else {
                        checkpoint
                    });
                    self.version += 1;
                    self.writes += 1;
                    for slot in 0..self.plan.slots {
                        let delay = MS + self.dice.exponential(20 * MS);
                        let version = self.version;
                        self.after(delay, Event::See { slot, version });
                    }
                }
                let answered = reached && !lost && (calm || !self.dice.percent(5));
                let delay = if answered {
                    self.dice.exponential(3 * MS)
                } else {
                    300 * MS
                };
                self.after(
                    delay,
                    Event::Written {
                        slot,
                        life,
                        office,
                        landed: answered.then_some(landed),
                    },
                );
            }
            Event::Written {
                slot,
                life,
                office,
                landed,
            } if self.alive(slot, life) => self.written(slot, office, landed),
            Event::See { slot, version }
                if self.processes[slot].up
                    && self.can_speak(slot, self.plan.slots)
                    && self.processes[slot].seen.0 < version =>
            {
                self.processes[slot].seen = (version, self.mono(slot));
            }
            Event::Vouch {
                to,
                by,
                slot,
                life,
                office,
                vouch,
            } if self.processes[to].up && self.processes[to].id == by => {
                let now = self.mono(to);
                let (holder, seq) = (vouch.holder.clone(), vouch.seq);
                let agreed = self.processes[to].holder.vouch(vouch, now);
                self.send(to, slot, || Event::Vouched {
                    slot,
                    life,
                    office,
                    holder: holder.clone(),
                    seq,
                    agreed,
                });
            }
            Event::Vouched {
                slot,
                life,
                office,
                holder,
                seq,
                agreed,
            } if self.alive(slot, life) => {
                let now = self.clock(slot);
                let office = self.processes[slot]
                    .allocator
                    .as_mut()
                    .filter(|known| known.number == office);
                if let Some(office) = office {
                    let actions = if agreed {
                        office.allocator.vouched(&holder, seq)
                    } else {
                        office.allocator.not_vouched(&holder, seq, now)
                    };
                    self.act(slot, slot, actions);
                }
            }
            Event::Kill(nth) => self.kill(nth),
            Event::Headers { slot, life, request } if self.alive(slot, life) => {
                let now = self.mono(slot);
                let process = &mut self.processes[slot];
                if let Some(running) = process.running.get_mut(&request) {
                    process.holder.headers(&mut running.ticket, now, now);
                }
            }
            Event::End { slot, life, request } if self.alive(slot, life) => {
                let now = self.mono(slot);
                let process = &mut self.processes[slot];
                if let Some(running) = process.running.remove(&request) {
                    if running.counted {
                        process.holder.settle(running.ticket, running.actual, now);
                    } else {
                        process.holder.cancel(running.ticket);
                    }
                }
                self.serve(slot);
                self.restart_if_left(slot);
            }
            Event::Crash { slot } if self.processes[slot].up => {
                self.processes[slot].up = false;
                self.lives[slot] += 1;
                let id = self.processes[slot].id.clone();
                if self.dice.percent(30) {
                    let delay = self.dice.below(SECOND);
                    self.after(delay, Event::Gone { id });
                }
                let delay = MS + self.dice.below(SECOND);
                self.after(delay, Event::Start { slot });
            }
            Event::Start { slot } => {
                let life = self.lives[slot];
                self.processes[slot] = process(&self.plan, &mut self.dice, slot, life, self.now);
                self.processes[slot].leader = self.leader;
                self.after(0, Event::Tick { slot, life });
            }
            Event::Leave { slot } if self.processes[slot].up => {
                let now = self.clock(slot);
                let process = &mut self.processes[slot];
                process.leaving = true;
                process.queue.clear();
                let report = process.holder.leave(now.nanos, now.unix_ms);
                let to = process.leader;
                self.send(slot, to, || Event::Report {
                    to,
                    from: slot,
                    report: report.clone(),
                });
                self.restart_if_left(slot);
            }
            Event::Elect { slot } => self.elect(slot),
            Event::Reopen { slot } if self.leader == slot => self.elect(slot),
            Event::Learn { slot, leader } => {
                // In the calm nobody goes on believing an old tale.
                let leader = if self.is_calm() { self.leader } else { leader };
                let now = self.mono(slot);
                let process = &mut self.processes[slot];
                process.leader = leader;
                process.holder.greet(now);
            }
            Event::Cut { a, b, on: true } if a != b => self.cut.push((a, b)),
            Event::Cut { a, b, on: false } => self.cut.retain(|pair| *pair != (a, b)),
            Event::Jump { slot } => {
                let hours = self.dice.between(1, 5) as i64 - 3;
                self.processes[slot].system_ahead_ms += hours * 3_600_000;
            }
            Event::Gone { id } => {
                let slot = self.leader;
                let now = self.clock(slot);
                if let Some(office) = &mut self.processes[slot].allocator {
                    office.allocator.gone(&id, now);
                }
            }
            _ => {}
        }
    }

    fn alive(&self, slot: usize, life: u64) -> bool {
        self.processes[slot].up && self.lives[slot] == life
    }
}
