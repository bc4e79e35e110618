//! The queue itself. See the [module](super) for its rules.

use super::lanes::{Backlog, Lane, Lanes, Rounds};
use super::rate::Rate;
use super::slab::{Kind, List, Meta, NIL, Slab};
use super::{
    Admitted, Arrival, Class, Entry, Gone, LEVELS, Limit, MAX_CAPACITY, MAX_COST, Next, Refused, Settings,
    Tenant, Ticket,
};

/// How many entries of the lane whose turn it is, and how many other lanes, are looked at for one that fits where the
/// first does not.
const LOOK_AHEAD: usize = 8;

/// Requests that wait, in the order in which they are to be served.
///
/// All times are nanoseconds since any one origin; one that goes back counts as standing still.
pub struct FairQueue<T> {
    slab: Slab<T>,
    lanes: Lanes,
    rounds: Rounds,
    /// Entries of all lanes by level.
    levels: [List; LEVELS],
    backlog: Backlog,
    work: u64,
    length: usize,
    capacity: usize,
    quantum: i64,
    ageing: u64,
    rate: Rate,
    /// What a lane begins with.
    unknown: Rate,
    now: u64,
}

impl<T> FairQueue<T> {
    /// An empty queue. Takes memory as it is needed.
    pub fn new(settings: &Settings) -> Self {
        let quantum = settings.quantum.clamp(1, MAX_COST);
        let unknown = Rate::new(settings.memory_nanoseconds, settings.least_nanoseconds);
        Self {
            slab: Slab::new(),
            lanes: Lanes::new(
                settings.lanes.min(MAX_CAPACITY),
                settings.shared_lanes.min(MAX_CAPACITY),
            ),
            rounds: Rounds::new(),
            levels: [List::default(); LEVELS],
            backlog: Backlog::default(),
            work: 0,
            length: 0,
            capacity: settings.capacity.min(MAX_CAPACITY),
            quantum: quantum as i64,
            ageing: settings.ageing_nanoseconds.max(1),
            rate: unknown.clone(),
            unknown,
            now: 0,
        }
    }

    /// Entries that wait, those among them whose deadline has passed unnoticed.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Lanes with an entry.
    pub fn active_lanes(&self) -> usize {
        self.lanes.active
    }

    /// Entries of this tenant, or of all in the lane it shares.
    pub fn waiting(&self, tenant: Tenant) -> usize {
        self.lanes
            .find(tenant)
            .map_or(0, |lane| self.lanes.count(lane) as usize)
    }

    /// The sum of all costs.
    pub fn work(&self) -> u64 {
        self.work
    }

    /// Units of cost served per second while somebody waits; none while that is not known.
    pub fn rate_per_second(&self, now_nanoseconds: u64) -> Option<f64> {
        let rate = self.rate.per_nanosecond(now_nanoseconds.max(self.now))?;
        Some(rate * 1e9)
    }

    /// From now on so many entries at most. Nobody who waits is let go for it. Where several lines share one bound this
    /// is the bound less the others' lengths, set before each [`FairQueue::push`].
    pub fn set_capacity(&mut self, capacity: usize) {
        self.capacity = capacity.min(MAX_CAPACITY);
    }

    /// From now on an entry rises by a level after so much time at its level; at least 1.
    pub fn set_ageing(&mut self, nanoseconds: u64) {
        self.ageing = nanoseconds.max(1);
    }

    /// How long this arrival would wait; none while the service rate is not known.
    pub fn predict(&mut self, arrival: &Arrival, now_nanoseconds: u64) -> Option<u64> {
        let now = self.advance(now_nanoseconds);
        let (level, _) = self.level_of(arrival, now);
        self.predicted(arrival, level, now)
    }

    /// Lets `item` wait.
    ///
    /// # Errors
    /// With the item, the limit and the predicted wait if it may not.
    pub fn push(
        &mut self,
        arrival: &Arrival,
        item: T,
        now_nanoseconds: u64,
    ) -> Result<Admitted<T>, Refused<T>> {
        let now = self.advance(now_nanoseconds);
        let (level, joined) = self.level_of(arrival, now);
        let predicted = self.predicted(arrival, level, now);
        let end = now.saturating_add(predicted.unwrap_or(0));
        if arrival.deadline_nanoseconds <= now || arrival.deadline_nanoseconds < end {
            return Err(Refused {
                item,
                limit: Limit::PredictedWait,
                predicted_nanoseconds: predicted,
            });
        }
        let mut gone = None;
        if self.length >= self.capacity {
            gone = match self.make_room(arrival.tenant, level, now) {
                Ok(gone) => Some(gone),
                Err(limit) => {
                    return Err(Refused {
                        item,
                        limit,
                        predicted_nanoseconds: predicted,
                    });
                }
            };
        }
        if self.length == 0 {
            self.rate.busy(now);
        }
        let lane = self.lanes.find_or_open(arrival.tenant);
        if self.lanes.count(lane) == 0 {
            // What was measured among other tenants says little.
            let mut rate = self.unknown.clone();
            rate.busy(now);
            self.lanes.lane_mut(lane).rate = rate;
        }
        let meta = Meta {
            lane,
            class: arrival.class,
            level,
            cost: arrival.cost.clamp(1, MAX_COST),
            passed: 0,
            arrived: arrival.arrived_nanoseconds.min(now),
            joined,
            deadline: arrival.deadline_nanoseconds,
        };
        let (index, generation) = self.slab.insert(meta, item);
        self.lanes.one_more(lane);
        self.length += 1;
        self.enlist(index);
        self.rounds.settle(&mut self.lanes, lane);
        Ok(Admitted {
            ticket: Ticket { index, generation },
            predicted_nanoseconds: predicted,
            gone,
        })
    }

    /// Takes the next entry that costs no more than `available` (`u64::MAX` where a slot is free). Those whose deadline
    /// has passed and that are met on the way go to `expired`.
    pub fn pop(&mut self, available: u64, now_nanoseconds: u64, expired: impl FnMut(Entry<T>)) -> Next<T> {
        self.pop_where(|_, cost| cost <= available, now_nanoseconds, expired)
    }

    /// Takes the next entry for which `fits` says so, given what was put in and its cost: for a resource of which a cost
    /// does not tell the whole. The first one for which it is true is taken out, and it is not called again; [`Next::Short`]
    /// says the cost of the one whose turn it is. Otherwise as [`FairQueue::pop`].
    pub fn pop_where(
        &mut self,
        mut fits: impl FnMut(&T, u64) -> bool,
        now_nanoseconds: u64,
        mut expired: impl FnMut(Entry<T>),
    ) -> Next<T> {
        let now = self.advance(now_nanoseconds);
        match self.select(&mut fits, now, &mut expired) {
            Some(Ok(index)) => {
                let Meta { lane, cost, .. } = *self.slab.meta(index);
                self.rate.served(cost, now);
                self.lanes.lane_mut(lane).rate.served(cost, now);
                Next::Entry(self.remove(index, now))
            }
            Some(Err(short)) => Next::Short(short),
            None => Next::Nobody,
        }
    }

    /// Takes out the entry with this ticket; none if it has left already.
    pub fn cancel(&mut self, ticket: Ticket, now_nanoseconds: u64) -> Option<Entry<T>> {
        self.now = self.now.max(now_nanoseconds);
        let Ticket { index, generation } = ticket;
        self.slab
            .holds(index, generation)
            .then(|| self.remove(index, self.now))
    }

    /// Takes out an entry, from the highest level and there the one that reached it first; for a queue that is dissolved.
    pub fn take_any(&mut self, now_nanoseconds: u64) -> Option<Entry<T>> {
        let now = self.advance(now_nanoseconds);
        let first = self.levels.iter().rev().find(|level| !level.is_empty())?.head;
        Some(self.remove(first, now))
    }

    /// Lets time pass: entries that are due rise. In the order of time over all levels, so that each list stays in the
    /// order in which its entries joined.
    fn advance(&mut self, now: u64) -> u64 {
        self.now = self.now.max(now);
        loop {
            let due = (0..LEVELS - 1)
                .filter_map(|level| {
                    let head = self.levels[level].head;
                    (head != NIL).then(|| (self.slab.meta(head).joined.saturating_add(self.ageing), head))
                })
                .min_by_key(|(time, _)| *time);
            match due {
                Some((time, index)) if time <= self.now => {
                    self.delist(index);
                    let meta = self.slab.meta_mut(index);
                    meta.level += 1;
                    meta.joined = time;
                    let lane = meta.lane;
                    self.enlist(index);
                    self.rounds.settle(&mut self.lanes, lane);
                }
                _ => return self.now,
            }
        }
    }

    /// The level of an arrival and when it reached it.
    fn level_of(&self, arrival: &Arrival, now: u64) -> (usize, u64) {
        let arrived = arrival.arrived_nanoseconds.min(now);
        let class = arrival.class as usize;
        let rises = ((now - arrived) / self.ageing).min((LEVELS - 1 - class) as u64);
        (class + rises as usize, arrived + rises * self.ageing)
    }

    /// The longer of two: what waits now, at the rate of all; and what waits in its own lane, at the rate of that lane,
    /// which knows of tenants that come again and again and hardly ever wait.
    fn predicted(&self, arrival: &Arrival, level: usize, now: u64) -> Option<u64> {
        let rate = self.rate.per_nanosecond(now)?;
        let by_backlog = self.work_until_served(arrival, level) as f64 / rate;
        let lane = self.lanes.find(arrival.tenant).map(|lane| self.lanes.lane(lane));
        let by_share = lane
            .and_then(|lane| {
                Some(own_turn(Some(lane), arrival, level) as f64 / lane.rate.per_nanosecond(now)?)
            })
            .unwrap_or(0.0);
        Some(by_backlog.max(by_share).round() as u64)
    }

    /// What will have been served when this arrival is: what goes before it in its own lane, and of each other lane as
    /// much as its own gets served until then.
    pub(super) fn work_until_served(&self, arrival: &Arrival, level: usize) -> u64 {
        let lane = self.lanes.find(arrival.tenant).map(|lane| self.lanes.lane(lane));
        let turn = own_turn(lane, arrival, level);
        let all = self.backlog.served_alongside(turn);
        all.saturating_sub(lane.map_or(0, |lane| lane.work.min(turn)))
            .saturating_add(turn)
    }

    /// Whom an arrival at `level` displaces when the queue is full.
    fn make_room(&mut self, tenant: Tenant, level: usize, now: u64) -> Result<Gone<T>, Limit> {
        for level in 0..LEVELS {
            let head = self.levels[level].head;
            if head != NIL && self.slab.meta(head).deadline <= now {
                return Ok(Gone::Expired(self.remove(head, now)));
            }
        }
        let own = self.lanes.find(tenant);
        let held = own.map_or(0, |lane| self.lanes.count(lane));
        let newest = |lane: u32, below: usize| {
            let lane = self.lanes.lane(lane);
            let lowest = lane.lowest().filter(|lowest| *lowest < below)?;
            Some(lane.levels[lowest].entries.tail)
        };
        let (fullest, most) = self.lanes.fullest().ok_or(Limit::QueueFull)?;
        let of_the_fullest = (most >= held + 2).then(|| newest(fullest, LEVELS)).flatten();
        let of_a_fuller = || {
            let tails = (0..level).map(|lower| self.levels[lower].tail);
            tails
                .filter(|tail| *tail != NIL)
                .find(|tail| self.lanes.count(self.slab.meta(*tail).lane) > held)
        };
        let victim = of_the_fullest
            .or_else(of_a_fuller)
            .or_else(|| newest(own?, level));
        match victim {
            Some(index) => Ok(Gone::Displaced(self.remove(index, now))),
            None if held > 0 && self.lanes.active > 1 => Err(Limit::TenantShare),
            None => Err(Limit::QueueFull),
        }
    }

    /// The entry to serve next, or what it needs if that is not available. None when nobody is left.
    fn select(
        &mut self,
        fits: &mut impl FnMut(&T, u64) -> bool,
        now: u64,
        expired: &mut impl FnMut(Entry<T>),
    ) -> Option<Result<u32, u64>> {
        let mut rounds = 0;
        loop {
            let Some(lane) = self.rounds.front() else {
                if !self.rounds.begin_next() {
                    return None;
                }
                rounds += 1;
                // From the second on every lane has had a turn in the round before, and none could send.
                if rounds > 1 {
                    self.skip_fruitless_rounds();
                }
                continue;
            };
            let number = self.rounds.number;
            let quantum = self.quantum;
            let this = self.lanes.lane_mut(lane);
            let head = this.head().expect("a lane in a ring has an entry");
            let Meta { cost, deadline, .. } = *self.slab.meta(head);
            if deadline <= now {
                expired(self.remove(head, now));
                continue;
            }
            let needed = cost as i64;
            if this.granted != number {
                this.granted = number;
                // What was saved for a larger entry that has gone since is not spent on small ones.
                this.deficit = (this.deficit + quantum).min(needed + quantum);
            }
            if needed > this.deficit {
                self.rounds.defer(&mut self.lanes, lane);
                continue;
            }
            if fits(self.slab.item(head), cost) {
                self.lanes.lane_mut(lane).deficit -= needed;
                return Some(Ok(head));
            }
            return Some(self.past(lane, head, fits, now).ok_or(cost));
        }
    }

    /// Grants every lane as many quanta at once as will be granted before the first lane can send, less one: that of
    /// the round that has begun.
    fn skip_fruitless_rounds(&mut self) {
        let mut lacking = i64::MAX;
        self.for_each_lane(|this, slab| {
            let cost = this.head().map_or(0, |head| slab.meta(head).cost as i64);
            lacking = lacking.min(cost - this.deficit);
        });
        let quanta = (lacking - 1) / self.quantum;
        if quanta > 0 {
            let grant = quanta * self.quantum;
            self.for_each_lane(|this, _| this.deficit += grant);
        }
    }

    fn for_each_lane(&mut self, mut act: impl FnMut(&mut Lane, &Slab<T>)) {
        for front in self.rounds.fronts() {
            let mut lane = front;
            loop {
                act(self.lanes.lane_mut(lane), &self.slab);
                lane = self.lanes.next(lane);
                if lane == front {
                    break;
                }
            }
        }
    }

    /// An entry that fits and may go past `blocked`, whose turn it is and who does not fit: from its own lane, else from
    /// the next ones. It is charged to its own lane, which may go into debt for it.
    fn past(
        &mut self,
        lane: u32,
        blocked: u32,
        fits: &mut impl FnMut(&T, u64) -> bool,
        now: u64,
    ) -> Option<u32> {
        let Meta { cost, passed, .. } = *self.slab.meta(blocked);
        let allowance = cost.saturating_sub(passed);
        let mut fits = |index: u32| {
            let Meta { cost, deadline, .. } = *self.slab.meta(index);
            cost <= allowance && deadline > now && fits(self.slab.item(index), cost)
        };
        let behind = std::iter::successors(Some(blocked), |index| {
            Some(self.slab.next(Kind::Lane, *index)).filter(|next| *next != NIL)
        });
        let own = behind
            .skip(1)
            .take(LOOK_AHEAD)
            .find(|index| fits(*index))
            .map(|index| (lane, index));
        let lanes = &self.lanes;
        let others = self.rounds.fronts().flat_map(|front| {
            std::iter::successors(Some(front), move |lane| {
                Some(lanes.next(*lane)).filter(|next| *next != front)
            })
        });
        let of_another = || {
            let candidates = others.filter(|other| *other != lane).take(LOOK_AHEAD);
            candidates
                .filter(|other| lanes.lane(*other).deficit >= 0)
                .filter_map(|other| Some((other, lanes.lane(other).head()?)))
                .find(|(_, head)| fits(*head))
        };
        let (lane, index) = own.or_else(of_another)?;
        let cost = self.slab.meta(index).cost;
        self.lanes.lane_mut(lane).deficit -= cost as i64;
        self.slab.meta_mut(blocked).passed += cost;
        Some(index)
    }

    /// Puts an entry into the lists of its level.
    fn enlist(&mut self, index: u32) {
        let Meta {
            lane, level, cost, ..
        } = *self.slab.meta(index);
        self.slab.link(Kind::Level, &mut self.levels[level], index);
        self.work += cost;
        let this = self.lanes.lane_mut(lane);
        self.slab.link(Kind::Lane, &mut this.levels[level].entries, index);
        this.levels[level].work += cost;
        self.backlog.change(this.work, this.work + cost);
        this.work += cost;
    }

    /// Takes an entry out of the lists of its level.
    fn delist(&mut self, index: u32) {
        let Meta {
            lane, level, cost, ..
        } = *self.slab.meta(index);
        self.slab.unlink(Kind::Level, &mut self.levels[level], index);
        self.work -= cost;
        let this = self.lanes.lane_mut(lane);
        self.slab
            .unlink(Kind::Lane, &mut this.levels[level].entries, index);
        this.levels[level].work -= cost;
        self.backlog.change(this.work, this.work - cost);
        this.work -= cost;
    }

    fn remove(&mut self, index: u32, now: u64) -> Entry<T> {
        self.delist(index);
        let (meta, item) = self.slab.remove(index);
        self.rounds.settle(&mut self.lanes, meta.lane);
        if self.lanes.count(meta.lane) == 1 {
            self.lanes.lane_mut(meta.lane).rate.idle(now);
        }
        self.lanes.one_less(meta.lane);
        self.length -= 1;
        if self.length == 0 {
            self.rate.idle(now);
        }
        let Meta {
            class,
            cost,
            arrived,
            deadline,
            lane: _,
            level: _,
            passed: _,
            joined: _,
        } = meta;
        Entry {
            item,
            class,
            cost,
            waited_nanoseconds: now.saturating_sub(arrived),
            deadline_nanoseconds: deadline,
        }
    }
}

/// What goes before an arrival in its own lane, and itself.
fn own_turn(lane: Option<&Lane>, arrival: &Arrival, level: usize) -> u64 {
    let before: u64 = lane.map_or(0, |lane| {
        lane.levels[level..].iter().map(|share| share.work).sum()
    });
    before + arrival.cost.clamp(1, MAX_COST)
}

const _: () = assert!(Class::Critical as usize + 1 == LEVELS);
