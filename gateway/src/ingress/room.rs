//! What one pool holds of this gateway at once, over all its revisions: the bulkhead between pools.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts of one pool.
#[derive(Debug, Default)]
pub struct Room {
    /// Requests that wait, in whatever line. Changed under the lock of that line.
    pub(super) waiting: AtomicUsize,
    /// Requests from their arrival to the response's end.
    held: AtomicUsize,
}

/// A request's place in the room, until it is dropped.
pub struct Seat<'a>(&'a Room);

impl Room {
    /// A place, unless `most` are taken.
    pub fn enter(&self, most: usize) -> Option<Seat<'_>> {
        if self.held.fetch_add(1, Ordering::Relaxed) < most {
            return Some(Seat(self));
        }
        self.leave();
        None
    }

    /// Gives up a place that was [kept](Seat::keep).
    pub fn leave(&self) {
        self.held.fetch_sub(1, Ordering::Relaxed);
    }

    /// Requests that wait.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Requests from their arrival to the response's end.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }
}

impl Seat<'_> {
    /// Leaves it to somebody else to call [`Room::leave`].
    pub fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}
