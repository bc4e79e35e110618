//! Who waits for a provider's quota, and who is next.
//!
//! Requests to which the same limits apply wait in one line, in the fair queue of [`flotilla_core::queue`] with pools as its
//! tenants, so that a pool that sends more than its share waits for itself. Lines take turns.

use std::collections::hash_map::RandomState;

use flotilla_core::queue::{
    Arrival, Class as Urgency, Entry, FairQueue, Gone, Limit as QueueLimit, Next, Settings, Tenant,
    Ticket as Place,
};
use flotilla_core::quota::{Admission, Amounts, Class, Holder, Nanos, Ticket, Waiting};
use tokio::sync::oneshot;

/// Requests that may wait at one gateway for one line; each may hold a body of 64 KiB.
pub(super) const MAX_WAITING: usize = 2_048;
/// What a pool may send each turn, in tokens: about a request.
const QUANTUM: u64 = 2_000;
/// The service rate of a line is measured over windows of its limits, but not of longer ones than this.
const LONGEST_WINDOW: Nanos = 600 * 1_000_000_000;

/// A limit that requests wait for, and until when, if that is known.
pub(super) type Blocked = (usize, Option<Nanos>);

/// What one who waits is told: it may be sent, and this is what it holds.
pub(super) struct Given {
    pub(super) ticket: Ticket,
    pub(super) generation: u64,
}

/// A request that waits.
pub(super) struct Waiter {
    estimate: Amounts,
    tell: oneshot::Sender<Given>,
}

/// A place in a line.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spot {
    class: Class,
    place: Place,
}

/// A request that asks to wait.
pub(super) struct Joining<'a> {
    pub(super) pool: &'a str,
    pub(super) class: Class,
    pub(super) estimate: Amounts,
    pub(super) deadline: Nanos,
    /// What it waits for.
    pub(super) blocked: Blocked,
    /// Whether tokens count, so that requests differ in size.
    pub(super) weighs: bool,
    /// The longest rolling window of the limits that apply; 0 where there is none.
    pub(super) window: Nanos,
}

/// Why a request may not wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full {
    pub(super) limit: QueueLimit,
    pub(super) retry_after_seconds: u64,
}

struct Line {
    class: Class,
    queue: FairQueue<Waiter>,
    /// Whether tokens count, so that requests differ in size.
    weighs: bool,
    total: Amounts,
    largest: Amounts,
    /// Since when nobody was served.
    since: Nanos,
    /// What its first waits for.
    blocked: Blocked,
}

impl Line {
    fn new(class: Class, weighs: bool, window: Nanos) -> Self {
        let quantum = if weighs { QUANTUM } else { 1 };
        let window = window.min(LONGEST_WINDOW);
        Self {
            class,
            queue: FairQueue::new(&Settings::of_quota(MAX_WAITING, quantum, window)),
            weighs,
            total: Amounts::default(),
            largest: Amounts::default(),
            since: 0,
            blocked: (0, None),
        }
    }

    fn cost(&self, estimate: Amounts) -> u64 {
        if self.weighs {
            estimate.input.saturating_add(estimate.output).max(1)
        } else {
            1
        }
    }

    fn joined(&mut self, estimate: Amounts) {
        self.total.input = self.total.input.saturating_add(estimate.input);
        self.total.output = self.total.output.saturating_add(estimate.output);
        self.largest.input = self.largest.input.max(estimate.input);
        self.largest.output = self.largest.output.max(estimate.output);
    }

    fn left(&mut self, estimate: Amounts) {
        self.total.input = self.total.input.saturating_sub(estimate.input);
        self.total.output = self.total.output.saturating_sub(estimate.output);
        if self.queue.is_empty() {
            self.total = Amounts::default();
            self.largest = Amounts::default();
        }
    }
}

/// All lines of one provider.
#[derive(Default)]
pub(super) struct Lines {
    lines: Vec<Line>,
    /// Whose turn it is.
    turn: usize,
    hasher: RandomState,
    waiting: usize,
}

impl Lines {
    /// Whether nobody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    /// Whether a request of this class would have to stand behind another.
    pub(super) fn has(&self, class: Class) -> bool {
        self.waiting > 0 && self.line(class).is_some_and(|line| !line.queue.is_empty())
    }

    fn line(&self, class: Class) -> Option<&Line> {
        self.lines.iter().find(|line| line.class == class)
    }

    /// What requests of this class wait for.
    pub(super) fn blocked(&self, class: Class) -> Option<Blocked> {
        self.line(class).map(|line| line.blocked)
    }

    /// For how long requests of this class have waited and none was served.
    pub(super) fn stalled(&self, class: Class, now: Nanos) -> Nanos {
        let line = self.line(class).filter(|line| !line.queue.is_empty());
        line.map_or(0, |line| now.saturating_sub(line.since))
    }

    /// Lets a request wait; `gone` says who had to go for it.
    pub(super) fn join(
        &mut self,
        joining: &Joining<'_>,
        now: Nanos,
    ) -> Result<(Spot, oneshot::Receiver<Given>), Full> {
        let Joining {
            pool,
            class,
            estimate,
            deadline,
            blocked,
            weighs,
            window,
        } = *joining;
        let tenant = Tenant::named(pool.as_bytes(), &self.hasher);
        let index = self
            .lines
            .iter()
            .position(|line| line.class == class)
            .unwrap_or_else(|| {
                self.lines.push(Line::new(class, weighs, window));
                self.lines.len() - 1
            });
        let line = &mut self.lines[index];
        if line.queue.is_empty() {
            line.since = now;
            line.blocked = blocked;
        }
        let (tell, told) = oneshot::channel();
        let arrival = Arrival {
            tenant,
            class: Urgency::Normal,
            cost: line.cost(estimate),
            arrived_nanoseconds: now,
            deadline_nanoseconds: deadline,
        };
        match line.queue.push(&arrival, Waiter { estimate, tell }, now) {
            Ok(admitted) => {
                self.waiting += 1;
                line.joined(estimate);
                if let Some(Gone::Expired(entry) | Gone::Displaced(entry)) = admitted.gone {
                    self.waiting -= 1;
                    line.left(entry.item.estimate);
                }
                let place = admitted.ticket;
                Ok((Spot { class, place }, told))
            }
            Err(refused) => Err(Full {
                limit: refused.limit,
                retry_after_seconds: refused.retry_after_seconds(),
            }),
        }
    }

    /// Gives up a place.
    pub(super) fn leave(&mut self, spot: Spot, now: Nanos) {
        let Some(line) = self.lines.iter_mut().find(|line| line.class == spot.class) else {
            return;
        };
        if let Some(entry) = line.queue.cancel(spot.place, now) {
            self.waiting -= 1;
            line.left(entry.item.estimate);
        }
    }

    /// Lets everybody go, who then find that they were not given anything.
    pub(super) fn dissolve(&mut self) {
        self.lines.clear();
        self.waiting = 0;
    }

    /// What waits, for a report.
    pub(super) fn waiting(&self, now: Nanos) -> Vec<Waiting> {
        let lines = self.lines.iter().filter(|line| !line.queue.is_empty());
        lines
            .map(|line| Waiting {
                class: line.class,
                requests: line.queue.len() as u64,
                total: line.total,
                largest: line.largest,
                oldest: now.saturating_sub(line.since),
            })
            .collect()
    }

    /// Gives those that wait what `holder` has, at most to `most` of them; when to try again, if time alone helps, and
    /// whether there is more to give.
    pub(super) fn serve(
        &mut self,
        holder: &mut Holder,
        generation: u64,
        now: Nanos,
        most: usize,
    ) -> (Option<Nanos>, bool) {
        let (mut wake, mut left): (Option<Nanos>, usize) = (None, most);
        let count = self.lines.len();
        for step in 0..count {
            if self.waiting == 0 {
                break;
            }
            let index = (self.turn + step) % count;
            let line = &mut self.lines[index];
            if line.queue.is_empty() {
                continue;
            }
            let mut blocked = None;
            while left > 0 {
                let mut got = None;
                let mut gone: Vec<Entry<Waiter>> = Vec::new();
                let class = line.class;
                let fits = |waiter: &Waiter, _| match holder.try_admit(class, waiter.estimate, now) {
                    Admission::Admitted(ticket) => {
                        got = Some(ticket);
                        true
                    }
                    Admission::Wait { limit, until } => {
                        blocked.get_or_insert((limit, until));
                        false
                    }
                    // It was smaller than the limit when it came: let go, empty-handed.
                    Admission::Never { .. } => true,
                };
                let next = line.queue.pop_where(fits, now, |entry| gone.push(entry));
                for entry in gone {
                    self.waiting -= 1;
                    line.left(entry.item.estimate);
                }
                let Next::Entry(entry) = next else { break };
                self.waiting -= 1;
                left -= 1;
                line.since = now;
                line.left(entry.item.estimate);
                if let Some(ticket) = got
                    && let Err(Given { ticket, .. }) = entry.item.tell.send(Given { ticket, generation })
                {
                    holder.cancel(ticket);
                }
            }
            if let Some(blocked) = blocked
                && !line.queue.is_empty()
            {
                line.blocked = blocked;
                if let Some(until) = blocked.1 {
                    wake = Some(wake.map_or(until, |known| known.min(until)));
                }
            }
        }
        if count > 0 {
            self.turn = (self.turn + 1) % count;
        }
        self.lines
            .retain(|line| !line.queue.is_empty() || line.queue.rate_per_second(now).is_some());
        (wake, left == 0)
    }
}
