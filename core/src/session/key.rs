//! What identifies a conversation: 128 bits of a hash, never the client's own words.
//!
//! A session id is a credential in many applications, and an A2A `contextId` may be whatever a client likes. So the raw
//! value is hashed where it is read, and nothing else is stored, sent to another gateway or logged. The pool's UID is
//! hashed with it: the same cookie is another conversation in another pool, and a pool that was deleted and made anew
//! remembers nothing. SHA-256 because clients choose the input: with a weaker function one could aim at another's key.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

/// How many shards a pool's sessions are cut into. Part of the peer protocol: all gateways must agree.
pub const SHARDS: u8 = 16;

/// A conversation, or one of its A2A tasks: the first 128 bits of a SHA-256.
///
/// As text (and in JSON) it is 22 characters of URL-safe base64. `Debug` shows the first six: enough to follow one
/// conversation through a log, not enough to look it up.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionKey {
    high: u64,
    low: u64,
}

/// Text that is not a [`SessionKey`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("failed to read a session key: not 16 bytes in URL-safe base64")]
pub struct InvalidKey;

impl SessionKey {
    /// A key for a conversation that has no name yet, from random bits: it spreads new conversations by weight.
    pub fn from_random(high: u64, low: u64) -> Self {
        Self { high, low }
    }

    /// The shard that holds this key, below [`SHARDS`].
    pub fn shard(self) -> u8 {
        (self.high >> 60) as u8
    }

    /// 64 of its bits, uniform: for choices that all gateways make alike, as of a replica by consistent hashing.
    pub fn bits(self) -> u64 {
        self.low
    }

    fn from_bytes(bytes: [u8; 16]) -> Self {
        let bits = u128::from_be_bytes(bytes);
        Self {
            high: (bits >> 64) as u64,
            low: bits as u64,
        }
    }

    fn to_bytes(self) -> [u8; 16] {
        (u128::from(self.high) << 64 | u128::from(self.low)).to_be_bytes()
    }
}

impl fmt::Display for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.to_bytes()))
    }
}

impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.6}…", self.to_string())
    }
}

impl FromStr for SessionKey {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        let mut bytes = [0; 18];
        let length = URL_SAFE_NO_PAD
            .decode_slice(text, &mut bytes)
            .map_err(|_| InvalidKey)?;
        let bytes = bytes.get(..length).ok_or(InvalidKey)?;
        Ok(Self::from_bytes(bytes.try_into().map_err(|_| InvalidKey)?))
    }
}

impl Serialize for SessionKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SessionKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

/// Where a raw key was read; keys from different places never meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Header = 1,
    Cookie = 2,
    Context = 3,
    Task = 4,
}

/// Makes the keys of one pool. Costs one SHA-256 of the raw value, about 0.2 µs for an id of usual length.
#[derive(Clone)]
pub struct Keyer {
    base: Sha256,
    pool: u64,
}

impl fmt::Debug for Keyer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyer")
            .field("pool", &self.pool)
            .finish_non_exhaustive()
    }
}

impl Keyer {
    /// Keys of the pool with `metadata.uid`.
    pub fn new(pool_uid: &str) -> Self {
        let mut base = Sha256::new_with_prefix(b"flotilla.dev/session/1\0");
        base.update((pool_uid.len() as u64).to_be_bytes());
        base.update(pool_uid);
        let pool = first_eight(&base.clone().finalize());
        Self { base, pool }
    }

    /// What names the pool in messages between gateways.
    pub fn pool(&self) -> u64 {
        self.pool
    }

    /// From a header's value; none when it is empty.
    pub fn header(&self, value: &[u8]) -> Option<SessionKey> {
        self.key(Source::Header, value.trim_ascii())
    }

    /// From the value of the cookie `name` in a request's `Cookie` headers; none when it is missing or empty.
    pub fn cookie<'a>(&self, headers: impl IntoIterator<Item = &'a [u8]>, name: &str) -> Option<SessionKey> {
        headers
            .into_iter()
            .find_map(|header| cookie_value(header, name))
            .and_then(|value| self.cookie_value(value))
    }

    /// From a cookie's value; none when it is empty.
    pub fn cookie_value(&self, value: &[u8]) -> Option<SessionKey> {
        self.key(Source::Cookie, value)
    }

    /// From an A2A `contextId`; none when it is empty.
    pub fn context(&self, id: &str) -> Option<SessionKey> {
        self.key(Source::Context, id.as_bytes())
    }

    /// From an A2A task id; none when it is empty.
    pub fn task(&self, id: &str) -> Option<SessionKey> {
        self.key(Source::Task, id.as_bytes())
    }

    fn key(&self, source: Source, raw: &[u8]) -> Option<SessionKey> {
        if raw.is_empty() {
            return None;
        }
        let mut hash = self.base.clone();
        hash.update([source as u8]);
        hash.update(raw);
        let digest = hash.finalize();
        let mut bytes = [0; 16];
        bytes.iter_mut().zip(digest).for_each(|(to, from)| *to = from);
        Some(SessionKey::from_bytes(bytes))
    }
}

/// The first eight bytes of a digest as a number.
pub(super) fn first_eight(digest: &[u8]) -> u64 {
    digest
        .iter()
        .take(8)
        .fold(0, |bits, byte| bits << 8 | u64::from(*byte))
}

/// The value of the first cookie called `name` in one `Cookie` header (RFC 6265, section 4.2.1), without the quotes that
/// some clients put around it. Names are compared with case, as browsers do (section 5.4).
pub fn cookie_value<'a>(header: &'a [u8], name: &str) -> Option<&'a [u8]> {
    header.split(|byte| *byte == b';').find_map(|pair| {
        let at = pair.iter().position(|byte| *byte == b'=')?;
        let (found, value) = pair.split_at(at);
        if found.trim_ascii() != name.as_bytes() {
            return None;
        }
        let value = value.get(1..).unwrap_or_default().trim_ascii();
        let unquoted = value
            .strip_prefix(b"\"")
            .and_then(|rest| rest.strip_suffix(b"\""));
        Some(unquoted.unwrap_or(value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn cookies() {
        for (header, name, value) in [
            ("sid=abc", "sid", Some("abc")),
            ("a=1; sid=abc; b=2", "sid", Some("abc")),
            ("a=1;sid=abc", "sid", Some("abc")),
            ("sid=\"abc\"", "sid", Some("abc")),
            ("sid=a=b==", "sid", Some("a=b==")),
            ("sid=first; sid=second", "sid", Some("first")),
            ("SID=abc", "sid", None),
            ("xsid=abc", "sid", None),
            ("sid", "sid", None),
            ("sid=", "sid", Some("")),
            ("sid=\"", "sid", Some("\"")),
            ("; ;=;sid=x", "sid", Some("x")),
            ("", "sid", None),
        ] {
            let found =
                cookie_value(header.as_bytes(), name).map(|value| std::str::from_utf8(value).unwrap());
            assert_eq!(found, value, "{header:?}");
        }
    }

    #[test]
    fn keys_of_different_places_and_pools_never_meet() {
        let (one, other) = (Keyer::new("uid-1"), Keyer::new("uid-2"));
        let keys = [
            one.header(b"x"),
            one.cookie([&b"sid=x"[..]], "sid"),
            one.context("x"),
            one.task("x"),
            other.header(b"x"),
            other.context("x"),
        ];
        for (index, key) in keys.iter().enumerate() {
            assert!(key.is_some() && !keys[..index].contains(key), "{index}");
        }
        assert_eq!(one.header(b" x "), one.header(b"x"));
        assert_ne!(one.pool(), other.pool());
        for empty in [
            one.header(b" "),
            one.context(""),
            one.task(""),
            one.cookie([&b"sid="[..]], "sid"),
        ] {
            assert_eq!(empty, None);
        }
        let split = [&b"a=1"[..], &b"sid=x"[..]];
        assert_eq!(one.cookie(split, "sid"), one.cookie([&b"sid=x"[..]], "sid"));
    }

    /// A change here makes every running conversation a new one in a rolling upgrade. The value was computed with another
    /// implementation of SHA-256 and base64.
    #[test]
    fn keys_are_what_they_were() {
        let key = Keyer::new("uid").header(b"conversation").unwrap();
        assert_eq!(key.to_string(), "Cw6JJ94DcGp6eZBGgbNxqQ");
        assert_eq!(format!("{key:?}"), "Cw6JJ9…");
    }

    proptest! {
        #[test]
        fn text_keeps_a_key(high: u64, low: u64) {
            let key = SessionKey::from_random(high, low);
            prop_assert_eq!(key.to_string().parse(), Ok(key));
            let json = serde_json::to_string(&key).unwrap();
            prop_assert_eq!(serde_json::from_str::<SessionKey>(&json).unwrap(), key);
            prop_assert!(key.shard() < SHARDS);
        }

        #[test]
        fn any_text_and_any_cookie_are_read_without_a_panic(text in ".*", bytes: Vec<u8>, name in "[a-z]{0,3}") {
            let _ = text.parse::<SessionKey>();
            let _ = cookie_value(&bytes, &name);
            let _ = Keyer::new(&text).header(&bytes);
        }
    }
}
