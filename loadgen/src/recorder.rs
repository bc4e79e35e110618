//! What one worker has measured so far.

use std::io::{self, BufWriter, Write};
use std::time::{Duration, Instant};

use flotilla_core::load::result::{ErrorCategory, ErrorCounts, Series, StageCounts, Tokens};
use flotilla_core::load::schedule::Start;
use flotilla_core::load::wire::{WorkerProgress, WorkerResult};
use parking_lot::Mutex;

use crate::exchange::Outcome;

/// Who is measuring.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// The worker's index.
    pub index: u32,
    /// The number of workers.
    pub workers: u32,
    /// Grows with each process for one index.
    pub attempt: u64,
    /// The plan's workload id.
    pub workload: u64,
}

/// When a request got the generator's attention and its place.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// The intended start.
    pub due: Instant,
    /// When the generator turned to it.
    pub begun: Instant,
    /// When it had its place below `maxInFlight`.
    pub admitted: Instant,
}

/// Collects outcomes; shared by all requests of a worker.
pub struct Recorder {
    identity: Identity,
    state: Mutex<State>,
}

struct State {
    stage: usize,
    stages: Vec<StageCounts>,
    errors: ErrorCounts,
    retries: u64,
    tokens: Tokens,
    series: Series,
    sequence: u64,
    start_skew: Duration,
    samples: Option<BufWriter<Box<dyn Write + Send>>>,
}

/// Whole microseconds.
fn microseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl Recorder {
    /// An empty record of a worker that has `planned` requests per stage. Each request becomes a line in `samples`.
    ///
    /// # Errors
    /// If the head of the samples cannot be written.
    pub fn new(
        identity: Identity,
        planned: &[u64],
        samples: Option<Box<dyn Write + Send>>,
    ) -> io::Result<Self> {
        let mut samples = samples.map(BufWriter::new);
        if let Some(samples) = &mut samples {
            writeln!(
                samples,
                "index,stage,scenario,offset_us,lateness_us,queue_us,latency_us,service_us,first_token_us,attempts,outcome"
            )?;
        }
        let stages = planned.iter().map(|planned| StageCounts {
            planned: *planned,
            ..StageCounts::default()
        });
        let state = State {
            stage: 0,
            stages: stages.collect(),
            errors: ErrorCounts::default(),
            retries: 0,
            tokens: Tokens::default(),
            series: Series::default(),
            sequence: 0,
            start_skew: Duration::ZERO,
            samples,
        };
        Ok(Self {
            identity,
            state: Mutex::new(state),
        })
    }

    /// Notes how far this worker's start was from the common one.
    pub fn started_with_skew(&self, skew: Duration) {
        self.state.lock().start_skew = skew;
    }

    /// Counts a start.
    pub fn started(&self, start: &Start) {
        let mut state = self.state.lock();
        state.stage = start.stage;
        if let Some(counts) = state.stages.get_mut(start.stage) {
            counts.started += 1;
        }
    }

    /// Records the outcome of a request.
    pub fn finished(&self, start: &Start, timing: &Timing, outcome: &Outcome) {
        let Timing { due, begun, admitted } = *timing;
        let ended = outcome.ended.unwrap_or(admitted);
        let since = |from: Instant, to: Instant| microseconds(to.saturating_duration_since(from));
        let latency = since(due, ended);
        let service = outcome.sent.map(|sent| since(sent, ended));
        let first_token = outcome.first_token.map(|first| since(due, first));
        let mut state = self.state.lock();
        if let Some(counts) = state.stages.get_mut(start.stage) {
            counts.done += 1;
            counts.failed += u64::from(outcome.failure.is_some());
        }
        if let Some(category) = outcome.failure {
            if state.errors.get(category) == 0 {
                let (index, category, detail) = (start.index, category.as_str(), outcome.detail.as_str());
                tracing::warn!(
                    index,
                    category,
                    detail,
                    "a request failed; others of this category are only counted"
                );
            }
            state.errors.add(category, 1);
        }
        state.retries += u64::from(outcome.attempts.saturating_sub(1));
        if let Some(usage) = outcome.usage {
            state.tokens.merge(&Tokens {
                input: usage.input,
                output: usage.output,
                reported: 1,
            });
        }
        let series = &mut state.series;
        series.latency.record(latency);
        series.lateness.record(since(due, begun));
        series.queue_delay.record(since(begun, admitted));
        service
            .into_iter()
            .for_each(|service| series.service.record(service));
        first_token
            .into_iter()
            .for_each(|first| series.first_token.record(first));
        outcome
            .gaps
            .iter()
            .for_each(|gap| series.inter_token_gap.record(microseconds(*gap)));
        if let Some(samples) = &mut state.samples {
            let text = |value: Option<u64>| value.map(|value| value.to_string()).unwrap_or_default();
            let written = writeln!(
                samples,
                "{},{},{},{},{},{},{latency},{},{},{},{}",
                start.index,
                start.stage,
                start.scenario,
                start.offset_nanoseconds / 1000,
                since(due, begun),
                since(begun, admitted),
                text(service),
                text(first_token),
                outcome.attempts,
                outcome.failure.map_or("Succeeded", ErrorCategory::as_str),
            );
            if let Err(error) = written {
                tracing::warn!(%error, "failed to write samples; there will be no more");
                state.samples = None;
            }
        }
    }

    /// A cumulative snapshot, newer than all before it.
    pub fn progress(&self, finished: bool) -> WorkerProgress {
        let mut state = self.state.lock();
        state.sequence += 1;
        let mut counts = StageCounts::default();
        for stage in &state.stages {
            counts.planned += stage.planned;
            counts.started += stage.started;
            counts.done += stage.done;
            counts.failed += stage.failed;
        }
        WorkerProgress {
            index: self.identity.index,
            attempt: self.identity.attempt,
            sequence: state.sequence,
            stage: state.stage as u32,
            counts,
            latency: state.series.latency.clone(),
            finished,
        }
    }

    /// The result; also writes out the samples.
    pub fn result(&self, interrupted: bool) -> WorkerResult {
        let mut state = self.state.lock();
        if let Some(Err(error)) = state.samples.as_mut().map(Write::flush) {
            tracing::warn!(%error, "failed to write the last samples");
        }
        let Identity {
            index,
            workers,
            attempt,
            workload,
        } = self.identity;
        WorkerResult {
            index,
            workers,
            attempt,
            workload,
            interrupted,
            start_skew_microseconds: microseconds(state.start_skew),
            stages: state.stages.clone(),
            errors: state.errors.clone(),
            retries: state.retries,
            tokens: state.tokens,
            series: state.series.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(index: u64) -> Start {
        Start {
            index,
            stage: 0,
            offset_nanoseconds: 0,
            scenario: 0,
            body_seed: 0,
        }
    }

    fn recorder() -> Recorder {
        let identity = Identity {
            index: 0,
            workers: 1,
            attempt: 1,
            workload: 7,
        };
        Recorder::new(identity, &[3], None).unwrap()
    }

    #[test]
    fn latency_runs_from_the_intended_start_and_service_from_the_sending() {
        let due = Instant::now();
        let after = |milliseconds| due + Duration::from_millis(milliseconds);
        let timing = Timing {
            due,
            begun: after(1),
            admitted: after(500),
        };
        let outcome = Outcome {
            sent: Some(after(600)),
            ended: Some(after(1000)),
            first_token: Some(after(700)),
            gaps: vec![Duration::from_millis(20)],
            attempts: 2,
            ..Outcome::default()
        };
        let recorder = recorder();
        recorder.started(&start(0));
        recorder.finished(&start(0), &timing, &outcome);
        let result = recorder.result(false);
        let series = &result.series;
        let maxima = [
            &series.latency,
            &series.service,
            &series.first_token,
            &series.inter_token_gap,
            &series.lateness,
            &series.queue_delay,
        ]
        .map(|series| series.max().unwrap() / 1000);
        assert_eq!(maxima, [1000, 400, 700, 20, 1, 499]);
        assert_eq!(
            (result.retries, result.stages[0].done, result.stages[0].failed),
            (1, 1, 0)
        );
    }

    #[test]
    fn failures_stay_in_the_latency_series() {
        let due = Instant::now();
        let timing = Timing {
            due,
            begun: due,
            admitted: due,
        };
        let recorder = recorder();
        let failure = Some(ErrorCategory::Timeout);
        let outcome = Outcome {
            failure,
            ended: Some(due + Duration::from_secs(30)),
            attempts: 1,
            ..Outcome::default()
        };
        recorder.started(&start(0));
        recorder.finished(&start(0), &timing, &outcome);
        let result = recorder.result(true);
        assert_eq!(result.series.latency.max(), Some(30_000_000));
        assert!(result.series.service.is_empty() && result.interrupted);
        assert_eq!(WorkerResult::from_message(&result.to_message()).unwrap(), result);
    }

    #[test]
    fn snapshots_grow() {
        let recorder = recorder();
        recorder.started(&start(0));
        let (first, second) = (recorder.progress(false), recorder.progress(true));
        assert!(first.sequence < second.sequence && second.finished);
        assert_eq!(
            (second.counts.planned, second.counts.started, second.counts.done),
            (3, 1, 0)
        );
    }
}
