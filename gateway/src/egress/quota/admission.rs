//! Admission of requests to one provider, from this gateway's lease, without asking anybody.
//!
//! One short lock per provider: a request takes it when it is admitted, when its answer begins and when it has ended.
//! Under it a counter and a bucket per limit are touched, and two maps are looked into.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use flotilla_core::queue::Limit as QueueLimit;
use flotilla_core::quota::{
    Admission as Decision, Amounts, Class, Estimator, Holder, Limit, Nanos, OutputCharge, Reply, Report,
    Terms, Window,
};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::clock::Clock;
use super::counts::Counts;
use super::line::{Blocked, Full, Given, Joining, Lines, Spot};
use super::refusal::{Refused, Why};

mod permit;

pub use permit::{Permit, Used};

/// Models and pools whose sizes are learnt apart; an agent that makes up names must not fill the memory.
const MAX_NAMES: usize = 256;
/// Where further ones are learnt.
const OTHER: &str = "other";
/// Waiting requests that are let go under one hold of the lock.
const BATCH: usize = 64;
/// When nothing says when to come back.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Numbers a list of limits: no two of this process have the same, though one may be put in force again after it was taken
/// away. What the holder of the first still has in use must not be taken for the second one's.
fn next_list() -> u64 {
    static LISTS: AtomicU64 = AtomicU64::new(0);
    LISTS.fetch_add(1, Ordering::Relaxed)
}

/// A request that would like to be sent.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// The pool that sends it.
    pub pool: &'a str,
    /// The model it asks for; none where it says none, or not yet: then all quotas apply.
    pub model: Option<&'a str>,
    /// Length of its body in bytes; 0 for one that uses no tokens.
    pub bytes: u64,
    /// The most output tokens it allows.
    pub max_tokens: Option<u64>,
    /// Until when it may wait; in the past where another provider is asked rather than waiting.
    pub deadline: Instant,
}

pub(super) struct State {
    pub(super) holder: Holder,
    /// Number of the list of limits in force.
    generation: u64,
    /// Holders of earlier lists of limits, while their requests are under way.
    old: Vec<(u64, Holder)>,
    lines: Lines,
    classes: HashMap<String, Class>,
    estimators: HashMap<Arc<str>, HashMap<Arc<str>, Estimator>>,
    pub(super) counts: Counts,
    /// Nothing is admitted any more: the quotas were taken away, or are held elsewhere, or this gateway ends.
    left: bool,
    /// When to look at the lines again, if time alone helps.
    wake: Option<Nanos>,
}

/// Admission to one provider.
pub struct Admission {
    provider: String,
    /// What its holders are called: pod and process.
    identity: String,
    clock: Clock,
    terms: Terms,
    state: Mutex<State>,
    /// Told when somebody waits or there is more to give.
    changed: Notify,
}

/// What is due.
pub(super) struct Due {
    /// To be sent to the allocator.
    pub(super) report: Option<Report>,
    /// When something is due next.
    pub(super) at: Option<Nanos>,
}

impl Admission {
    pub(super) fn new(provider: &str, identity: &str, limits: &[Limit], terms: Terms, clock: Clock) -> Self {
        let generation = next_list();
        let holder = Holder::new(
            format!("{identity}/{generation}"),
            1,
            limits,
            terms,
            clock.nanos(),
        );
        Self {
            provider: provider.to_owned(),
            identity: identity.to_owned(),
            terms,
            state: Mutex::new(State {
                holder,
                generation,
                old: Vec::new(),
                lines: Lines::default(),
                classes: HashMap::new(),
                estimators: HashMap::new(),
                counts: Counts::new(limits.len()),
                left: false,
                wake: None,
            }),
            clock,
            changed: Notify::new(),
        }
    }

    /// The provider's name.
    pub fn provider(&self) -> &str {
        &self.provider
    }

    pub(super) fn with<R>(&self, look: impl FnOnce(&mut State, Nanos) -> R) -> R {
        let now = self.clock.nanos();
        look(&mut self.state.lock(), now)
    }

    /// Puts another list of limits in force; gives the last word of the old one's holder. Those that wait look again.
    pub(super) fn replace(&self, limits: &[Limit]) -> Report {
        let now = self.clock.now();
        let mut state = self.state.lock();
        let state = &mut *state;
        let before = std::mem::replace(&mut state.generation, next_list());
        let id = format!("{}/{}", self.identity, state.generation);
        let holder = Holder::new(id, 1, limits, self.terms, now.nanos);
        let mut old = std::mem::replace(&mut state.holder, holder);
        let last = old.leave(now.nanos, now.unix_ms);
        if !old.is_idle() {
            state.old.push((before, old));
        }
        state.classes.clear();
        state.counts.limits_changed(limits.len());
        state.lines.dissolve();
        self.changed.notify_one();
        last
    }

    /// Nothing is admitted from now on; the last word of the holder.
    pub(super) fn leave(&self) -> Report {
        let now = self.clock.now();
        let mut state = self.state.lock();
        state.left = true;
        state.lines.dissolve();
        state.holder.leave(now.nanos, now.unix_ms)
    }

    /// Waits until something may be due earlier than was said.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    pub(super) fn instant(&self, nanos: Nanos) -> Instant {
        self.clock.instant(nanos)
    }

    /// Lets go who can go, and makes the report that is due if one `may_report`.
    pub(super) fn tick(&self, may_report: bool) -> Due {
        let now = self.clock.now();
        let mut state = self.state.lock();
        let more = state.serve(now.nanos);
        let due = state.holder.next_report().filter(|_| may_report);
        let report = due.filter(|at| *at <= now.nanos).map(|_| {
            let State { holder, lines, .. } = &mut *state;
            holder.report(now.nanos, now.unix_ms, &lines.waiting(now.nanos))
        });
        let next = state
            .holder
            .next_report()
            .filter(|_| may_report && report.is_none());
        let wake = if more { Some(now.nanos) } else { state.wake };
        let at = match (next, wake) {
            (Some(next), Some(wake)) => Some(next.min(wake)),
            (next, wake) => next.or(wake),
        };
        Due { report, at }
    }

    /// Another gateway deals out.
    pub(super) fn greet(&self) {
        self.with(|state, now| state.holder.greet(now));
    }

    /// Takes the allocator's answer.
    pub(super) fn take(&self, reply: &Reply) {
        let now = self.clock.nanos();
        let mut state = self.state.lock();
        if state.holder.on_reply(reply, now) {
            state.serve(now);
        }
    }

    /// Reserves what a request will use, as far as can be told; waits for its turn until its deadline where there is too
    /// little. One whose deadline is over joins no line, and counts as passed over instead of refused.
    ///
    /// None: these quotas are not in force any more, or not here.
    ///
    /// # Errors
    /// With the quota that it would exceed, and when to come back.
    pub async fn reserve(self: &Arc<Self>, ask: Ask<'_>) -> Result<Option<Permit>, Refused> {
        let mut since = None;
        loop {
            let deadline = self.clock.nanos_of(ask.deadline);
            let mut joined = match self.try_reserve(&ask, deadline, since.is_some())? {
                Tried::Admitted(permit) => return Ok(Some(permit)),
                Tried::Waits(joined) => joined,
                Tried::Left => return Ok(None),
            };
            let since = *since.get_or_insert_with(Instant::now);
            self.changed.notify_one();
            match tokio::time::timeout_at(ask.deadline, &mut joined.told).await {
                Ok(Ok(given)) => {
                    joined.spot = None;
                    let waited = since.elapsed();
                    self.with(|state, _| state.counts.waited(&joined.pool, waited));
                    return Ok(Some(self.permit(given, &joined, ask.bytes, waited)));
                }
                Ok(Err(_)) => {
                    // It is in no line any more: the limits have changed, it had to go for another, or its time was over.
                    joined.spot = None;
                    let changed = self.with(|state, _| state.left || state.generation != joined.generation);
                    let late = ask.deadline <= Instant::now();
                    match (changed, late) {
                        (true, false) => {}
                        (_, true) => return Err(self.refuse(&joined, Why::TimedOut)),
                        (false, false) => return Err(self.refuse(&joined, Why::QueueFull)),
                    }
                }
                Err(_) => return Err(self.refuse(&joined, Why::TimedOut)),
            }
        }
    }

    fn permit(self: &Arc<Self>, given: Given, joined: &Joined<'_>, bytes: u64, waited: Duration) -> Permit {
        Permit {
            admission: self.clone(),
            ticket: Some(given.ticket),
            generation: given.generation,
            class: joined.class,
            pool: joined.pool.clone(),
            model: joined.model.clone(),
            bytes,
            waited,
            status: None,
        }
    }

    /// A permit at once, or a place in the line.
    fn try_reserve<'a>(
        self: &'a Arc<Self>,
        ask: &Ask<'_>,
        deadline: Nanos,
        waited_before: bool,
    ) -> Result<Tried<'a>, Refused> {
        let now = self.clock.nanos();
        let at_once = !waited_before && deadline <= now;
        let state = &mut *self.state.lock();
        if state.left {
            return Ok(Tried::Left);
        }
        let class = state.class(ask.model);
        let weighs = state.holder.weighs(class);
        let (pool, model, estimate) = state.estimate(ask, weighs);
        let blocked = if state.lines.has(class) {
            state.lines.blocked(class).unwrap_or((0, None))
        } else {
            match state.holder.try_admit(class, estimate, now) {
                Decision::Admitted(ticket) => {
                    state.counts.pool(&pool).admitted += 1;
                    return Ok(Tried::Admitted(Permit {
                        admission: self.clone(),
                        ticket: Some(ticket),
                        generation: state.generation,
                        class,
                        pool,
                        model,
                        bytes: ask.bytes,
                        waited: Duration::ZERO,
                        status: None,
                    }));
                }
                Decision::Wait { limit, until } => (limit, until),
                Decision::Never { limit } => {
                    let why = Why::TooLarge(estimate);
                    state.counts.turned_away(&pool, limit, at_once, now);
                    return Err(state.refused(&self.provider, limit, why, None));
                }
            }
        };
        if at_once {
            state.counts.turned_away(&pool, blocked.0, at_once, now);
            self.changed.notify_one();
            return Err(state.refused(&self.provider, blocked.0, Why::TimedOut, None));
        }
        // Waiting for a lease says nothing about the quota.
        if !waited_before && state.holder.has_lease(now) {
            state.counts.throttled(blocked.0, now);
        }
        if let Some(until) = self
            .end_of_stop(state, class, blocked, now)
            .filter(|end| *end > deadline)
        {
            let after = Some(Duration::from_nanos(until - now));
            state.counts.turned_away(&pool, blocked.0, false, now);
            return Err(state.refused(&self.provider, blocked.0, Why::WouldTimeOut, after));
        }
        let joining = Joining {
            pool: &pool,
            class,
            estimate,
            deadline,
            blocked,
            weighs,
            window: state.holder.longest_window(class),
        };
        match state.lines.join(&joining, now) {
            Ok((spot, told)) => {
                state.counts.pool(&pool).waiting += 1;
                Ok(Tried::Waits(Joined {
                    admission: self,
                    spot: Some(spot),
                    told,
                    class,
                    pool,
                    model,
                    generation: state.generation,
                }))
            }
            Err(Full {
                limit,
                retry_after_seconds,
            }) => {
                let why = match limit {
                    QueueLimit::PredictedWait => Why::WouldTimeOut,
                    QueueLimit::QueueFull | QueueLimit::TenantShare => Why::QueueFull,
                };
                let after = Some(Duration::from_secs(retry_after_seconds));
                state.counts.turned_away(&pool, blocked.0, false, now);
                Err(state.refused(&self.provider, blocked.0, why, after))
            }
        }
    }

    /// When requests of this class may go on, where it is certain that none will before: the provider has said so, or a day's
    /// or month's quota is used up, and nobody has given anything back for as long as a lease lasts.
    fn end_of_stop(&self, state: &State, class: Class, (limit, until): Blocked, now: Nanos) -> Option<Nanos> {
        let is_spent = || {
            let calendar = |limit: &Limit| matches!(limit.window, Window::Calendar(_));
            state.holder.limit(limit).is_some_and(calendar)
                && state.lines.stalled(class, now) > self.terms.lease
        };
        until.filter(|_| state.holder.is_stopped(limit, now) || is_spent())
    }

    fn refuse(&self, joined: &Joined<'_>, why: Why) -> Refused {
        self.with(|state, now| {
            let (limit, until) = state.lines.blocked(joined.class).unwrap_or((0, None));
            let after = until.map(|until| Duration::from_nanos(until.saturating_sub(now)));
            let why = if state.holder.is_cut_off(now) {
                Why::NoShare
            } else {
                why
            };
            state.counts.turned_away(&joined.pool, limit, false, now);
            state.refused(&self.provider, limit, why, after)
        })
    }
}

/// What became of a request at once.
enum Tried<'a> {
    Admitted(Permit),
    Waits(Joined<'a>),
    Left,
}

/// A place in the line, given up when it is dropped.
struct Joined<'a> {
    admission: &'a Admission,
    spot: Option<Spot>,
    told: oneshot::Receiver<Given>,
    class: Class,
    pool: Arc<str>,
    model: Arc<str>,
    generation: u64,
}

impl Drop for Joined<'_> {
    fn drop(&mut self) {
        let now = self.admission.clock.nanos();
        let mut state = self.admission.state.lock();
        let waiting = &mut state.counts.pool(&self.pool).waiting;
        *waiting = waiting.saturating_sub(1);
        if let Some(spot) = self.spot.filter(|_| state.generation == self.generation) {
            state.lines.leave(spot, now);
        }
        // It may have been given something in the last moment.
        self.told.close();
        if let Ok(given) = self.told.try_recv() {
            if let Some(holder) = state.holder_of(given.generation) {
                holder.cancel(given.ticket);
            }
            state.serve(now);
        }
    }
}

impl State {
    fn holder_of(&mut self, generation: u64) -> Option<&mut Holder> {
        if generation == self.generation {
            return Some(&mut self.holder);
        }
        self.old
            .iter_mut()
            .find(|(old, _)| *old == generation)
            .map(|(_, holder)| holder)
    }

    fn class(&mut self, model: Option<&str>) -> Class {
        let Some(model) = model else {
            return self.holder.every_limit();
        };
        if let Some(class) = self.classes.get(model) {
            return *class;
        }
        let class = self.holder.class(model);
        if self.classes.len() < MAX_NAMES {
            self.classes.insert(model.to_owned(), class);
        }
        class
    }

    /// The names under which a request is learnt, and what it will use.
    fn estimate(&mut self, ask: &Ask<'_>, weighs: bool) -> (Arc<str>, Arc<str>, Amounts) {
        let (pool, models) = entry(&mut self.estimators, ask.pool);
        let (model, estimator) = entry(models, ask.model.unwrap_or(OTHER));
        let mut amounts = Amounts::default();
        if weighs && ask.bytes > 0 {
            (amounts.input, amounts.output) =
                estimator.estimate(ask.bytes, ask.max_tokens, OutputCharge::Used);
        }
        (pool, model, amounts)
    }

    /// Lets go who can go; whether there is more to give.
    fn serve(&mut self, now: Nanos) -> bool {
        self.wake = None;
        if self.lines.is_empty() {
            return false;
        }
        let (wake, more) = self.lines.serve(&mut self.holder, self.generation, now, BATCH);
        self.wake = wake;
        more
    }

    fn refused(&self, provider: &str, limit: usize, why: Why, after: Option<Duration>) -> Refused {
        let limit = self.holder.limit(limit);
        Refused::new(provider, limit, why, after.unwrap_or(RETRY_AFTER))
    }
}

/// The entry of `name`, or of those whose name came too late to have one.
fn entry<'a, V: Default>(map: &'a mut HashMap<Arc<str>, V>, name: &str) -> (Arc<str>, &'a mut V) {
    let name = if map.len() < MAX_NAMES || map.contains_key(name) {
        name
    } else {
        OTHER
    };
    let key = match map.get_key_value(name) {
        Some((key, _)) => key.clone(),
        None => Arc::from(name),
    };
    let value = map.entry(key.clone()).or_default();
    (key, value)
}
