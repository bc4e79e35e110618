//! What agents ask of model providers, and what these answer.

use std::sync::LazyLock;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use bytes::Bytes;
use flotilla_core::quota::hint;
use flotilla_crds::route::Route;
use flotilla_gateway::config::ProviderType;
use flotilla_gateway::config::issuer::Issuer;
use flotilla_gateway::egress::events::EventReader;
use flotilla_gateway::egress::identity::{Keys, is_ours};
use flotilla_gateway::egress::provider::Place;
use flotilla_gateway::egress::usage::{Found, JsonReader};
use flotilla_gateway::egress::{keys, tls};
use flotilla_gateway::upstream::Limits;
use http::Uri;
use serde_json::Value;

use super::{headers, texts};
use crate::{Target, magnitude, outcome, pieces};

const CHAT: &str = r#"{"id":"x","object":"chat.completion","model":"gpt-5-mini-2026-08-07","choices":[{"index":0,"message":{"role":"assistant","content":"\"usage\":{\"prompt_tokens\":9}"},"finish_reason":"stop"}],"usage":{"prompt_tokens":12,"completion_tokens":34,"total_tokens":46,"prompt_tokens_details":{"cached_tokens":7},"completion_tokens_details":{"reasoning_tokens":3}}}"#;
const ANTHROPIC: &str = r#"{"id":"msg_1","type":"message","role":"assistant","model":"claude-x","content":[{"type":"text","text":"hi"}],"stop_reason":"end_turn","usage":{"input_tokens":10,"cache_creation_input_tokens":2,"cache_read_input_tokens":3,"output_tokens":5}}"#;
const REQUEST: &str = r#"{"model":"gpt-5-mini","stream":true,"stream_options":{"include_usage":true},"max_tokens":256,"messages":[{"role":"user","content":[{"type":"text","text":"a\u00e9\ud83d\ude00"}]}],"temperature":0.2}"#;

pub(super) const TARGETS: &[Target] = &[
    Target {
        name: "egress-path",
        about: "paths of requests to a provider",
        corpus: || {
            texts(&[
                "/providers/main/v1/chat/completions?a=b",
                "/providers/main/v1",
                "/providers/main/v1/../admin",
                "/providers/main/v1/x/%2E%2e/y",
                "/providers/main/v1/a%2f..%2fb",
                "/providers/main/v1/models/a..b//c/.%2e\\..",
                "http://other/providers/main/v1/x",
            ])
        },
        words: &[
            "/providers/",
            "main",
            "/v1",
            "/v1/",
            "..",
            ".",
            "%2e",
            "%2E%2E",
            "%2f",
            "%5c",
            "\\",
            "%252e",
            "//",
            "?",
            "#",
            ";",
            "%00",
            "%",
            "/../",
        ],
        execute: egress_path,
    },
    Target {
        name: "egress-token",
        about: "tokens by which agent pods prove themselves",
        corpus: || {
            vec![
                token().into_bytes(),
                b"flotilla".to_vec(),
                b"eyJhIjoxfQ.e30.".to_vec(),
            ]
        },
        words: &[
            ".",
            "eyJ",
            "eyJhbGciOiJub25lIn0",
            "eyJhdWQiOiJmbG90aWxsYS1nYXRld2F5In0",
            "e30",
            "=",
            "_",
            "-",
            "AAAA",
            "\"aud\"",
            "flotilla-gateway",
        ],
        execute: egress_token,
    },
    Target {
        name: "usage-json",
        about: "model and token counts in bodies, read as they pass",
        corpus: || {
            texts(&[
                CHAT,
                ANTHROPIC,
                REQUEST,
                r#"{"type":"response.completed","response":{"model":"m","usage":{"input_tokens":5,"output_tokens":6}}}"#,
                r#"{"object":"list","data":[{"embedding":[0.1,-2e-3]}],"model":"e","usage":{"prompt_tokens":8,"total_tokens":8}}"#,
            ])
        },
        words: &[
            "\"model\":",
            "\"usage\":{",
            "\"prompt_tokens\":",
            "\"completion_tokens\":",
            "\"input_tokens\":",
            "\"output_tokens\":",
            "\"response\":{",
            "usage",
            "model",
            "response",
            "input_tokens",
            "null",
            "\\\"",
            "\\\\",
            "}}",
            "{\"a\":",
            "[[[[",
            "1e5",
            "-1",
        ],
        execute: usage_json,
    },
    Target {
        name: "sse",
        about: "token counts in streams of providers, read as they pass",
        corpus: || {
            texts(&[
                "event: x\ndata: {\"model\":\"m\",\"usage\":null}\n\n: ping\r\n\r\ndata:{\"model\":\"m\",\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2}}\n\ndata: [DONE]\n\n",
                "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"model\":\"c\",\"usage\":{\"input_tokens\":10,\"output_tokens\":1}}}\n\nevent: message_delta\ndata: {\"type\":\"message_delta\",\"usage\":{\"output_tokens\":15}}\n\n",
                "event: response.completed\r\ndata: {\"type\":\"response.completed\",\"response\":{\"model\":\"m\",\"usage\":{\"input_tokens\":5,\"output_tokens\":6}}}\r\n\r\n",
                "data: {\"usage\":\ndata: {\"prompt_tokens\":3}}\n\n\rdata\rdata:\r\r",
                "\u{feff}data: x\n\nid: 1\nretry: 10\n\n",
            ])
        },
        words: &[
            "data:",
            "data: ",
            "event: ",
            "id:",
            ":",
            "\n",
            "\r",
            "\r\n",
            "\n\n",
            "[DONE]",
            "\"usage\":{\"prompt_tokens\":7}",
            "\"model\":\"z\"",
            "{",
            "}",
            "\u{feff}",
        ],
        execute: usage_events,
    },
    Target {
        name: "rate-limit-headers",
        about: "what providers say of their quotas",
        corpus: || {
            texts(&[
                "x-ratelimit-limit-requests: 60\nx-ratelimit-remaining-requests: 59\nx-ratelimit-reset-requests: 1s\nx-ratelimit-limit-tokens: 150000\nx-ratelimit-remaining-tokens: 149984\nx-ratelimit-reset-tokens: 6m0s",
                "anthropic-ratelimit-input-tokens-limit: 40000\nanthropic-ratelimit-input-tokens-remaining: 0\nanthropic-ratelimit-input-tokens-reset: 2026-11-21T16:00:00Z\nretry-after: 17",
                "x-ratelimit-remaining-requests-day: 14399\nx-ratelimit-reset-requests-day: 33011.382867\nretry-after-ms: 250",
                "x-ratelimit-remaining: 3\nx-ratelimit-reset: 1795276800000\nx-ratelimit-limit: 10",
                "ratelimitbysize-remaining: 499000\nratelimit-limit: 100\nratelimit-reset: 50\nratelimit-remaining: 1, 2",
                "x-ratelimit-remaining-tokens-prompt: 5\nx-ratelimit-limit-tokens-generated: 18446744073709551616\nx-ratelimit-reset: -1",
            ])
        },
        words: &[
            "x-ratelimit-",
            "anthropic-ratelimit-",
            "ratelimit-",
            "ratelimitbysize-",
            "limit",
            "remaining",
            "reset",
            "-requests",
            "-tokens",
            "-input",
            "-output",
            "-day",
            "-minute",
            "-hour",
            "-second",
            ": ",
            "\n",
            "1h2m3s",
            "17ms",
            "1d",
            "2026-02-30T25:61:61Z",
            "1795276800",
            "ms",
            "\u{b5}s",
            "retry-after:",
        ],
        execute: rate_limits,
    },
    Target {
        name: "retry-after",
        about: "seconds or an HTTP date",
        corpus: || {
            texts(&[
                "120",
                "1.5",
                "Sat, 21 Nov 2026 16:00:00 GMT",
                "Saturday, 21-Nov-26 16:00:00 GMT",
                "Sat Nov 21 16:00:00 2026",
                "2026-11-21T16:00:00Z",
                "-5",
            ])
        },
        words: &[
            "Sat, ", "Nov", "Feb", "30", "GMT", "+0100", "2026", "9999", "-9999", "24:00:60", "Z", "T", ":",
            ",", "s", "e9", ".",
        ],
        execute: retry_after,
    },
    Target {
        name: "key-file",
        about: "a mounted Secret",
        corpus: || texts(&["sk-abc123\n", "  sk-proj-A_b-C  \r\n", "a\nb", "\u{feff}sk", ""]),
        words: &["sk-", "\n", "\r\n", "\t", "\0", "Bearer ", "\u{e9}"],
        execute: key_file,
    },
];

fn limits() -> Limits {
    let second = Duration::from_secs(1);
    Limits {
        connect: second,
        idle: second,
    }
}

fn egress_path(input: &[u8]) -> u64 {
    static PLACE: LazyLock<Place> = LazyLock::new(|| {
        Place::new("https://api.example.com/base/v1", &tls::client_config(), limits())
            .expect("a good endpoint")
    });
    let Ok(uri) = Uri::try_from(input) else { return 0 };
    let Some(route) = Route::parse(uri.path()) else {
        return 1;
    };
    let (name, rest) = (route.provider, route.rest);
    let chain = route.chain();
    assert!(chain.as_ref().is_none_or(|chain| !chain.fallbacks.is_empty()));
    assert!(!name.is_empty() && !name.contains('/'));
    let Some(target) = PLACE.target(rest, uri.query()) else {
        return 2;
    };
    let text = target.to_string();
    assert!(text.starts_with("/base/v1"), "{text} leaves the endpoint");
    assert!(
        target.authority().is_none() && target.scheme().is_none(),
        "{text} names a host"
    );
    // What a lenient server may make of it, decoded once.
    let plain = decoded(target.path()).replace('\\', "/");
    assert!(
        plain.split('/').all(|segment| segment != "." && segment != ".."),
        "{text} climbs"
    );
    let fallbacks = chain.map_or(0, |chain| chain.fallbacks.len() as u64);
    outcome([
        3,
        magnitude(rest.len() as u64),
        u64::from(uri.query().is_some()),
        magnitude(fallbacks),
    ])
}

/// A token as an API server signed it, who that was, and the moment.
static SIGNED: LazyLock<(String, Keys, u64, String)> = LazyLock::new(|| {
    let signed: Value = serde_json::from_str(include_str!(
        "../../../gateway/src/egress/identity/kubernetes.json"
    ))
    .expect("JSON");
    let text = |name: &str| signed[name].as_str().unwrap_or_default().to_owned();
    let issuer = Issuer {
        name: text("issuer"),
        keys: serde_json::from_value(signed["jwks"].clone()).expect("keys"),
    };
    (
        text("token"),
        Keys::new(&issuer),
        signed["time"].as_u64().unwrap_or(0),
        text("pod"),
    )
});

fn token() -> String {
    SIGNED.0.clone()
}

fn egress_token(input: &[u8]) -> u64 {
    let (good, keys, now, pod) = &*SIGNED;
    let text = String::from_utf8_lossy(input);
    let result = keys.verify(&text, *now);
    if let Ok(verified) = &result {
        // There is one spelling of what was signed: base64 is read strictly, spare bits included.
        assert_eq!(*verified.pod, **pod);
        assert_eq!(text, *good, "a forged token");
        assert!(is_ours(&text));
    }
    let kind = result.err().map_or(0, |error| 1 + error as u64);
    // Claims that nobody signed: as if they were, to reach what is behind the signature.
    let payload = STANDARD_NO_PAD.encode(input).replace('+', "-").replace('/', "_");
    outcome([
        kind,
        u64::from(is_ours(&text)),
        u64::from(is_ours(&format!("eyJhIjoxfQ.{payload}.AA"))),
    ])
}

fn decoded(path: &str) -> String {
    let bytes = path.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let code = bytes
            .get(at + 1..at + 3)
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (byte, code) {
            (b'%', Some(code)) => {
                plain.push(code);
                at += 3;
            }
            _ => {
                plain.push(*byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

fn found(found: &Found) -> u64 {
    outcome([
        found
            .model
            .as_ref()
            .map_or(0, |name| 1 + magnitude(name.len() as u64)),
        found.input_tokens.map_or(0, |count| 1 + magnitude(count)),
        found.output_tokens.map_or(0, |count| 1 + magnitude(count)),
    ])
}

fn usage_json(input: &[u8]) -> u64 {
    let (mut whole, mut parts) = (JsonReader::default(), JsonReader::default());
    whole.feed(input);
    pieces(input).for_each(|piece| parts.feed(piece));
    assert_eq!(whole.found(), parts.found(), "pieces give something else");
    found(whole.found())
}

fn usage_events(input: &[u8]) -> u64 {
    let passed = |reader: &mut EventReader, pieces: &mut dyn Iterator<Item = &[u8]>| {
        let mut passed = Vec::new();
        for piece in pieces {
            passed.extend(reader.pass(Bytes::copy_from_slice(piece)));
        }
        passed.extend(reader.rest());
        passed
    };
    for filters in [false, true] {
        let new = || {
            if filters {
                EventReader::without_usage()
            } else {
                EventReader::default()
            }
        };
        let (mut whole, mut parts) = (new(), new());
        let at_once = passed(&mut whole, &mut std::iter::once(input));
        let in_parts = passed(&mut parts, &mut pieces(input));
        assert_eq!(whole.found(), parts.found(), "pieces give something else");
        assert_eq!(at_once, in_parts, "pieces pass something else");
        assert!(filters || at_once == input, "not passed on as it came");
    }
    let mut whole = EventReader::default();
    passed(&mut whole, &mut std::iter::once(input));
    found(whole.found())
}

/// Saturday 21 November 2026, 16:00 UTC.
const NOW: i64 = 1_795_276_800_000;
/// Seconds of the longest month: nothing is believed for longer.
const LONGEST: u64 = 31 * 86_400;

fn said(hint: &hint::Hint) -> u64 {
    let longest = LONGEST * 1_000_000_000;
    assert!(hint.counts.len() <= 16);
    assert!(hint.retry_after.is_none_or(|wait| wait <= longest), "{hint:?}");
    assert!(
        hint.counts
            .iter()
            .all(|count| count.reset.is_none_or(|reset| reset <= longest)),
        "{hint:?}"
    );
    let shapes = hint.counts.iter().map(|count| {
        outcome([
            count.resource as u64,
            magnitude(count.period.unwrap_or(0)),
            u64::from(count.limit.is_some()),
            count.remaining.map_or(0, |left| 1 + magnitude(left)),
            u64::from(count.reset.is_some()),
        ])
    });
    outcome(std::iter::once(hint.retry_after.map_or(0, |wait| 1 + magnitude(wait))).chain(shapes))
}

fn rate_limits(input: &[u8]) -> u64 {
    let headers = headers(input);
    let parse = |now| {
        hint::parse(
            headers
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_bytes())),
            now,
        )
    };
    // No clock, however wrong, may break it.
    for now in [0, i64::MIN, i64::MAX] {
        said(&parse(now));
    }
    said(&parse(NOW))
}

fn retry_after(input: &[u8]) -> u64 {
    let parse = |name, now| hint::parse([(name, input)], now);
    for now in [0, i64::MIN, i64::MAX] {
        said(&parse("retry-after", now));
    }
    outcome(["retry-after", "Retry-After-MS", "x-ratelimit-reset-tokens"].map(|name| said(&parse(name, NOW))))
}

fn key_file(input: &[u8]) -> u64 {
    let header = keys::value(ProviderType::OpenAI, input);
    if let Some(header) = &header {
        assert!(header.is_sensitive(), "a key that would be logged");
        assert!(header.as_bytes().starts_with(b"Bearer ") && header.len() <= 7 + input.len());
    }
    outcome([
        u64::from(header.is_some()),
        magnitude(header.map_or(0, |header| header.len()) as u64),
    ])
}
