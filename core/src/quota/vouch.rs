//! The witness: what another replica knows of the holder that goes with the allocator.
//!
//! The record names the witness of the holder beside the allocator. From then on that holder's grants are in force only when
//! the witness has been told of them, and has said so. A witness that speaks to a later allocator confirms nothing of an
//! earlier one any more. So what it then knows is all that the holder can have, however far ahead the record is; without its
//! word the record holds.

use serde::{Deserialize, Serialize};

use super::allocator::Recorded;
use super::{Holder, MILLISECOND, Nanos, Terms};

/// What the holder beside an allocator may have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Vouch {
    /// The allocator's term.
    pub term: u64,
    /// The holder.
    pub holder: String,
    /// The report that is to be answered.
    pub seq: u64,
    /// All that it may have, counted from the sending of this.
    pub state: Recorded,
}

/// What a witness was told, and when.
#[derive(Debug)]
pub(super) struct Testimony {
    vouch: Vouch,
    at: Nanos,
}

impl Testimony {
    /// As it is to be told to an allocator of `term` at `now`; none if it is of no use there.
    pub(super) fn told(&self, term: u64, now: Nanos, terms: &Terms) -> Option<Box<Vouch>> {
        (self.vouch.term < term).then(|| {
            let elapsed = terms.shrink(now.saturating_sub(self.at)) / MILLISECOND;
            let mut vouch = self.vouch.clone();
            vouch.state.age(elapsed);
            Box::new(vouch)
        })
    }

    pub(super) fn is_before(&self, term: u64) -> bool {
        self.vouch.term < term
    }
}

impl Holder {
    /// Keeps what the allocator says of its own holder. False if this holder is no witness for it: it knows of a later
    /// allocator, has been told something newer, or leaves.
    pub fn vouch(&mut self, vouch: Vouch, now: Nanos) -> bool {
        let newer = |known: &Testimony| {
            let known = &known.vouch;
            known.term > vouch.term
                || known.term == vouch.term && known.holder == vouch.holder && known.seq > vouch.seq
        };
        if vouch.term < self.term || self.leaving || self.testimony.as_ref().is_some_and(newer) {
            return false;
        }
        #[cfg(test)]
        if self.fault == Some(super::simulation::Fault::ForgetfulWitness) && self.testimony.is_some() {
            return true;
        }
        self.testimony = Some(Testimony { vouch, at: now });
        true
    }
}
