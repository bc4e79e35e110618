//! Providers that refuse a key sometimes say which. Agents may know everything of such an answer but that.

use std::pin::Pin;

use bytes::Bytes;
use http::response::Parts;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use tokio::time::Sleep;

use super::Meter;
use crate::reply::{End, Observer as _, Outgoing, Refusal, joined};

/// Longest answer that is looked through; providers' errors are far shorter.
const MAX_ANSWER: usize = 64 * 1024;
/// Stands where the key was.
const INSTEAD: &[u8] = b"[key]";
/// Shorter keys are no secret, and would be found everywhere.
const MIN_KEY: usize = 6;

/// An answer with this status may name the key.
pub(super) fn is_suspect(status: StatusCode) -> bool {
    matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
}

/// The answer to a key that the provider does not like, without that key.
pub(super) async fn answer(
    mut head: Parts,
    body: Incoming,
    mut meter: Meter,
    proof: &HeaderValue,
    mut timer: Pin<Box<Sleep>>,
) -> Result<Response<Outgoing>, Refusal> {
    let whole = tokio::select! {
        biased;
        whole = Limited::new(body, MAX_ANSWER).collect() => whole.ok(),
        () = timer.as_mut() => None,
    };
    let Some(whole) = whole else {
        meter.end(End::Cut);
        let message = "the provider refused the request, and its answer could not be read";
        return Err(Refusal::new(head.status, "ProviderRefused", message));
    };
    let body = meter.pass(whole.to_bytes());
    let body = joined(body, meter.rest());
    meter.end(End::Complete);
    self::headers(&mut head.headers, proof);
    head.headers.remove(header::CONTENT_LENGTH);
    let body = Some(self::body(body, proof)).filter(|body| !body.is_empty());
    Ok(Response::from_parts(head, Outgoing::Held(body)))
}

/// The key in the header that carries it.
fn key(proof: &HeaderValue) -> Option<&[u8]> {
    let bytes = proof.as_bytes();
    let key = bytes.strip_prefix(b"Bearer ").unwrap_or(bytes);
    (key.len() >= MIN_KEY).then_some(key)
}

/// `body` without the key that `proof` carries.
fn body(body: Bytes, proof: &HeaderValue) -> Bytes {
    let Some(key) = key(proof).filter(|key| position(&body, key).is_some()) else {
        return body;
    };
    let (mut rest, mut clean) = (&body[..], Vec::with_capacity(body.len()));
    while let Some(at) = position(rest, key) {
        let (before, after) = rest.split_at(at);
        clean.extend_from_slice(before);
        clean.extend_from_slice(INSTEAD);
        rest = after.get(key.len()..).unwrap_or_default();
    }
    clean.extend_from_slice(rest);
    clean.into()
}

/// Removes fields that name the key.
fn headers(headers: &mut HeaderMap, proof: &HeaderValue) {
    let Some(key) = key(proof) else { return };
    let names: Vec<_> = headers
        .iter()
        .filter(|(_, value)| position(value.as_bytes(), key).is_some())
        .map(|(name, _)| name.clone())
        .collect();
    for name in names {
        headers.remove(name);
    }
}

fn position(within: &[u8], wanted: &[u8]) -> Option<usize> {
    within.windows(wanted.len()).position(|part| part == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_goes_and_the_rest_stays() {
        let proof = HeaderValue::from_static("Bearer sk-planted");
        for (before, after) in [
            (
                "incorrect key sk-planted, see sk-planted.",
                "incorrect key [key], see [key].",
            ),
            ("sk-planted", "[key]"),
            ("incorrect key sk-…ted", "incorrect key sk-…ted"),
            ("", ""),
        ] {
            assert_eq!(body(Bytes::from(before), &proof), after);
        }
        assert_eq!(
            body(Bytes::from("sk-planted"), &HeaderValue::from_static("sk-planted")),
            "[key]"
        );
        assert_eq!(
            body(Bytes::from("a b a"), &HeaderValue::from_static("Bearer a")),
            "a b a"
        );
    }

    #[test]
    fn fields_that_name_it_go() {
        let mut all = HeaderMap::new();
        all.insert("x-echo", HeaderValue::from_static("Bearer sk-planted"));
        all.insert("retry-after", HeaderValue::from_static("1"));
        headers(&mut all, &HeaderValue::from_static("Bearer sk-planted"));
        assert!(!all.contains_key("x-echo") && all.contains_key("retry-after"));
    }
}
