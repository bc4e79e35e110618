//! One request to providers: what is asked, as often as it has to be, and what is answered.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use http::header::{HeaderName, HeaderValue};
use http::{
    HeaderMap, Method, Request, Response, StatusCode, header, request as http_request,
    response as http_response,
};
use hyper::body::Incoming;
use tokio::time::Sleep;
use tracing::debug;

use super::content::Content;
use super::provider::{Place, Provider};
use super::request::Operation;
use super::{Meter, redact};
use crate::observe::Note;
use crate::reply::{Outgoing, Passing, Refusal};
use crate::upstream::body::RequestBody;
use crate::upstream::{Answer, FailureKind, Sending, forward, spare};

/// Sends of one request to one provider at most.
const MAX_SENDS: u32 = 3;

/// What an agent asks for, as often as it has to be asked.
pub(super) struct Call<'a> {
    /// Of the agent's pod.
    pub(super) address: IpAddr,
    /// What is told of the request.
    pub(super) note: Option<Arc<Note>>,
    pub(super) operation: Operation,
    pub(super) content: Content,
    /// What follows `/v1` in the path.
    pub(super) rest: &'a str,
    pub(super) query: Option<&'a str>,
    pub(super) method: &'a Method,
    pub(super) headers: HeaderMap,
}

impl Call<'_> {
    /// The body with this model; the second time nothing where it passes as it comes, and then there is only one choice.
    pub(super) fn take_body(&mut self, model: Option<&str>) -> RequestBody {
        match self.content.again(model) {
            Some(body) => body,
            None => std::mem::replace(&mut self.content.body, RequestBody::Held(None)),
        }
    }

    /// A head to be changed; of the `last` attempt the only one.
    pub(super) fn head(&mut self, last: bool) -> http_request::Parts {
        let mut request = Request::new(());
        *request.method_mut() = self.method.clone();
        *request.headers_mut() = if last {
            std::mem::take(&mut self.headers)
        } else {
            self.headers.clone()
        };
        request.into_parts().0
    }
}

/// A provider's answer before it is passed on.
pub(super) struct Answered {
    pub(super) head: http_response::Parts,
    pub(super) body: Incoming,
    pub(super) meter: Meter,
    /// What proved us to the provider.
    pub(super) secret: Option<HeaderValue>,
}

impl Answered {
    pub(super) fn new(answer: Answer, mut meter: Meter, secret: Option<HeaderValue>) -> Self {
        let (mut head, body) = answer.response.into_parts();
        meter.answered(&mut head.headers, head.status, answer.connection);
        forward::to_client(&mut head);
        Self {
            head,
            body,
            meter,
            secret,
        }
    }

    /// As it comes; an answer that may name our key is read first.
    pub(super) async fn pass_on(self, timer: Pin<Box<Sleep>>) -> Result<Response<Outgoing>, Refusal> {
        let Self {
            head,
            body,
            meter,
            secret,
        } = self;
        if let Some(secret) = secret.filter(|_| redact::is_suspect(head.status)) {
            // On the heap, because it is rare, and every request would hold the space for it.
            return Box::pin(redact::answer(head, body, meter, &secret, timer)).await;
        }
        let passing = Passing::new(body, timer, meter);
        Ok(Response::from_parts(head, Outgoing::Provider(Box::new(passing))))
    }
}

/// A changed body has another length, and one that came without has one now.
pub(super) fn set_length(headers: &mut HeaderMap, body: &RequestBody) {
    if let RequestBody::Held(bytes) = body
        && (bytes.is_some() || headers.contains_key(header::CONTENT_LENGTH))
    {
        let length = bytes.as_ref().map_or(0, bytes::Bytes::len);
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
}

/// The header that proves us to the provider; none where it needs none.
pub(super) async fn proof(provider: &Provider) -> Result<Option<(HeaderName, HeaderValue)>, Refusal> {
    let Some(key) = &provider.key else { return Ok(None) };
    if let Some(header) = key.header() {
        return Ok(Some(header));
    }
    // It may have been mounted a moment ago.
    key.refresh().await;
    if let Some(header) = key.header() {
        return Ok(Some(header));
    }
    let (secret, field) = provider
        .config
        .secret
        .as_ref()
        .map_or(("", ""), |(name, key)| (name, key));
    let message = format!(
        "the key of provider \"{}\" is missing: Secret \"{secret}\", key \"{field}\"",
        provider.name
    );
    Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "KeyMissing", message).retry_after(5))
}

/// Sends to one provider, once more where nobody can have read it. `sent` as in
/// [`Peer::send_noting`](crate::upstream::Peer::send_noting).
pub(super) async fn send(
    place: &Place,
    mut request: Sending,
    sent: &AtomicBool,
) -> Result<Answer, FailureKind> {
    let mut reuse = request.body().again().is_some();
    let mut sends = 1;
    loop {
        let idempotent = request.method().is_idempotent();
        let spare = spare(&request);
        let failure = match place.peer.send_noting(request, reuse, sent).await {
            Ok(answer) => return Ok(answer),
            Err(failure) => failure.kind,
        };
        debug!(error = %failure, "no response from the provider");
        let again = match &failure {
            FailureKind::Closed { unread: true, .. } => spare,
            FailureKind::Closed { reused: true, .. } if idempotent => spare,
            // A provider that cannot be reached now cannot be reached in a millisecond either.
            _ => None,
        };
        match again {
            Some(again) if sends < MAX_SENDS => request = again,
            _ => return Err(failure),
        }
        sends += 1;
        reuse = false;
    }
}
