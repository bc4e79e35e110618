//! What survives all processes, and how an allocator comes to life from it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Allocator, Entry};
use crate::quota::{MILLISECOND, Nanos, Now};

/// The version of [`Checkpoint`].
const VERSION: u32 = 1;

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
}

impl Allocator {
    pub(super) fn checkpoint(&self, now: Now) -> Checkpoint {
        let recorded = |entry: &Entry| {
            let ms = |length: Nanos| i64::try_from(length.div_ceil(MILLISECOND)).unwrap_or(i64::MAX);
            let expires_in_ms = match entry.expires_written.checked_sub(now.nanos) {
                Some(left) => ms(left),
                // Rounded up: towards now.
                None => -i64::try_from((now.nanos - entry.expires_written) / MILLISECOND).unwrap_or(i64::MAX),
            };
            let later_ms = ms(entry.expires_written.saturating_sub(entry.expires));
            Recorded {
                expires_in_ms,
                expires_unix_ms: entry.expires_unix_ms.saturating_add(later_ms),
                floored: entry.floored,
                granted: self
                    .rules
                    .iter()
                    .zip(&entry.parts)
                    .filter(|(_, part)| part.granted > 0)
                    .map(|(rule, part)| (rule.key.clone(), part.granted))
                    .collect(),
            }
        };
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
        }
    }
}
