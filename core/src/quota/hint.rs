//! What a provider's headers say about its quota.
//!
//! There is no standard that all follow, but all names are made of the same words in some order: a field (`limit`,
//! `remaining`, `reset`), a unit (`requests`, `tokens`, `input-tokens`, `output-tokens`; Fireworks says `prompt` and
//! `generated`), sometimes a period (`minute`, `hour`, `day`). So names are taken apart into words:
//!
//! | who | for example | reset |
//! |---|---|---|
//! | OpenAI, Azure, Groq, most servers | `x-ratelimit-remaining-tokens` | `6m0s`, `17ms` |
//! | Anthropic | `anthropic-ratelimit-input-tokens-remaining` | RFC 3339 |
//! | Cerebras | `x-ratelimit-remaining-requests-day` | seconds |
//! | OpenRouter, GitHub and others | `x-ratelimit-remaining` | seconds, Unix seconds or milliseconds |
//! | IETF draft | `ratelimit-remaining` | seconds |
//! | Mistral | `ratelimitbysize-remaining` (a minute's tokens) | seconds |
//! | all | `retry-after`, `retry-after-ms` | seconds or an HTTP date |
//!
//! The values are a stranger's: nothing here can fail, and what cannot be read says nothing.

use jiff::Timestamp;

use super::{MILLISECOND, Nanos, Resource, SECOND};

/// No header is believed for longer: the longest month.
const LONGEST: Nanos = 31 * 86_400 * SECOND;
/// Counts said at most; a provider has a handful.
const MAX_COUNTS: usize = 16;

/// What the headers of one answer say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hint {
    /// Nothing should be sent for this long.
    pub retry_after: Option<Nanos>,
    /// What is left of the limits it names, at most 16.
    pub counts: Vec<Count>,
}

/// What is said of one limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    /// What it counts.
    pub resource: Resource,
    /// The window's length, where the name says it.
    pub period: Option<Nanos>,
    /// Units in a window.
    pub limit: Option<u64>,
    /// Units left.
    pub remaining: Option<u64>,
    /// Time until the window is over or the limit is there in full.
    pub reset: Option<Nanos>,
}

#[derive(Clone, Copy)]
enum Field {
    Limit,
    Remaining,
    Reset,
}

/// Reads headers: names in any case, values as they came. `unix_ms` is the time, for absolute resets.
pub fn parse<'a>(headers: impl IntoIterator<Item = (&'a str, &'a [u8])>, unix_ms: i64) -> Hint {
    let mut hint = Hint::default();
    for (name, value) in headers {
        // Cheap for the many headers that are about something else.
        let Some(first) = name.bytes().next() else {
            continue;
        };
        if !matches!(first, b'x' | b'X' | b'a' | b'A' | b'r' | b'R') || name.len() > 64 || value.len() > 64 {
            continue;
        }
        let name = name.to_ascii_lowercase();
        let Ok(value) = std::str::from_utf8(value) else {
            continue;
        };
        let value = value.trim();
        match name.as_str() {
            "retry-after-ms" => wait(&mut hint, number(value).map(|ms| scaled(ms, MILLISECOND))),
            "retry-after" => wait(&mut hint, retry_after(value, unix_ms)),
            _ => {
                if let Some((field, resource, period)) = words(&name) {
                    count(&mut hint, resource, period, field, value, unix_ms);
                }
            }
        }
    }
    hint
}

fn wait(hint: &mut Hint, length: Option<Nanos>) {
    hint.retry_after = hint.retry_after.max(length);
}

fn words(name: &str) -> Option<(Field, Resource, Option<Nanos>)> {
    let (rest, by_size) = match ["x-ratelimit-", "anthropic-ratelimit-", "ratelimit-"]
        .iter()
        .find_map(|prefix| name.strip_prefix(prefix))
    {
        Some(rest) => (rest, false),
        None => (
            name.strip_prefix("x-ratelimitbysize-")
                .or_else(|| name.strip_prefix("ratelimitbysize-"))?,
            true,
        ),
    };
    let mut resource = by_size.then_some(Resource::Tokens);
    let (mut field, mut period) = (None, None);
    for word in rest.split('-') {
        match word {
            "limit" => field = Some(Field::Limit),
            "remaining" => field = Some(Field::Remaining),
            "reset" => field = Some(Field::Reset),
            "requests" | "request" | "req" => resource = Some(Resource::Requests),
            "input" | "prompt" => resource = Some(Resource::InputTokens),
            "output" | "generated" | "completion" => resource = Some(Resource::OutputTokens),
            "tokens" | "token" => resource = resource.or(Some(Resource::Tokens)),
            "second" => period = Some(SECOND),
            "minute" => period = Some(60 * SECOND),
            "hour" => period = Some(3_600 * SECOND),
            "day" => period = Some(86_400 * SECOND),
            // An unknown word may turn the meaning around.
            _ => return None,
        }
    }
    // "tokens-prompt" and "prompt-tokens" are the same.
    Some((field?, resource.unwrap_or(Resource::Requests), period))
}

fn count(
    hint: &mut Hint,
    resource: Resource,
    period: Option<Nanos>,
    field: Field,
    value: &str,
    unix_ms: i64,
) {
    let found = hint
        .counts
        .iter_mut()
        .position(|count| (count.resource, count.period) == (resource, period));
    let index = match found {
        Some(index) => index,
        None if hint.counts.len() >= MAX_COUNTS => return,
        None => {
            hint.counts.push(Count {
                resource,
                period,
                limit: None,
                remaining: None,
                reset: None,
            });
            hint.counts.len() - 1
        }
    };
    let count = &mut hint.counts[index];
    match field {
        Field::Limit => count.limit = number(leading(value)).map(|units| units as u64),
        Field::Remaining => count.remaining = number(leading(value)).map(|units| units.floor() as u64),
        Field::Reset => count.reset = reset(value, unix_ms),
    }
}

/// The IETF draft allows parameters after a comma or semicolon: `100, 100;w=60`.
fn leading(value: &str) -> &str {
    value.split([',', ';']).next().unwrap_or_default().trim()
}

/// A finite number of at least 0, written in digits.
fn number(text: &str) -> Option<f64> {
    let plain = !text.is_empty()
        && text.len() <= 24
        && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    text.parse()
        .ok()
        .filter(|number: &f64| plain && number.is_finite())
}

fn scaled(number: f64, unit: Nanos) -> Nanos {
    // A float that is too large becomes the largest integer.
    ((number * unit as f64).ceil() as Nanos).min(LONGEST)
}

fn retry_after(value: &str, unix_ms: i64) -> Option<Nanos> {
    if let Some(seconds) = number(value) {
        return Some(scaled(seconds, SECOND));
    }
    let date = jiff::fmt::rfc2822::parse(value).ok()?;
    Some(until(date.timestamp(), unix_ms))
}

fn until(at: Timestamp, unix_ms: i64) -> Nanos {
    let ms = at.as_millisecond().saturating_sub(unix_ms).max(0);
    scaled(ms as f64, MILLISECOND)
}

fn reset(value: &str, unix_ms: i64) -> Option<Nanos> {
    if let Some(number) = number(leading(value)) {
        // Numbers that no length reaches are instants: after September 2001 in seconds or in milliseconds.
        return if number < 1e9 {
            Some(scaled(number, SECOND))
        } else {
            let at = if number < 1e12 { number * 1_000.0 } else { number };
            Some(scaled((at - unix_ms as f64).max(0.0), MILLISECOND))
        };
    }
    if let Ok(at) = value.parse::<Timestamp>() {
        return Some(until(at, unix_ms));
    }
    duration(value)
}

/// `6m0s`, `1h0m2.02s`, `17ms`, `2d3h`.
fn duration(value: &str) -> Option<Nanos> {
    let mut rest = value;
    let mut sum: Nanos = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (amount, after) = rest.split_at(digits);
        let letters = after
            .find(|c: char| !c.is_ascii_alphabetic())
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        let unit = match unit {
            "ns" => 1,
            "us" => 1_000,
            "ms" => MILLISECOND,
            "s" => SECOND,
            "m" => 60 * SECOND,
            "h" => 3_600 * SECOND,
            "d" => 86_400 * SECOND,
            _ => return None,
        };
        sum = sum.saturating_add(scaled(number(amount)?, unit));
        rest = after;
    }
    (!value.is_empty()).then_some(sum.min(LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: i64 = 1_793_880_000_000; // 2026-11-05T12:00:00Z

    fn read(headers: &[(&str, &str)]) -> Hint {
        parse(headers.iter().map(|(name, value)| (*name, value.as_bytes())), NOW)
    }

    fn of(hint: &Hint, resource: Resource) -> (Option<u64>, Option<u64>, Option<u64>) {
        hint.counts
            .iter()
            .find(|count| count.resource == resource)
            .map(|count| {
                (
                    count.limit,
                    count.remaining,
                    count.reset.map(|reset| reset / MILLISECOND),
                )
            })
            .expect("a count")
    }

    #[test]
    fn what_providers_send() {
        let openai = read(&[
            ("content-type", "application/json"),
            ("x-ratelimit-limit-requests", "60"),
            ("X-RateLimit-Remaining-Requests", "59"),
            ("x-ratelimit-reset-requests", "1s"),
            ("x-ratelimit-limit-tokens", "150000"),
            ("x-ratelimit-remaining-tokens", "149984"),
            ("x-ratelimit-reset-tokens", "6m0s"),
        ]);
        assert_eq!(of(&openai, Resource::Requests), (Some(60), Some(59), Some(1_000)));
        assert_eq!(
            of(&openai, Resource::Tokens),
            (Some(150_000), Some(149_984), Some(360_000))
        );
        let anthropic = read(&[
            ("anthropic-ratelimit-input-tokens-limit", "40000"),
            ("anthropic-ratelimit-input-tokens-remaining", "39000"),
            ("anthropic-ratelimit-input-tokens-reset", "2026-11-05T12:00:30Z"),
            ("anthropic-ratelimit-output-tokens-remaining", "8000"),
            ("anthropic-ratelimit-requests-remaining", "0"),
        ]);
        assert_eq!(
            of(&anthropic, Resource::InputTokens),
            (Some(40_000), Some(39_000), Some(30_000))
        );
        assert_eq!(of(&anthropic, Resource::OutputTokens), (None, Some(8_000), None));
        assert_eq!(of(&anthropic, Resource::Requests), (None, Some(0), None));
        let cerebras = read(&[
            ("x-ratelimit-limit-requests-day", "1000"),
            ("x-ratelimit-remaining-tokens-minute", "7.5"),
            ("x-ratelimit-reset-requests-day", "33011.382867"),
        ]);
        assert_eq!(
            of(&cerebras, Resource::Requests),
            (Some(1000), None, Some(33_011_382))
        );
        assert_eq!(of(&cerebras, Resource::Tokens).1, Some(7));
        assert_eq!(cerebras.counts[0].period, Some(86_400 * SECOND));
        let plain = read(&[
            ("ratelimit-limit", "100, 100;w=60"),
            ("ratelimit-remaining", "3"),
            ("ratelimit-reset", "50"),
        ]);
        assert_eq!(of(&plain, Resource::Requests), (Some(100), Some(3), Some(50_000)));
        let fireworks = read(&[
            ("x-ratelimit-remaining-tokens-prompt", "5"),
            ("x-ratelimit-remaining-tokens-generated", "6"),
        ]);
        assert_eq!(of(&fireworks, Resource::InputTokens).1, Some(5));
        assert_eq!(of(&fireworks, Resource::OutputTokens).1, Some(6));
        assert_eq!(
            of(&read(&[("ratelimitbysize-remaining", "9")]), Resource::Tokens).1,
            Some(9)
        );
    }

    #[test]
    fn resets_and_waits() {
        for (value, ms) in [
            ("17ms", Some(17)),
            ("2m59.56s", Some(179_560)),
            ("1h0m2.02s", Some(3_602_020)),
            ("1793880010", Some(10_000)),
            ("1793880010000", Some(10_000)),
            ("1000000001", Some(0)),
            ("0", Some(0)),
            ("99999999999999999999", Some(LONGEST / MILLISECOND)),
            ("-5", None),
            ("soon", None),
            ("6x", None),
            ("1e300s", None),
            ("", None),
        ] {
            assert_eq!(reset(value, NOW).map(|reset| reset / MILLISECOND), ms, "{value}");
        }
        for (headers, ms) in [
            (vec![("retry-after", "2")], Some(2_000)),
            (vec![("Retry-After", "0.5")], Some(500)),
            (
                vec![("retry-after", "1"), ("retry-after-ms", "1250")],
                Some(1_250),
            ),
            (
                vec![("retry-after", "Thu, 05 Nov 2026 12:00:07 GMT")],
                Some(7_000),
            ),
            (vec![("retry-after", "Thu, 05 Nov 2020 12:00:07 GMT")], Some(0)),
            (vec![("retry-after", "NaN")], None),
            (vec![("x-ratelimit-reset-something-else", "1")], None),
        ] {
            assert_eq!(
                read(&headers).retry_after.map(|wait| wait / MILLISECOND),
                ms,
                "{headers:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_header_is_read_without_harm(
            headers in prop::collection::vec((
                "(x-ratelimit-|anthropic-ratelimit-|ratelimit|retry-after)?[-a-z]{0,20}(limit|remaining|reset)?(-tokens|-requests)?",
                prop_oneof![
                    prop::collection::vec(any::<u8>(), 0..30),
                    "[-0-9.:hmsdTZ ,;e+]{0,30}".prop_map(String::into_bytes),
                ],
            ), 0..40),
            unix_ms in any::<i64>(),
        ) {
            let hint = parse(headers.iter().map(|(name, value)| (name.as_str(), value.as_slice())), unix_ms);
            prop_assert!(hint.counts.len() <= MAX_COUNTS);
            prop_assert!(hint.retry_after.is_none_or(|wait| wait <= LONGEST));
            prop_assert!(hint.counts.iter().all(|count| count.reset.is_none_or(|reset| reset <= LONGEST)));
        }
    }
}
