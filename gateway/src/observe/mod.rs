//! What is told of single requests: their id, their span, and a line of the access log. Counts are elsewhere (`/metrics`,
//! `/stats`) and cost a request nothing.
//!
//! None of this ever holds a body, a header value other than the request's id and trace, or what follows a `?` in an
//! address: prompts and keys are there. Nothing is allocated for a request that is neither logged nor traced.

pub mod access_log;
pub mod otlp;
pub mod request_id;
pub mod spans;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Extensions, Method, Request, Response, StatusCode, Uri, Version};
use opentelemetry::trace::TraceId;
use parking_lot::Mutex;

use crate::egress::genai::Names;
use access_log::AccessLog;
use spans::{Spans, Traced};

/// What is told, and where to.
#[derive(Clone, Debug, Default)]
pub struct Observe {
    /// Lines for sampled requests.
    pub access_log: Option<Arc<AccessLog>>,
    /// Spans for sampled requests.
    pub spans: Option<Arc<Spans>>,
}

/// Which way a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plane {
    /// From a client to an agent.
    Ingress,
    /// From an agent to a provider.
    Egress,
    /// To the gateway itself: nothing is told.
    Admin,
}

/// What the path of a request knows and its record does not; filled in on the way.
#[derive(Debug, Default)]
pub struct Note(Mutex<Noted>);

/// See [`Note`].
#[derive(Clone, Debug, Default)]
pub struct Noted {
    /// The pool.
    pub pool: Option<String>,
    /// The revision that answered.
    pub revision: Option<String>,
    /// The replica that answered.
    pub replica: Option<SocketAddr>,
    /// Sends that were needed.
    pub sends: u32,
    /// The ModelProvider.
    pub provider: Option<String>,
    /// What was asked of a model.
    pub operation: Option<Names>,
    /// The request's model.
    pub model: Option<String>,
    /// The response's model.
    pub response_model: Option<String>,
    /// As the provider reported them.
    pub input_tokens: Option<u64>,
    /// As the provider reported them.
    pub output_tokens: Option<u64>,
    /// From the request to the first bytes of the response's body.
    pub first_chunk: Option<Duration>,
}

/// Why a response is none of a peer, for [`Record::answered`].
#[derive(Clone, Copy, Debug)]
pub struct RefusalCode(pub &'static str);

/// How the response's body ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Its last byte has been handed to the client's connection.
    Whole,
    /// It broke off: the peer ended it, or its time was over.
    Broken,
    /// The client did not wait for it.
    Cancelled,
}

/// One request that is logged or traced; told when it is dropped.
pub struct Record {
    note: Arc<Note>,
    log: Option<Arc<AccessLog>>,
    span: Option<Traced>,
    facts: Facts,
}

/// What a record knows by itself.
pub struct Facts {
    /// Which way.
    pub plane: Plane,
    /// Its begin.
    pub start: Instant,
    /// The request's method.
    pub method: Method,
    /// The request's target; only its path is ever told.
    pub uri: Uri,
    /// The client's version of HTTP.
    pub version: Version,
    /// Who asked.
    pub client: IpAddr,
    /// `x-request-id`.
    pub request_id: Option<String>,
    /// The trace that the request belongs to.
    pub trace: Option<TraceId>,
    /// None if there was no response.
    pub status: Option<StatusCode>,
    /// The gateway's own word for a refusal.
    pub code: Option<&'static str>,
    /// Bytes of the response's body that were handed on.
    pub bytes: u64,
    /// How it ended.
    pub ending: Ending,
}

// === impl Note ===

impl Note {
    /// The note of a request that is told of.
    pub fn of(extensions: &Extensions) -> Option<Arc<Self>> {
        extensions.get::<Arc<Self>>().cloned()
    }

    /// Adds to it.
    pub fn write(&self, add: impl FnOnce(&mut Noted)) {
        add(&mut self.0.lock());
    }

    /// What is in it.
    pub fn read(&self) -> Noted {
        self.0.lock().clone()
    }
}

// === impl Observe ===

impl Observe {
    /// Starts a record of `request` if it is to be logged or traced, and hands its trace on to whoever gets it next.
    pub(crate) fn begin<B>(
        &self,
        plane: Plane,
        request: &mut Request<B>,
        client: SocketAddr,
    ) -> Option<Box<Record>> {
        if plane == Plane::Admin {
            return None;
        }
        let method = request.method().clone();
        let span = self
            .spans
            .as_ref()
            .and_then(|spans| spans.begin(plane, &method, request.headers_mut()));
        let log = self.access_log.as_ref().filter(|log| log.samples()).cloned();
        if span.is_none() && log.is_none() {
            return None;
        }
        let note = Arc::new(Note::default());
        request.extensions_mut().insert(note.clone());
        let facts = Facts {
            plane,
            start: Instant::now(),
            method,
            uri: request.uri().clone(),
            version: request.version(),
            client: client.ip().to_canonical(),
            request_id: request_id::of(request.headers()).map(str::to_owned),
            trace: spans::trace_of(request.headers()),
            status: None,
            code: None,
            bytes: 0,
            ending: Ending::Cancelled,
        };
        Some(Box::new(Record {
            note,
            log,
            span,
            facts,
        }))
    }
}

// === impl Record ===

impl Record {
    /// There is a response.
    pub(crate) fn answered<B>(&mut self, response: &Response<B>) {
        self.facts.status = Some(response.status());
        self.facts.code = response.extensions().get::<RefusalCode>().map(|code| code.0);
    }

    /// Bytes of the body have been handed on.
    pub(crate) fn sent(&mut self, bytes: u64) {
        self.facts.bytes += bytes;
    }

    /// How the body ended.
    pub(crate) fn ended(&mut self, ending: Ending) {
        self.facts.ending = ending;
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let noted = self.note.read();
        if let Some(span) = self.span.take() {
            span.end(&self.facts, &noted);
        }
        if let Some(log) = &self.log {
            log.write(&self.facts, &noted);
        }
    }
}
