//! What workers say: the termination message at the end, and snapshots on the way.
//!
//! A container's termination message is at most 4096 bytes of text, and kubelet keeps the *last* bytes of a longer
//! one, so a message that does not fit is a message lost. [`WorkerResult::to_message`] therefore gives up
//! resolution stepwise until it fits, the secondary series first, and says so in its histograms' precision.
//! At the coarsest step every message fits, whatever was measured.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use crate::histogram::DecodeError;

use super::result::{ErrorCategory, ErrorCounts, LatencySummary, Series, StageCounts, Tokens};
use crate::histogram::codec::{Reader, decode, encode, pack, put_varint, unpack};
use crate::histogram::{Histogram, Precision};

/// The most bytes that kubelet keeps.
pub const MAX_MESSAGE_BYTES: usize = 4096;

/// Names the form, for people and for later versions.
const PREFIX: &str = "lt1:";

/// Halvings of resolution to try, (latency and first token, all else), until the message fits.
const LADDER: [(u8, u8); 9] = [
    (0, 0),
    (0, 1),
    (0, 2),
    (1, 2),
    (2, 2),
    (2, 3),
    (3, 4),
    (4, 5),
    (6, 6),
];

/// Stages that a message has room for; the plan allows no more.
const MAX_STAGES: usize = 32;

/// What one worker measured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkerResult {
    /// The worker's index.
    pub index: u32,
    /// The number of workers it believed in.
    pub workers: u32,
    /// Grows with each pod for one index.
    pub attempt: u64,
    /// [`super::plan::LoadPlan::workload_id`].
    pub workload: u64,
    /// Whether it was stopped before its end.
    pub interrupted: bool,
    /// Its deviation from the common start in microseconds, the clocks' uncertainty included.
    pub start_skew_microseconds: u64,
    /// Counts per stage of the plan.
    pub stages: Vec<StageCounts>,
    /// Failures.
    pub errors: ErrorCounts,
    /// Attempts beyond the first.
    pub retries: u64,
    /// Tokens.
    pub tokens: Tokens,
    /// Latencies.
    pub series: Series,
}

impl WorkerResult {
    /// The termination message: at most [`MAX_MESSAGE_BYTES`] bytes of ASCII.
    pub fn to_message(&self) -> String {
        let mut message = String::new();
        for (primary, secondary) in LADDER {
            message = format!("{PREFIX}{}", pack(&self.encode(primary, secondary)));
            if message.len() <= MAX_MESSAGE_BYTES {
                break;
            }
        }
        message
    }

    /// The error of the latency percentiles in percent: 1 unless the message had to be made shorter.
    pub fn precision_percent(&self) -> u32 {
        self.series.latency.precision().percent()
    }

    fn encode(&self, primary: u8, secondary: u8) -> Vec<u8> {
        let Self {
            index,
            workers,
            attempt,
            workload,
            interrupted,
            start_skew_microseconds,
            stages,
            errors,
            retries,
            tokens,
            series,
        } = self;
        let mut out = Vec::with_capacity(4096);
        put_varint(&mut out, *index);
        put_varint(&mut out, *workers);
        put_varint(&mut out, *attempt);
        out.extend_from_slice(&workload.to_le_bytes());
        out.push(u8::from(*interrupted));
        put_varint(&mut out, *start_skew_microseconds);
        put_varint(&mut out, stages.len().min(MAX_STAGES) as u64);
        for StageCounts {
            planned,
            started,
            done,
            failed,
        } in stages.iter().take(MAX_STAGES)
        {
            // As differences, which are mostly zero.
            for (whole, part) in [(*planned, *started), (*started, *done), (*done, *failed)] {
                put_varint(&mut out, whole.saturating_sub(part));
            }
            put_varint(&mut out, *failed);
        }
        for category in ErrorCategory::ALL {
            put_varint(&mut out, errors.get(category));
        }
        let Tokens {
            input,
            output,
            reported,
        } = tokens;
        for number in [*retries, *input, *output, *reported] {
            put_varint(&mut out, number);
        }
        for (place, histogram) in series.each().into_iter().enumerate() {
            let halvings = if place < 2 { primary } else { secondary };
            match Precision::from_halvings(halvings) {
                Some(precision) if precision > histogram.precision() => {
                    encode(&histogram.coarsened(precision), &mut out);
                }
                _ => encode(histogram, &mut out),
            }
        }
        out
    }

    /// Reads a termination message. White space around it is allowed.
    ///
    /// # Errors
    /// If it is not one that [`WorkerResult::to_message`] can have written; never panics.
    pub fn from_message(message: &str) -> Result<Self, DecodeError> {
        let body = message
            .trim()
            .strip_prefix(PREFIX)
            .ok_or(DecodeError::Unpack("it does not start with \"lt1:\""))?;
        let bytes = unpack(body)?;
        let mut reader = Reader::new(&bytes);
        let index = reader.number()?;
        let workers = reader.number()?;
        let attempt = reader.number()?;
        let mut workload = [0u8; 8];
        for byte in &mut workload {
            *byte = reader.byte()?;
        }
        let interrupted = match reader.byte()? {
            0 => false,
            1 => true,
            _ => return Err(DecodeError::Inconsistent("a flag is neither set nor unset")),
        };
        let start_skew_microseconds = reader.number()?;
        let stage_count: usize = reader.number()?;
        if stage_count > MAX_STAGES {
            return Err(DecodeError::Inconsistent("too many stages"));
        }
        let mut stages = Vec::with_capacity(stage_count);
        for _ in 0..stage_count {
            stages.push(decode_stage(&mut reader)?);
        }
        let mut errors = ErrorCounts::default();
        for category in ErrorCategory::ALL {
            errors.add(category, reader.number()?);
        }
        let retries = reader.number()?;
        let tokens = Tokens {
            input: reader.number()?,
            output: reader.number()?,
            reported: reader.number()?,
        };
        let series = Series {
            latency: decode(&mut reader)?,
            first_token: decode(&mut reader)?,
            service: decode(&mut reader)?,
            inter_token_gap: decode(&mut reader)?,
            lateness: decode(&mut reader)?,
            queue_delay: decode(&mut reader)?,
        };
        reader.finish()?;
        let result = Self {
            index,
            workers,
            attempt,
            workload: u64::from_le_bytes(workload),
            interrupted,
            start_skew_microseconds,
            stages,
            errors,
            retries,
            tokens,
            series,
        };
        result.check()
    }

    /// Counts that contradict the series could turn a lost half of a run into a verdict.
    fn check(self) -> Result<Self, DecodeError> {
        let sum = |count: fn(&StageCounts) -> u64| {
            self.stages
                .iter()
                .try_fold(0u64, |total, stage| total.checked_add(count(stage)))
        };
        if sum(|stage| stage.done) != Some(self.series.latency.count()) {
            return Err(DecodeError::Inconsistent(
                "there are not as many latencies as outcomes",
            ));
        }
        if sum(|stage| stage.failed) != Some(self.errors.total()) {
            return Err(DecodeError::Inconsistent(
                "there are not as many errors as failures",
            ));
        }
        Ok(self)
    }
}

fn decode_stage(reader: &mut Reader<'_>) -> Result<StageCounts, DecodeError> {
    let differences: [u64; 3] = [reader.number()?, reader.number()?, reader.number()?];
    let failed: u64 = reader.number()?;
    let add = |a: u64, b: u64| {
        a.checked_add(b)
            .ok_or(DecodeError::Inconsistent("a count is too large"))
    };
    let done = add(failed, differences[2])?;
    let started = add(done, differences[1])?;
    Ok(StageCounts {
        planned: add(started, differences[0])?,
        started,
        done,
        failed,
    })
}

/// A worker's cumulative snapshot. A later one replaces an earlier one, so a lost one costs freshness only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkerProgress {
    /// The worker's index.
    pub index: u32,
    /// Grows with each pod for one index.
    pub attempt: u64,
    /// Grows with each snapshot of a pod.
    pub sequence: u64,
    /// The stage that is being started, as its place in the plan.
    pub stage: u32,
    /// Counts over all stages.
    pub counts: StageCounts,
    /// Latencies so far.
    pub latency: Histogram,
    /// Whether this is the last one.
    pub finished: bool,
}

/// Where a run is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunState {
    /// Workers wait for each other.
    #[default]
    Waiting,
    /// The schedule runs.
    Running,
    /// Every worker has said that it is done.
    Finished,
}

/// The run so far, as the coordinator answers `GET /progress`. Advisory: the verdict comes from messages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// Where the run is.
    pub state: RunState,
    /// The common start as RFC 3339, once it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<String>,
    /// The stage being started, by name; empty before the start.
    pub stage: String,
    /// Workers of the plan.
    pub workers_desired: u32,
    /// Workers that have come to the barrier.
    pub workers_ready: u32,
    /// Whole percent of planned requests with an outcome.
    pub percent: u32,
    /// Requests of the plan.
    pub planned: u64,
    /// Requests started.
    pub started: u64,
    /// Requests with an outcome.
    pub done: u64,
    /// Requests with a bad one.
    pub failed: u64,
    /// Requests without one.
    pub in_flight: u64,
    /// Starts per second over the last seconds, a decimal string with one place.
    pub per_second: String,
    /// Latencies so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<LatencySummary>,
}

/// The newest snapshot of every worker.
#[derive(Clone, Debug, Default)]
pub struct ProgressTable(BTreeMap<u32, WorkerProgress>);

/// Sums over the newest snapshots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProgressTotals {
    /// Counts over all workers.
    pub counts: StageCounts,
    /// Latencies over all workers.
    pub latency: Histogram,
    /// The furthest stage.
    pub stage: u32,
    /// Workers that have sent their last snapshot.
    pub finished: u32,
}

impl ProgressTable {
    /// Takes a snapshot in, unless a newer one of its worker is known.
    pub fn accept(&mut self, progress: WorkerProgress) {
        let age = |progress: &WorkerProgress| (progress.attempt, progress.sequence);
        match self.0.get(&progress.index) {
            Some(known) if age(known) >= age(&progress) => {}
            _ => drop(self.0.insert(progress.index, progress)),
        }
    }

    /// Sums over the newest snapshots.
    pub fn totals(&self) -> ProgressTotals {
        let mut totals = ProgressTotals::default();
        for WorkerProgress {
            index: _,
            attempt: _,
            sequence: _,
            stage,
            counts,
            latency,
            finished,
        } in self.0.values()
        {
            totals.counts.started = totals.counts.started.saturating_add(counts.started);
            totals.counts.planned = totals.counts.planned.saturating_add(counts.planned);
            totals.counts.done = totals.counts.done.saturating_add(counts.done);
            totals.counts.failed = totals.counts.failed.saturating_add(counts.failed);
            totals.latency.merge(latency);
            totals.stage = totals.stage.max(*stage);
            totals.finished += u32::from(*finished);
        }
        totals
    }
}

#[cfg(test)]
pub(crate) mod tests;
