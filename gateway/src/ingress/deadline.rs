//! How long a client waits, as it says itself.
//!
//! There is no standard header for it, so those are read that proxies and SDKs send anyway. The shortest time counts; what
//! cannot be read is passed over, because a client with a strange header must not be worse off than one without.
//!
//! | header | sent by | says |
//! |---|---|---|
//! | `x-envoy-expected-rq-timeout-ms` | Envoy, Istio | milliseconds until the proxy gives up |
//! | `grpc-timeout` | gRPC clients | up to 8 digits and a unit: `H`, `M`, `S`, `m`, `u`, `n` |
//! | `x-stainless-timeout`, `x-stainless-read-timeout` | the SDKs of OpenAI and Anthropic | seconds |
//! | `prefer: wait=10` | RFC 7240, section 4.3 | seconds |
//!
//! Only waiting is bounded by it. A response that has begun is not cut: the client can do that itself, and is heard.

use std::time::Duration;

use http::HeaderMap;

/// A header and its reader.
type Reader = (&'static str, fn(&str) -> Option<Duration>);

const READERS: [Reader; 5] = [
    ("x-envoy-expected-rq-timeout-ms", milliseconds),
    ("grpc-timeout", grpc),
    ("x-stainless-timeout", seconds),
    ("x-stainless-read-timeout", seconds),
    ("prefer", prefer_wait),
];

/// A day: longer ones say nothing, and must not overflow when they are added to a moment.
const LONGEST: Duration = Duration::from_secs(86_400);

/// The shortest time that `headers` name, and the header that names it.
pub fn patience(headers: &HeaderMap) -> Option<(Duration, &'static str)> {
    READERS
        .iter()
        .filter_map(|(name, read)| {
            let value = headers.get(*name)?.to_str().ok()?;
            Some((read(value.trim())?.min(LONGEST), *name))
        })
        .min()
}

fn milliseconds(value: &str) -> Option<Duration> {
    Some(Duration::from_millis(digits(value)?))
}

fn seconds(value: &str) -> Option<Duration> {
    let well_formed = value.starts_with(|first: char| first.is_ascii_digit())
        && value.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    if !well_formed {
        return None;
    }
    // More seconds than a Duration holds are more than a day, too.
    let seconds: f64 = value.parse().ok()?;
    Some(Duration::try_from_secs_f64(seconds).unwrap_or(LONGEST))
}

/// <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>: `TimeoutValue TimeoutUnit`.
fn grpc(value: &str) -> Option<Duration> {
    let (unit_at, unit) = value.char_indices().next_back()?;
    let number = value.get(..unit_at).filter(|number| number.len() <= 8)?;
    let number = digits(number)?;
    Some(match unit {
        'H' => Duration::from_secs(number * 3600),
        'M' => Duration::from_secs(number * 60),
        'S' => Duration::from_secs(number),
        'm' => Duration::from_millis(number),
        'u' => Duration::from_micros(number),
        'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

fn prefer_wait(value: &str) -> Option<Duration> {
    value.split([',', ';']).find_map(|preference| {
        let (name, value) = preference.split_once('=')?;
        let value = value.trim().trim_matches('"');
        let named = name.trim().eq_ignore_ascii_case("wait");
        named.then(|| digits(value)).flatten().map(Duration::from_secs)
    })
}

/// A number of digits only, without a sign; one that is too large is the largest.
fn digits(value: &str) -> Option<u64> {
    let all = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    all.then(|| value.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    fn of(headers: &[(&'static str, &str)]) -> Option<(Duration, &'static str)> {
        let headers = headers.iter().map(|(name, value)| {
            let value = HeaderValue::from_str(value).expect("a value");
            (HeaderName::from_static(name), value)
        });
        patience(&headers.collect())
    }

    #[test]
    fn each_header_has_its_unit() {
        for (name, value, milliseconds) in [
            ("x-envoy-expected-rq-timeout-ms", "1500", 1500),
            ("grpc-timeout", "2H", 7_200_000),
            ("grpc-timeout", "3M", 180_000),
            ("grpc-timeout", "4S", 4_000),
            ("grpc-timeout", "5m", 5),
            ("grpc-timeout", "6000u", 6),
            ("grpc-timeout", "7000000n", 7),
            ("x-stainless-timeout", "600", 600_000),
            ("x-stainless-read-timeout", "2.5", 2_500),
            ("prefer", "respond-async, wait=10", 10_000),
            ("prefer", "Wait=\"1\"", 1_000),
            // Longer than a day is a day, and zero is zero.
            ("grpc-timeout", "99999999H", 86_400_000),
            ("x-stainless-timeout", "99999999999999999999999999", 86_400_000),
            ("x-envoy-expected-rq-timeout-ms", "0", 0),
        ] {
            let expected = Some((Duration::from_millis(milliseconds), name));
            assert_eq!(of(&[(name, value)]), expected, "{name}: {value}");
        }
    }

    #[test]
    fn the_shortest_counts_and_what_cannot_be_read_is_passed_over() {
        let both = [("grpc-timeout", "9S"), ("x-envoy-expected-rq-timeout-ms", "8000")];
        assert_eq!(
            of(&both),
            Some((Duration::from_secs(8), "x-envoy-expected-rq-timeout-ms"))
        );
        for (name, value) in [
            ("x-envoy-expected-rq-timeout-ms", "-1"),
            ("x-envoy-expected-rq-timeout-ms", "1s"),
            ("grpc-timeout", "S"),
            ("grpc-timeout", "123456789S"),
            ("grpc-timeout", "5"),
            ("grpc-timeout", ""),
            ("x-stainless-timeout", "NaN"),
            ("x-stainless-timeout", "inf"),
            ("x-stainless-timeout", "1.2.3"),
            ("x-stainless-timeout", ""),
            ("prefer", "wait"),
            ("prefer", "wait=soon"),
        ] {
            assert_eq!(of(&[(name, value)]), None, "{name}: {value}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(which in 0usize..5, value in "\\PC{0,12}") {
            if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
                let headers = [(HeaderName::from_static(READERS[which].0), value)].into_iter().collect();
                patience(&headers);
            }
        }
    }
}
