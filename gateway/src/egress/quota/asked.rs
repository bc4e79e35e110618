//! What a request says of itself, as far as its quota goes.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method, header};
use http_body::Body as _;
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::time::Instant;

use crate::egress::usage::JsonReader;
use crate::upstream::body::{BUFFERED, RequestBody};

/// Headers in which SDKs say how many seconds they wait for an answer.
const TIMEOUTS: [&str; 2] = ["x-stainless-read-timeout", "x-stainless-timeout"];

/// A request to be admitted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Asked {
    /// The model, where it is known before the request is sent.
    pub model: Option<String>,
    /// Length of the body; 0 where no tokens are used.
    pub bytes: u64,
    /// The most output tokens it allows.
    pub max_tokens: Option<u64>,
    /// How long its client waits.
    pub patience: Option<Duration>,
}

/// The one field of a body that says how long the answer may get; each provider has a name of its own for it.
#[derive(Deserialize)]
struct Bound {
    max_tokens: Option<u64>,
    max_completion_tokens: Option<u64>,
    max_output_tokens: Option<u64>,
}

/// Reads a request. Only what can be paid for with tokens has a size: GET does not.
pub fn asked(
    method: &Method,
    headers: &HeaderMap,
    body: &RequestBody,
    reader: Option<&Arc<Mutex<JsonReader>>>,
) -> Asked {
    let patience = TIMEOUTS
        .iter()
        .filter_map(|name| headers.get(*name)?.to_str().ok()?.parse::<f64>().ok())
        .find_map(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .filter(|patience| !patience.is_zero());
    let mut asked = Asked {
        model: reader.and_then(|reader| reader.lock().found().model.clone()),
        patience,
        ..Asked::default()
    };
    if method != Method::POST {
        return asked;
    }
    match body {
        RequestBody::Held(Some(bytes)) => {
            asked.bytes = bytes.len() as u64;
            if reader.is_some()
                && let Ok(bound) = serde_json::from_slice::<Bound>(bytes)
            {
                let bounds = [
                    bound.max_completion_tokens,
                    bound.max_output_tokens,
                    bound.max_tokens,
                ];
                asked.max_tokens = bounds.into_iter().flatten().min();
            }
        }
        RequestBody::Held(None) => {}
        streamed => {
            let told = headers
                .get(header::CONTENT_LENGTH)
                .and_then(|value| value.to_str().ok()?.parse().ok());
            // One of unknown length is at least as long as those that are held.
            asked.bytes = told.or(streamed.size_hint().upper()).unwrap_or(BUFFERED);
        }
    }
    asked
}

impl Asked {
    /// Until when it may wait: as long as its client, but no longer than the gateway.
    pub fn deadline(&self, latest: Instant) -> Instant {
        let own = self
            .patience
            .and_then(|patience| Instant::now().checked_add(patience));
        own.map_or(latest, |own| own.min(latest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn read(method: Method, body: &'static str, patience: &str) -> Asked {
        let mut headers = HeaderMap::new();
        headers.insert("x-stainless-read-timeout", patience.parse().expect("a value"));
        let reader = Arc::new(Mutex::new(JsonReader::default()));
        reader.lock().feed(body.as_bytes());
        asked(
            &method,
            &headers,
            &RequestBody::held(Bytes::from(body)),
            Some(&reader),
        )
    }

    #[test]
    fn size_bound_and_patience() {
        let body =
            r#"{"model":"m","messages":[{"max_tokens":1}],"max_tokens":300,"max_completion_tokens":200}"#;
        let expected = Asked {
            model: Some("m".into()),
            bytes: body.len() as u64,
            max_tokens: Some(200),
            patience: Some(Duration::from_millis(1_500)),
        };
        assert_eq!(read(Method::POST, body, "1.5"), expected);
        assert_eq!(read(Method::GET, "", "0").bytes, 0);
        assert_eq!(read(Method::POST, r#"{"max_tokens":"x"}"#, "-1").max_tokens, None);
        let now = Instant::now();
        let patient = read(Method::POST, "{}", "1e99");
        assert_eq!((patient.patience, patient.deadline(now)), (None, now));
    }
}
