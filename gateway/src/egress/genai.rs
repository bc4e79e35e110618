//! Calls of models as OpenTelemetry's conventions for generative AI count them (status: development; names of November 2026).
//!
//! Which calls: chat completions, responses and messages (`chat`), completions (`text_completion`) and embeddings. Other
//! requests to a provider, lists of models for example, are no operation of these conventions.
//!
//! A *chunk* is what comes from the provider at once: with server-sent events one event as a rule.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use parking_lot::Mutex;

use super::request::Operation;
use super::usage::Found;
use crate::observe::Note;
use crate::reply::End;

/// Models that are counted apart; an agent that makes up names must not fill the memory.
const MAX_MODELS: usize = 128;
/// Where further names are counted.
const OTHER: &str = "other";
/// Where calls without a model are counted.
const UNKNOWN: &str = "unknown";

/// `gen_ai.client.token.usage`, in tokens: powers of four.
pub const TOKENS: [f64; 14] = [
    1.0,
    4.0,
    16.0,
    64.0,
    256.0,
    1024.0,
    4096.0,
    16384.0,
    65536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
];
/// `gen_ai.client.operation.duration`, in seconds.
pub const DURATION: [f64; 14] = [
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
];
/// Time to the first chunk or token, in seconds.
pub const FIRST: [f64; 16] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
];
/// Time for each further chunk or token, in seconds.
pub const NEXT: [f64; 13] = [
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
];

/// What the conventions call an operation; two of ours may have one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Names {
    /// `gen_ai.operation.name`.
    pub operation: &'static str,
    /// `gen_ai.provider.name`: whose protocol is spoken.
    pub provider: &'static str,
}

impl Names {
    /// None for what is no operation of the conventions.
    pub fn of(operation: Operation) -> Option<Self> {
        let provider = match operation {
            Operation::Messages => "anthropic",
            _ => "openai",
        };
        Some(Self {
            operation: operation.name()?,
            provider,
        })
    }
}

/// `error.type` of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ErrorType {
    /// The provider's status, from 400 on.
    Status(u16),
    /// There was no response.
    NoResponse,
    /// The response broke off.
    Broken,
    /// Its time was over.
    Timeout,
}

impl std::fmt::Display for ErrorType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Status(status) => write!(f, "{status}"),
            Self::NoResponse => f.write_str("no_response"),
            Self::Broken => f.write_str("broken"),
            Self::Timeout => f.write_str("timeout"),
        }
    }
}

/// Counts by bucket; the bounds are the caller's.
#[derive(Clone, Debug)]
pub struct Histogram<const N: usize> {
    /// Not cumulated.
    pub counts: [u64; N],
    /// Above the last bound.
    pub above: u64,
    /// Of all values.
    pub sum: f64,
}

impl<const N: usize> Default for Histogram<N> {
    fn default() -> Self {
        Self {
            counts: [0; N],
            above: 0,
            sum: 0.0,
        }
    }
}

impl<const N: usize> Histogram<N> {
    fn record(&mut self, bounds: &[f64; N], value: f64) {
        let bucket = bounds.iter().position(|bound| value <= *bound);
        match bucket.and_then(|bucket| self.counts.get_mut(bucket)) {
            Some(count) => *count += 1,
            None => self.above += 1,
        }
        self.sum += value;
    }

    fn add(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count += more;
        }
        self.above += other.above;
        self.sum += other.sum;
    }

    /// Values recorded.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum::<u64>() + self.above
    }
}

/// The counts of one operation with one model.
#[derive(Clone, Debug, Default)]
pub struct Series {
    /// Length of calls, by how they failed.
    pub duration: BTreeMap<Option<ErrorType>, Histogram<14>>,
    /// Input tokens of a call.
    pub input_tokens: Histogram<14>,
    /// Output tokens of a call.
    pub output_tokens: Histogram<14>,
    /// From the call to its first chunk; streams only.
    pub first_chunk: Histogram<16>,
    /// From a chunk to the next; streams only.
    pub next_chunk: Histogram<13>,
    /// Time for each output token after the first, averaged over a stream.
    pub per_token: Histogram<13>,
}

/// The counts of one provider since the start of the process.
#[derive(Debug, Default)]
pub struct GenAi(Mutex<BTreeMap<String, BTreeMap<Names, Series>>>);

impl GenAi {
    /// By model and operation.
    pub fn read(&self) -> BTreeMap<String, BTreeMap<Names, Series>> {
        self.0.lock().clone()
    }

    fn record(&self, model: Option<&str>, names: Names, add: impl FnOnce(&mut Series)) {
        let mut models = self.0.lock();
        let name = model.unwrap_or(UNKNOWN);
        let name = if models.len() < MAX_MODELS || models.contains_key(name) {
            name
        } else {
            OTHER
        };
        if !models.contains_key(name) {
            models.insert(name.to_owned(), BTreeMap::new());
        }
        if let Some(operations) = models.get_mut(name) {
            add(operations.entry(names).or_default());
        }
    }
}

/// One call that is under way.
#[derive(Debug)]
pub struct Call {
    operation: Operation,
    names: Option<Names>,
    note: Option<Arc<Note>>,
    started: Instant,
    first: Option<Instant>,
    latest: Instant,
    /// Of streams.
    gaps: Option<Box<Histogram<13>>>,
}

/// What is known of a call at its end.
#[derive(Clone, Copy, Debug)]
pub struct Outcome<'a> {
    /// The name of the ModelProvider.
    pub provider: &'a str,
    /// The request's model.
    pub model: Option<&'a str>,
    /// What the response says.
    pub found: &'a Found,
    /// Its status.
    pub status: Option<StatusCode>,
    /// How its body ended; none if there was none.
    pub end: Option<End>,
}

impl Call {
    /// A call that begins now.
    pub fn begin(operation: Operation, note: Option<Arc<Note>>) -> Self {
        let now = Instant::now();
        Self {
            operation,
            names: Names::of(operation),
            note,
            started: now,
            first: None,
            latest: now,
            gaps: None,
        }
    }

    /// What is asked for.
    pub fn operation(&self) -> Operation {
        self.operation
    }

    /// The response is a stream of events.
    pub fn streams(&mut self) {
        if self.names.is_some() {
            self.gaps = Some(Box::default());
        }
    }

    /// Bytes of the response's body have come.
    pub fn chunk(&mut self) {
        match (self.first, &mut self.gaps) {
            (None, _) => {
                let now = Instant::now();
                self.first = Some(now);
                self.latest = now;
            }
            (Some(_), Some(gaps)) => {
                let now = Instant::now();
                gaps.record(&NEXT, (now - self.latest).as_secs_f64());
                self.latest = now;
            }
            (Some(_), None) => {}
        }
    }

    /// Counts the call. Called once.
    pub fn end(&mut self, counts: &GenAi, outcome: Outcome<'_>) {
        let took = self.started.elapsed();
        let first = self.first.map(|first| first - self.started);
        let found = outcome.found;
        // All of the input: some providers count what is cached beside it.
        let usage = found.usage();
        let input = found.input_tokens.and(usage).map(|usage| usage.input);
        let output = found.output_tokens;
        if let Some(note) = &self.note {
            note.write(|noted| {
                noted.provider = Some(outcome.provider.to_owned());
                noted.operation = self.names;
                noted.model = outcome.model.map(str::to_owned);
                noted.response_model.clone_from(&found.model);
                noted.input_tokens = input;
                noted.output_tokens = output;
                noted.first_chunk = first;
            });
        }
        let Some(names) = self.names else { return };
        let gaps = self.gaps.take();
        counts.record(outcome.model, names, |series| {
            let error = outcome.error();
            series
                .duration
                .entry(error)
                .or_default()
                .record(&DURATION, took.as_secs_f64());
            let tokens = |count: u64| count as f64;
            if let Some(count) = input {
                series.input_tokens.record(&TOKENS, tokens(count));
            }
            if let Some(count) = output {
                series.output_tokens.record(&TOKENS, tokens(count));
            }
            let (Some(gaps), Some(first)) = (gaps, first) else {
                return;
            };
            series.first_chunk.record(&FIRST, first.as_secs_f64());
            series.next_chunk.add(&gaps);
            if let Some(time) = per_token(self.latest - self.started, first, output) {
                series.per_token.record(&NEXT, time);
            }
        });
    }
}

/// Seconds for each output token after the first: the time between the first chunk and the last, shared out.
fn per_token(last: Duration, first: Duration, tokens: Option<u64>) -> Option<f64> {
    let further = tokens?.checked_sub(1).filter(|further| *further > 0)?;
    Some(last.saturating_sub(first).as_secs_f64() / further as f64)
}

impl Outcome<'_> {
    fn error(&self) -> Option<ErrorType> {
        match (self.status, self.end) {
            (Some(status), _) if status.as_u16() >= 400 => Some(ErrorType::Status(status.as_u16())),
            (_, Some(End::TimedOut)) => Some(ErrorType::Timeout),
            (_, Some(End::Cut)) => Some(ErrorType::Broken),
            (None, _) => Some(ErrorType::NoResponse),
            // That the agent has given it up is not the provider's failure.
            (Some(_), Some(End::Complete | End::Cancelled) | None) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAT: Names = Names {
        operation: "chat",
        provider: "openai",
    };

    #[test]
    fn operations_are_known_by_their_paths() {
        let names = |path| {
            let operation = Operation::of(&http::Method::POST, path);
            Names::of(operation).map(|names| (names.operation, names.provider))
        };
        for (path, expected) in [
            ("/chat/completions", Some(("chat", "openai"))),
            ("/responses", Some(("chat", "openai"))),
            ("/completions", Some(("text_completion", "openai"))),
            ("/embeddings", Some(("embeddings", "openai"))),
            ("/messages", Some(("chat", "anthropic"))),
            ("/messages/count_tokens", None),
            ("/models", None),
            // What a lenient server takes for the same is paid for as well.
            ("/chat/completions/", Some(("chat", "openai"))),
            ("//chat//completions", Some(("chat", "openai"))),
            ("/Chat/Completions", Some(("chat", "openai"))),
            ("/chat%2Fcompletion%73", Some(("chat", "openai"))),
            ("/chat/completions/x", None),
        ] {
            assert_eq!(names(path), expected, "{path}");
        }
        assert_eq!(
            Operation::of(&http::Method::GET, "/chat/completions"),
            Operation::Other
        );
    }

    #[test]
    fn a_stream_is_counted_by_chunk_and_by_token() {
        let counts = GenAi::default();
        let mut call = Call::begin(Operation::ChatCompletions, None);
        call.streams();
        for _ in 0..4 {
            call.chunk();
        }
        let found = Found {
            input_tokens: Some(5),
            output_tokens: Some(11),
            ..Found::default()
        };
        let outcome = Outcome {
            provider: "main",
            model: Some("m"),
            found: &found,
            status: Some(StatusCode::OK),
            end: Some(End::Complete),
        };
        call.end(&counts, outcome);
        let all = counts.read();
        let series = &all["m"][&CHAT];
        assert_eq!((series.first_chunk.count(), series.next_chunk.count()), (1, 3));
        assert_eq!(
            (series.input_tokens.counts[2], series.output_tokens.counts[2]),
            (1, 1)
        );
        assert_eq!((series.per_token.count(), series.duration[&None].count()), (1, 1));
    }

    #[test]
    fn failures_have_a_type() {
        let found = Found::default();
        let error = |status: Option<u16>, end| {
            let outcome = Outcome {
                provider: "main",
                model: None,
                found: &found,
                status: status.map(|status| StatusCode::from_u16(status).expect("a status")),
                end,
            };
            outcome.error().map(|error| error.to_string())
        };
        assert_eq!(error(Some(200), Some(End::Complete)), None);
        assert_eq!(error(Some(200), Some(End::Cancelled)), None);
        assert_eq!(error(Some(429), Some(End::Complete)).as_deref(), Some("429"));
        assert_eq!(error(Some(200), Some(End::Cut)).as_deref(), Some("broken"));
        assert_eq!(error(Some(200), Some(End::TimedOut)).as_deref(), Some("timeout"));
        assert_eq!(error(None, None).as_deref(), Some("no_response"));
    }

    #[test]
    fn the_time_of_a_token_leaves_out_the_first() {
        let of = |tokens| per_token(Duration::from_millis(1100), Duration::from_millis(100), tokens);
        assert_eq!(
            (of(Some(11)), of(Some(1)), of(Some(0)), of(None)),
            (Some(0.1), None, None, None)
        );
    }

    #[test]
    fn made_up_models_share_one_entry() {
        let counts = GenAi::default();
        for number in 0..300 {
            counts.record(Some(&format!("m{number}")), CHAT, |_| {});
        }
        assert_eq!(counts.read().len(), MAX_MODELS + 1);
    }
}
