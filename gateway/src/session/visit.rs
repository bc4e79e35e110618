//! One request and its response, as far as they are part of a conversation.
//!
//! # Names that agents give
//!
//! A request without the pool's session header goes by weight; if its response carries that header, the conversation stays with the
//! revision and, while that has a free slot, the replica that have answered.
//!
//! # A2A
//!
//! The first message has no `contextId`, so it goes by weight, and the response's beginning is held until it has told the names
//! that the agent gave to the conversation and the task, and until another gateway knows them. From then on each request about
//! them goes to that revision, and to that replica:
//!
//! * a message of a known conversation where its replica has a free slot, else to another one;
//! * a question about a task (`GetTask`, `SubscribeToTask`, `CancelTask`) in any case, beyond the slots if need be: the task is
//!   worked on there and nowhere else, and to wait for the slot that the task itself holds would be to wait for its end.
//!
//! Where the body of a request is not held in memory its beginning is read for the names, so that a large message, too, finds
//! its conversation if it names it within the first 64 KiB.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use flotilla_core::session::a2a::{self, ResponseIds};
use flotilla_core::session::{Assignment, SessionKey};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Response, StatusCode, request};
use http_body::Frame;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::sync::oneshot;

use super::config::KeySource;
use super::pool::PoolSessions;
use crate::ingress::revision::Revision;
use crate::upstream::body::RequestBody;

/// Bytes of a streamed request that are looked at.
const PEEK: usize = 64 * 1024;
/// Bytes of a response that are held back at most.
const HOLD: usize = 64 * 1024;
/// Times that a request looks for its conversation again because its revision is not in the weights; then it goes by weight.
/// The pauses add up to 0.7 s: another gateway may have seen new weights that this one is about to see.
const MAX_RENEWALS: u32 = 6;
/// Pause before the second time; four times as long before each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(2);

/// How strictly a request goes to the replica of its conversation, if that has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Affinity {
    /// While it has a free slot.
    Preferred,
    /// In any case.
    Required,
}

/// The conversation that a request belongs to.
pub struct Session {
    home: Arc<PoolSessions>,
    key: SessionKey,
    assignment: Assignment,
    released: Option<oneshot::Receiver<bool>>,
    affinity: Affinity,
    renewals: u32,
}

impl Session {
    /// Its revision.
    pub fn revision(&self) -> &str {
        &self.assignment.revision
    }

    /// What names it to every gateway alike, for [`flotilla_core::balance::Strategy::ConsistentHash`].
    pub fn hash(&self) -> u64 {
        self.assignment.root.bits()
    }

    /// Its replica where it has one, and whether to go there beyond its slots.
    pub fn replica(&self) -> Option<(SocketAddr, bool)> {
        let replica = self.assignment.replica?;
        Some((replica, self.affinity == Affinity::Required))
    }

    /// The epoch under which its requests are counted.
    pub fn epoch(&self) -> i64 {
        self.home.epoch(self.assignment.epoch)
    }

    /// Looks again, because its revision is not in the pool's weights as they are now. False when that was done often enough:
    /// then the request goes by weight.
    pub async fn renew(&mut self) -> bool {
        self.renewals += 1;
        if self.renewals > MAX_RENEWALS {
            return false;
        }
        if let Some(times) = self.renewals.checked_sub(2) {
            tokio::time::sleep(FIRST_PAUSE * 4u32.pow(times)).await;
        }
        let Some(answer) = self.home.resolve(self.key).await else {
            return false;
        };
        (self.assignment, self.released) = (answer.assignment, answer.released);
        true
    }
}

/// What is left to be done for a request once its response comes.
pub struct Visit {
    home: Arc<PoolSessions>,
    cookie: Option<HeaderValue>,
    learns: Learns,
}

/// What a response may tell.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Learns {
    Nothing,
    /// The name that the agent gives to a conversation which came without one, in this header.
    Header(HeaderName),
    /// The names of an A2A conversation and a task.
    A2A,
}

/// Who has answered.
pub struct Served<'a> {
    /// The revision.
    pub revision: &'a Revision,
    /// The replica.
    pub replica: SocketAddr,
    /// `trafficGeneration` under which the request was assigned.
    pub generation: i64,
}

impl Served<'_> {
    /// For a conversation or task that it has named.
    fn assignment(&self, epoch: i64, root: SessionKey) -> Assignment {
        Assignment {
            revision: self.revision.name.as_str().into(),
            replica: Some(self.replica),
            epoch,
            root,
        }
    }
}

/// A response whose beginning has been read.
pub struct Begun {
    /// Head, and the rest of the body.
    pub response: Response<Incoming>,
    /// The beginning of the body.
    pub first: VecDeque<Frame<Bytes>>,
}

impl Begun {
    /// One of which nothing has been read.
    pub fn untouched(response: Response<Incoming>) -> Self {
        Self {
            response,
            first: VecDeque::new(),
        }
    }
}

/// A request, its conversation if it has one, and what is left to be done.
pub struct Arrival {
    /// The body, as it came or with its beginning read.
    pub body: RequestBody,
    /// The conversation.
    pub session: Option<Session>,
    /// For the response.
    pub visit: Visit,
}

impl Visit {
    /// Finds the conversation of a request. `prefix` was cut off its path.
    pub async fn begin(
        home: Arc<PoolSessions>,
        head: &mut request::Parts,
        body: RequestBody,
        prefix: Option<&str>,
    ) -> Result<Arrival, hyper::Error> {
        let source = home.key();
        let mut visit = Self {
            home,
            cookie: None,
            learns: Learns::Nothing,
        };
        let (key, affinity, body) = match &*source {
            KeySource::Header(name) => {
                let value = head.headers.get(name);
                let key = value.and_then(|value| visit.home.keyer().header(value.as_bytes()));
                if key.is_none() {
                    visit.learns = Learns::Header(name.clone());
                }
                (key, Affinity::Preferred, body)
            }
            KeySource::Cookie(name) => {
                let sent = head.headers.get_all(header::COOKIE);
                let sent = sent.iter().map(HeaderValue::as_bytes);
                let mut key = visit.home.keyer().cookie(sent, name);
                if key.is_none() {
                    let value = SessionKey::from_random(rand::random(), rand::random()).to_string();
                    key = visit.home.keyer().cookie_value(value.as_bytes());
                    visit.cookie = cookie(name, &value, prefix, &head.headers);
                }
                (key, Affinity::Preferred, body)
            }
            KeySource::A2AContext => visit.read_a2a(head, body).await?,
        };
        let session = match key {
            Some(key) => visit.home.resolve(key).await.map(|answer| Session {
                home: visit.home.clone(),
                key,
                assignment: answer.assignment,
                released: answer.released,
                affinity,
                renewals: 0,
            }),
            None => None,
        };
        Ok(Arrival { body, session, visit })
    }

    async fn read_a2a(
        &mut self,
        head: &mut request::Parts,
        body: RequestBody,
    ) -> Result<(Option<SessionKey>, Affinity, RequestBody), hyper::Error> {
        let keyer = self.home.keyer();
        let path = head.uri.path();
        let posted = head.method == Method::POST;
        let (bytes, body) = match body {
            RequestBody::Streamed(incoming) if posted => {
                let (bytes, rest) = peek(incoming).await?;
                let body = match rest {
                    Some(rest) => RequestBody::Resumed(Some(bytes.clone()), rest),
                    None => RequestBody::held(bytes.clone()),
                };
                (Some(bytes), body)
            }
            RequestBody::Held(bytes) => (bytes.clone(), RequestBody::Held(bytes)),
            other => (None, other),
        };
        let ids = match &bytes {
            Some(bytes) if posted => a2a::request(keyer, bytes),
            _ => a2a::Ids::default(),
        };
        let rest_sends = path.ends_with("/message:send") || path.ends_with("/message:stream");
        let sends = posted && ids.method.map_or(rest_sends, a2a::Method::sends);
        let task = ids.task.or_else(|| a2a::task_in_path(keyer, path));
        if sends {
            self.learns = Learns::A2A;
            // The names in the response are to be read.
            head.headers
                .insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        }
        Ok(match (ids.context, task) {
            (Some(context), _) => (Some(context), Affinity::Preferred, body),
            (None, Some(task)) if sends => (Some(task), Affinity::Preferred, body),
            (None, Some(task)) => (Some(task), Affinity::Required, body),
            (None, None) => (None, Affinity::Preferred, body),
        })
    }

    /// Reads what is to be learnt of a response, and gives it back once its conversation is safe.
    pub async fn finish(
        self,
        response: Response<Incoming>,
        session: Option<Session>,
        served: Served<'_>,
    ) -> Result<Begun, hyper::Error> {
        let (mut head, mut body) = response.into_parts();
        let mut first = VecDeque::new();
        if let Learns::Header(name) = &self.learns {
            let value = head.headers.get(name);
            if let Some(key) = value.and_then(|value| self.home.keyer().header(value.as_bytes())) {
                let assignment = served.assignment(served.generation, key);
                self.home.learn(key, &assignment).await;
            }
        }
        if self.learns == Learns::A2A && head.status == StatusCode::OK && is_plain(&head.headers) {
            let kind = head.headers.get(header::CONTENT_TYPE);
            let kind = kind.and_then(|value| value.to_str().ok()).unwrap_or_default();
            let mut ids = ResponseIds::new(kind, HOLD);
            loop {
                let Some(frame) = body.frame().await else {
                    ids.finish(self.home.keyer());
                    break;
                };
                let frame = frame?;
                let enough = frame
                    .data_ref()
                    .is_some_and(|data| ids.push(self.home.keyer(), data));
                first.push_back(frame);
                if enough {
                    break;
                }
            }
            self.learn(ids.ids(), session.as_ref(), &served).await;
        }
        if let Some(cookie) = self.cookie {
            head.headers.append(header::SET_COOKIE, cookie);
        }
        if let Some(session) = session {
            // One that only was busy stays the conversation's.
            let pins = match session.assignment.replica {
                Some(replica) => !served.revision.serves(replica),
                None => *self.home.key() == KeySource::A2AContext,
            };
            if pins && session.revision() == served.revision.name {
                self.home.pin(session.key, served.replica);
            }
            self.home.released(session.released).await;
        }
        Ok(Begun {
            response: Response::from_parts(head, body),
            first,
        })
    }

    async fn learn(&self, ids: a2a::Ids, session: Option<&Session>, served: &Served<'_>) {
        let root = session.map(|session| session.assignment.root);
        let Some(context) = ids.context.or(root) else {
            return;
        };
        let known = session.filter(|session| session.assignment.root == context);
        let epoch = known.map_or(served.generation, |session| session.assignment.epoch);
        let assignment = served.assignment(epoch, context);
        let context = known.is_none().then_some(context);
        let of_task = ids
            .task
            .filter(|task| session.is_none_or(|session| session.key != *task));
        let learn = async |key: Option<SessionKey>| {
            if let Some(key) = key {
                self.home.learn(key, &assignment).await;
            }
        };
        tokio::join!(learn(context), learn(of_task));
    }
}

/// Without a coding that hides the text.
fn is_plain(headers: &HeaderMap) -> bool {
    let coding = headers.get(header::CONTENT_ENCODING);
    coding.is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"identity"))
}

/// The first bytes of a body, and the rest if there is more. Trailers of a short one are lost: A2A has none.
async fn peek(mut body: Incoming) -> Result<(Bytes, Option<Incoming>), hyper::Error> {
    let mut bytes = BytesMut::new();
    while bytes.len() < PEEK {
        let Some(frame) = body.frame().await else {
            return Ok((bytes.freeze(), None));
        };
        if let Ok(data) = frame?.into_data() {
            bytes.extend_from_slice(&data);
        }
    }
    Ok((bytes.freeze(), Some(body)))
}

/// The header that sets the cookie. It lives as long as the client's session; how long the gateway remembers is
/// `sessions.idleSeconds`.
fn cookie(name: &str, value: &str, prefix: Option<&str>, headers: &HeaderMap) -> Option<HeaderValue> {
    const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
    let is_secure = headers
        .get(FORWARDED_PROTO)
        .is_some_and(|scheme| scheme.as_bytes().eq_ignore_ascii_case(b"https"));
    let secure = if is_secure { "; Secure" } else { "" };
    let path = prefix.unwrap_or_default();
    let text = format!("{name}={value}; Path={path}/; HttpOnly; SameSite=Lax{secure}");
    HeaderValue::from_str(&text).ok()
}
