//! What a request holds from its admission to its end.

use std::sync::Arc;
use std::time::Duration;

use flotilla_core::quota::{Amounts, Class, Hint, Holder, Nanos, Ticket, parse};
use http::{HeaderMap, StatusCode};

use super::{Admission, State, entry};

/// What a request has used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Input tokens, where the provider said.
    pub input: Option<u64>,
    /// Output tokens, where the provider said.
    pub output: Option<u64>,
}

/// A request that may be sent. Tell it how it went: what it reserved is kept as used otherwise.
#[must_use = "what it holds is counted as used when it is dropped"]
pub struct Permit {
    pub(super) admission: Arc<Admission>,
    pub(super) ticket: Option<Ticket>,
    pub(super) generation: u64,
    pub(super) class: Class,
    pub(super) pool: Arc<str>,
    pub(super) model: Arc<str>,
    pub(super) bytes: u64,
    pub(super) waited: Duration,
    pub(super) status: Option<StatusCode>,
}

impl Permit {
    /// How long the request has waited for its quota.
    pub fn waited(&self) -> Duration {
        self.waited
    }

    /// Input and output tokens that are reserved for it.
    pub fn reserved_tokens(&self) -> u64 {
        let reserved = self.ticket.as_ref().map(Holder::reserved).unwrap_or_default();
        reserved.input.saturating_add(reserved.output)
    }

    /// The answer's head has come: from now on what was reserved grows old, and the provider's headers are heeded.
    pub fn answered(&mut self, status: StatusCode, headers: &HeaderMap) {
        self.status = Some(status);
        let clock = &self.admission.clock;
        let read = headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_bytes()));
        let hint = parse(read, clock.unix_ms());
        let now = clock.nanos();
        let mut state = self.admission.state.lock();
        let (generation, class) = (self.generation, self.class);
        let current = state.generation;
        let Some(holder) = state.holder_of(generation) else {
            return;
        };
        if let Some(ticket) = &mut self.ticket {
            holder.headers(ticket, now, now);
        }
        // An error that says when to come back is no word about the quota, unless it is about too many requests.
        let stops = status == StatusCode::TOO_MANY_REQUESTS;
        let hint = Hint {
            retry_after: hint.retry_after.filter(|_| stops),
            ..hint
        };
        if generation != current {
            return;
        }
        if (!stops || hint.retry_after.is_some())
            && let Some(ticket) = &self.ticket
        {
            holder.probed(ticket);
        }
        holder.apply(class, &hint, now);
    }

    /// The request has ended and used this much.
    pub fn settle(mut self, used: Used) {
        self.finish(Some(used));
    }

    /// The request was surely not sent: nothing was used.
    pub fn cancel(mut self) {
        let Some(ticket) = self.ticket.take() else { return };
        let now = self.admission.clock.nanos();
        let mut state = self.admission.state.lock();
        if let Some(holder) = state.holder_of(self.generation) {
            holder.cancel(ticket);
        }
        self.freed(&mut state, now);
    }

    fn finish(&mut self, used: Option<Used>) {
        let Some(ticket) = self.ticket.take() else { return };
        let now = self.admission.clock.nanos();
        let state = &mut *self.admission.state.lock();
        let reserved = Holder::reserved(&ticket);
        let used = used.unwrap_or_default();
        let actual = self.actual(reserved, used);
        if let (Some(input), output, true) = (used.input, used.output.unwrap_or(0), self.bytes > 0) {
            let (_, models) = entry(&mut state.estimators, &self.pool);
            let (_, estimator) = entry(models, &self.model);
            estimator.learn(self.bytes, input, output);
        }
        if let Some(holder) = state.holder_of(self.generation) {
            holder.settle(ticket, actual, now);
        }
        self.freed(state, now);
    }

    /// What counts as used: what the provider said, else what was reserved, less what a refused request cannot have used.
    fn actual(&self, reserved: Amounts, used: Used) -> Amounts {
        let refused = self
            .status
            .is_some_and(|status| status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS);
        let said = used.input.is_some();
        let output = match (used.output, self.status) {
            (Some(output), _) => output,
            // Embeddings have none.
            (None, _) if said => 0,
            (None, Some(StatusCode::TOO_MANY_REQUESTS)) => 0,
            (None, _) if refused => 0,
            (None, _) => reserved.output,
        };
        let input = match used.input {
            Some(input) => input,
            None if refused => 0,
            None => reserved.input,
        };
        Amounts {
            input,
            output,
            ..reserved
        }
    }

    fn freed(&self, state: &mut State, now: Nanos) {
        state.old.retain(|(_, holder)| !holder.is_idle());
        let before = state.wake;
        let more = state.serve(now);
        let earlier = state
            .wake
            .is_some_and(|wake| before.is_none_or(|before| wake < before));
        if more || earlier {
            self.admission.changed.notify_one();
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.finish(None);
    }
}
