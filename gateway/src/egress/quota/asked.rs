//! What a request says of itself, as far as its quota goes.

use std::time::Duration;

use http::{HeaderMap, Method, header};
use http_body::Body as _;
use tokio::time::Instant;

use crate::upstream::body::{BUFFERED, RequestBody};

/// Headers in which SDKs say how many seconds they wait for an answer.
const TIMEOUTS: [&str; 2] = ["x-stainless-read-timeout", "x-stainless-timeout"];

/// Length of a body in bytes, as far as quotas go: 0 where no tokens are used, which is so for all but POST.
pub fn bytes(method: &Method, headers: &HeaderMap, body: &RequestBody) -> u64 {
    if method != Method::POST {
        return 0;
    }
    match body {
        RequestBody::Held(bytes) => bytes.as_ref().map_or(0, |bytes| bytes.len() as u64),
        streamed => {
            let told = headers
                .get(header::CONTENT_LENGTH)
                .and_then(|value| value.to_str().ok()?.parse().ok());
            // One of unknown length is at least as long as those that are held.
            told.or(streamed.size_hint().upper()).unwrap_or(BUFFERED)
        }
    }
}

/// Until when a request may wait: as long as its client says it does, but not beyond `latest`.
pub fn deadline(headers: &HeaderMap, latest: Instant) -> Instant {
    let patience = TIMEOUTS
        .iter()
        .filter_map(|name| headers.get(*name)?.to_str().ok()?.parse::<f64>().ok())
        .find_map(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .filter(|patience| !patience.is_zero());
    let own = patience.and_then(|patience| Instant::now().checked_add(patience));
    own.map_or(latest, |own| own.min(latest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn only_what_is_posted_has_a_size() {
        let body = RequestBody::held(Bytes::from_static(b"{}"));
        let headers = HeaderMap::new();
        assert_eq!(bytes(&Method::POST, &headers, &body), 2);
        assert_eq!(bytes(&Method::GET, &headers, &body), 0);
        assert_eq!(bytes(&Method::POST, &headers, &RequestBody::Held(None)), 0);
    }

    #[test]
    fn a_request_waits_as_long_as_its_client_and_no_longer_than_the_gateway() {
        let now = Instant::now();
        let latest = now + Duration::from_secs(100);
        let until = |patience: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("x-stainless-read-timeout", patience.parse().expect("a value"));
            deadline(&headers, latest)
        };
        assert!(until("1.5") < now + Duration::from_secs(50));
        for nonsense in ["0", "-1", "1e99", "soon"] {
            assert_eq!(until(nonsense), latest, "{nonsense}");
        }
    }
}
