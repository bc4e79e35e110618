//! What a request looks like and what makes its answer good, per protocol.
//!
//! Everything here works on values: a prompt becomes a body, and the bytes of an answer become an outcome.

mod a2a;
mod openai;

use bytes::Bytes;
use flotilla_core::load::plan::{LoadPlan, Method, Protocol};
use flotilla_core::load::result::ErrorCategory;
use flotilla_core::load::schedule::Start;
use http::header::{ACCEPT, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use http::{Request, Uri};
use http_body_util::Full;

/// Carries the request's place in the schedule (`warmup-3` before the start), so that a target's log can be
/// compared with it.
pub const REQUEST_HEADER: HeaderName = HeaderName::from_static("x-flotilla-request");

/// Marks requests that no user sent.
pub const SYNTHETIC_HEADER: HeaderName = HeaderName::from_static("x-flotilla-synthetic");

/// The tokens that an answer says it took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub input: u64,
    /// Tokens of the answer.
    pub output: u64,
}

/// Makes the requests of a plan. Headers are built once; only the body and the index vary.
#[derive(Clone, Debug)]
pub struct RequestBuilder {
    protocol: Protocol,
    method: http::Method,
    uri: Uri,
    headers: HeaderMap,
    model: String,
    stream: bool,
}

/// A request could not be built from the plan.
#[derive(Debug, thiserror::Error)]
#[error("failed to build requests: {0}")]
pub struct BuildError(String);

impl RequestBuilder {
    /// Prepares the requests of `plan` with `authority` as their Host.
    ///
    /// # Errors
    /// If the plan's path or content type cannot be sent.
    pub fn new(plan: &LoadPlan, authority: &str) -> Result<Self, BuildError> {
        let protocol = plan.target.protocol;
        let (content_type, accept, method) = match protocol {
            Protocol::HTTP => (plan.requests.content_type.as_str(), "*/*", plan.requests.method),
            _ if plan.requests.stream => (
                "application/json",
                "text/event-stream, application/json",
                Method::POST,
            ),
            _ => ("application/json", "application/json", Method::POST),
        };
        let mut headers = HeaderMap::new();
        let value = |text: &str| {
            HeaderValue::try_from(text).map_err(|error| BuildError(format!("{text:?}: {error}")))
        };
        headers.insert(HOST, value(authority)?);
        headers.insert(ACCEPT, value(accept)?);
        headers.insert(
            USER_AGENT,
            HeaderValue::from_static(concat!("flotilla-loadgen/", env!("CARGO_PKG_VERSION"))),
        );
        headers.insert(SYNTHETIC_HEADER, HeaderValue::from_static("load-test"));
        if method != Method::GET {
            headers.insert(CONTENT_TYPE, value(content_type)?);
        }
        if protocol == Protocol::A2A {
            headers.insert("a2a-version", HeaderValue::from_static("1.0"));
        }
        let path = plan.path().map_err(BuildError)?;
        Ok(Self {
            protocol,
            method: http::Method::from_bytes(method.as_str().as_bytes())
                .map_err(|error| BuildError(error.to_string()))?,
            uri: path
                .parse()
                .map_err(|error| BuildError(format!("path {path:?}: {error}")))?,
            headers,
            model: plan.requests.model.clone(),
            stream: plan.requests.stream,
        })
    }

    /// The body of one request; a function of the plan and the start alone.
    pub fn body(&self, start: &Start, prompt: String) -> Bytes {
        match self.protocol {
            Protocol::HTTP if self.method == http::Method::GET => Bytes::new(),
            Protocol::HTTP => Bytes::from(prompt),
            Protocol::OpenAIChat => openai::body(&self.model, &prompt, self.stream),
            Protocol::A2A => a2a::body(start, &prompt, self.stream),
        }
    }

    /// The request; may be made again for a further attempt. `index` is what [`REQUEST_HEADER`] says.
    pub fn request(&self, index: &HeaderValue, body: Bytes) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        request.headers_mut().insert(REQUEST_HEADER, index.clone());
        request
    }

    /// What reads the answer of one attempt.
    pub fn answer(&self) -> Answer {
        match self.protocol {
            Protocol::HTTP => Answer::Http,
            Protocol::OpenAIChat => Answer::OpenAi(openai::Answer::default()),
            Protocol::A2A => Answer::A2a(a2a::Answer::default()),
        }
    }
}

/// Reads the answer of one attempt with status 2xx.
#[derive(Debug)]
pub enum Answer {
    /// Any answer is good.
    Http,
    /// A chat completion.
    OpenAi(openai::Answer),
    /// A task or message.
    A2a(a2a::Answer),
}

impl Answer {
    /// Whether the body of an unstreamed answer has to be kept for [`Answer::body`].
    pub fn reads_body(&self) -> bool {
        !matches!(self, Self::Http)
    }

    /// Takes one event of a streamed answer in; `true` if it brought a token.
    ///
    /// # Errors
    /// What the event makes of the request.
    pub fn event(&mut self, data: &str) -> Result<bool, ErrorCategory> {
        match self {
            Self::Http => Ok(true),
            Self::OpenAi(answer) => answer.event(data),
            Self::A2a(answer) => answer.event(data),
        }
    }

    /// Judges a streamed answer whose connection ended in order.
    ///
    /// # Errors
    /// [`ErrorCategory::StreamCut`] if the protocol's own end was missing.
    pub fn end_of_stream(&self) -> Result<(), ErrorCategory> {
        match self {
            Self::Http => Ok(()),
            Self::OpenAi(answer) => answer.end_of_stream(),
            Self::A2a(answer) => answer.end_of_stream(),
        }
    }

    /// Judges an unstreamed answer.
    ///
    /// # Errors
    /// What the body makes of the request.
    pub fn body(&mut self, body: &[u8]) -> Result<(), ErrorCategory> {
        match self {
            Self::Http => Ok(()),
            Self::OpenAi(answer) => answer.body(body),
            Self::A2a(answer) => answer.body(body),
        }
    }

    /// The tokens that the answer reported.
    pub fn usage(&self) -> Option<Usage> {
        match self {
            Self::Http => None,
            Self::OpenAi(answer) => answer.usage,
            Self::A2a(answer) => answer.usage,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(protocol: &str, requests: serde_json::Value) -> LoadPlan {
        serde_json::from_value(serde_json::json!({
            "name": "t", "seed": 1, "target": {"url": "http://t", "protocol": protocol}, "requests": requests,
            "scenarios": [{"name": "a", "weight": 1, "prompt": "x"}],
            "stages": [{"name": "s", "type": "Batch", "batch": {"size": 1, "delaySeconds": 1, "requests": 1}}],
        }))
        .unwrap()
    }

    fn start() -> Start {
        Start {
            index: 7,
            stage: 0,
            offset_nanoseconds: 0,
            scenario: 0,
            body_seed: 99,
        }
    }

    #[test]
    fn http_sends_the_prompt() {
        let builder = RequestBuilder::new(&plan("HTTP", serde_json::json!({})), "t:80").unwrap();
        let request = builder.request(
            &HeaderValue::from_static("7"),
            builder.body(&start(), "hi".to_owned()),
        );
        assert_eq!(
            (request.method().as_str(), request.uri().path()),
            ("POST", "/chat")
        );
        assert_eq!(request.headers()[REQUEST_HEADER], "7");
        assert_eq!(request.headers()[CONTENT_TYPE], "text/plain; charset=utf-8");
        assert_eq!(builder.body(&start(), "hi".to_owned()), "hi");
        let get = RequestBuilder::new(
            &plan("HTTP", serde_json::json!({"method": "GET", "path": "/x?y=1"})),
            "t",
        )
        .unwrap();
        assert_eq!(get.body(&start(), "hi".to_owned()), "");
        let request = get.request(&HeaderValue::from_static("7"), Bytes::new());
        assert_eq!(request.uri().to_string(), "/x?y=1");
        assert!(!request.headers().contains_key(CONTENT_TYPE));
    }

    #[test]
    fn a2a_names_its_version() {
        let builder = RequestBuilder::new(&plan("A2A", serde_json::json!({"stream": true})), "t").unwrap();
        let request = builder.request(&HeaderValue::from_static("7"), Bytes::new());
        assert_eq!(request.headers()["a2a-version"], "1.0");
        assert_eq!(request.uri().path(), "/");
    }
}
