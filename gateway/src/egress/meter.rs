//! A request at a provider, from the moment it is sent to its last byte: what was used is read on the way, the event that
//! only we asked for is taken out, and all is settled exactly once, however it ends.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use flotilla_core::balance::Ticket;
use flotilla_core::price::TokenUsage;
use flotilla_core::quota::{Estimator, OutputCharge};
use http::{HeaderMap, StatusCode, header};
use jiff::Timestamp;
use parking_lot::Mutex;

use super::content::Content;
use super::events::EventReader;
use super::genai::{self, Call};
use super::health::{self, Outcome};
use super::provider::Provider;
use super::quota::{Permit, Used};
use super::request::{Operation, media_type};
use super::spend::{Ended, Reserved};
use super::usage::{Found, JsonReader};
use crate::reply::{End, Observer};
use crate::upstream::connection::Connection;

/// A request at a provider. Dropped before its end, the agent has given it up.
pub struct Meter {
    provider: Arc<Provider>,
    call: Call,
    /// The model asked for.
    model: Option<String>,
    /// Finds the model's name where the body is passed on as it comes.
    request: Option<Arc<Mutex<JsonReader>>>,
    /// Length of a held body.
    bytes: u64,
    /// The usage chunk of the stream is not the agent's.
    takes_usage_out: bool,
    reserved: Reserved,
    ticket: Option<Ticket>,
    permit: Option<Permit>,
    /// Any of the request may have reached the provider; until then it has cost nothing.
    sent: AtomicBool,
    response: Reader,
    connection: Option<Connection>,
    status: Option<StatusCode>,
    settled: bool,
}

/// How the response is read.
enum Reader {
    Nothing,
    Json(Box<JsonReader>),
    Events(Box<EventReader>),
}

/// How far a request has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It has its whole answer.
    Complete,
    /// It was sent, and perhaps worked on.
    BrokenOff,
    /// Nobody has worked on it.
    Unanswered,
}

impl Meter {
    pub(super) fn new(
        provider: Arc<Provider>,
        call: Call,
        content: &Content,
        model: Option<&str>,
        reserved: Reserved,
        ticket: Ticket,
        permit: Option<Permit>,
    ) -> Self {
        provider.usage.begin();
        Self {
            provider,
            call,
            model: model.map(str::to_owned),
            request: content.reader.clone(),
            bytes: content.bytes,
            takes_usage_out: content.asked.adds_usage(),
            reserved,
            ticket: Some(ticket),
            permit,
            sent: AtomicBool::new(false),
            response: Reader::Nothing,
            connection: None,
            status: None,
            settled: false,
        }
    }

    /// To be set when any of the request may have reached the provider.
    pub(super) fn sent(&self) -> &AtomicBool {
        &self.sent
    }

    /// The head of the answer has come. Changes it where the body will be changed.
    pub(super) fn answered(&mut self, headers: &mut HeaderMap, status: StatusCode, connection: Connection) {
        if let Some(permit) = &mut self.permit {
            permit.answered(status, headers);
        }
        self.status = Some(status);
        self.connection = Some(connection);
        let (outcome, rest) = health::judge(status, headers);
        self.judged(outcome);
        if status == StatusCode::TOO_MANY_REQUESTS
            && let Some(model) = &self.model
        {
            self.provider.health.rest(model, rest);
        }
        self.response = match media_type(headers).as_deref() {
            Some("text/event-stream") if self.takes_usage_out => {
                headers.remove(header::CONTENT_LENGTH);
                Reader::Events(Box::new(EventReader::without_usage()))
            }
            Some("text/event-stream") => Reader::Events(Box::default()),
            Some(media) if media == "application/json" || media.ends_with("+json") => {
                Reader::Json(Box::default())
            }
            _ => Reader::Nothing,
        };
        if matches!(self.response, Reader::Events(_)) {
            self.call.streams();
        }
    }

    /// There is no answer: nothing was sent, or the provider broke off before its head.
    pub(super) fn unanswered(&mut self) {
        self.judged(Outcome::Failed { retry_after: None });
        self.settle(true, Fate::Unanswered, None);
    }

    /// What came is no answer to what was asked.
    pub(super) fn broken(&mut self) {
        self.judged(Outcome::Failed { retry_after: None });
        self.settle(true, Fate::Unanswered, Some(End::Cut));
    }

    /// The agent's body turned out too long while it was sent: the provider never had the whole of it.
    pub(super) fn too_long(&mut self) {
        self.settle(true, Fate::Unanswered, None);
    }

    /// The time was over before the head of an answer.
    pub(super) fn timed_out(&mut self) {
        self.judged(Outcome::Failed { retry_after: None });
        self.settle(true, Fate::BrokenOff, Some(End::TimedOut));
    }

    fn judged(&mut self, outcome: Outcome) {
        if let Some(ticket) = self.ticket.take() {
            self.provider.health.end(ticket, outcome);
        }
    }

    fn is_refused(&self) -> bool {
        self.status.is_none_or(|status| status.as_u16() >= 400)
    }

    /// Counts, charges and gives back what was reserved; once. `end` is that of the answer's body.
    fn settle(&mut self, failed: bool, fate: Fate, end: Option<End>) {
        if std::mem::replace(&mut self.settled, true) {
            return;
        }
        self.judged(Outcome::Unknown);
        let nothing = Found::default();
        let (found, events) = match &self.response {
            Reader::Nothing => (&nothing, 0),
            Reader::Json(reader) => (reader.found(), 0),
            Reader::Events(reader) => (reader.found(), reader.events()),
        };
        let sent = *self.sent.get_mut();
        let fate = if sent { fate } else { Fate::Unanswered };
        // The beginning of a stream of messages tells the input and, by then, one token of output.
        let begun = self.call.operation() == Operation::Messages && fate == Fate::BrokenOff;
        let seen = if begun { events } else { 0 };
        match self.permit.take() {
            Some(permit) if sent => permit.settle(Used {
                input: found.input_tokens,
                output: found.output_tokens.map(|output| output.max(seen)),
            }),
            Some(permit) => permit.cancel(),
            None => {}
        }
        let passed = self.request.as_ref().map_or(0, |reader| reader.lock().bytes());
        let mut reported = found.usage();
        let refused = self.status.is_some_and(|status| !status.is_success());
        let mut assumed = None;
        if self.call.operation().uses_tokens() && fate != Fate::Unanswered && !refused {
            match &mut reported {
                Some(usage) => usage.output = usage.output.max(seen),
                None => {
                    let output = match self.response {
                        Reader::Events(_) if fate == Fate::BrokenOff => events,
                        _ => self.reserved.tokens.output.max(events),
                    };
                    // One that passed as it came was reserved without its length.
                    let (input, _) = Estimator::default().estimate(passed, None, OutputCharge::Used);
                    assumed = Some(TokenUsage {
                        input: input.max(self.reserved.tokens.input),
                        output,
                        ..self.reserved.tokens
                    });
                }
            }
        }
        let passing = || {
            let reader = self.request.as_ref()?;
            reader.lock().found().model.clone()
        };
        let model = self
            .model
            .clone()
            .or_else(passing)
            .or_else(|| found.model.clone());
        let ended = Ended {
            model: model.as_deref(),
            failed,
            reported,
            assumed,
            bytes: self.bytes.max(passed),
            reserved: self.reserved,
        };
        self.provider
            .usage
            .end(&self.provider.config, &ended, Timestamp::now());
        let outcome = genai::Outcome {
            provider: &self.provider.name,
            model: model.as_deref(),
            found,
            status: self.status,
            end,
        };
        self.call.end(&self.provider.genai, outcome);
    }
}

impl Observer for Meter {
    fn data(&mut self, bytes: &Bytes) {
        if let Reader::Json(reader) = &mut self.response {
            reader.feed(bytes);
        }
    }

    fn pass(&mut self, bytes: Bytes) -> Bytes {
        self.call.chunk();
        match &mut self.response {
            Reader::Events(reader) => reader.pass(bytes),
            Reader::Json(_) | Reader::Nothing => {
                self.data(&bytes);
                bytes
            }
        }
    }

    fn rest(&mut self) -> Bytes {
        match &mut self.response {
            Reader::Events(reader) => reader.rest(),
            Reader::Json(_) | Reader::Nothing => Bytes::new(),
        }
    }

    fn changes_length(&self) -> bool {
        matches!(&self.response, Reader::Events(reader) if reader.filters())
    }

    fn end(&mut self, end: End) {
        let connection = self.connection.take();
        if end == End::Complete
            && let (Some(connection), Ok(place)) = (connection, &self.provider.place)
        {
            place.peer.keep(connection);
        }
        let fate = if end == End::Complete {
            Fate::Complete
        } else {
            Fate::BrokenOff
        };
        // One that the agent has given up was answered all the same.
        let failed = self.is_refused() || matches!(end, End::Cut | End::TimedOut);
        self.settle(failed, fate, Some(end));
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.settle(self.is_refused(), Fate::BrokenOff, None);
    }
}
