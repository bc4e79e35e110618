//! What was measured, merged over workers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::decimal::{Decimal, DecimalError};
use super::wire::WorkerResult;
use crate::histogram::Histogram;

/// Why a request failed. The names are those of the API's `status.summary.errors`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ErrorCategory {
    /// No connection could be made.
    Connect,
    /// The connection broke before the answer's head.
    Reset,
    /// The answer was not complete within the timeout.
    Timeout,
    /// As Timeout, but the request spent most of it waiting for one of the `maxInFlight` places.
    InFlightLimit,
    /// Status 4xx but 429.
    ClientError,
    /// Status 429.
    Throttled,
    /// Status 5xx.
    ServerError,
    /// The answer broke off after its head.
    StreamCut,
    /// The answer is not what the protocol says.
    Malformed,
    /// The agent itself reported a failure: a JSON-RPC error, a failed, rejected or cancelled task.
    AgentError,
}

impl ErrorCategory {
    /// All categories; the place of each is its number on the wire and never changes.
    pub const ALL: [Self; 10] = [
        Self::Connect,
        Self::Reset,
        Self::Timeout,
        Self::InFlightLimit,
        Self::ClientError,
        Self::Throttled,
        Self::ServerError,
        Self::StreamCut,
        Self::Malformed,
        Self::AgentError,
    ];

    /// The name as in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "Connect",
            Self::Reset => "Reset",
            Self::Timeout => "Timeout",
            Self::InFlightLimit => "InFlightLimit",
            Self::ClientError => "ClientError",
            Self::Throttled => "Throttled",
            Self::ServerError => "ServerError",
            Self::StreamCut => "StreamCut",
            Self::Malformed => "Malformed",
            Self::AgentError => "AgentError",
        }
    }
}

/// Counts per [`ErrorCategory`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ErrorCounts([u64; ErrorCategory::ALL.len()]);

impl ErrorCounts {
    /// Adds `n` failures of `category`.
    pub fn add(&mut self, category: ErrorCategory, n: u64) {
        let count = &mut self.0[category as usize];
        *count = count.saturating_add(n);
    }

    /// The failures of `category`.
    pub fn get(&self, category: ErrorCategory) -> u64 {
        self.0[category as usize]
    }

    /// All failures.
    pub fn total(&self) -> u64 {
        self.0.iter().fold(0, |total, n| total.saturating_add(*n))
    }

    /// Adds all of `other`.
    pub fn merge(&mut self, other: &Self) {
        for category in ErrorCategory::ALL {
            self.add(category, other.get(category));
        }
    }

    /// The categories that occurred, most frequent first.
    pub fn by_frequency(&self) -> Vec<ErrorCount> {
        let mut counts: Vec<ErrorCount> = ErrorCategory::ALL
            .into_iter()
            .map(|category| ErrorCount {
                category,
                count: self.get(category),
            })
            .filter(|entry| entry.count > 0)
            .collect();
        counts.sort_by_key(|entry| std::cmp::Reverse(entry.count));
        counts
    }
}

/// One line of `status.summary.errors`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorCount {
    /// What failed.
    pub category: ErrorCategory,
    /// How often.
    pub count: u64,
}

/// Counts of one stage on one worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StageCounts {
    /// Requests that fall to the worker.
    pub planned: u64,
    /// Requests that were started.
    pub started: u64,
    /// Requests that have an outcome, good or bad.
    pub done: u64,
    /// Requests with a bad outcome.
    pub failed: u64,
}

impl StageCounts {
    fn merge(&mut self, other: &Self) {
        let Self {
            planned,
            started,
            done,
            failed,
        } = other;
        self.planned = self.planned.saturating_add(*planned);
        self.started = self.started.saturating_add(*started);
        self.done = self.done.saturating_add(*done);
        self.failed = self.failed.saturating_add(*failed);
    }
}

/// Tokens reported by the target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tokens {
    /// Tokens of prompts.
    pub input: u64,
    /// Tokens of answers.
    pub output: u64,
    /// Requests whose answer said how many tokens it took; the others count as 0.
    pub reported: u64,
}

impl Tokens {
    /// Adds all of `other`.
    pub fn merge(&mut self, other: &Self) {
        let Self {
            input,
            output,
            reported,
        } = other;
        self.input = self.input.saturating_add(*input);
        self.output = self.output.saturating_add(*output);
        self.reported = self.reported.saturating_add(*reported);
    }
}

/// The measured series, in microseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Series {
    /// From the intended start to the end; failures count with the time they took.
    pub latency: Histogram,
    /// From the intended start to the first token of a streamed answer.
    pub first_token: Histogram,
    /// From the sending to the end: what the latency would look like if the start had waited for the target.
    pub service: Histogram,
    /// Between reads that brought tokens; tokens of one read have no gap.
    pub inter_token_gap: Histogram,
    /// From the intended start to the generator's attention: its own fault.
    pub lateness: Histogram,
    /// Waiting for one of the `maxInFlight` places.
    pub queue_delay: Histogram,
}

impl Series {
    /// All series in wire order.
    pub(super) fn each(&self) -> [&Histogram; 6] {
        let Self {
            latency,
            first_token,
            service,
            inter_token_gap,
            lateness,
            queue_delay,
        } = self;
        [
            latency,
            first_token,
            service,
            inter_token_gap,
            lateness,
            queue_delay,
        ]
    }

    /// Adds all of `other`.
    pub fn merge(&mut self, other: &Self) {
        let Self {
            latency,
            first_token,
            service,
            inter_token_gap,
            lateness,
            queue_delay,
        } = other;
        self.latency.merge(latency);
        self.first_token.merge(first_token);
        self.service.merge(service);
        self.inter_token_gap.merge(inter_token_gap);
        self.lateness.merge(lateness);
        self.queue_delay.merge(queue_delay);
    }
}

/// The results of all workers as one.
///
/// Build it with [`RunResult::merge`]; the order of the results does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunResult {
    /// Workers the plan asked for.
    pub workers: u32,
    /// Workers that left a result.
    pub reported: u32,
    /// Workers that were stopped before their end.
    pub interrupted: u32,
    /// Requests the plan asked for.
    pub planned: u64,
    /// Sums per stage over the workers that reported.
    pub stages: Vec<StageCounts>,
    /// Failures.
    pub errors: ErrorCounts,
    /// Attempts beyond the first.
    pub retries: u64,
    /// Tokens.
    pub tokens: Tokens,
    /// Latencies.
    pub series: Series,
    /// The largest deviation of a worker from the common start, in microseconds.
    pub start_skew_microseconds: u64,
}

impl RunResult {
    /// Merges what workers left behind for a plan of `workers` workers and `planned` requests.
    ///
    /// A result for another workload, of another worker count, or with an index out of range is left out, and of
    /// several for one index the one of the latest attempt counts; what is left out is missing coverage.
    pub fn merge(workers: u32, planned: u64, workload: u64, results: &[WorkerResult]) -> Self {
        let mut by_index: BTreeMap<u32, &WorkerResult> = BTreeMap::new();
        for result in results {
            if result.workload != workload || result.workers != workers || result.index >= workers {
                continue;
            }
            let kept = by_index.entry(result.index).or_insert(result);
            if result.attempt > kept.attempt {
                *kept = result;
            }
        }
        let mut run = Self {
            workers,
            planned,
            ..Self::default()
        };
        for result in by_index.into_values() {
            run.add(result);
        }
        run
    }

    fn add(&mut self, result: &WorkerResult) {
        let WorkerResult {
            index: _,
            workers: _,
            attempt: _,
            workload: _,
            interrupted,
            start_skew_microseconds,
            stages,
            errors,
            retries,
            tokens,
            series,
        } = result;
        self.reported += 1;
        self.interrupted += u32::from(*interrupted);
        self.start_skew_microseconds = self.start_skew_microseconds.max(*start_skew_microseconds);
        if self.stages.len() < stages.len() {
            self.stages.resize(stages.len(), StageCounts::default());
        }
        for (sum, stage) in self.stages.iter_mut().zip(stages) {
            sum.merge(stage);
        }
        self.errors.merge(errors);
        self.retries = self.retries.saturating_add(*retries);
        self.tokens.merge(tokens);
        self.series.merge(series);
    }

    /// Sums over the stages; `planned` is what reported workers had to do.
    pub fn totals(&self) -> StageCounts {
        let mut totals = StageCounts::default();
        self.stages.iter().for_each(|stage| totals.merge(stage));
        totals
    }

    /// Measured requests among the planned ones as a percentage, rounded
    /// down, so that 100 means every single one.
    pub fn coverage_percent(&self) -> Decimal {
        let done = u128::from(self.totals().done.min(self.planned));
        Decimal::from_millionths(if self.planned == 0 {
            0
        } else {
            done * 100_000_000 / u128::from(self.planned)
        })
    }

    /// The figures for `status.summary`; `price` where the cost can be known.
    pub fn summary(&self, price: Option<&Price>) -> Summary {
        let totals = self.totals();
        Summary {
            requests: RequestCounts {
                total: totals.done,
                succeeded: totals.done.saturating_sub(totals.failed),
                failed: totals.failed,
                retries: self.retries,
            },
            errors: self.errors.by_frequency(),
            latency: LatencySummary::of(&self.series.latency),
            first_token: LatencySummary::of(&self.series.first_token),
            service_time: LatencySummary::of(&self.series.service),
            inter_token_gap: LatencySummary::of(&self.series.inter_token_gap),
            lateness: LatencySummary::of(&self.series.lateness),
            queue_delay: LatencySummary::of(&self.series.queue_delay),
            tokens: (self.tokens.reported > 0).then_some(self.tokens),
            cost: price
                .filter(|_| self.tokens.reported > 0)
                .map(|price| price.cost(&self.tokens)),
        }
    }
}

/// The figures of a run, in the shapes of `status.summary`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Requests by outcome.
    pub requests: RequestCounts,
    /// Failures, most frequent first.
    pub errors: Vec<ErrorCount>,
    /// From the intended start to the end; `None` where nothing was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency: Option<LatencySummary>,
    /// From the intended start to the first token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_token: Option<LatencySummary>,
    /// From the sending to the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_time: Option<LatencySummary>,
    /// Between tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inter_token_gap: Option<LatencySummary>,
    /// The generator's own lateness.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lateness: Option<LatencySummary>,
    /// Waiting for a place below `maxInFlight`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_delay: Option<LatencySummary>,
    /// Tokens, where the target reports them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<Tokens>,
    /// What the tokens cost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<Cost>,
}

/// Requests by outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestCounts {
    /// Requests with an outcome.
    pub total: u64,
    /// Requests with a good outcome.
    pub succeeded: u64,
    /// Requests with a bad one, after all attempts.
    pub failed: u64,
    /// Attempts beyond the first.
    pub retries: u64,
}

/// Percentiles in whole milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LatencySummary {
    /// The median.
    pub p50_milliseconds: i64,
    /// The 90th percentile.
    pub p90_milliseconds: i64,
    /// The 95th percentile.
    pub p95_milliseconds: i64,
    /// The 99th percentile.
    pub p99_milliseconds: i64,
    /// The largest value, exact.
    pub max_milliseconds: i64,
}

impl LatencySummary {
    /// The percentiles of `histogram`, or `None` if it is empty.
    pub fn of(histogram: &Histogram) -> Option<Self> {
        let at = |q| histogram.quantile_milliseconds(q);
        Some(Self {
            p50_milliseconds: at(0.5)?,
            p90_milliseconds: at(0.9)?,
            p95_milliseconds: at(0.95)?,
            p99_milliseconds: at(0.99)?,
            max_milliseconds: at(1.0)?,
        })
    }
}

/// What a model's tokens cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Price {
    /// ISO 4217.
    pub currency: String,
    /// Per million tokens of prompts.
    pub input_per_million: Decimal,
    /// Per million tokens of answers.
    pub output_per_million: Decimal,
}

/// An amount of money.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// A decimal string: to the cent from 1 up, below it to the millionth.
    pub total: String,
    /// ISO 4217.
    pub currency: String,
}

impl Price {
    /// Reads the decimal strings of a ModelProvider.
    ///
    /// # Errors
    /// If a price is not a decimal.
    pub fn parse(
        currency: &str,
        input_per_million: &str,
        output_per_million: &str,
    ) -> Result<Self, DecimalError> {
        Ok(Self {
            currency: currency.to_owned(),
            input_per_million: input_per_million.parse()?,
            output_per_million: output_per_million.parse()?,
        })
    }

    /// What `tokens` cost, computed exactly and rounded once.
    pub fn cost(&self, tokens: &Tokens) -> Cost {
        // Millionths of the currency per million tokens: the product is in 10^-12 of the currency.
        let exact = (u128::from(tokens.input).saturating_mul(self.input_per_million.millionths()))
            .saturating_add(u128::from(tokens.output).saturating_mul(self.output_per_million.millionths()));
        let total = Decimal::from_millionths(exact.saturating_add(500_000) / 1_000_000);
        let total = if total.millionths() >= 1_000_000 || total.is_zero() {
            format!("{total:.2}")
        } else {
            total.to_string()
        };
        Cost {
            total,
            currency: self.currency.clone(),
        }
    }
}

#[cfg(test)]
mod tests;
