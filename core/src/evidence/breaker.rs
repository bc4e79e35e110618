//! The storm breaker: many releases that fail at once are not many bad candidates.
//!
//! A provider's outage or a broken metrics source can make each candidate look bad, each by itself with good evidence. Once more than
//! `limit` releases were to be stopped automatically within `window`, further ones are held for a person instead. Hard
//! signals (a crash loop, a failed smoke test) name their own cause and go through.

use serde::{Deserialize, Serialize};

/// Why a release is to be stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// By evidence.
    Evidence,
    /// By a signal that needs no statistics.
    Hard,
}

/// What may be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Permit {
    /// Roll back.
    RollBack,
    /// Hold, and call a person.
    Hold,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Asked {
    release: String,
    at: i64,
    permit: Permit,
}

/// Counts automatic rollbacks over all pools.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StormBreaker {
    limit: usize,
    window_seconds: i64,
    asked: Vec<Asked>,
}

impl Default for StormBreaker {
    /// More than 10 in 10 minutes.
    fn default() -> Self {
        Self::new(10, 600)
    }
}

impl StormBreaker {
    /// Opens when more than `limit` releases ask within `window_seconds`.
    pub fn new(limit: usize, window_seconds: i64) -> Self {
        Self {
            limit,
            window_seconds,
            asked: Vec::new(),
        }
    }

    /// Whether `release` (unique per pool, revision and attempt) may be rolled back at `now`, in seconds since the Unix epoch.
    /// Asked again, the answer is the same, unless a hard signal comes: what was held stays held for a person until
    /// [`StormBreaker::forget`].
    pub fn ask(&mut self, release: &str, cause: Cause, now: i64) -> Permit {
        self.asked
            .retain(|asked| asked.permit == Permit::Hold || now - asked.at < self.window_seconds);
        let is_open = self.is_open(now);
        if let Some(asked) = self.asked.iter_mut().find(|asked| asked.release == release) {
            if cause == Cause::Hard {
                asked.permit = Permit::RollBack;
            }
            return asked.permit;
        }
        let permit = match cause {
            Cause::Evidence if is_open => Permit::Hold,
            Cause::Evidence | Cause::Hard => Permit::RollBack,
        };
        self.asked.push(Asked {
            release: release.to_owned(),
            at: now,
            permit,
        });
        permit
    }

    /// What was held before a restart stays held, whatever is remembered.
    pub fn recall(&mut self, release: &str, now: i64) {
        if self.asked.iter().all(|asked| asked.release != release) {
            self.asked.push(Asked {
                release: release.to_owned(),
                at: now,
                permit: Permit::Hold,
            });
        }
    }

    /// Whether the next release that asks by evidence will be held: `limit` have asked within the window, whatever
    /// the answer was.
    pub fn is_open(&self, now: i64) -> bool {
        let recent = self
            .asked
            .iter()
            .filter(|asked| now - asked.at < self.window_seconds);
        recent.count() >= self.limit
    }

    /// A held release has ended, or a person has taken it over.
    pub fn forget(&mut self, release: &str) {
        self.asked
            .retain(|asked| asked.release != release || asked.permit == Permit::RollBack);
    }

    /// The releases that are held.
    pub fn held(&self) -> impl Iterator<Item = &str> {
        let held = self.asked.iter().filter(|asked| asked.permit == Permit::Hold);
        held.map(|asked| asked.release.as_str())
    }
}
