//! One logical request: its attempts, its clock readings, its outcome.
//!
//! The clock starts at the intended start, not at the sending: a target that stalls delays the requests that are
//! due meanwhile, and a generator that only measured what it sent would not see them ("coordinated omission"). Every
//! request ends at the latest one timeout after its intended start, so that a run's length is known.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use flotilla_core::load::plan::LoadPlan;
use flotilla_core::load::result::ErrorCategory;
use flotilla_core::load::schedule::Start;
use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::pool::{Connection, Pool};
use crate::protocol::{Answer, RequestBuilder, Usage};
use crate::sse;

/// The largest unstreamed answer that is read; a larger one is malformed.
const MAX_BODY_BYTES: usize = 16 << 20;

/// The longest `Retry-After` that is believed; no timeout is longer.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// How much of an error's body is kept for the log.
const MAX_DETAIL_BYTES: usize = 300;

/// The wait before a second attempt; it doubles with each further one.
const BACKOFF: Duration = Duration::from_millis(100);

/// What became of a request.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Why it failed, if it did.
    pub failure: Option<ErrorCategory>,
    /// When the first attempt was sent.
    pub sent: Option<Instant>,
    /// When the last attempt ended.
    pub ended: Option<Instant>,
    /// When the first token of the last attempt came.
    pub first_token: Option<Instant>,
    /// Between reads of the last attempt that brought tokens.
    pub gaps: Vec<Duration>,
    /// The tokens that the answer reported.
    pub usage: Option<Usage>,
    /// Attempts, 1 at least.
    pub attempts: u32,
    /// Of a failure: what can be said beyond its category, for the log.
    pub detail: String,
}

/// Sends requests to the target of a plan.
#[derive(Debug)]
pub struct Client {
    builder: RequestBuilder,
    pool: Pool,
    timeout: Duration,
    max_attempts: u32,
}

/// What one attempt has shown so far; kept outside it, because a timeout drops the attempt.
#[derive(Default)]
struct Attempt {
    sent: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
    gaps: Vec<Duration>,
    usage: Option<Usage>,
    retry_after: Option<Duration>,
    unavailable: bool,
    connection: Option<Connection>,
    detail: String,
}

impl Client {
    /// A client of `plan`'s target.
    pub fn new(plan: &LoadPlan, builder: RequestBuilder, pool: Pool) -> Arc<Self> {
        Arc::new(Self {
            builder,
            pool,
            timeout: Duration::from_millis(plan.requests.timeout_milliseconds),
            max_attempts: plan.requests.max_attempts,
        })
    }

    /// The last moment of a request that was due at `due`.
    pub fn deadline(&self, due: Instant) -> Instant {
        due + self.timeout
    }

    /// Sends the request that was due at `due`, with further attempts where the plan allows them, and reads its
    /// answer. `label` is what the index header says. The connection is for [`Client::keep`], once the outcome has
    /// been recorded.
    pub async fn send(
        &self,
        start: &Start,
        label: HeaderValue,
        prompt: String,
        due: Instant,
    ) -> (Outcome, Option<Connection>) {
        let deadline = self.deadline(due);
        let body = self.builder.body(start, prompt);
        let mut outcome = Outcome::default();
        loop {
            outcome.attempts += 1;
            let mut attempt = Attempt::default();
            let sent = self.attempt(&label, body.clone(), &mut attempt);
            let failure = match tokio::time::timeout_at(deadline.into(), sent).await {
                Ok(result) => result.err(),
                Err(_) => Some(ErrorCategory::Timeout),
            };
            let now = Instant::now();
            let pause = failure
                .filter(|category| outcome.attempts < self.max_attempts && attempt.may_repeat(*category))
                .map(|_| {
                    attempt
                        .retry_after
                        .unwrap_or(BACKOFF * 2u32.saturating_pow(outcome.attempts - 1))
                })
                .filter(|pause| now + *pause < deadline);
            let connection = attempt.connection.take();
            let Some(pause) = pause else {
                outcome.ended = Some(now);
                outcome.finish(attempt, failure);
                return (outcome, connection);
            };
            outcome.sent = outcome.sent.or(attempt.sent);
            if let Some(connection) = connection {
                self.keep(connection).await;
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Makes a connection available to later requests once it is ready for one.
    pub async fn keep(&self, connection: Connection) {
        // Bounded, because a peer that neither closes nor completes would otherwise hold this task.
        let _ = tokio::time::timeout(Duration::from_secs(1), self.pool.give_back(connection)).await;
    }

    /// One attempt. Leaves the connection in `attempt` if it can carry another request.
    async fn attempt(
        &self,
        label: &HeaderValue,
        body: Bytes,
        attempt: &mut Attempt,
    ) -> Result<(), ErrorCategory> {
        let mut request = self.builder.request(label, body);
        let (connection, response) = loop {
            let (mut connection, idle) = match self.pool.take_idle() {
                Some(connection) => (connection, true),
                None => match self.pool.connect().await {
                    Ok(connection) => (connection, false),
                    Err(error) => return Err(attempt.fail(ErrorCategory::Connect, &error)),
                },
            };
            attempt.sent.get_or_insert_with(Instant::now);
            match connection.try_send_request(request).await {
                Ok(response) => break (connection, response),
                Err(mut error) => match error.take_message() {
                    // Closed while idle, and nothing was written.
                    Some(unsent) if idle => request = unsent,
                    Some(_) => return Err(attempt.fail(ErrorCategory::Connect, error.error())),
                    None => return Err(attempt.fail(ErrorCategory::Reset, error.error())),
                },
            }
        };
        let result = self.read(response, attempt).await;
        if result
            .as_ref()
            .err()
            .is_none_or(|category| is_complete_answer(*category))
        {
            attempt.connection = Some(connection);
        }
        result
    }

    async fn read(&self, response: Response<Incoming>, attempt: &mut Attempt) -> Result<(), ErrorCategory> {
        let status = response.status();
        if !status.is_success() {
            attempt.unavailable = status == StatusCode::SERVICE_UNAVAILABLE;
            attempt.retry_after = retry_after(&response);
            attempt.detail = format!("status {status}: ");
            // To its end, so that the connection can be used again.
            let mut body = response.into_body();
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|error| attempt.fail(ErrorCategory::StreamCut, &error))?;
                let room = MAX_DETAIL_BYTES.saturating_sub(attempt.detail.len());
                let chunk = frame
                    .data_ref()
                    .map_or(&[][..], |data| &data[..data.len().min(room)]);
                attempt.detail.push_str(&String::from_utf8_lossy(chunk));
            }
            return Err(match status {
                StatusCode::TOO_MANY_REQUESTS => ErrorCategory::Throttled,
                status if status.is_client_error() => ErrorCategory::ClientError,
                status if status.is_server_error() => ErrorCategory::ServerError,
                // A redirect or an interim status is not an answer to a question.
                _ => ErrorCategory::Malformed,
            });
        }
        let mut answer = self.builder.answer();
        let streamed = response.headers().get(CONTENT_TYPE).is_some_and(|value| {
            value
                .as_bytes()
                .to_ascii_lowercase()
                .starts_with(b"text/event-stream")
        });
        let result = if streamed {
            read_stream(response.into_body(), &mut answer, attempt).await
        } else {
            read_body(response.into_body(), &mut answer).await
        };
        attempt.usage = answer.usage();
        result
    }
}

impl Outcome {
    fn finish(&mut self, attempt: Attempt, failure: Option<ErrorCategory>) {
        let Attempt {
            sent,
            first_token,
            last_token: _,
            gaps,
            usage,
            retry_after: _,
            unavailable: _,
            connection: _,
            detail,
        } = attempt;
        self.failure = failure;
        self.detail = detail;
        self.sent = self.sent.or(sent);
        self.first_token = first_token;
        self.gaps = gaps;
        self.usage = usage;
    }
}

impl Attempt {
    fn fail(&mut self, category: ErrorCategory, error: &dyn std::error::Error) -> ErrorCategory {
        self.detail.push_str(&error.to_string());
        let mut source = error.source();
        while let Some(error) = source {
            self.detail.push_str(&format!(": {error}"));
            source = error.source();
        }
        category
    }

    /// Whether the target did not work on it, as far as can be known: no connection, 429 or 503.
    fn may_repeat(&self, category: ErrorCategory) -> bool {
        match category {
            ErrorCategory::Connect | ErrorCategory::Throttled => true,
            ErrorCategory::ServerError => self.unavailable,
            _ => false,
        }
    }

    fn tokens_at(&mut self, now: Instant) {
        match self.last_token.replace(now) {
            Some(last) => self.gaps.push(now - last),
            None => self.first_token = Some(now),
        }
    }
}

/// Whether an answer of this kind was read to its end, although it was not good.
fn is_complete_answer(category: ErrorCategory) -> bool {
    use ErrorCategory::{AgentError, ClientError, ServerError, Throttled};
    matches!(category, ClientError | Throttled | ServerError | AgentError)
}

/// `Retry-After` in seconds; a date is not worth a clock here.
fn retry_after(response: &Response<Incoming>) -> Option<Duration> {
    let seconds = response
        .headers()
        .get(RETRY_AFTER)?
        .to_str()
        .ok()?
        .trim()
        .parse()
        .ok()?;
    Some(Duration::from_secs(seconds).min(MAX_RETRY_AFTER))
}

async fn read_stream(
    mut body: Incoming,
    answer: &mut Answer,
    attempt: &mut Attempt,
) -> Result<(), ErrorCategory> {
    let mut parser = sse::Parser::default();
    let mut failure = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| failure.unwrap_or(ErrorCategory::StreamCut))?;
        let Some(chunk) = frame.data_ref() else { continue };
        // One reading of the clock per read: events that came together have no gap between them.
        let now = Instant::now();
        let mut tokens = false;
        let fed = parser.feed(chunk, |data| match answer.event(data) {
            Ok(token) => tokens |= token,
            Err(category) => drop(failure.get_or_insert(category)),
        });
        fed.map_err(|_| ErrorCategory::Malformed)?;
        if tokens {
            attempt.tokens_at(now);
        }
    }
    match failure {
        Some(category) => Err(category),
        None => answer.end_of_stream(),
    }
}

async fn read_body(mut body: Incoming, answer: &mut Answer) -> Result<(), ErrorCategory> {
    let mut kept = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| ErrorCategory::StreamCut)?;
        if let Some(chunk) = frame.data_ref()
            && answer.reads_body()
        {
            if kept.len() + chunk.len() > MAX_BODY_BYTES {
                return Err(ErrorCategory::Malformed);
            }
            kept.extend_from_slice(chunk);
        }
    }
    answer.body(&kept)
}
