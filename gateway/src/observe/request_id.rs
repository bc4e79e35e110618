//! `x-request-id`: kept where the client has sent a usable one, else made, given to the agent and to the client.

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};

/// The header.
pub const NAME: HeaderName = HeaderName::from_static("x-request-id");
/// Longest that is kept.
const MAX: usize = 128;

/// The request's own, if it may be repeated in logs and headers: 1 to 128 visible ASCII characters.
pub fn of(headers: &HeaderMap) -> Option<&str> {
    headers.get(&NAME).and_then(usable)
}

fn usable(value: &HeaderValue) -> Option<&str> {
    let text = std::str::from_utf8(value.as_bytes()).ok()?;
    let fits = (1..=MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
    fits.then_some(text)
}

/// Makes sure that `headers` have one, and gives it.
pub fn ensure(headers: &mut HeaderMap) -> HeaderValue {
    if let Some(kept) = headers.get(&NAME)
        && usable(kept).is_some()
    {
        return kept.clone();
    }
    let made = make();
    headers.insert(NAME, made.clone());
    made
}

/// A random UUID (version 4), from the thread's generator: the system is not asked.
fn make() -> HeaderValue {
    let uuid = uuid::Builder::from_random_bytes(rand::random()).into_uuid();
    let mut text = vec![0; uuid::fmt::Hyphenated::LENGTH];
    uuid.hyphenated().encode_lower(&mut text);
    HeaderValue::from_maybe_shared(Bytes::from(text)).unwrap_or_else(|_| HeaderValue::from_static("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_usable_one_is_kept_and_another_is_replaced() {
        let ensure = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(NAME, HeaderValue::from_str(value).expect("a value"));
            let id = ensure(&mut headers);
            assert_eq!(headers.get(NAME), Some(&id));
            id.to_str().expect("text").to_owned()
        };
        assert_eq!(ensure("abc-1"), "abc-1");
        for unusable in ["", "a b", &"x".repeat(129)] {
            let made = ensure(unusable);
            assert!(
                uuid::Uuid::parse_str(&made).is_ok_and(|id| id.get_version_num() == 4),
                "{made}"
            );
        }
        assert_ne!(make(), make());
    }
}
