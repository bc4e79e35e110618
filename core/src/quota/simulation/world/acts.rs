//! What processes do: report, deal out, write, admit.

use std::collections::VecDeque;

use super::{Asked, Event, MS, Office, Running, World};
use crate::quota::*;

impl World {
    pub(super) fn tick(&mut self, slot: usize, life: u64) {
        self.serve(slot);
        self.report(slot);
        let now = self.clock(slot);
        // In the calm it is seen who is gone.
        let there: Vec<String> = if self.is_calm() {
            self.processes.iter().map(|process| process.id.clone()).collect()
        } else {
            Vec::new()
        };
        if let Some(office) = &mut self.processes[slot].allocator {
            let allocator = &mut office.allocator;
            let lost: Vec<String> = allocator.holders().map(str::to_owned).collect();
            for id in lost.iter().filter(|id| !there.is_empty() && !there.contains(id)) {
                allocator.lost(id, now);
            }
            let actions = allocator.tick(now);
            self.act(slot, slot, actions);
        }
        let every = self.plan.terms.report_every / 8;
        self.after(every, Event::Tick { slot, life });
    }

    /// Sends the report that is due.
    pub(super) fn report(&mut self, slot: usize) {
        let now = self.clock(slot);
        let process = &mut self.processes[slot];
        if process.holder.next_report().is_none_or(|at| at > now.nanos) {
            return;
        }
        let mut waiting: Vec<Waiting> = Vec::new();
        for asked in &process.queue {
            // As in the gateway: since nobody of its line was served.
            let served = process.served.iter().find(|(class, _)| *class == asked.class);
            let since = served.map_or(asked.since, |(_, at)| asked.since.max(*at));
            let oldest = now.nanos.saturating_sub(since);
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

    pub(super) fn act(&mut self, slot: usize, from: usize, actions: Vec<Action>) {
        let life = self.lives[slot];
        for action in actions {
            match action {
                Action::StepDown(term) => {
                    let process = &mut self.processes[slot];
                    process.heard = process.heard.max(term);
                    self.step_down(slot);
                }
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
                Action::Vouch(by, vouch) => {
                    let Some(office) = self.processes[slot]
                        .allocator
                        .as_ref()
                        .map(|office| office.number)
                    else {
                        return;
                    };
                    let to = by
                        .split('-')
                        .next()
                        .and_then(|slot| slot.parse().ok())
                        .unwrap_or(slot);
                    let failed = Event::Vouched {
                        slot,
                        life,
                        office,
                        holder: vouch.holder.clone(),
                        seq: vouch.seq,
                        agreed: false,
                    };
                    self.after(200 * MS, failed);
                    self.send(slot, to, || Event::Vouch {
                        to,
                        by: by.clone(),
                        slot,
                        life,
                        office,
                        vouch: vouch.clone(),
                    });
                }
                Action::Write(checkpoint) => {
                    let Some(office) = &mut self.processes[slot].allocator else {
                        return;
                    };
                    office.record.attempt(Some(checkpoint.clone()));
                    let (number, over) = (office.number, *office.record.version());
                    let delay = MS + self.dice.exponential(4 * MS);
                    self.after(
                        delay,
                        Event::Land {
                            slot,
                            life,
                            office: number,
                            over,
                            checkpoint,
                        },
                    );
                }
            }
        }
    }

    pub(super) fn written(&mut self, slot: usize, number: u64, landed: Option<bool>) {
        let now = self.clock(slot);
        let reached = self.can_speak(slot, self.plan.slots);
        let calm = self.is_calm();
        let Some(office) = self.processes[slot]
            .allocator
            .as_mut()
            .filter(|office| office.number == number)
        else {
            return;
        };
        if landed == Some(true) {
            let over = *office.record.version();
            office.record.landed(over + 1);
            let actions = office.allocator.written(now);
            return self.act(slot, slot, actions);
        }
        if !reached {
            // It must be read first.
            let life = self.lives[slot];
            let landed = None;
            if !calm || self.now < self.plan.length {
                self.after(
                    100 * MS,
                    Event::Written {
                        slot,
                        life,
                        office: number,
                        landed,
                    },
                );
            }
            return;
        }
        match office.record.found(self.version, self.stored.clone()) {
            Found::Ours => office.allocator.not_written(),
            Found::Anothers => self.step_down(slot),
        }
    }

    /// Drops an allocator; one that is still elected starts again from what is stored.
    fn step_down(&mut self, slot: usize) {
        self.processes[slot].allocator = None;
        if self.leader == slot {
            self.after(10 * MS, Event::Reopen { slot });
        }
    }

    pub(super) fn elect(&mut self, slot: usize) {
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
        )
        .after(self.processes[slot].heard)
        .beside(self.processes[slot].id.clone());
        allocator.fault = self.plan.fault;
        self.numbers += 1;
        self.processes[slot].allocator = Some(Office {
            number: self.numbers,
            allocator,
            record: Record::new(self.version, self.stored.clone()),
        });
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

    /// Ends the allocator's process. A container that comes back in the same pod is known to have ended.
    pub(super) fn kill(&mut self, nth: u64) {
        let Some(kills) = self.plan.kills else { return };
        let slot = self.leader;
        self.processes[slot].up = false;
        self.lives[slot] += 1;
        self.after(kills.back_after, Event::Start { slot });
        let next = (slot + 1) % self.plan.slots;
        let is_container = nth.is_multiple_of(2);
        let elected_after = if next == slot {
            kills.back_after + 1
        } else if is_container {
            kills.elected_after
        } else {
            kills.missed_after
        };
        self.after(elected_after, Event::Elect { slot: next });
        if is_container {
            let id = self.processes[slot].id.clone();
            self.after(kills.back_after.max(elected_after) + 50 * MS, Event::Gone { id });
        }
        self.after(kills.every, Event::Kill(nth + 1));
    }

    pub(super) fn restart_if_left(&mut self, slot: usize) {
        let process = &mut self.processes[slot];
        if process.leaving && process.running.is_empty() {
            process.up = false;
            self.lives[slot] += 1;
            let delay = self.dice.below(300 * MS);
            self.after(delay, Event::Start { slot });
            if self.leader == slot && self.is_calm() {
                // Somebody is elected again in the end.
                self.after(delay, Event::Reopen { slot });
            }
        }
    }

    pub(super) fn request(&mut self, slot: usize) -> Asked {
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
    pub(super) fn serve(&mut self, slot: usize) {
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
                Admission::Admitted(ticket) => {
                    let served = &mut self.processes[slot].served;
                    served.retain(|(class, _)| *class != asked.class);
                    served.push((asked.class, now));
                    self.start(slot, ticket, &asked);
                }
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
            let estimate = limit.resource.units(&asked.estimate);
            let error = units.saturating_sub(estimate);
            self.largest_error[index] = self.largest_error[index].max(error);
            match limit.resource {
                Resource::Concurrency => counts = true,
                _ => {
                    let counted_at = self.now + self.dice.below(latest + 1);
                    self.counts[index].add(counted_at, units);
                    self.sure[index].add(counted_at, units.min(estimate));
                }
            }
        }
        if counts {
            self.intervals.push((self.now, self.now + end));
        }
    }
}
