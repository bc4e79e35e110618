//! What an agent asks a provider for, and the few changes that its body may need.
//!
//! Changes are made to the bytes, in place: nothing that is not understood is lost or put into another order.
//!
//! * Chat completions tell the usage of a stream only when asked to, so `stream_options.include_usage` is set; what the
//!   client did not ask for is taken out of the answer again ([`super::events`]).
//! * A fallback's model takes the place of the model.

use std::fmt;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, Method, header};
use percent_encoding::percent_decode_str;
use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

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
#[derive(Default)]
struct Members<'a> {
    model: Option<&'a RawValue>,
    stream: Option<&'a RawValue>,
    stream_options: Option<&'a RawValue>,
    max_tokens: Option<&'a RawValue>,
    max_completion_tokens: Option<&'a RawValue>,
    max_output_tokens: Option<&'a RawValue>,
    /// How often a model is named, in whatever case.
    models: usize,
}

/// The key of a member.
enum Key {
    Model,
    /// In another case.
    AlmostModel,
    Stream,
    StreamOptions,
    MaxTokens,
    MaxCompletionTokens,
    MaxOutputTokens,
    Other,
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(key: D) -> Result<Self, D::Error> {
        struct OfText;
        impl Visitor<'_> for OfText {
            type Value = Key;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }

            fn visit_str<E>(self, key: &str) -> Result<Key, E> {
                Ok(match key {
                    "model" => Key::Model,
                    "stream" => Key::Stream,
                    "stream_options" => Key::StreamOptions,
                    "max_tokens" => Key::MaxTokens,
                    "max_completion_tokens" => Key::MaxCompletionTokens,
                    "max_output_tokens" => Key::MaxOutputTokens,
                    _ if key.eq_ignore_ascii_case("model") => Key::AlmostModel,
                    _ => Key::Other,
                })
            }
        }
        key.deserialize_str(OfText)
    }
}

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(body: D) -> Result<Self, D::Error> {
        struct OfObject;
        impl<'de> Visitor<'de> for OfObject {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Members::default();
                while let Some(key) = map.next_key()? {
                    members.models += usize::from(matches!(key, Key::Model | Key::AlmostModel));
                    let place = match key {
                        Key::Model => &mut members.model,
                        Key::Stream => &mut members.stream,
                        Key::StreamOptions => &mut members.stream_options,
                        Key::MaxTokens => &mut members.max_tokens,
                        Key::MaxCompletionTokens => &mut members.max_completion_tokens,
                        Key::MaxOutputTokens => &mut members.max_output_tokens,
                        Key::AlmostModel | Key::Other => {
                            map.next_value::<IgnoredAny>()?;
                            continue;
                        }
                    };
                    if place.replace(map.next_value()?).is_some() {
                        return Err(A::Error::custom("a member comes twice"));
                    }
                }
                Ok(members)
            }
        }
        body.deserialize_map(OfObject)
    }
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
    /// It is an object that names one model or none: of several some servers take the last, and `Model` for `model`.
    pub is_plain: bool,
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
                    let at = memchr::memchr(b'{', body)? + 1;
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
            is_plain: members.models == usize::from(model.is_some()),
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

    #[test]
    fn a_model_is_named_once_or_never() {
        for (text, is_plain) in [
            (
                r#"{"model":"a","x":{"model":"b"},"messages":[{"model":"c"}]}"#,
                true,
            ),
            (r#"{"Model":"a"}"#, false),
            (r#"{"model":"a","Model":"b"}"#, false),
            (r#"{"model":"a","\u006dodel":"b"}"#, false),
            (r#"{"model":"a","model":"b"}"#, false),
            (r#"{"model":7}"#, false),
            (r#"{"model":null}"#, false),
            ("{}", true),
            ("[]", false),
            ("", false),
            (r#"{"model":"a"} {"model":"b"}"#, false),
            (r#"{"model":"a""#, false),
            ("\u{feff}{}", false),
        ] {
            assert_eq!(asked(text).is_plain, is_plain, "{text}");
        }
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
