//! A request at a provider, from the moment it is sent to its last byte: what was used is read on the way, the event that
//! only we asked for is taken out, and all is settled exactly once, however it ends.

use std::sync::Arc;

use bytes::Bytes;
use flotilla_core::balance::Ticket;
use flotilla_core::price::TokenUsage;
use http::{HeaderMap, StatusCode, header};
use jiff::Timestamp;
use parking_lot::Mutex;

use super::events::EventReader;
use super::health::{self, Outcome};
use super::provider::Provider;
use super::quota::{Permit, Used};
use super::request::{Content, Operation, media_type};
use super::spend::{Ended, Reserved};
use super::usage::{Found, JsonReader};
use crate::reply::{End, Observer};
use crate::upstream::connection::Connection;

/// A request at a provider. Dropped before its end, the agent has given it up.
pub struct Meter {
    provider: Arc<Provider>,
    operation: Operation,
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
        operation: Operation,
        content: &Content,
        model: Option<&str>,
        reserved: Reserved,
        ticket: Ticket,
        permit: Option<Permit>,
    ) -> Self {
        provider.usage.begin();
        Self {
            provider,
            operation,
            model: model.map(str::to_owned),
            request: content.reader.clone(),
            bytes: content.bytes,
            takes_usage_out: content.asked.adds_usage(),
            reserved,
            ticket: Some(ticket),
            permit,
            response: Reader::Nothing,
            connection: None,
            status: None,
            settled: false,
        }
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
    }

    /// There is no answer: nothing was sent (then no quota was used), or the provider broke off before its head.
    pub(super) fn unanswered(&mut self, not_sent: bool) {
        if let Some(permit) = self.permit.take_if(|_| not_sent) {
            permit.cancel();
        }
        self.judged(Outcome::Failed { retry_after: None });
        self.settle(true, Fate::Unanswered);
    }

    /// The time was over before the head of an answer.
    pub(super) fn timed_out(&mut self) {
        self.judged(Outcome::Failed { retry_after: None });
        self.settle(true, Fate::BrokenOff);
    }

    fn judged(&mut self, outcome: Outcome) {
        if let Some(ticket) = self.ticket.take() {
            self.provider.health.end(ticket, outcome);
        }
    }

    fn is_refused(&self) -> bool {
        self.status.is_none_or(|status| status.as_u16() >= 400)
    }

    /// Counts, charges and gives back what was reserved; once.
    fn settle(&mut self, failed: bool, fate: Fate) {
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
        if let Some(permit) = self.permit.take() {
            permit.settle(Used {
                input: found.input_tokens,
                output: found.output_tokens,
            });
        }
        let mut reported = found.usage();
        let refused = self.status.is_some_and(|status| !status.is_success());
        let mut assumed = None;
        if self.operation.uses_tokens() && fate != Fate::Unanswered && !refused {
            match &mut reported {
                // The beginning of a stream tells the input and, by then, one token of output.
                Some(usage) if self.operation == Operation::Messages && fate == Fate::BrokenOff => {
                    usage.output = usage.output.max(events);
                }
                Some(_) => {}
                None => {
                    let output = match self.response {
                        Reader::Events(_) if fate == Fate::BrokenOff => events,
                        _ => self.reserved.tokens.output,
                    };
                    assumed = Some(TokenUsage {
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
            bytes: self.bytes,
            reserved: self.reserved,
        };
        self.provider
            .usage
            .end(&self.provider.config, &ended, Timestamp::now());
    }
}

impl Observer for Meter {
    fn data(&mut self, bytes: &Bytes) {
        if let Reader::Json(reader) = &mut self.response {
            reader.feed(bytes);
        }
    }

    fn pass(&mut self, bytes: Bytes) -> Bytes {
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
        self.settle(self.is_refused() || matches!(end, End::Cut | End::TimedOut), fate);
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.settle(self.is_refused(), Fate::BrokenOff);
    }
}
