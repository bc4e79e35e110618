//! Requests that wait for a slot, first come first served.
//!
//! Each revision has a queue, because the revision was chosen by weight and must not change because another one happens
//! to be free. The bound is the pool's. A freed slot is handed to the head of the queue by whoever frees it.
//!
//! No slot is lost between "all taken" and "now waiting": a waiter enters the queue and then looks for a free slot again;
//! a slot is freed and then the queue is looked at. Both steps are sequentially consistent, so one of the two sees the
//! other.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::revision::Permit;

/// What a waiter gets.
pub enum Handover {
    /// A slot.
    Slot(Permit),
    /// The pool has changed: choose again, without losing the place in line.
    ChooseAgain,
}

struct Waiter {
    /// Order of arrival in the pool.
    ticket: u64,
    tell: oneshot::Sender<Handover>,
}

/// One line of waiters, oldest first.
#[derive(Default)]
pub struct Queue {
    waiters: Mutex<VecDeque<Waiter>>,
    /// Length of `waiters`, to be read without the lock.
    length: AtomicUsize,
}

impl Queue {
    pub(super) fn is_empty(&self) -> bool {
        self.length.load(Ordering::SeqCst) == 0
    }

    /// Waits in line from now on, at the place of `ticket`.
    pub(super) fn enter(&self, ticket: u64) -> oneshot::Receiver<Handover> {
        let (tell, told) = oneshot::channel();
        let mut waiters = self.waiters.lock();
        let place = waiters.partition_point(|waiter| waiter.ticket < ticket);
        waiters.insert(place, Waiter { ticket, tell });
        self.length.store(waiters.len(), Ordering::SeqCst);
        told
    }

    /// Gives up the place of `ticket`.
    pub(super) fn leave(&self, ticket: u64) {
        let mut waiters = self.waiters.lock();
        if let Ok(place) = waiters.binary_search_by_key(&ticket, |waiter| waiter.ticket) {
            waiters.remove(place);
        }
        self.length.store(waiters.len(), Ordering::SeqCst);
    }

    /// Hands `permit` to the oldest waiter that is still there; gives it back if there is none.
    pub(super) fn hand_over(&self, mut permit: Permit) -> Result<(), Permit> {
        let mut waiters = self.waiters.lock();
        while let Some(waiter) = waiters.pop_front() {
            self.length.store(waiters.len(), Ordering::SeqCst);
            match waiter.tell.send(Handover::Slot(permit)) {
                Ok(()) => return Ok(()),
                Err(Handover::Slot(back)) => permit = back,
                // What was sent is what comes back.
                Err(Handover::ChooseAgain) => return Ok(()),
            }
        }
        Err(permit)
    }

    /// Sends all waiters to choose again.
    pub(super) fn dismiss(&self) {
        let waiters = std::mem::take(&mut *self.waiters.lock());
        self.length.store(0, Ordering::SeqCst);
        for waiter in waiters {
            // One that has gone needs no telling.
            let _ = waiter.tell.send(Handover::ChooseAgain);
        }
    }
}
