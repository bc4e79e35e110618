//! Server-sent events on their way from a provider: read for usage, and without the event that only we asked for.
//!
//! An event is passed on as it comes, in the pieces in which it comes. Only a piece of an event that may still turn out
//! to be the usage of a stream ([`JsonReader::is_usage_chunk`]) is held until that is decided: by its `choices`, which
//! every provider writes before most of the text, at the latest by its end, and after 64 KiB in any case. Events that
//! come whole, as they nearly always do, are never held, never copied, and never put together with others.

use bytes::{Bytes, BytesMut};

use super::usage::{Found, JsonReader};

/// A longer event is none of the kind that is taken out.
const MAX_HELD: usize = 64 * 1024;

/// Reads the `data` of server-sent events as JSON texts. Lines may end in CR, LF or both.
#[derive(Debug, Default)]
pub struct EventReader {
    json: JsonReader,
    line: Line,
    /// The last byte was a CR: an LF after it belongs to the same line end.
    after_cr: bool,
    /// That CR has ended an event.
    ended_by_cr: bool,
    /// Events with data that have ended.
    events: u64,
    has_data: bool,
    filter: Option<Filter>,
}

/// Takes the usage chunk out.
#[derive(Debug, Default)]
struct Filter {
    /// The beginning of an event that is not decided on.
    held: BytesMut,
    /// The beginning of this event has been passed on.
    passing: bool,
    /// The last event was taken out.
    dropped: bool,
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

/// What one call passes on: the held piece, then ranges of the bytes that came.
struct Kept<'a> {
    bytes: &'a Bytes,
    /// Comes first.
    held: Option<BytesMut>,
    /// A range that was kept and may still grow.
    range: Option<(usize, usize)>,
    /// Filled as soon as there are two pieces.
    out: BytesMut,
}

impl<'a> Kept<'a> {
    fn keep(&mut self, from: usize, to: usize) {
        if let Some(held) = self.held.take().filter(|held| !held.is_empty()) {
            self.out.unsplit(held);
        }
        match &mut self.range {
            _ if from == to => {}
            Some((_, end)) if *end == from => *end = to,
            None => self.range = Some((from, to)),
            Some((start, end)) => {
                self.out
                    .extend_from_slice(self.bytes.get(*start..*end).unwrap_or_default());
                self.range = Some((from, to));
            }
        }
    }

    fn into_bytes(mut self) -> Bytes {
        let (from, to) = self.range.unwrap_or_default();
        if self.out.is_empty() {
            return self.bytes.slice(from..to);
        }
        self.out
            .extend_from_slice(self.bytes.get(from..to).unwrap_or_default());
        self.out.freeze()
    }
}

impl EventReader {
    const DATA: &'static [u8] = b"data:";

    /// A reader that takes the usage chunk out.
    pub fn without_usage() -> Self {
        Self {
            filter: Some(Filter::default()),
            ..Self::default()
        }
    }

    /// Takes something out, so that the length is not known before.
    pub fn filters(&self) -> bool {
        self.filter.is_some()
    }

    /// What was found so far.
    pub fn found(&self) -> &Found {
        self.json.found()
    }

    /// Events with data so far; each has about one token.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// Reads on, and gives what is passed on.
    pub fn pass(&mut self, bytes: Bytes) -> Bytes {
        let Some(mut filter) = self.filter.take() else {
            self.read(&bytes, |_, _| {});
            return bytes;
        };
        let mut kept = Kept {
            bytes: &bytes,
            held: Some(std::mem::take(&mut filter.held)),
            range: None,
            out: BytesMut::new(),
        };
        // Up to here everything is decided.
        let mut from = 0;
        self.read(&bytes, |end, at| match end {
            EventEnd::Blank { is_usage } => {
                filter.dropped = is_usage && !filter.passing;
                if filter.dropped {
                    kept.held = None;
                } else {
                    kept.keep(from, at);
                }
                filter.passing = false;
                from = at;
            }
            EventEnd::LineFeed => {
                if !filter.dropped {
                    kept.keep(from, at);
                }
                from = at;
            }
        });
        let waiting = kept.held.as_ref().map_or(0, BytesMut::len) + (bytes.len() - from);
        filter.passing |= self.json.has_choices() || waiting > MAX_HELD;
        if filter.passing {
            kept.keep(from, bytes.len());
        } else {
            filter.held = kept.held.take().unwrap_or_default();
            filter
                .held
                .extend_from_slice(bytes.get(from..).unwrap_or_default());
        }
        self.filter = Some(filter);
        kept.into_bytes()
    }

    /// What is still held when the stream has ended.
    pub fn rest(&mut self) -> Bytes {
        let filter = self.filter.as_mut();
        filter.map_or_else(Bytes::new, |filter| std::mem::take(&mut filter.held).freeze())
    }

    /// Walks over `bytes`; `ended` is told after which byte an event is over.
    fn read(&mut self, bytes: &[u8], mut ended: impl FnMut(EventEnd, usize)) {
        let mut rest = bytes;
        while let Some((&byte, after)) = rest.split_first() {
            let at = bytes.len() - after.len();
            let after_cr = std::mem::replace(&mut self.after_cr, byte == b'\r');
            let ended_by_cr = std::mem::take(&mut self.ended_by_cr);
            if byte == b'\n' && after_cr {
                if ended_by_cr {
                    ended(EventEnd::LineFeed, at);
                }
                rest = after;
                continue;
            }
            if byte == b'\n' || byte == b'\r' {
                match self.line {
                    Line::Field(0) => {
                        let is_usage = self.json.is_usage_chunk();
                        ended(EventEnd::Blank { is_usage }, at);
                        self.events += u64::from(std::mem::take(&mut self.has_data));
                        self.json.restart();
                        self.ended_by_cr = byte == b'\r';
                    }
                    Line::Data => self.json.feed(b"\n"),
                    Line::Field(_) | Line::Other => {}
                }
                self.line = Line::default();
                rest = after;
                continue;
            }
            match self.line {
                Line::Field(matched) => {
                    self.line = match Self::DATA.get(matched) {
                        Some(expected) if *expected == byte && matched + 1 == Self::DATA.len() => {
                            self.has_data = true;
                            Line::Data
                        }
                        Some(expected) if *expected == byte => Line::Field(matched + 1),
                        _ => Line::Other,
                    };
                    rest = after;
                }
                Line::Data | Line::Other => {
                    let end = memchr::memchr2(b'\n', b'\r', rest);
                    let (line, after) = rest.split_at(end.unwrap_or(rest.len()));
                    if self.line == Line::Data {
                        self.json.feed(line);
                    }
                    self.after_cr = false;
                    rest = after;
                }
            }
        }
    }
}

/// Where an event is over.
enum EventEnd {
    /// At an empty line.
    Blank {
        /// It was a usage chunk.
        is_usage: bool,
    },
    /// The LF of the empty line whose CR has ended the event.
    LineFeed,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const USAGE: &str = r#"{"id":"x","choices":[],"usage":{"prompt_tokens":11,"completion_tokens":22,"prompt_tokens_details":{"cached_tokens":3}}}"#;

    fn stream(end: &str) -> (String, String) {
        let filter = r#"{"choices":[],"prompt_filter_results":[{"usage":{"a":1}}],"usage":null}"#;
        let chunk = r#"{"id":"x","choices":[{"index":0,"delta":{"content":"\"choices\":[],\"usage\":{"}}],"usage":null}"#;
        let last = r#"{"id":"x","choices":[{"index":0,"finish_reason":"stop"}],"usage":{"prompt_tokens":1}}"#;
        let event = |data: &str| format!("data: {data}{end}{end}");
        let before = format!(": ping{end}{end}{}{}{}", event(filter), event(chunk), event(last));
        let after = event("[DONE]");
        (format!("{before}{}{after}", event(USAGE)), before + &after)
    }

    fn pass(reader: &mut EventReader, pieces: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        for piece in pieces {
            out.extend_from_slice(&reader.pass(Bytes::copy_from_slice(piece)));
        }
        out.extend_from_slice(&reader.rest());
        out
    }

    #[test]
    fn the_usage_chunk_is_read_and_taken_out_wherever_the_stream_is_cut() {
        for end in ["\n", "\r\n", "\r"] {
            let (whole, expected) = stream(end);
            let bytes = whole.as_bytes();
            for first in 0..bytes.len() {
                let mut reader = EventReader::without_usage();
                let (one, two) = bytes.split_at(first);
                let out = pass(&mut reader, &[one, two]);
                assert_eq!(String::from_utf8_lossy(&out), expected, "{end:?} cut at {first}");
                let usage = reader.found().usage().unwrap();
                assert_eq!((usage.input, usage.cached, usage.output), (11, 3, 22));
            }
            let mut reader = EventReader::without_usage();
            let bytewise: Vec<&[u8]> = bytes.chunks(1).collect();
            assert_eq!(
                String::from_utf8_lossy(&pass(&mut reader, &bytewise)),
                expected,
                "{end:?}"
            );
        }
    }

    #[test]
    fn whole_events_pass_at_once_and_uncopied() {
        let mut reader = EventReader::without_usage();
        for text in [
            "data: {\"choices\":[{}]}\n\n",
            ": ping\n\n",
            "data: [DONE]\r\n\r\n",
            "\n",
        ] {
            let bytes = Bytes::from(text);
            let passed = reader.pass(bytes.clone());
            assert_eq!(passed.as_ptr(), bytes.as_ptr(), "{text:?}");
            assert_eq!(passed, bytes);
        }
        assert_eq!(reader.pass(Bytes::from(format!("data: {USAGE}\n\n"))), "");
        assert_eq!(reader.events(), 3);
    }

    #[test]
    fn an_event_that_is_decided_passes_before_its_end() {
        let mut reader = EventReader::without_usage();
        assert_eq!(
            reader.pass(Bytes::from_static(b"data: {\"id\":1,\"choices\":[")),
            ""
        );
        let passed = reader.pass(Bytes::from_static(b"{\"delta\":{\"content\":\"a"));
        assert_eq!(passed, "data: {\"id\":1,\"choices\":[{\"delta\":{\"content\":\"a");
        assert_eq!(reader.pass(Bytes::from_static(b"b")), "b");
        assert_eq!(reader.pass(Bytes::from_static(b"\"}}]}\n\n")), "\"}}]}\n\n");
        let long = format!("data: {}", "x".repeat(MAX_HELD));
        assert_eq!(reader.pass(Bytes::from(long.clone())), long);
    }

    #[test]
    fn without_a_filter_everything_passes() {
        let (whole, _) = stream("\n");
        let mut reader = EventReader::default();
        assert_eq!(reader.pass(Bytes::from(whole.clone())), whole);
        assert_eq!(reader.found().usage().map(|usage| usage.output), Some(22));
    }

    proptest! {
        #[test]
        fn pieces_of_any_size_give_the_same(cuts in prop::collection::vec(1usize..60, 1..60), end in 0usize..3) {
            let (whole, expected) = stream(["\n", "\r\n", "\r"][end]);
            let mut reader = EventReader::without_usage();
            let mut rest = whole.as_bytes();
            let mut pieces = Vec::new();
            for cut in cuts {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                pieces.push(piece);
                rest = after;
            }
            pieces.push(rest);
            prop_assert_eq!(String::from_utf8(pass(&mut reader, &pieces)).unwrap(), expected);
        }

        /// Nothing is lost of what is no usage chunk, and nothing is in another order.
        #[test]
        fn nonsense_passes_unchanged(pieces in prop::collection::vec("[da:t{}\\[\\]\",chouseg \r\n]{0,20}", 0..20)) {
            let pieces: Vec<&[u8]> = pieces.iter().map(String::as_bytes).collect();
            let mut reader = EventReader::without_usage();
            let out = pass(&mut reader, &pieces);
            prop_assert_eq!(out, pieces.concat());
        }

        #[test]
        fn nothing_makes_it_panic(pieces: Vec<Vec<u8>>) {
            let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            pass(&mut EventReader::without_usage(), &pieces);
        }
    }
}
