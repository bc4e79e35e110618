//! What survives all processes, and how an allocator comes to life from it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Allocator, Entry, Fading, Part, Rule, Witness};
use crate::quota::{Claim, MILLISECOND, Nanos, Now, Terms};

/// The version of [`Checkpoint`].
const VERSION: u32 = 1;
/// Entries about what is free when, in all; some 10 bytes each.
const MAX_FADES: usize = 2_048;

/// What survives all processes: small, and complete at every moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Checkpoint {
    /// The version of this format, 1.
    pub version: u32,
    /// Counts allocators.
    pub term: u64,
    /// By holder.
    pub holders: BTreeMap<String, Recorded>,
    /// The start of each calendar window, by limit, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub epochs: BTreeMap<String, i64>,
    /// The recent maximum of each limit with a slope.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub recent: BTreeMap<String, u64>,
    /// Who can say more of the holder beside the allocator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub witness: Option<Witness>,
}

/// Why a checkpoint cannot be used. It must not be overwritten before the longest window has passed.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// It is not what this module writes.
    #[error("failed to read the quota's checkpoint: {0}")]
    Malformed(#[from] serde_json::Error),
    /// A later release has written it.
    #[error(
        "failed to read the quota's checkpoint: it has version {0}, and this release knows version {VERSION}"
    )]
    Version(u32),
}

impl Checkpoint {
    /// Reads what [`Checkpoint::to_json`] wrote.
    pub fn from_json(text: &str) -> Result<Self, CheckpointError> {
        let checkpoint: Self = serde_json::from_str(text)?;
        if checkpoint.version == VERSION {
            Ok(checkpoint)
        } else {
            Err(CheckpointError::Version(checkpoint.version))
        }
    }

    /// About 100 bytes and 30 for each limit, for each holder.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("maps of strings and integers are JSON")
    }
}

/// What is recorded of one holder.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Recorded {
    /// The end of any lease it may have, in milliseconds from this write; in the past if negative.
    pub expires_in_ms: i64,
    /// The same in milliseconds since 1970, for calendar windows.
    pub expires_unix_ms: i64,
    /// It may fall back to its floors.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub floored: bool,
    /// The most units it may have in use, by limit.
    pub granted: BTreeMap<String, u64>,
    /// How many of them are free when, by limit: pairs of milliseconds from this write and units. All outlast the lease.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fades: BTreeMap<String, Vec<[u64; 2]>>,
}

impl Recorded {
    /// As it is `elapsed` milliseconds later.
    pub(in crate::quota) fn age(&mut self, elapsed: u64) {
        let less = i64::try_from(elapsed).unwrap_or(i64::MAX);
        self.expires_in_ms = self.expires_in_ms.saturating_sub(less);
        for [until_ms, _] in self.fades.values_mut().flatten() {
            *until_ms = until_ms.saturating_sub(elapsed);
        }
    }
}

impl Entry {
    /// What is known of a holder by a record that was seen at `seen`.
    pub(super) fn recorded(recorded: &Recorded, rules: &[Rule], terms: &Terms, seen: Nanos) -> Self {
        let length = recorded.expires_in_ms.unsigned_abs().saturating_mul(MILLISECOND);
        let expires = if recorded.expires_in_ms >= 0 {
            seen.saturating_add(terms.stretch(length))
        } else {
            seen.saturating_sub(terms.shrink(length))
        };
        let part = |rule: &Rule| {
            let granted = recorded.granted.get(&rule.key).copied().unwrap_or(0);
            let fades = recorded.fades.get(&rule.key).map_or(&[][..], Vec::as_slice);
            Part {
                granted,
                written: granted,
                claim: Claim::default(),
                fades: Fading::recorded(fades, seen, expires, terms),
            }
        };
        Self {
            seq: None,
            heard_at: seen,
            weight: 1,
            clock_ahead_ms: 0,
            expires,
            expires_unix_ms: recorded.expires_unix_ms,
            expires_written: expires,
            floored: recorded.floored,
            floored_written: recorded.floored,
            outlived_lease: false,
            released: false,
            parts: rules.iter().map(part).collect(),
        }
    }
}

impl Allocator {
    /// What is to be recorded of one holder whose lease may go on until `expires`, with at most `most` entries of a limit about
    /// what is free when.
    pub(super) fn record_of(&self, entry: &Entry, expires: Nanos, most: usize, now: Nanos) -> Recorded {
        let ms = |length: Nanos| i64::try_from(length.div_ceil(MILLISECOND)).unwrap_or(i64::MAX);
        let expires_in_ms = match expires.checked_sub(now) {
            Some(left) => ms(left),
            // Rounded up: towards now.
            None => -i64::try_from((now - expires) / MILLISECOND).unwrap_or(i64::MAX),
        };
        let later_ms = ms(expires.saturating_sub(entry.expires));
        let parts = || {
            self.rules
                .iter()
                .zip(&entry.parts)
                .filter(|(_, part)| part.granted > 0)
        };
        let fades = parts().filter_map(|(rule, part)| {
            let fades = Fading::to_record(&part.fades, expires, now, most);
            (!fades.is_empty()).then(|| (rule.key.clone(), fades))
        });
        Recorded {
            expires_in_ms,
            expires_unix_ms: entry.expires_unix_ms.saturating_add(later_ms),
            floored: entry.floored,
            granted: parts()
                .map(|(rule, part)| (rule.key.clone(), part.granted))
                .collect(),
            fades: fades.collect(),
        }
    }

    /// All that this allocator knows, written or not: for one that takes its place in this process with other limits.
    pub fn into_checkpoint(mut self, now: Now) -> Checkpoint {
        for entry in self.entries.values_mut() {
            entry.expires_written = entry.expires_written.max(entry.expires);
        }
        self.checkpoint(now)
    }

    pub(super) fn checkpoint(&mut self, now: Now) -> Checkpoint {
        let witness = self.witnessing.write();
        let most = MAX_FADES / (self.entries.len() * self.rules.len()).max(1);
        let recorded = |entry: &Entry| self.record_of(entry, entry.expires_written, most, now.nanos);
        let rules = || self.rules.iter();
        Checkpoint {
            version: VERSION,
            term: self.term,
            holders: self
                .entries
                .iter()
                .map(|(id, entry)| (id.clone(), recorded(entry)))
                .collect(),
            epochs: rules()
                .filter_map(|rule| Some((rule.key.clone(), rule.epoch?)))
                .collect(),
            recent: rules()
                .filter_map(|rule| Some((rule.key.clone(), rule.ramp.as_ref()?.recent())))
                .collect(),
            witness,
        }
    }
}
