//! The protocol against a model of the world: processes with clocks of their own that crash and return, an allocator that
//! moves and does not know it, messages that are late, lost or doubled, a store that answers late or not at all, and a
//! provider that counts as it likes ([`super::provider_model`]).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use jiff::tz::TimeZone;

use super::provider_model::{Counted as Counts, over_concurrency};
use super::window::CalendarUnit;
use super::*;
use crate::load::random::Stream;

/// A bug that the simulation has to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// A holder counts its lease from the receipt of the grant.
    LeaseFromReceipt,
    /// Grants are sent while they are being written.
    SendBeforeWrite,
    /// What was reserved in excess is given back twice.
    RefundTwice,
    /// A holder accepts any grant, not only the answer to its newest report.
    AnyGrant,
    /// What a silent holder had is free at the end of its lease.
    ForgetSilent,
    /// A new allocator counts only those that have reported to it.
    IgnoreRecorded,
}

const MS: u64 = MILLISECOND;
/// 2026-11-05T00:00:00Z.
const MIDNIGHT_MS: i64 = 1_793_836_800_000;
/// Longer than any simulated day, to be subtracted from.
const ORIGIN: u64 = 100 * SECOND;

struct Dice {
    stream: Stream,
    drawn: u64,
}

impl Dice {
    fn new(seed: u64) -> Self {
        Self {
            stream: Stream::new(seed, 0x51),
            drawn: 0,
        }
    }
    fn below(&mut self, bound: u64) -> u64 {
        self.drawn += 1;
        self.stream.below(self.drawn, bound)
    }
    fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to - from + 1)
    }
    fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }
    fn exponential(&mut self, mean: u64) -> u64 {
        self.drawn += 1;
        (self.stream.exponential(self.drawn) * mean as f64) as u64
    }
}

/// How a run is set up.
#[derive(Clone, Debug)]
struct Plan {
    seed: u64,
    slots: usize,
    limits: Vec<Limit>,
    terms: Terms,
    /// Nothing goes wrong.
    calm: bool,
    length: u64,
    /// From here on nothing goes wrong any more.
    calm_from: u64,
    /// The mean time between two requests, per slot.
    gaps: Vec<u64>,
    /// Headers come within this, mostly; at the most within the limits' `within`.
    latency: u64,
    /// Up to this long after the headers the answer ends.
    body: u64,
    /// Estimates may be too small.
    rough: bool,
    /// The true time at which our midnight is; runs begin at 0.
    midnight: u64,
    /// The provider's midnight is later by this many milliseconds.
    provider_late_ms: i64,
    fault: Option<Fault>,
}

struct Asked {
    class: Class,
    estimate: Amounts,
    actual: Amounts,
    since: u64,
}

struct Running {
    ticket: Ticket,
    actual: Amounts,
    counted: bool,
}

struct Process {
    id: String,
    up: bool,
    /// Millionths by which its clock is fast.
    fast_ppm: i64,
    born: u64,
    origin: u64,
    clock: WallClock,
    system_ahead_ms: i64,
    holder: Holder,
    allocator: Option<(Allocator, u64)>,
    /// The newest version of the store it has seen, and when.
    seen: (u64, u64),
    /// Which slot it takes for the allocator's.
    leader: usize,
    queue: VecDeque<Asked>,
    running: BTreeMap<u64, Running>,
    leaving: bool,
    admitted_late: u64,
}

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
        term: u64,
        over: u64,
        checkpoint: Checkpoint,
    },
    Written {
        slot: usize,
        life: u64,
        term: u64,
        version: Option<u64>,
    },
    See {
        slot: usize,
        version: u64,
    },
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

struct World {
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
    intervals: Vec<(u64, u64)>,
    largest_error: Vec<u64>,
    writes: u64,
}

/// What a run showed.
#[derive(Debug, Default)]
struct Outcome {
    /// By limit: units over it, by the worst way of counting.
    over: Vec<u64>,
    /// By limit: units counted.
    counted: Vec<u64>,
    /// By limit: the largest amount by which one estimate was too small.
    largest_error: Vec<u64>,
    admitted: u64,
    /// By slot: admitted in the calm at the end; waiting at the end.
    late: Vec<(u64, usize)>,
    writes: u64,
}

impl World {
    fn new(plan: Plan) -> Self {
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
        world
    }

    /// Everything that goes wrong is drawn beforehand.
    fn trouble(&mut self) {
        let (slots, until) = (self.plan.slots as u64, self.plan.calm_from);
        for _ in 0..self.dice.between(1, 8) {
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

    fn mono(&self, slot: usize) -> u64 {
        mono(&self.processes[slot], self.now)
    }

    fn system_ms(&self, slot: usize) -> i64 {
        wall_ms(&self.plan, self.now) + self.processes[slot].system_ahead_ms
    }

    fn clock(&mut self, slot: usize) -> Now {
        let (nanos, system) = (self.mono(slot), self.system_ms(slot));
        Now {
            nanos,
            unix_ms: self.processes[slot].clock.observe(nanos, system),
        }
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
            let late = !calm && self.dice.percent(10);
            let delay = if a == b {
                MS / 10
            } else {
                MS / 2 + self.dice.exponential(if late { 300 * MS } else { 2 * MS })
            };
            self.after(delay.min(2 * SECOND), make());
        }
    }

    fn run(mut self) -> Outcome {
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
                let Some((allocator, _)) = &mut self.processes[to].allocator else {
                    return;
                };
                let actions = allocator.handle(&report, now);
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
                term,
                over,
                checkpoint,
            } => {
                let reached = self.can_speak(slot, self.plan.slots);
                let calm = self.is_calm();
                let lost = !calm && self.dice.percent(3);
                if reached && !lost && self.version == over {
                    // What is written is read as JSON.
                    let text = checkpoint.to_json();
                    self.stored = Some(Checkpoint::from_json(&text).expect("what was written"));
                    self.version += 1;
                    self.writes += 1;
                    for slot in 0..self.plan.slots {
                        let delay = MS + self.dice.exponential(20 * MS);
                        let version = self.version;
                        self.after(delay, Event::See { slot, version });
                    }
                }
                let answered = reached && (calm || !self.dice.percent(5));
                // A conflict answers with what is stored; the caller reads whose it is.
                let version = answered.then_some(self.version);
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
                        term,
                        version,
                    },
                );
            }
            Event::Written {
                slot,
                life,
                term,
                version,
            } if self.alive(slot, life) => self.written(slot, term, version),
            Event::See { slot, version }
                if self.processes[slot].up
                    && self.can_speak(slot, self.plan.slots)
                    && self.processes[slot].seen.0 < version =>
            {
                self.processes[slot].seen = (version, self.mono(slot));
            }
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
            Event::Learn { slot, leader } => self.processes[slot].leader = leader,
            Event::Cut { a, b, on: true } if a != b => self.cut.push((a, b)),
            Event::Cut { a, b, on: false } => self.cut.retain(|pair| *pair != (a, b)),
            Event::Jump { slot } => {
                let hours = self.dice.between(1, 5) as i64 - 3;
                self.processes[slot].system_ahead_ms += hours * 3_600_000;
            }
            Event::Gone { id } => {
                let slot = self.leader;
                let now = self.clock(slot);
                if let Some((allocator, _)) = &mut self.processes[slot].allocator {
                    allocator.gone(&id, now);
                }
            }
            _ => {}
        }
    }

    fn alive(&self, slot: usize, life: u64) -> bool {
        self.processes[slot].up && self.lives[slot] == life
    }

    fn tick(&mut self, slot: usize, life: u64) {
        self.serve(slot);
        self.report(slot);
        let now = self.clock(slot);
        if let Some((allocator, _)) = &mut self.processes[slot].allocator {
            let actions = allocator.tick(now);
            self.act(slot, slot, actions);
        }
        let every = self.plan.terms.report_every / 8;
        self.after(every, Event::Tick { slot, life });
    }

    /// Sends the report that is due.
    fn report(&mut self, slot: usize) {
        let now = self.clock(slot);
        let process = &mut self.processes[slot];
        if process.holder.next_report().is_none_or(|at| at > now.nanos) {
            return;
        }
        let mut waiting: Vec<Waiting> = Vec::new();
        for asked in &process.queue {
            let oldest = now.nanos.saturating_sub(asked.since);
            let found = waiting.iter_mut().find(|waiting| waiting.class == asked.class);
            let entry = match found {
                Some(entry) => entry,
                None => {
                    let nothing = Amounts::default();
                    waiting.push(Waiting {
                        class: asked.class,
                        requests: 0,
                        total: nothing,
                        largest: nothing,
                        oldest: 0,
                    });
                    waiting.last_mut().expect("just pushed")
                }
            };
            entry.requests += 1;
            entry.oldest = entry.oldest.max(oldest);
            entry.total.input += asked.estimate.input;
            entry.total.output += asked.estimate.output;
            entry.total.nano_dollars += asked.estimate.nano_dollars;
            entry.largest.input = entry.largest.input.max(asked.estimate.input);
            entry.largest.output = entry.largest.output.max(asked.estimate.output);
            entry.largest.nano_dollars = entry.largest.nano_dollars.max(asked.estimate.nano_dollars);
        }
        let report = process.holder.report(now.nanos, now.unix_ms, &waiting);
        let to = process.leader;
        self.send(slot, to, || Event::Report {
            to,
            from: slot,
            report: report.clone(),
        });
    }

    fn act(&mut self, slot: usize, from: usize, actions: Vec<Action>) {
        let life = self.lives[slot];
        for action in actions {
            match action {
                Action::StepDown(_) => self.processes[slot].allocator = None,
                Action::Send(id, reply) => {
                    // A holder's id begins with its slot.
                    let to = id
                        .split('-')
                        .next()
                        .and_then(|slot| slot.parse().ok())
                        .unwrap_or(from);
                    self.send(slot, to, || Event::Reply {
                        to,
                        id: id.clone(),
                        reply: reply.clone(),
                    });
                }
                Action::Write(checkpoint) => {
                    let Some((allocator, over)) = &self.processes[slot].allocator else {
                        return;
                    };
                    let (term, over) = (allocator.term(), *over);
                    let delay = MS + self.dice.exponential(4 * MS);
                    self.after(
                        delay,
                        Event::Land {
                            slot,
                            life,
                            term,
                            over,
                            checkpoint,
                        },
                    );
                }
            }
        }
    }

    fn written(&mut self, slot: usize, term: u64, version: Option<u64>) {
        let (now, stored, current) = (self.clock(slot), self.stored.clone(), self.version);
        let Some((allocator, over)) = &mut self.processes[slot].allocator else {
            return;
        };
        if allocator.term() != term {
            return;
        }
        let mine = stored.as_ref().is_some_and(|stored| stored.term == term);
        let actions = match version {
            Some(version) if mine && version == *over + 1 => {
                *over = version;
                allocator.written(now)
            }
            // Written by an earlier try of ours, or by nobody: try again on what is there.
            _ if mine || stored.is_none_or(|stored| stored.term < term && current == *over) => {
                *over = current;
                allocator.not_written();
                Vec::new()
            }
            _ => {
                self.processes[slot].allocator = None;
                return;
            }
        };
        self.act(slot, slot, actions);
    }

    fn elect(&mut self, slot: usize) {
        let store = self.plan.slots;
        if !self.processes[slot].up || !self.can_speak(slot, store) {
            if self.is_calm() {
                self.after(100 * MS, Event::Elect { slot });
            }
            return;
        }
        let now = self.clock(slot);
        let (seen, seen_at) = self.processes[slot].seen;
        let seen_at = if seen == self.version && seen > 0 {
            seen_at
        } else {
            now.nanos
        };
        let mut allocator = Allocator::new(
            &self.plan.limits,
            self.plan.terms,
            self.stored.as_ref(),
            seen_at,
            now,
        );
        allocator.fault = self.plan.fault;
        self.processes[slot].allocator = Some((allocator, self.version));
        self.leader = slot;
        let calm = self.is_calm();
        for other in 0..self.plan.slots {
            let delay = if other == slot || calm {
                MS
            } else {
                self.dice.below(SECOND)
            };
            self.after(
                delay,
                Event::Learn {
                    slot: other,
                    leader: slot,
                },
            );
        }
    }

    fn restart_if_left(&mut self, slot: usize) {
        let process = &mut self.processes[slot];
        if process.leaving && process.running.is_empty() {
            process.up = false;
            self.lives[slot] += 1;
            let delay = self.dice.below(300 * MS);
            self.after(delay, Event::Start { slot });
        }
    }

    fn request(&mut self, slot: usize) -> Asked {
        let since = self.mono(slot);
        let class = self.processes[slot]
            .holder
            .class(if self.dice.percent(50) { "a" } else { "b" });
        let (input, output) = (self.dice.between(10, 60), self.dice.between(10, 100));
        let actual = Amounts {
            input,
            output,
            nano_dollars: 3 * input + 9 * output,
        };
        let percent = if self.plan.rough {
            self.dice.between(90, 150)
        } else {
            self.dice.between(100, 200)
        };
        let guess = |units: u64| (units * percent).div_ceil(100);
        let estimate = Amounts {
            input: guess(input),
            output: guess(output),
            nano_dollars: guess(actual.nano_dollars),
        };
        Asked {
            class,
            estimate,
            actual,
            since,
        }
    }

    /// Admits from the queue what can be, skipping what cannot.
    fn serve(&mut self, slot: usize) {
        if !self.processes[slot].up {
            return;
        }
        let now = self.mono(slot);
        let mut left = VecDeque::new();
        let mut blocked: Vec<Class> = Vec::new();
        while let Some(asked) = self.processes[slot].queue.pop_front() {
            // Requests of one class are served in order.
            if blocked.contains(&asked.class) {
                left.push_back(asked);
                continue;
            }
            match self.processes[slot]
                .holder
                .try_admit(asked.class, asked.estimate, now)
            {
                Admission::Admitted(ticket) => self.start(slot, ticket, &asked),
                Admission::Never { .. } => {}
                Admission::Wait { .. } => {
                    blocked.push(asked.class);
                    left.push_back(asked);
                }
            }
        }
        self.processes[slot].queue = left;
    }

    fn start(&mut self, slot: usize, ticket: Ticket, asked: &Asked) {
        let within = self
            .plan
            .limits
            .iter()
            .map(|limit| limit.within)
            .min()
            .unwrap_or(SECOND);
        // Processes' clocks may be fast: what they see as `within` is a little less.
        let within = within - within / 100;
        let slow = !self.plan.calm && self.dice.percent(2);
        let headers = if slow {
            self.dice.below(within)
        } else {
            self.dice.exponential(self.plan.latency).min(within)
        };
        let end = (headers + self.dice.below(self.plan.body + 1)).min(within);
        let unsent = !self.plan.calm && self.dice.percent(1);
        self.numbers += 1;
        let (request, life) = (self.numbers, self.lives[slot]);
        self.processes[slot].running.insert(
            request,
            Running {
                ticket,
                actual: asked.actual,
                counted: !unsent,
            },
        );
        self.processes[slot].admitted_late += u64::from(self.now > self.plan.calm_from);
        self.after(headers, Event::Headers { slot, life, request });
        self.after(end, Event::End { slot, life, request });
        if unsent {
            return;
        }
        let mut counts = false;
        for index in 0..self.plan.limits.len() {
            let limit = &self.plan.limits[index];
            // The class says which limits apply; its bits are the limits' positions.
            if !limit.models.is_empty() && asked.class != self.processes[slot].holder.class(&limit.models[0])
            {
                continue;
            }
            let latest = match limit.counted {
                Counted::ByHeaders => headers,
                Counted::ByEnd => end,
            };
            let units = limit.resource.units(&asked.actual);
            let error = units.saturating_sub(limit.resource.units(&asked.estimate));
            self.largest_error[index] = self.largest_error[index].max(error);
            match limit.resource {
                Resource::Concurrency => counts = true,
                _ => {
                    let counted_at = self.now + self.dice.below(latest + 1);
                    self.counts[index].add(counted_at, units);
                }
            }
        }
        if counts {
            self.intervals.push((self.now, self.now + end));
        }
    }

    fn judge(mut self) -> Outcome {
        let mut outcome = Outcome {
            largest_error: self.largest_error.clone(),
            late: self
                .processes
                .iter()
                .map(|process| (process.admitted_late, process.queue.len()))
                .collect(),
            writes: self.writes,
            ..Outcome::default()
        };
        let phases: Vec<u64> = (0..3).map(|_| self.dice.below(20 * SECOND)).collect();
        for (limit, counts) in self.plan.limits.iter().zip(&mut self.counts) {
            counts.sort();
            let all = counts.between(0, u64::MAX);
            let over = match (&limit.window, limit.resource) {
                (_, Resource::Concurrency) => over_concurrency(&self.intervals, limit.limit),
                (Window::Rolling(window), _) => {
                    // The provider's clock may be slow as well.
                    let slower = window + window * self.plan.terms.drift_ppm * 99 / 200_000_000;
                    let fixed = phases
                        .iter()
                        .map(|phase| counts.over_fixed(slower, *phase, limit.limit))
                        .max();
                    let others = counts
                        .over_sliding(slower, limit.limit)
                        .max(counts.over_bucket(slower, limit.limit));
                    fixed.unwrap_or(0).max(others)
                }
                _ => {
                    let late = self.plan.provider_late_ms * MS as i64;
                    let midnight = self.plan.midnight.saturating_add_signed(late);
                    let before = counts.between(0, midnight).saturating_sub(limit.limit);
                    before.max(counts.between(midnight, u64::MAX).saturating_sub(limit.limit))
                }
            };
            outcome.over.push(over);
            outcome.counted.push(all);
        }
        outcome.admitted = self.intervals.len() as u64;
        outcome
    }
}

fn mono(process: &Process, now: u64) -> u64 {
    let passed = i128::from(now - process.born);
    process.origin + (passed + passed * i128::from(process.fast_ppm) / 1_000_000) as u64
}

fn wall_ms(plan: &Plan, now: u64) -> i64 {
    MIDNIGHT_MS + (now as i64 - plan.midnight as i64) / MS as i64
}

fn process(plan: &Plan, dice: &mut Dice, slot: usize, life: u64, now: u64) -> Process {
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
        seen: (0, origin),
        leader: 0,
        queue: VecDeque::new(),
        running: BTreeMap::new(),
        leaving: false,
        admitted_late: 0,
    }
}

/// A run in which anything may go wrong.
fn rough_plan(seed: u64, fault: Option<Fault>) -> Plan {
    let mut dice = Dice::new(seed ^ 0xf1_07);
    let slots = dice.between(1, 5) as usize;
    let within = dice.between(200, 1_500) * MS;
    let with_floor = dice.percent(20);
    let limit = |dice: &mut Dice, name: &str, resource, window, units| {
        let mut limit = Limit::new(name, resource, window, units);
        limit.within = within;
        if with_floor {
            limit.floor = units / dice.between(10, 30);
        }
        limit
    };
    let mut limits = vec![];
    let window = Window::Rolling(dice.between(500, 3_000) * MS);
    let units = dice.between(1, 120);
    limits.push(limit(&mut dice, "requests", Resource::Requests, window, units));
    if dice.percent(50) {
        let window = Window::Rolling(dice.between(500, 3_000) * MS);
        let units = dice.between(400, 8_000);
        let mut tokens = limit(&mut dice, "tokens", Resource::Tokens, window, units);
        if dice.percent(50) {
            tokens.models = vec!["a".to_owned()];
        }
        limits.push(tokens);
    }
    if dice.percent(30) {
        let window = Window::Rolling(dice.between(500, 2_000) * MS);
        let units = dice.between(300, 4_000);
        let mut output = limit(&mut dice, "output", Resource::OutputTokens, window, units);
        output.counted = Counted::ByEnd;
        limits.push(output);
    }
    if dice.percent(30) {
        let units = dice.between(1, 20);
        limits.push(limit(
            &mut dice,
            "open",
            Resource::Concurrency,
            Window::None,
            units,
        ));
    }
    let day = || Window::Calendar(Calendar::new(CalendarUnit::Day, TimeZone::UTC));
    if dice.percent(40) {
        let units = dice.between(20, 600);
        limits.push(limit(&mut dice, "day", Resource::Requests, day(), units));
    }
    if dice.percent(20) {
        let units = dice.between(20_000, 400_000);
        limits.push(limit(&mut dice, "budget", Resource::NanoDollars, day(), units));
    }
    let length = dice.between(6, 14) * SECOND;
    let skewed = dice.percent(50);
    let gap = dice.between(5, 100) * MS;
    Plan {
        seed,
        slots,
        limits,
        terms: Terms {
            lease: dice.between(300, 2_000) * MS,
            report_every: dice.between(50, 250) * MS,
            drift_ppm: 4_000,
            calendar_margin_ms: 2_500,
        },
        calm: false,
        length: length + 6 * SECOND,
        calm_from: length,
        gaps: (0..slots)
            .map(|slot| if skewed { gap * (1 + 10 * slot as u64) } else { gap })
            .collect(),
        latency: dice.between(1, 60) * MS,
        body: dice.between(0, 300) * MS,
        rough: dice.percent(30),
        midnight: if dice.percent(70) {
            3 * SECOND + dice.below(length)
        } else {
            1_000 * SECOND
        },
        provider_late_ms: dice.below(301) as i64 - 150,
        fault,
    }
}

fn is_full() -> bool {
    std::env::var("FLOTILLA_FULL").is_ok_and(|value| value == "1")
}

/// Units over a limit that are allowed: none for what is known beforehand, else 1 % or one estimate's error.
fn allowed(limit: &Limit, largest_error: u64) -> u64 {
    match limit.resource {
        Resource::Requests | Resource::Concurrency => 0,
        _ if largest_error == 0 => 0,
        _ => largest_error.max(limit.limit / 100),
    }
}

fn violation(plan: &Plan, outcome: &Outcome) -> Option<String> {
    plan.limits.iter().enumerate().find_map(|(i, limit)| {
        let allowed = allowed(limit, outcome.largest_error[i]);
        (outcome.over[i] > allowed).then(|| {
            format!(
                "seed {}: {} of {} over by {}",
                plan.seed, limit.name, limit.limit, outcome.over[i]
            )
        })
    })
}

#[test]
fn no_run_exceeds_a_limit() {
    let runs = if is_full() { 100_000 } else { 300 };
    let start = std::time::Instant::now();
    let (mut admitted, mut writes, mut worst_error) = (0, 0, 0.0f64);
    let mut failures = Vec::new();
    let mut stuck = Vec::new();
    let mut over_by_estimate = 0;
    for seed in 0..runs {
        let plan = rough_plan(seed, None);
        let outcome = World::new(plan.clone()).run();
        admitted += outcome.admitted + outcome.counted[0];
        writes += outcome.writes;
        failures.extend(violation(&plan, &outcome));
        for (limit, over) in plan.limits.iter().zip(&outcome.over) {
            worst_error = worst_error.max(*over as f64 / limit.limit as f64);
            over_by_estimate += u64::from(*over > 0);
        }
        // In the calm that follows every process that still waits has been served, unless a day's quota is gone.
        let short = plan
            .limits
            .iter()
            .any(|limit| matches!(limit.window, Window::Calendar(_)));
        for (slot, (late, waiting)) in outcome.late.iter().enumerate() {
            if !short && *late == 0 && *waiting > 0 {
                stuck.push((seed, slot));
            }
        }
    }
    println!(
        "{runs} runs in {:.1} s: {admitted} requests, {writes} writes, {} violations, {} stuck, {over_by_estimate} limits over by wrong estimates, by {:.2} % at most",
        start.elapsed().as_secs_f64(),
        failures.len(),
        stuck.len(),
        100.0 * worst_error,
    );
    assert!(failures.is_empty(), "{failures:#?}");
    assert!(stuck.is_empty(), "(seed, slot): {stuck:?}");
}

#[test]
fn planted_bugs_are_found() {
    for fault in [
        Fault::LeaseFromReceipt,
        Fault::SendBeforeWrite,
        Fault::RefundTwice,
        Fault::AnyGrant,
        Fault::ForgetSilent,
        Fault::IgnoreRecorded,
    ] {
        let found = (0..20_000).find_map(|seed| {
            let plan = rough_plan(seed, Some(fault));
            let outcome = World::new(plan.clone()).run();
            violation(&plan, &outcome)
        });
        println!("{fault:?}: {found:?}");
        assert!(found.is_some(), "{fault:?} was not found");
    }
}

/// Saturated and without trouble: at least 95 % of every window's limit is used.
#[test]
fn nothing_is_wasted() {
    for slots in [1usize, 2, 3, 5] {
        for skew in [1, 20] {
            for (name, resource, units, window) in [
                ("requests", Resource::Requests, 60, 60),
                ("requests", Resource::Requests, 600, 60),
                ("requests", Resource::Requests, 200, 10),
                ("tokens", Resource::Tokens, 60_000, 60),
                ("tokens", Resource::Tokens, 20_000, 10),
            ] {
                let window_length = window * SECOND;
                let mut limit = Limit::new(name, resource, Window::Rolling(window_length), units);
                limit.within = 5 * SECOND;
                let per_request = if resource == Resource::Requests { 1 } else { 90 };
                // Twice the limit, most of it at one replica where it is skewed.
                let gap = window_length * per_request / units / 2;
                let total: u64 = (0..slots as u64)
                    .map(|slot| if slot == 0 { skew } else { 1 })
                    .sum();
                let gaps = (0..slots)
                    .map(|slot| gap * total / if slot == 0 { skew } else { 1 })
                    .collect();
                let windows = 4;
                let plan = Plan {
                    seed: 7,
                    slots,
                    limits: vec![limit],
                    terms: Terms::default(),
                    calm: true,
                    length: (1 + windows) * window_length,
                    calm_from: 0,
                    gaps,
                    latency: 50 * MS,
                    body: 100 * MS,
                    rough: true,
                    midnight: 1_000 * SECOND,
                    provider_late_ms: 0,
                    fault: None,
                };
                let outcome = World::new(plan).run();
                let share = outcome.counted[0] as f64 / ((1 + windows) * units) as f64;
                println!(
                    "{slots} replicas, skew {skew}: {units} {name} in {window} s: {:.1} %, {} writes",
                    100.0 * share,
                    outcome.writes
                );
                assert!(share >= 0.95, "{slots} {skew} {name} {units}");
                assert_eq!(allowed_over(&outcome, units), 0);
            }
        }
    }
}

fn allowed_over(outcome: &Outcome, limit: u64) -> u64 {
    outcome.over[0].saturating_sub(if outcome.largest_error[0] == 0 {
        0
    } else {
        outcome.largest_error[0].max(limit / 100)
    })
}
