//! One replica's share of a provider's quota: admits without asking anybody.
//!
//! Put each provider's holder behind one mutex of its own. [`Holder::try_admit`], [`Holder::headers`] and
//! [`Holder::settle`] touch a counter and a bucket for each limit that applies, allocate nothing, and take some tens of
//! nanoseconds together; a refusal also looks through at most 128 buckets per limit to say when to come back.
//! Everything else happens once per report.

use super::vouch::Testimony;
use super::window::Held;
use super::{Amounts, Counted, Hint, Limit, MILLISECOND, Nanos, Resource, SECOND, Seen, Terms, Window};

mod report;

/// The most limits of one provider.
pub const MAX_LIMITS: usize = 64;
/// How much of a `Retry-After` is believed at once. A longer one may be right, of a day's limit that somebody else has used
/// up, or a mistake that must not stop this replica for a month: then one request is sent to find out, and so on.
const BELIEVED: Nanos = 3_600 * SECOND;
/// The next one is sent after this time if nothing is heard of it.
const PROBE: Nanos = 60 * SECOND;

/// Which limits apply to a model: bit `i` for limit `i`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Class(u64);

impl Class {
    fn limits(self) -> impl Iterator<Item = usize> {
        let mut left = self.0;
        std::iter::from_fn(move || {
            let bit = left.trailing_zeros();
            left &= left.wrapping_sub(1);
            (bit < 64).then_some(bit as usize)
        })
    }
}

/// What a request that may be sent holds. Give it back with [`Holder::settle`] or [`Holder::cancel`], exactly once.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "its units are held until it is settled or cancelled"]
pub struct Ticket {
    class: Class,
    reserved: Amounts,
    admitted_at: Nanos,
    headers_at: Option<Nanos>,
    /// It was sent alone, to see whether a long wait is over.
    is_probe: bool,
}

/// The answer to a request that would like to be sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Admission {
    /// It may be sent, now.
    Admitted(Ticket),
    /// Not now.
    Wait {
        /// The limit with the longest wait, by its position.
        limit: usize,
        /// When it may be tried again; none: when a grant came or another request ended.
        until: Option<Nanos>,
    },
    /// It is larger than this limit, by its position, and never will be.
    Never {
        /// The limit.
        limit: usize,
    },
}

/// Requests that wait at this replica for one class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Which limits apply to them.
    pub class: Class,
    /// How many.
    pub requests: u64,
    /// Their estimates, added up.
    pub total: Amounts,
    /// The largest estimate of each kind.
    pub largest: Amounts,
    /// How long the oldest has waited.
    pub oldest: Nanos,
}

#[derive(Debug)]
struct Local {
    limit: Limit,
    key: String,
    /// The most units that may be in use while the lease lasts.
    share: u64,
    in_flight: u64,
    held: Held,
    /// Admitted since the last full report interval began.
    admitted: u64,
    /// Admitted per report interval, as of late.
    pace: u64,
    /// The largest request of late.
    largest: u64,
    frozen_until: Nanos,
    /// After that one request is tried before the others.
    probes: bool,
    seen: Option<Seen>,
}

impl Local {
    fn in_use(&self) -> u64 {
        self.in_flight.saturating_add(self.held.total())
    }

    /// What may be in use without a lease.
    fn fallback(&self, floored: bool) -> u64 {
        match self.limit.window {
            _ if !floored || self.limit.floor == 0 => 0,
            Window::Calendar(_) => self.share,
            _ => self.share.min(self.limit.floor),
        }
    }
}

/// One replica's part in holding a provider's quota.
#[derive(Debug)]
pub struct Holder {
    id: String,
    weight: u32,
    terms: Terms,
    limits: Vec<Local>,
    pub(super) term: u64,
    seq: u64,
    sent_at: Nanos,
    answered: bool,
    lease_until: Nanos,
    floored: bool,
    /// The last time at which anybody asked.
    asked_at: Nanos,
    /// Start of the interval that `admitted` counts.
    interval_at: Nanos,
    next_report: Option<Nanos>,
    resting: bool,
    pub(super) leaving: bool,
    wanting: bool,
    /// [`super::Grant::at`] of the newest grant of this term.
    heard: Option<Nanos>,
    /// As the allocator wishes it; 0: own pace.
    report_every: Nanos,
    pub(super) testimony: Option<Testimony>,
    #[cfg(test)]
    pub(super) fault: Option<crate::quota::simulation::Fault>,
}

impl Holder {
    /// A holder without a lease. `id` must be new: of this process and this list of limits. Limits after the 64th are
    /// left out; the caller refuses such a list before. A changed list is a new holder; the old one is told
    /// to [`Holder::leave`] and kept until its requests have ended.
    pub fn new(id: impl Into<String>, weight: u32, limits: &[Limit], terms: Terms, now: Nanos) -> Self {
        let local = |limit: &Limit| Local {
            limit: limit.clone(),
            key: limit.key(),
            share: 0,
            in_flight: 0,
            held: Held::new(&limit.window, &terms),
            admitted: 0,
            pace: 0,
            largest: 0,
            frozen_until: 0,
            probes: false,
            seen: None,
        };
        Self {
            id: id.into(),
            weight,
            terms,
            limits: limits.iter().take(MAX_LIMITS).map(local).collect(),
            term: 0,
            seq: 0,
            sent_at: now,
            answered: true,
            lease_until: 0,
            floored: false,
            asked_at: now,
            interval_at: now,
            next_report: Some(now),
            resting: false,
            leaving: false,
            wanting: false,
            heard: None,
            report_every: 0,
            testimony: None,
            #[cfg(test)]
            fault: None,
        }
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The limits that apply to `model`. Ask once per model, not per request.
    pub fn class(&self, model: &str) -> Class {
        let applies = |local: &Local| {
            local.limit.models.is_empty() || local.limit.models.iter().any(|name| name == model)
        };
        let bits = self.limits.iter().enumerate().filter(|(_, local)| applies(local));
        Class(bits.fold(0, |bits, (i, _)| bits | 1 << i))
    }

    /// All limits: for a request of which it is not known what it asks for.
    pub fn every_limit(&self) -> Class {
        Class(
            self.limits
                .iter()
                .enumerate()
                .fold(0, |bits, (i, _)| bits | 1 << i),
        )
    }

    /// Whether any limit of `class` counts tokens or spend, so that a request's size matters.
    pub fn weighs(&self, class: Class) -> bool {
        class.limits().any(|i| {
            !matches!(
                self.limits[i].limit.resource,
                Resource::Requests | Resource::Concurrency
            )
        })
    }

    /// The longest rolling window of `class`; 0 where it has none.
    pub fn longest_window(&self, class: Class) -> Nanos {
        let rolling = class.limits().filter_map(|i| match self.limits[i].limit.window {
            Window::Rolling(length) => Some(length),
            Window::Calendar(_) | Window::None => None,
        });
        rolling.max().unwrap_or(0)
    }

    /// Whether the provider has said to wait, that time is not over for the limit at this position, and no request is under way
    /// that may end it.
    pub fn is_stopped(&self, position: usize, now: Nanos) -> bool {
        self.limits.get(position).is_some_and(|local| {
            let left = local.frozen_until.saturating_sub(now);
            left > 0 && !(local.probes && left <= PROBE)
        })
    }

    /// Whether no request is under way.
    pub fn is_idle(&self) -> bool {
        self.limits.iter().all(|local| local.in_flight == 0)
    }

    /// The limit at a position, as given.
    pub fn limit(&self, position: usize) -> Option<&Limit> {
        self.limits.get(position).map(|local| &local.limit)
    }

    /// Units of the limit at a position in use here, and this replica's share.
    pub fn usage(&mut self, position: usize, now: Nanos) -> Option<(u64, u64)> {
        let local = self.limits.get_mut(position)?;
        local.held.advance(now);
        Some((local.in_use(), local.share))
    }

    /// The newest allocator's term it knows, for [`super::Allocator::after`].
    pub fn term(&self) -> u64 {
        self.term
    }

    /// Whether it has been without a lease for longer than another allocator takes to be elected at worst.
    pub fn is_cut_off(&self, now: Nanos) -> bool {
        now >= self.lease_until.saturating_add(self.terms.lease)
    }

    /// Whether a lease is in force.
    pub fn has_lease(&self, now: Nanos) -> bool {
        now < self.lease_until
    }

    /// Reserves `estimate` in every limit that applies, or in none.
    pub fn try_admit(&mut self, class: Class, estimate: Amounts, now: Nanos) -> Admission {
        self.asked_at = now;
        let leased = now < self.lease_until;
        let mut wait: Option<(usize, Option<Nanos>)> = None;
        for i in class.limits() {
            let local = &mut self.limits[i];
            local.held.advance(now);
            if !local.limit.enforced {
                continue;
            }
            let units = local.limit.resource.units(&estimate);
            if units > local.limit.limit {
                return Admission::Never { limit: i };
            }
            let share = if leased {
                local.share
            } else {
                local.fallback(self.floored)
            };
            let used = local.in_use();
            let until = if now < local.frozen_until {
                Some(local.frozen_until)
            } else if used.saturating_add(units) <= share && (leased || share > 0) {
                continue;
            } else if units > share {
                None
            } else {
                local.held.freed_at(used + units - share)
            };
            // No time is the longest wait.
            let longer = wait.is_none_or(|(_, known)| match (known, until) {
                (None, _) => false,
                (Some(_), None) => true,
                (Some(known), Some(until)) => until > known,
            });
            if longer {
                wait = Some((i, until));
            }
        }
        if let Some((limit, until)) = wait {
            self.want(now);
            return Admission::Wait { limit, until };
        }
        let mut is_probe = false;
        for i in class.limits() {
            let local = &mut self.limits[i];
            let units = local.limit.resource.units(&estimate);
            local.in_flight = local.in_flight.saturating_add(units);
            local.admitted = local.admitted.saturating_add(units);
            local.largest = local.largest.max(units);
            if local.probes {
                local.frozen_until = now.saturating_add(PROBE);
                is_probe = true;
            }
        }
        Admission::Admitted(Ticket {
            class,
            reserved: estimate,
            admitted_at: now,
            headers_at: None,
            is_probe,
        })
    }

    /// Notes that the answer's headers came at `at`: from here on the request's units grow old.
    pub fn headers(&mut self, ticket: &mut Ticket, at: Nanos, now: Nanos) {
        if ticket.headers_at.is_some() {
            return;
        }
        ticket.headers_at = Some(at);
        for i in ticket.class.limits() {
            let local = &mut self.limits[i];
            if local.limit.counted == Counted::ByHeaders {
                let units = local.limit.resource.units(&ticket.reserved);
                let counted_at = at.min(ticket.admitted_at.saturating_add(local.limit.within));
                local.in_flight = local.in_flight.saturating_sub(units);
                local.held.add(counted_at, units, now);
                // Nothing gives a request back that was sent; tokens are settled at its end.
                if local.limit.resource == Resource::Requests {
                    local.held.settle(counted_at, units, now);
                }
            }
        }
    }

    /// The request has ended and used `actual`: what was reserved in excess is free, what was too little is held too.
    /// Without headers before, now is when it may last have been counted; without a usage, `actual` is the
    /// estimate.
    pub fn settle(&mut self, mut ticket: Ticket, actual: Amounts, now: Nanos) {
        self.headers(&mut ticket, now, now);
        let headers_at = ticket.headers_at.unwrap_or(now);
        for i in ticket.class.limits() {
            let local = &mut self.limits[i];
            let reserved = local.limit.resource.units(&ticket.reserved);
            let used = local.limit.resource.units(&actual);
            let latest = ticket.admitted_at.saturating_add(local.limit.within);
            match local.limit.counted {
                Counted::ByHeaders => {
                    let at = headers_at.min(latest);
                    local.held.correct(at, reserved, used, now);
                    #[cfg(test)]
                    if self.fault == Some(crate::quota::simulation::Fault::RefundTwice) {
                        local.held.correct(at, reserved, used, now);
                    }
                    if local.limit.resource != Resource::Requests {
                        local.held.settle(at, used, now);
                    }
                }
                Counted::ByEnd => {
                    local.in_flight = local.in_flight.saturating_sub(reserved);
                    local.held.add(now.min(latest), used, now);
                    local.held.settle(now.min(latest), used, now);
                }
            }
        }
    }

    /// The request was surely not sent: nothing was used.
    pub fn cancel(&mut self, ticket: Ticket) {
        for i in ticket.class.limits() {
            let local = &mut self.limits[i];
            if ticket.headers_at.is_none() || local.limit.counted == Counted::ByEnd {
                let units = local.limit.resource.units(&ticket.reserved);
                local.in_flight = local.in_flight.saturating_sub(units);
            }
        }
    }

    /// The estimate that is reserved for it.
    pub fn reserved(ticket: &Ticket) -> Amounts {
        ticket.reserved
    }

    /// This request's answer was another than "too many requests", or said anew how long to wait: what an earlier one said is
    /// void if it was sent to find that out.
    pub fn probed(&mut self, ticket: &Ticket) {
        if !ticket.is_probe {
            return;
        }
        for i in ticket.class.limits() {
            let local = &mut self.limits[i];
            if std::mem::take(&mut local.probes) {
                local.frozen_until = 0;
            }
        }
    }

    /// Takes what a provider's headers said to a request of `class`. Only ever lowers: `Retry-After` stops the limits of
    /// this model (of all, if it has none of its own) here and now, and after an hour one request at a time finds out
    /// whether it is still meant ([`Holder::probed`]); counts go with the next report to the allocator, which
    /// knows what all replicas hold and so can tell foreign use from ours.
    pub fn apply(&mut self, class: Class, hint: &Hint, now: Nanos) {
        if let Some(wait) = hint.retry_after {
            let own = class.limits().any(|i| !self.limits[i].limit.models.is_empty());
            for i in class.limits() {
                let local = &mut self.limits[i];
                if !own || !local.limit.models.is_empty() {
                    local.frozen_until = local.frozen_until.max(now.saturating_add(wait.min(BELIEVED)));
                    local.probes |= wait > BELIEVED;
                }
            }
        }
        for count in &hint.counts {
            let nearest = class
                .limits()
                .filter(|&i| self.limits[i].limit.resource == count.resource)
                .filter(|&i| match (count.period, &self.limits[i].limit.window) {
                    (Some(period), Window::Rolling(length)) => period == *length,
                    (Some(period), Window::Calendar(_)) => period >= 86_400 * super::SECOND,
                    (Some(_), Window::None) => false,
                    (None, _) => true,
                })
                // A minute's numbers must not be taken for a day's: the limit that is nearest in size is meant.
                .min_by_key(|&i| {
                    let limit = self.limits[i].limit.limit;
                    count.limit.map_or(limit, |said| limit.abs_diff(said))
                });
            let Some(i) = nearest else { continue };
            let local = &mut self.limits[i];
            let longest = match local.limit.window {
                Window::Rolling(length) => length,
                Window::Calendar(_) | Window::None => self.terms.lease,
            };
            // A limit of 0 is no limit anybody has; it is how some servers say that they have none.
            local.seen = Some(Seen {
                limit: count.limit.filter(|limit| *limit > 0),
                remaining: count.remaining,
                reset_ms: count.reset.unwrap_or(longest).min(longest).div_ceil(MILLISECOND),
            });
        }
    }
}
