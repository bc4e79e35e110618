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
use serde::de::{IgnoredAny, MapAccess, Visitor};
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

/// How often an object in JSON names a model, in whatever case: some servers take `Model` for `model`, and of several the
/// last. None where it is no object.
pub fn models_named(body: &[u8]) -> Option<usize> {
    struct IsModel(bool);
    struct Key;
    impl Visitor<'_> for Key {
        type Value = IsModel;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a key")
        }

        fn visit_str<E>(self, key: &str) -> Result<IsModel, E> {
            Ok(IsModel(key.eq_ignore_ascii_case("model")))
        }
    }
    impl<'de> Deserialize<'de> for IsModel {
        fn deserialize<D: Deserializer<'de>>(key: D) -> Result<Self, D::Error> {
            key.deserialize_str(Key)
        }
    }
    struct Object;
    impl<'de> Visitor<'de> for Object {
        type Value = usize;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<usize, A::Error> {
            let mut named = 0;
            while let Some((IsModel(is_model), IgnoredAny)) = map.next_entry()? {
                named += usize::from(is_model);
            }
            Ok(named)
        }
    }
    let mut text = serde_json::Deserializer::from_slice(body);
    let named = text.deserialize_map(Object).ok()?;
    text.end().ok()?;
    Some(named)
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
    fn a_model_is_named_once_or_by_nobody_knows_whom() {
        for (text, named) in [
            (
                r#"{"model":"a","x":{"model":"b"},"messages":[{"model":"c"}]}"#,
                Some(1),
            ),
            (r#"{"model":"a","Model":"b"}"#, Some(2)),
            (r#"{"model":"a","\u006dodel":"b"}"#, Some(2)),
            ("{}", Some(0)),
            ("[]", None),
            (r#"{"model":"a"} {"model":"b"}"#, None),
            (r#"{"model":"a""#, None),
            ("\u{feff}{}", None),
        ] {
            assert_eq!(models_named(text.as_bytes()), named, "{text}");
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
