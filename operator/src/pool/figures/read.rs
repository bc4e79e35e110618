//! One number of one source.
//!
//! Prometheus is asked by an instant query at the boundary's time; JSON by `path#/pointer`: a path at the source's address, and a JSON
//! pointer (RFC 6901) into the document. Plain HTTP, without credentials; redirects are not followed, answers are bounded.

use bytes::Bytes;
use flotilla_crds::sourced_metric::SourceType;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

/// Longest answer read: one number, or a small document.
const MAX_BODY: usize = 1 << 20;

/// What to ask.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// How.
    pub type_: SourceType,
    /// The source's address, without a slash at its end.
    pub address: String,
    /// The query, or path and pointer.
    pub text: String,
    /// The time that is asked about, in seconds since the Unix epoch; JSON knows only the present.
    pub time: i64,
}

/// Asks sources. Replaced in tests.
pub trait Read: Send + Sync + 'static {
    /// The number; none where the source has nothing of the kind; or a sentence why it cannot be told.
    fn read(&self, question: Question) -> BoxFuture<'static, Result<Option<f64>, String>>;
}

/// Asks over HTTP.
#[derive(Clone, Debug)]
pub struct HttpRead(Client<HttpConnector, Empty<Bytes>>);

impl Default for HttpRead {
    fn default() -> Self {
        Self(Client::builder(TokioExecutor::new()).build_http())
    }
}

impl Read for HttpRead {
    fn read(&self, question: Question) -> BoxFuture<'static, Result<Option<f64>, String>> {
        let client = self.0.clone();
        async move {
            let (uri, pointer) = address(&question)?;
            let uri = uri
                .parse::<hyper::Uri>()
                .map_err(|error| format!("{uri} is no address: {error}"))?;
            let response = client.get(uri).await.map_err(|error| root_cause(&error))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_BODY)
                .collect()
                .await
                .map_err(|error| error.to_string())?;
            let document: Result<Value, _> = serde_json::from_slice(&body.to_bytes());
            if !status.is_success() {
                // Prometheus says what is wrong with a query.
                let said = document
                    .ok()
                    .and_then(|document| Some(document["error"].as_str()?.to_owned()));
                return Err(format!(
                    "the source answered with {}{}",
                    status.as_u16(),
                    said.map(|said| format!(": {said}")).unwrap_or_default()
                ));
            }
            let document = document.map_err(|error| format!("the answer is no JSON: {error}"))?;
            match question.type_ {
                SourceType::Prometheus => sample(&document),
                SourceType::JSON => number(document.pointer(&pointer).unwrap_or(&Value::Null))
                    .map(Some)
                    .ok_or_else(|| format!("the answer has no number at {pointer:?}")),
            }
        }
        .boxed()
    }
}

/// Where to ask, and the pointer into the answer.
fn address(question: &Question) -> Result<(String, String), String> {
    let Question {
        type_,
        address,
        text,
        time,
        ..
    } = question;
    match type_ {
        SourceType::Prometheus => {
            let query = encode(text);
            Ok((
                format!("{address}/api/v1/query?query={query}&time={time}"),
                String::new(),
            ))
        }
        SourceType::JSON => {
            let (path, pointer) = text.split_once('#').unwrap_or((text, ""));
            if !path.starts_with('/') || path.contains(char::is_whitespace) {
                return Err(format!(
                    "{text:?} has to be a path and a pointer, for example /stats#/requests"
                ));
            }
            Ok((format!("{address}{path}"), pointer.to_owned()))
        }
    }
}

/// Percent-encoding of everything but unreserved characters.
fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len() * 2);
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte))
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

/// The one number of an answer of Prometheus' query API, if it has one.
fn sample(answer: &Value) -> Result<Option<f64>, String> {
    let result = &answer["data"]["result"];
    let value = match answer["data"]["resultType"].as_str() {
        Some("scalar") => &result[1],
        Some("vector") => match result.as_array().map(Vec::as_slice) {
            Some([]) | None => return Ok(None),
            Some([one]) => &one["value"][1],
            Some(many) => {
                return Err(format!(
                    "the query has {} results; make it one, for example by sum(…)",
                    many.len()
                ));
            }
        },
        other => {
            return Err(format!(
                "the query gives a {}, not a number",
                other.unwrap_or("nothing")
            ));
        }
    };
    let number = number(value).ok_or_else(|| format!("the query gives {value}, which is no number"));
    number.map(Some)
}

fn number(value: &Value) -> Option<f64> {
    let number = match value {
        Value::String(text) => text.parse().ok(),
        value => value.as_f64(),
    };
    number.filter(|number: &f64| number.is_finite())
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::Full;
    use hyper::server::conn::http1;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use serde_json::json;
    use tokio::net::TcpListener;

    use super::*;

    /// A Prometheus that knows some queries, and a document at `/stats/a`.
    async fn source() -> String {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let reply = |request: http::Request<hyper::body::Incoming>| async move {
            let vector = |samples: Value| json!({"status": "success", "data": {"resultType": "vector", "result": samples}});
            let one = json!({"metric": {}, "value": [1_700_000_000, "41.5"]});
            let (status, body) = match (request.uri().path(), request.uri().query().unwrap_or_default()) {
                ("/stats/a", _) => (
                    200,
                    json!({"checkouts": {"done": 7, "text": "8.5", "none": null}}),
                ),
                (_, "query=sum%28x%7Ba%3D%22b%20c%22%7D%29&time=60") => (200, vector(json!([one]))),
                (_, query) if query.starts_with("query=scalar") => {
                    (200, json!({"data": {"resultType": "scalar", "result": [1, "3"]}}))
                }
                (_, query) if query.starts_with("query=none") => (200, vector(json!([]))),
                (_, query) if query.starts_with("query=two") => (200, vector(json!([one, one]))),
                (_, query) if query.starts_with("query=nan") => (200, vector(json!([{"value": [1, "NaN"]}]))),
                _ => (400, json!({"status": "error", "error": "parse error"})),
            };
            let response = http::Response::builder()
                .status(status)
                .body(Full::new(Bytes::from(body.to_string())));
            Ok::<_, Infallible>(response.unwrap())
        };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(reply)));
            }
        });
        format!("http://127.0.0.1:{port}")
    }

    #[tokio::test]
    async fn numbers_and_what_is_none() {
        let address = source().await;
        let ask = |type_, text: &str| {
            HttpRead::default().read(Question {
                type_,
                address: address.clone(),
                text: text.to_owned(),
                time: 60,
            })
        };
        use SourceType::{JSON, Prometheus};
        for (type_, text, expected) in [
            (Prometheus, "sum(x{a=\"b c\"})", Some(41.5)),
            (Prometheus, "scalar(1)", Some(3.0)),
            (Prometheus, "none", None),
            (JSON, "/stats/a#/checkouts/done", Some(7.0)),
            (JSON, "/stats/a#/checkouts/text", Some(8.5)),
        ] {
            assert_eq!(ask(type_, text).await, Ok(expected), "{text}");
        }
        for (type_, text, part) in [
            (Prometheus, "two", "has 2 results; make it one"),
            (Prometheus, "nan", "which is no number"),
            (Prometheus, "sum(", "answered with 400: parse error"),
            (
                JSON,
                "/stats/a#/checkouts/none",
                "no number at \"/checkouts/none\"",
            ),
            (JSON, "stats", "has to be a path and a pointer"),
        ] {
            let error = ask(type_, text).await.unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
