//! Requests that wait for a slot: [`flotilla_core::queue`] with somebody to wake.
//!
//! Each revision has a line, because the revision was chosen by weight and must not change because another one happens
//! to be free. The bound is the pool's. A freed slot is handed to who is next by whoever frees it. The lock is taken by
//! who waits, and by who frees a slot while somebody waits; nobody is woken and no slot is given back under it.
//!
//! No slot is lost between "all taken" and "now waiting": a waiter enters the line and then looks for a free slot again;
//! a slot is freed and then the line is looked at. Both steps are sequentially consistent, so one of the two sees the
//! other.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use flotilla_core::queue::{Arrival, Entry, FairQueue, Gone, Next, Refused, Settings, Ticket};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::revision::Permit;
use super::room::Room;

/// What a waiter gets.
pub enum Handover {
    /// A slot.
    Slot(Permit),
    /// The pool has changed: choose again, without losing the age.
    ChooseAgain,
    /// It gave way to one that had a better right to the place.
    Displaced,
    /// Its deadline has passed.
    Expired,
}

type Waiter = oneshot::Sender<Handover>;

/// One line of waiters.
pub struct Queue {
    line: Mutex<FairQueue<Waiter>>,
    /// Length of the line, to be read without the lock.
    length: AtomicUsize,
    room: Arc<Room>,
}

/// Those who have gone need no telling.
fn tell(waiter: Waiter, what: Handover) {
    let _ = waiter.send(what);
}

impl Queue {
    /// An empty line of the pool with this `room`.
    pub(super) fn new(room: Arc<Room>) -> Self {
        Self {
            // Its capacity is set before each push.
            line: Mutex::new(FairQueue::new(&Settings::of_slots(0))),
            length: AtomicUsize::new(0),
            room,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.length.load(Ordering::SeqCst) == 0
    }

    /// From now on a waiter rises by a level each `ageing`.
    pub(super) fn set_ageing(&self, ageing: Duration) {
        let nanoseconds = u64::try_from(ageing.as_nanos()).unwrap_or(u64::MAX);
        self.line.lock().set_ageing(nanoseconds);
    }

    /// Waits in line from now on. `bound` is how many may wait in the whole pool.
    pub(super) fn enter(
        &self,
        arrival: &Arrival,
        bound: usize,
        now_nanos: u64,
    ) -> Result<(Ticket, oneshot::Receiver<Handover>), Refused<()>> {
        let (waiter, told) = oneshot::channel();
        let mut line = self.line.lock();
        // Counted before it is admitted, so that two lines that admit at once do not exceed the bound together.
        let before = self.room.waiting.fetch_add(1, Ordering::SeqCst);
        let others = before.saturating_sub(line.len());
        line.set_capacity(bound.saturating_sub(others));
        let pushed = line.push(arrival, waiter, now_nanos);
        let (pushed, gone) = match pushed {
            Ok(admitted) => (Ok((admitted.ticket, told)), admitted.gone),
            Err(refused) => {
                let refused = Refused {
                    item: (),
                    limit: refused.limit,
                    predicted_nanoseconds: refused.predicted_nanoseconds,
                };
                (Err(refused), None)
            }
        };
        if pushed.is_err() || gone.is_some() {
            self.room.waiting.fetch_sub(1, Ordering::SeqCst);
        }
        self.length.store(line.len(), Ordering::SeqCst);
        drop(line);
        match gone {
            Some(Gone::Displaced(entry)) => tell(entry.item, Handover::Displaced),
            Some(Gone::Expired(entry)) => tell(entry.item, Handover::Expired),
            None => {}
        }
        pushed
    }

    /// Gives up a place.
    pub(super) fn leave(&self, ticket: Ticket, now_nanos: u64) {
        let mut line = self.line.lock();
        if line.cancel(ticket, now_nanos).is_some() {
            self.went(&line, 1);
        }
    }

    /// Hands `permit` to who is next and still there; gives it back if there is nobody.
    pub(super) fn hand_over(&self, mut permit: Permit, now_nanos: u64) -> Result<(), Permit> {
        loop {
            let mut expired = Vec::new();
            let mut line = self.line.lock();
            let next = line.pop(u64::MAX, now_nanos, |entry| expired.push(entry.item));
            let next = match next {
                Next::Entry(Entry { item, .. }) => Some(item),
                // Whatever it needs is less than all.
                Next::Short(_) | Next::Nobody => None,
            };
            self.went(&line, expired.len() + usize::from(next.is_some()));
            drop(line);
            for waiter in expired {
                tell(waiter, Handover::Expired);
            }
            let Some(waiter) = next else { return Err(permit) };
            match waiter.send(Handover::Slot(permit)) {
                Err(Handover::Slot(back)) => permit = back,
                // What was sent is what comes back.
                Ok(()) | Err(_) => return Ok(()),
            }
        }
    }

    /// Sends all waiters to choose again.
    pub(super) fn dismiss(&self, now_nanos: u64) {
        if self.is_empty() {
            return;
        }
        let mut line = self.line.lock();
        let left: Vec<_> = std::iter::from_fn(|| line.take_any(now_nanos))
            .map(|entry| entry.item)
            .collect();
        self.went(&line, left.len());
        drop(line);
        for waiter in left {
            tell(waiter, Handover::ChooseAgain);
        }
    }

    fn went(&self, line: &FairQueue<Waiter>, waiters: usize) {
        self.room.waiting.fetch_sub(waiters, Ordering::SeqCst);
        self.length.store(line.len(), Ordering::SeqCst);
    }
}
