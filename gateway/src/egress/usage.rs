//! Model names and token counts, read from bodies while they pass.
//!
//! Bodies may be long (a context of megabytes, a stream of hours) and are never held for this: a reader walks the bytes
//! once, keeps the path it is on (four keys), and captures only what it was looking for:
//!
//! | who | where | what |
//! |---|---|---|
//! | Chat Completions, Embeddings | `usage` | `prompt_tokens`, `completion_tokens`, `prompt_tokens_details.cached_tokens` |
//! | Responses | `usage`, in events `response.usage` | `input_tokens`, `output_tokens`, `input_tokens_details.cached_tokens` |
//! | DeepSeek | `usage` | `prompt_cache_hit_tokens` |
//! | Anthropic Messages | `usage`, in events `message.usage` and `usage` | `input_tokens`, `cache_read_input_tokens`, `cache_creation_input_tokens`, `output_tokens` |
//!
//! and `model` beside or inside of those. Anthropic's three input counts exclude each other, everybody else's cached
//! tokens are among the input.
//!
//! It is not a validator: what is no JSON gives no counts. In a stream the last counts win, because providers that report
//! usage with every event report totals.

#[cfg(test)]
mod tests;

use flotilla_core::price::TokenUsage;

/// Longest model name that is kept; longer ones are as good as none.
const MAX_NAME: usize = 253;
/// Levels whose keys are kept.
const LEVELS: usize = 4;
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
    /// Tokens among the input that were read from a cache.
    pub cached_tokens: Option<u64>,
    /// Tokens beside the input that were read from a cache.
    pub cache_read_tokens: Option<u64>,
    /// Tokens beside the input that were written to a cache.
    pub cache_creation_tokens: Option<u64>,
}

impl Found {
    /// The tokens of the call; none if nothing was said of them.
    pub fn usage(&self) -> Option<TokenUsage> {
        let (input, output) = (self.input_tokens, self.output_tokens);
        if input.is_none() && output.is_none() {
            return None;
        }
        let (input, output) = (input.unwrap_or(0), output.unwrap_or(0));
        Some(match (self.cache_read_tokens, self.cache_creation_tokens) {
            (None, None) => TokenUsage {
                input,
                cached: self.cached_tokens.unwrap_or(0),
                cache_write: 0,
                output,
            },
            (read, creation) => {
                TokenUsage::from_disjoint(input, read.unwrap_or(0), creation.unwrap_or(0), output)
            }
        })
    }
}

/// A key that may be on the way to something of interest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Key {
    Model,
    /// `response` or `message`: the answer as an event tells of it.
    Answer,
    Usage,
    Input,
    Output,
    Details,
    Cached,
    CacheHit,
    CacheRead,
    CacheCreation,
    Choices,
    #[default]
    Other,
}

impl Key {
    fn of(name: &[u8]) -> Self {
        match name {
            b"model" => Self::Model,
            b"response" | b"message" => Self::Answer,
            b"usage" => Self::Usage,
            b"prompt_tokens" | b"input_tokens" => Self::Input,
            b"completion_tokens" | b"output_tokens" => Self::Output,
            b"prompt_tokens_details" | b"input_tokens_details" => Self::Details,
            b"cached_tokens" => Self::Cached,
            b"prompt_cache_hit_tokens" => Self::CacheHit,
            b"cache_read_input_tokens" => Self::CacheRead,
            b"cache_creation_input_tokens" => Self::CacheCreation,
            b"choices" => Self::Choices,
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
    /// Keys of levels 1 to 4.
    path: [Key; LEVELS],
    /// Bytes of the key, name or number being read, if they may be of interest.
    capture: Vec<u8>,
    /// The capture is too long, or holds an escape that is not resolved.
    spoilt: bool,
    found: Found,
    choices: Choices,
    has_usage: bool,
    bytes: u64,
}

/// What this text says of `choices`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Choices {
    /// Nothing so far.
    #[default]
    Unknown,
    /// They are an array, with nothing in it so far.
    Empty,
    /// There are some.
    Some,
}

impl JsonReader {
    /// What was found so far.
    pub fn found(&self) -> &Found {
        &self.found
    }

    /// Length of this text so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// This text has an answer's choices.
    pub fn has_choices(&self) -> bool {
        self.choices == Choices::Some
    }

    /// This text is the chunk of a chat completion's stream that has the usage and no choices.
    pub fn is_usage_chunk(&self) -> bool {
        self.choices == Choices::Empty && self.has_usage
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
        self.bytes = self.bytes.saturating_add(bytes.len() as u64);
        let mut rest = bytes;
        while let Some((&byte, after)) = rest.split_first() {
            // The text of answers is most of their bytes.
            if self.at == (At::Text { escaped: false }) && (self.spoilt || self.depth as usize > LEVELS) {
                let end = memchr::memchr2(b'"', b'\\', rest).unwrap_or(rest.len());
                if end > 0 {
                    (_, rest) = rest.split_at(end);
                    continue;
                }
            }
            rest = after;
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
        match (self.depth, self.path.first()) {
            (1, Some(Key::Choices)) if self.in_object() && !object => self.choices = Choices::Empty,
            (1, Some(Key::Usage)) if self.in_object() => self.has_usage |= object,
            (2, Some(Key::Choices)) => self.choices = Choices::Some,
            _ => {}
        }
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
        if self.spoilt || self.depth as usize > LEVELS {
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
        let found = &mut self.found;
        let place = match place {
            Key::Input => &mut found.input_tokens,
            Key::Cached => &mut found.cached_tokens,
            Key::CacheRead => &mut found.cache_read_tokens,
            Key::CacheCreation => &mut found.cache_creation_tokens,
            _ => &mut found.output_tokens,
        };
        *place = count.or(*place);
    }

    fn is_model(&self) -> bool {
        self.in_object()
            && matches!(
                (self.depth, self.path),
                (1, [Key::Model, ..]) | (2, [Key::Answer, Key::Model, ..])
            )
    }

    fn token_count(&self) -> Option<Key> {
        let key = match (self.depth, self.path) {
            (2, [Key::Usage, key, ..]) | (3, [Key::Answer, Key::Usage, key, _]) => key,
            (3, [Key::Usage, Key::Details, Key::Cached, _])
            | (4, [Key::Answer, Key::Usage, Key::Details, Key::Cached]) => {
                return self.in_object().then_some(Key::Cached);
            }
            _ => return None,
        };
        if !self.in_object() {
            return None;
        }
        match key {
            Key::Input | Key::Output | Key::CacheRead | Key::CacheCreation => Some(key),
            Key::CacheHit => Some(Key::Cached),
            _ => None,
        }
    }
}
