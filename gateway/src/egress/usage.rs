//! Model names and token counts, read from bodies while they pass.
//!
//! Bodies may be long (a context of megabytes, a stream of hours) and are never held for this: a reader walks the bytes
//! once, keeps the path it is on (three keys), and captures only what it was looking for:
//!
//! - `model` and `response.model`;
//! - `usage.…` and `response.usage.…`: `prompt_tokens` or `input_tokens`, `completion_tokens` or `output_tokens`
//!   (Chat Completions and Embeddings, and Responses).
//!
//! It is not a validator: what is no JSON gives no counts. In a stream the last counts win, because providers that report
//! usage with every event report totals.

/// Longest model name that is kept; longer ones are as good as none.
const MAX_NAME: usize = 253;
/// Levels of nesting that are told apart; what is deeper is skipped.
const MAX_DEPTH: u32 = 120;
/// Token counts above this are nonsense.
const MAX_TOKENS: u64 = 1_000_000_000_000;

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The model's name.
    pub model: Option<String>,
    /// Input tokens.
    pub input_tokens: Option<u64>,
    /// Output tokens.
    pub output_tokens: Option<u64>,
}

/// A key that may be on the way to something of interest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Key {
    Model,
    Response,
    Usage,
    Input,
    Output,
    #[default]
    Other,
}

impl Key {
    fn of(name: &[u8]) -> Self {
        match name {
            b"model" => Self::Model,
            b"response" => Self::Response,
            b"usage" => Self::Usage,
            b"prompt_tokens" | b"input_tokens" => Self::Input,
            b"completion_tokens" | b"output_tokens" => Self::Output,
            _ => Self::Other,
        }
    }
}

/// Where in a text the reader is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    /// Before a value, a key, or a closing bracket.
    #[default]
    Between,
    /// In a string, after a backslash if `escaped`.
    Text { escaped: bool },
    /// In a number.
    Number,
    /// After something that cannot be JSON: nothing more is read.
    Lost,
}

/// Reads one JSON text that comes in pieces.
#[derive(Clone, Debug, Default)]
pub struct JsonReader {
    at: At,
    depth: u32,
    /// Bit `n` says that level `n + 1` is an object.
    objects: u128,
    /// A key is expected next on this level, not a value.
    expects_key: bool,
    /// Keys of levels 1 to 3.
    path: [Key; 3],
    /// Bytes of the key, name or number being read, if they may be of interest.
    capture: Vec<u8>,
    /// The capture is too long, or holds an escape that is not resolved.
    spoilt: bool,
    found: Found,
}

impl JsonReader {
    /// What was found so far.
    pub fn found(&self) -> &Found {
        &self.found
    }

    /// Starts a new text; what was found stays.
    pub fn restart(&mut self) {
        let (found, mut capture) = (std::mem::take(&mut self.found), std::mem::take(&mut self.capture));
        capture.clear();
        *self = Self {
            found,
            capture,
            ..Self::default()
        };
    }

    /// Reads on.
    pub fn feed(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            match self.at {
                At::Between => self.between(byte),
                At::Text { escaped: true } => {
                    self.keep_escaped(byte);
                    self.at = At::Text { escaped: false };
                }
                At::Text { escaped: false } => match byte {
                    b'\\' => self.at = At::Text { escaped: true },
                    b'"' => self.text_ended(),
                    _ => self.keep(byte),
                },
                At::Number => match byte {
                    b'0'..=b'9' => self.keep(byte),
                    b'.' | b'e' | b'E' | b'+' | b'-' => self.spoilt = true,
                    _ => {
                        self.number_ended();
                        self.between(byte);
                    }
                },
                At::Lost => return,
            }
        }
    }

    fn between(&mut self, byte: u8) {
        match byte {
            b'{' => self.open(true),
            b'[' => self.open(false),
            b'}' | b']' => self.close(),
            b'"' => self.begin(At::Text { escaped: false }),
            b'0'..=b'9' | b'-' => {
                self.begin(At::Number);
                if byte == b'-' {
                    self.spoilt = true;
                } else {
                    self.keep(byte);
                }
            }
            b',' => self.expects_key = self.in_object(),
            b':' => self.expects_key = false,
            _ => {}
        }
    }

    fn in_object(&self) -> bool {
        self.depth > 0 && self.depth <= MAX_DEPTH && self.objects >> (self.depth - 1) & 1 == 1
    }

    fn open(&mut self, object: bool) {
        self.depth += 1;
        if self.depth <= MAX_DEPTH {
            let bit = 1u128 << (self.depth - 1);
            self.objects = if object {
                self.objects | bit
            } else {
                self.objects & !bit
            };
        }
        if let Some(key) = self.path.get_mut(self.depth as usize - 1) {
            *key = Key::Other;
        }
        self.expects_key = object;
    }

    fn close(&mut self) {
        match self.depth.checked_sub(1) {
            Some(depth) => self.depth = depth,
            None => self.at = At::Lost,
        }
        self.expects_key = false;
    }

    fn begin(&mut self, at: At) {
        self.at = at;
        self.capture.clear();
        self.spoilt = false;
    }

    fn keep(&mut self, byte: u8) {
        if self.spoilt || self.depth > 3 {
            return;
        }
        if self.capture.len() == MAX_NAME {
            self.spoilt = true;
        } else {
            self.capture.push(byte);
        }
    }

    fn keep_escaped(&mut self, byte: u8) {
        match byte {
            b'"' | b'\\' | b'/' => self.keep(byte),
            _ => self.spoilt = true,
        }
    }

    fn text_ended(&mut self) {
        self.at = At::Between;
        if self.expects_key {
            let key = if self.spoilt {
                Key::Other
            } else {
                Key::of(&self.capture)
            };
            if let Some(place) = self.path.get_mut(self.depth as usize - 1) {
                *place = key;
            }
        } else if self.is_model()
            && !self.spoilt
            && let Ok(name) = std::str::from_utf8(&self.capture)
        {
            self.found.model = Some(name.to_owned());
        }
    }

    fn number_ended(&mut self) {
        self.at = At::Between;
        let Some(place) = self.token_count() else { return };
        let Ok(text) = std::str::from_utf8(&self.capture) else {
            return;
        };
        let count = if self.spoilt {
            None
        } else {
            text.parse().ok().filter(|count| *count <= MAX_TOKENS)
        };
        match place {
            Key::Input => self.found.input_tokens = count.or(self.found.input_tokens),
            _ => self.found.output_tokens = count.or(self.found.output_tokens),
        }
    }

    fn is_model(&self) -> bool {
        self.in_object()
            && matches!(
                (self.depth, self.path),
                (1, [Key::Model, ..]) | (2, [Key::Response, Key::Model, _])
            )
    }

    fn token_count(&self) -> Option<Key> {
        let key = match (self.depth, self.path) {
            (2, [Key::Usage, key, _]) => key,
            (3, [Key::Response, Key::Usage, key]) => key,
            _ => return None,
        };
        (self.in_object() && matches!(key, Key::Input | Key::Output)).then_some(key)
    }
}

/// Reads the `data` of server-sent events as JSON texts. Lines may end in CR, LF or both.
#[derive(Clone, Debug, Default)]
pub struct EventReader {
    json: JsonReader,
    line: Line,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    /// This many bytes of `data:` have come.
    Field(usize),
    Data,
    Other,
}

impl Default for Line {
    fn default() -> Self {
        Self::Field(0)
    }
}

impl EventReader {
    const DATA: &'static [u8] = b"data:";

    /// What was found so far.
    pub fn found(&self) -> &Found {
        self.json.found()
    }

    /// Reads on.
    pub fn feed(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while let Some((&byte, after)) = rest.split_first() {
            if byte == b'\n' || byte == b'\r' {
                self.line_ended();
                rest = after;
                continue;
            }
            match self.line {
                Line::Field(matched) => {
                    self.line = match Self::DATA.get(matched) {
                        Some(expected) if *expected == byte && matched + 1 == Self::DATA.len() => Line::Data,
                        Some(expected) if *expected == byte => Line::Field(matched + 1),
                        _ => Line::Other,
                    };
                    rest = after;
                }
                Line::Data | Line::Other => {
                    let end = rest
                        .iter()
                        .position(|byte| *byte == b'\n' || *byte == b'\r')
                        .unwrap_or(rest.len());
                    let (line, after) = rest.split_at(end);
                    if self.line == Line::Data {
                        self.json.feed(line);
                    }
                    rest = after;
                }
            }
        }
    }

    fn line_ended(&mut self) {
        match self.line {
            // An empty line ends the event. Between CR and LF there is one too, which ends it early only where one JSON
            // text is spread over lines that end in both: no provider does that.
            Line::Field(0) => self.json.restart(),
            Line::Data => self.json.feed(b"\n"),
            Line::Field(_) | Line::Other => {}
        }
        self.line = Line::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn json(text: &str) -> Found {
        let mut reader = JsonReader::default();
        reader.feed(text.as_bytes());
        reader.found().clone()
    }

    fn found(model: &str, input: u64, output: u64) -> Found {
        Found {
            model: Some(model.into()),
            input_tokens: Some(input),
            output_tokens: Some(output),
        }
    }

    const CHAT: &str = r#"{"id":"x","model":"gpt-5-mini","choices":[{"message":{"content":"\"usage\":{\"prompt_tokens\":9}","model":"no"}}],
        "usage":{"prompt_tokens":12,"completion_tokens":34,"total_tokens":46,"prompt_tokens_details":{"input_tokens":7}}}"#;
    const RESPONSES: &str = r#"{"type":"response.completed","response":{"model":"m","usage":{"input_tokens":5,"output_tokens":6}}}"#;
    const STREAM: &str = "event: x\ndata: {\"model\":\"m\",\"usage\":null}\n\n: ping\r\n\r\ndata:{\"model\":\"m\",\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2}}\n\ndata: [DONE]\n\n";

    #[test]
    fn counts_are_found_where_they_belong() {
        assert_eq!(json(CHAT), found("gpt-5-mini", 12, 34));
        assert_eq!(json(RESPONSES), found("m", 5, 6));
        for text in [
            r#"[{"model":"m","usage":{"prompt_tokens":1}}]"#,
            r#"{"x":{"model":"m","usage":{"prompt_tokens":1}}}"#,
            r#"{"usage":[1,2],"usage":{"prompt_tokens":1.5,"completion_tokens":-3}}"#,
            r#"}}{"model":"m"}"#,
            "",
        ] {
            assert_eq!(json(text), Found::default(), "{text}");
        }
    }

    #[test]
    fn deep_nesting_and_long_names_cost_nothing() {
        let deep = format!(
            "{{\"a\":{}{},\"model\":\"m\"}}",
            "[".repeat(5000),
            "]".repeat(5000)
        );
        assert_eq!(json(&deep).model.as_deref(), Some("m"));
        assert_eq!(
            json(&format!("{{\"model\":\"{}\"}}", "x".repeat(300))).model,
            None
        );
    }

    #[test]
    fn the_last_counts_of_a_stream_win() {
        let mut reader = EventReader::default();
        reader.feed(STREAM.as_bytes());
        assert_eq!(*reader.found(), found("m", 1, 2));
    }

    proptest! {
        #[test]
        fn pieces_of_any_size_give_the_same(text in prop_oneof![Just(CHAT), Just(RESPONSES), Just(STREAM)], cut in 1usize..40) {
            let (mut whole, mut pieces) = (EventReader::default(), EventReader::default());
            let (mut whole_json, mut pieces_json) = (JsonReader::default(), JsonReader::default());
            whole.feed(text.as_bytes());
            whole_json.feed(text.as_bytes());
            for piece in text.as_bytes().chunks(cut) {
                pieces.feed(piece);
                pieces_json.feed(piece);
            }
            prop_assert_eq!(whole.found(), pieces.found());
            prop_assert_eq!(whole_json.found(), pieces_json.found());
        }

        #[test]
        fn nothing_makes_it_panic(bytes: Vec<u8>) {
            let mut events = EventReader::default();
            let mut json = JsonReader::default();
            events.feed(&bytes);
            json.feed(&bytes);
        }

        #[test]
        fn json_like_nonsense_does_not_either(text in r#"[{}\[\]",:\\a0-9mdeluso ]{0,200}"#) {
            json(&text);
        }
    }
}
