//! What an agent asks a provider for, and the few changes that its body may need.
//!
//! A body is held when it is JSON for an operation that is paid by tokens, so that it can be read before it is sent: the
//! model's name decides about prices and fallbacks, `stream` about where usage will be, and a fallback needs the body once
//! more under another name. Held are at most 4 MiB of one request and 64 MiB of all; what is longer, or comes without a
//! length, passes as it comes, unchanged: it has no fallback, and its model's name is read on the way.
//!
//! Changes are made to the bytes, in place: nothing that is not understood is lost or put into another order.
//!
//! * Chat completions tell the usage of a stream only when asked to, so `stream_options.include_usage` is set; what the
//!   client did not ask for is taken out of the answer again ([`super::events`]).
//! * A fallback's model takes the place of the model.

use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, Method, StatusCode, header};
use http_body::Body as _;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use parking_lot::Mutex;
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::usage::JsonReader;
use crate::ingress::proxy::{BodyLimit, too_large};
use crate::reply::Refusal;
use crate::upstream::body::{BUFFERED, Bounded, RequestBody};

/// Longest body that is held; a context of a million tokens has about as many bytes.
const HELD: u64 = 4 << 20;
/// Bytes of bodies longer than [`BUFFERED`] that are held at once.
const HELD_AT_ONCE: usize = 64 << 20;
/// Unit of the semaphore.
const PERMIT: u64 = 1 << 10;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// OpenAI `/chat/completions`.
    ChatCompletions,
    /// OpenAI `/completions`.
    Completions,
    /// OpenAI `/responses`.
    Responses,
    /// OpenAI `/embeddings`.
    Embeddings,
    /// Anthropic `/messages`.
    Messages,
    /// Anything else.
    Other,
}

impl Operation {
    /// The operation at the path `rest`, which follows the version. Servers take other spellings of a path for the same, and
    /// some speak more than one protocol: neither must be a way past the budget.
    pub fn of(method: &Method, rest: &str) -> Self {
        if method != Method::POST {
            return Self::Other;
        }
        let plain = percent_decode_str(rest).decode_utf8_lossy().to_ascii_lowercase();
        let mut segments = plain.split('/').filter(|segment| !segment.is_empty());
        match (segments.next(), segments.next(), segments.next()) {
            (Some("chat"), Some("completions"), None) => Self::ChatCompletions,
            (Some("completions"), None, None) => Self::Completions,
            (Some("responses"), None, None) => Self::Responses,
            (Some("embeddings"), None, None) => Self::Embeddings,
            (Some("messages"), None, None) => Self::Messages,
            _ => Self::Other,
        }
    }

    /// Whether it is paid by tokens.
    pub fn uses_tokens(self) -> bool {
        self != Self::Other
    }

    /// `gen_ai.operation.name` of OpenTelemetry; none where there is no name.
    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::ChatCompletions | Self::Responses | Self::Messages => Some("chat"),
            Self::Completions => Some("text_completion"),
            Self::Embeddings => Some("embeddings"),
            Self::Other => None,
        }
    }
}

/// The members of a request's body that matter here, as they are written: one of another type must not hide the others.
#[derive(Deserialize)]
struct Members<'a> {
    #[serde(borrow, default)]
    model: Option<&'a RawValue>,
    #[serde(borrow, default)]
    stream: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    stream_options: Option<&'a RawValue>,
    #[serde(borrow, default)]
    max_tokens: Option<&'a RawValue>,
    #[serde(borrow, default)]
    max_completion_tokens: Option<&'a RawValue>,
    #[serde(borrow, default)]
    max_output_tokens: Option<&'a RawValue>,
}

/// A member that is there, `null` or not.
fn present<'de, D: Deserializer<'de>>(value: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(value).map(Some)
}

/// What was read in a held body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// The model's name.
    pub model: Option<String>,
    /// The longest answer, where it is bounded.
    pub max_tokens: Option<u64>,
    /// The answer comes as events.
    pub stream: bool,
    /// Where the value of `model` is.
    model_at: Option<(usize, usize)>,
    /// What to write for `stream_options`, and in place of which bytes.
    options: Option<(usize, usize, Vec<u8>)>,
}

impl Asked {
    /// Reads `body`. Nothing is known of what is no JSON object, and nothing of it is changed.
    pub fn read(operation: Operation, body: &[u8]) -> Self {
        let Ok(members) = serde_json::from_slice::<Members<'_>>(body) else {
            return Self::default();
        };
        let place = |value: &RawValue| {
            let at = (value.get().as_ptr() as usize).checked_sub(body.as_ptr() as usize)?;
            (at + value.get().len() <= body.len()).then(|| (at, at + value.get().len()))
        };
        let model = members.model.and_then(|model| {
            let name = serde_json::from_str::<String>(model.get()).ok()?;
            Some((name, place(model)?))
        });
        let stream = members.stream.is_some_and(|stream| stream.get() == "true");
        let number = |value: Option<&RawValue>| value.and_then(|value| value.get().parse().ok());
        let tells_no_usage = matches!(operation, Operation::ChatCompletions | Operation::Completions);
        let options = (stream && tells_no_usage)
            .then(|| match members.stream_options {
                None => {
                    let at = body.iter().position(|byte| *byte == b'{')? + 1;
                    Some((at, at, br#""stream_options":{"include_usage":true},"#.to_vec()))
                }
                Some(options) => {
                    let (from, to) = place(options)?;
                    Some((from, to, with_usage(options.get())?))
                }
            })
            .flatten();
        Self {
            max_tokens: number(members.max_completion_tokens)
                .or_else(|| number(members.max_output_tokens))
                .or_else(|| number(members.max_tokens)),
            stream,
            model_at: model.as_ref().map(|(_, place)| *place),
            model: model.map(|(name, _)| name),
            options,
        }
    }

    /// Usage is asked for on our account: the client must not see it.
    pub fn adds_usage(&self) -> bool {
        self.options.is_some()
    }

    /// The body to send: `body`, which was read, with the changes, and with `model` in place of its own.
    pub fn body(&self, body: &Bytes, model: Option<&str>) -> Bytes {
        let renamed = model.filter(|model| self.model.as_deref() != Some(*model));
        let renamed = renamed.zip(self.model_at).map(|(name, (from, to))| {
            let name = serde_json::Value::from(name).to_string();
            (from, to, name.into_bytes())
        });
        let mut edits: Vec<&(usize, usize, Vec<u8>)> = self.options.iter().chain(&renamed).collect();
        if edits.is_empty() {
            return body.clone();
        }
        edits.sort_by_key(|(from, ..)| *from);
        let more: usize = edits.iter().map(|(.., text)| text.len()).sum();
        let mut changed = BytesMut::with_capacity(body.len() + more);
        let mut copied = 0;
        for (from, to, text) in edits {
            changed.put_slice(body.get(copied..*from).unwrap_or_default());
            changed.put_slice(text);
            copied = *to;
        }
        changed.put_slice(body.get(copied..).unwrap_or_default());
        changed.freeze()
    }
}

/// `stream_options` with usage; none if it asks for it already, or is nothing that can be changed.
fn with_usage(options: &str) -> Option<Vec<u8>> {
    let mut options: Option<serde_json::Map<String, serde_json::Value>> =
        serde_json::from_str(options).ok()?;
    let options = options.get_or_insert_default();
    if options.get("include_usage") == Some(&serde_json::Value::Bool(true)) {
        return None;
    }
    options.insert("include_usage".to_owned(), true.into());
    serde_json::to_vec(options).ok()
}

/// A request's body, read as far as that was possible.
pub struct Content {
    /// The body.
    pub body: RequestBody,
    /// What a held body asks for.
    pub asked: Asked,
    /// Reads the body of a request that is not held as it passes; at its end its length is known, too.
    pub reader: Option<Arc<Mutex<JsonReader>>>,
    /// Length of a held body.
    pub bytes: u64,
    _room: Option<OwnedSemaphorePermit>,
}

impl Content {
    /// The model's name, as far as it is known by now.
    pub fn model(&self) -> Option<String> {
        let passing = || {
            self.reader
                .as_ref()
                .and_then(|reader| reader.lock().found().model.clone())
        };
        self.asked.model.clone().or_else(passing)
    }

    /// The body once more with `model` in place of its own; none where it is not held.
    pub fn again(&self, model: Option<&str>) -> Option<RequestBody> {
        match &self.body {
            RequestBody::Held(Some(bytes)) => Some(RequestBody::held(self.asked.body(bytes, model))),
            held => held.again(),
        }
    }
}

/// Room for bodies that are held, and how long a body may be.
pub struct Room {
    permits: Arc<Semaphore>,
    limit: BodyLimit,
}

impl Room {
    /// With nothing in it.
    pub(crate) fn new(limit: BodyLimit) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(HELD_AT_ONCE / PERMIT as usize)),
            limit,
        }
    }

    /// How long a body may be.
    pub(crate) fn limit(&self) -> BodyLimit {
        self.limit
    }

    /// Holds `body` where it is worth it and there is room, else passes it on.
    pub async fn take(
        &self,
        operation: Operation,
        headers: &HeaderMap,
        body: Incoming,
    ) -> Result<Content, Refusal> {
        let readable = is_json(headers) && !headers.contains_key(header::CONTENT_ENCODING);
        let most = if operation.uses_tokens() && readable {
            HELD
        } else {
            BUFFERED
        };
        let length = body.size_hint().exact();
        if length.is_some_and(|length| length > self.limit.bytes) {
            return Err(too_large(self.limit));
        }
        let room = match length {
            Some(length) if length > BUFFERED && length <= most => {
                let permits = u32::try_from(length.div_ceil(PERMIT)).unwrap_or(u32::MAX);
                self.permits.clone().try_acquire_many_owned(permits).ok()
            }
            _ => None,
        };
        let fits = length.is_some_and(|length| length <= BUFFERED) || room.is_some();
        if !fits {
            let is_read = readable || operation.uses_tokens();
            let reader = is_read.then(|| Arc::new(Mutex::new(JsonReader::default())));
            let body = match length {
                Some(_) => Bounded::known(body),
                None => Bounded::limited(body, self.limit.bytes),
            };
            return Ok(Content {
                body: match &reader {
                    Some(reader) => RequestBody::Read(body, reader.clone()),
                    None => RequestBody::Streamed(body),
                },
                asked: Asked::default(),
                reader,
                bytes: 0,
                _room: None,
            });
        }
        let limit = usize::try_from(length.unwrap_or_default()).unwrap_or(usize::MAX);
        let bytes = match length {
            Some(0) => Bytes::new(),
            _ => match Limited::new(body, limit).collect().await {
                Ok(whole) => whole.to_bytes(),
                Err(_) => {
                    return Err(Refusal::new(
                        StatusCode::BAD_REQUEST,
                        "BodyIncomplete",
                        "the request's body ended before the length that its head gives",
                    ));
                }
            },
        };
        Ok(Content {
            asked: if readable {
                Asked::read(operation, &bytes)
            } else {
                Asked::default()
            },
            bytes: bytes.len() as u64,
            body: RequestBody::held(bytes),
            reader: None,
            _room: room,
        })
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    media_type(headers).is_some_and(|media| media == "application/json" || media.ends_with("+json"))
}

/// The media type without parameters, in lower case.
pub fn media_type(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    Some(
        value
            .split(';')
            .next()
            .unwrap_or_default()
            .trim()
            .to_ascii_lowercase(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn asked(text: &str) -> Asked {
        Asked::read(Operation::ChatCompletions, text.as_bytes())
    }

    fn sent(text: &str, model: Option<&str>) -> String {
        let body = Bytes::copy_from_slice(text.as_bytes());
        String::from_utf8(asked(text).body(&body, model).to_vec()).unwrap()
    }

    #[test]
    fn usage_is_asked_for_only_where_a_stream_would_not_tell() {
        for (text, expected) in [
            (
                r#"{"stream":true}"#,
                r#"{"stream_options":{"include_usage":true},"stream":true}"#,
            ),
            (
                " { \"stream\": true}",
                " {\"stream_options\":{\"include_usage\":true}, \"stream\": true}",
            ),
            (
                r#"{"stream_options":null,"stream":true}"#,
                r#"{"stream_options":{"include_usage":true},"stream":true}"#,
            ),
            (
                r#"{"stream":true,"stream_options":{"include_usage":false,"x":1},"z":2}"#,
                r#"{"stream":true,"stream_options":{"include_usage":true,"x":1},"z":2}"#,
            ),
        ] {
            assert_eq!(sent(text, None), expected);
            assert!(asked(text).adds_usage());
        }
        for same in [
            r#"{"stream":false}"#,
            "{}",
            r#"{"stream":true,"stream_options":{"include_usage":true}}"#,
            r#"{"stream":true,"stream_options":7}"#,
            r#"{"stream":"yes"}"#,
            r#"{"stream":true,"stream":true}"#,
            "[1]",
            "",
            r#"{"stream":true"#,
        ] {
            assert_eq!(sent(same, None), same);
            assert!(!asked(same).adds_usage(), "{same}");
        }
        let responses = Asked::read(Operation::Responses, br#"{"stream":true}"#);
        assert!(responses.stream && !responses.adds_usage());
    }

    #[test]
    fn a_fallbacks_model_takes_the_models_place() {
        let text = r#"{"messages":[{"model":"no"}],"model":"a\"b","stream":true,"max_tokens":7}"#;
        assert_eq!(asked(text).model.as_deref(), Some("a\"b"));
        assert_eq!(asked(text).max_tokens, Some(7));
        let odd = asked(r#"{"model":"m","max_tokens":7.5,"stream":"yes","max_output_tokens":-1}"#);
        assert_eq!(
            (odd.model.as_deref(), odd.max_tokens, odd.stream),
            (Some("m"), None, false)
        );
        assert_eq!(
            sent(text, Some("c/\"d")),
            r#"{"stream_options":{"include_usage":true},"messages":[{"model":"no"}],"model":"c/\"d","stream":true,"max_tokens":7}"#
        );
        // Nothing to replace, and nothing to do.
        assert_eq!(sent(r#"{"x":1}"#, Some("m")), r#"{"x":1}"#);
        assert_eq!(sent(r#"{"model":"m"}"#, Some("m")), r#"{"model":"m"}"#);
    }

    proptest! {
        /// Whatever else is in it, the body stays JSON that differs in the two members only.
        #[test]
        fn only_the_two_members_change(
            before in "[a-z]{1,5}", text in "\\PC{0,30}", stream: bool,
            options in prop::option::of(prop::option::of(any::<bool>())), renamed in prop::option::of("\\PC{1,8}"),
        ) {
            let mut value = json!({"model": "m", "messages": [{"content": text}], "stream": stream});
            value[format!("_{before}")] = json!(text);
            if let Some(include) = options {
                value["stream_options"] = include.map_or(Value::Null, |include| json!({"include_usage": include}));
            }
            let mut after: Value = serde_json::from_str(&sent(&value.to_string(), renamed.as_deref())).unwrap();
            prop_assert_eq!(after["model"].as_str(), Some(renamed.as_deref().unwrap_or("m")));
            if stream {
                prop_assert_eq!(&after["stream_options"]["include_usage"], &json!(true));
            }
            for side in [&mut value, &mut after] {
                let members = side.as_object_mut().unwrap();
                members.remove("model");
                if stream {
                    members.remove("stream_options");
                }
            }
            prop_assert_eq!(value, after);
        }

        #[test]
        fn nothing_makes_it_panic(bytes: Vec<u8>) {
            let asked = Asked::read(Operation::ChatCompletions, &bytes);
            asked.body(&Bytes::from(bytes), Some("m"));
        }
    }
}
