//! The answer to a request that a limit refuses.

use flotilla_serve::{Body, json as json_response};
use http::{HeaderValue, Response, StatusCode, header};

use crate::api::Protocol;
use crate::quota::{Cost, LimitUnit, Refusal, duration_text, retry_after_seconds};

/// 429, in the words of the protocol and with the wait that it asks for.
pub(crate) fn too_many_requests(
    protocol: Protocol,
    model: &str,
    cost: Cost,
    refusal: &Refusal,
) -> Response<Body> {
    let tokens = cost.input_tokens + cost.output_tokens;
    let (message, wait) = match refusal.retry_after {
        Some(wait) => {
            let text = duration_text(wait);
            (
                format!(
                    "Rate limit '{}' reached for {model}. Please try again in {text}.",
                    refusal.limit
                ),
                Some(wait),
            )
        }
        None => (
            format!(
                "Request of {tokens} tokens is larger than the limit '{}' of {model}.",
                refusal.limit
            ),
            None,
        ),
    };
    let kind = if refusal.unit == LimitUnit::Requests {
        "requests"
    } else {
        "tokens"
    };
    let body = protocol.error(&message, kind, Some("rate_limit_exceeded"));
    let mut response = json_response(StatusCode::TOO_MANY_REQUESTS, &body);
    if let Some(wait) = wait {
        let headers = response.headers_mut();
        headers.insert(header::RETRY_AFTER, HeaderValue::from(retry_after_seconds(wait)));
        let milliseconds = u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
        headers.insert("retry-after-ms", HeaderValue::from(milliseconds));
    }
    response
}
