//! Server-sent events (WHATWG HTML, section 9.2), incrementally.
//!
//! Chunks end anywhere: inside a line, between CR and LF, inside a UTF-8 sequence. The parser keeps what is
//! unfinished and hands out the `data` of each event; other fields are of no use here.

/// The longest event that is kept; a longer one is [`TooLong`].
const MAX_EVENT_BYTES: usize = 4 << 20;

/// An event is longer than 4 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an event is longer than {MAX_EVENT_BYTES} bytes")]
pub struct TooLong;

/// The state between two chunks.
#[derive(Debug, Default)]
pub struct Parser {
    line: Vec<u8>,
    data: Option<Vec<u8>>,
    after_cr: bool,
    started: bool,
}

impl Parser {
    /// Takes the next chunk in and calls `event` with the data of each event that it completes.
    ///
    /// # Errors
    /// If an event is longer than 4 MiB.
    pub fn feed(&mut self, mut chunk: &[u8], mut event: impl FnMut(&str)) -> Result<(), TooLong> {
        while !chunk.is_empty() {
            if std::mem::take(&mut self.after_cr) && chunk[0] == b'\n' {
                chunk = &chunk[1..];
                continue;
            }
            let Some(end) = chunk.iter().position(|byte| matches!(byte, b'\n' | b'\r')) else {
                self.line.extend_from_slice(chunk);
                return self.check_length();
            };
            self.line.extend_from_slice(&chunk[..end]);
            self.after_cr = chunk[end] == b'\r';
            chunk = &chunk[end + 1..];
            self.check_length()?;
            self.end_line(&mut event);
        }
        Ok(())
    }

    fn check_length(&self) -> Result<(), TooLong> {
        let length = self.line.len() + self.data.as_ref().map_or(0, Vec::len);
        if length > MAX_EVENT_BYTES {
            Err(TooLong)
        } else {
            Ok(())
        }
    }

    fn end_line(&mut self, event: &mut impl FnMut(&str)) {
        let mut line = self.line.as_slice();
        if !std::mem::replace(&mut self.started, true) {
            line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        }
        if line.is_empty() {
            if let Some(data) = self.data.take() {
                event(&String::from_utf8_lossy(&data));
            }
        } else if let Some(value) = line.strip_prefix(b"data") {
            let value = match value.strip_prefix(b":") {
                Some(value) => Some(value.strip_prefix(b" ").unwrap_or(value)),
                None => value.is_empty().then_some(value),
            };
            if let Some(value) = value {
                match &mut self.data {
                    Some(data) => {
                        data.push(b'\n');
                        data.extend_from_slice(value);
                    }
                    None => self.data = Some(value.to_vec()),
                }
            }
        }
        self.line.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn events(chunks: &[&[u8]]) -> Vec<String> {
        let mut parser = Parser::default();
        let mut events = Vec::new();
        for chunk in chunks {
            parser.feed(chunk, |data| events.push(data.to_owned())).unwrap();
        }
        events
    }

    #[test]
    fn reads_the_standards_cases() {
        for (stream, expected) in [
            ("data: a\n\n", vec!["a"]),
            ("data:a\r\rdata: b\r\n\r\n", vec!["a", "b"]),
            ("\u{feff}data: a\n\n", vec!["a"]),
            (": comment\nevent: x\nid: 1\ndata: a\ndata:  b\n\n", vec!["a\n b"]),
            ("data\n\ndata:\n\n", vec!["", ""]),
            ("datax: no\n\nevent: alone\n\n", vec![]),
            ("data: unfinished\n", vec![]),
        ] {
            assert_eq!(events(&[stream.as_bytes()]), expected, "{stream:?}");
        }
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut parser = Parser::default();
        let chunk = vec![b'x'; 1 << 20];
        let outcome = (0..6).map(|_| parser.feed(&chunk, |_| {})).find(Result::is_err);
        assert_eq!(outcome, Some(Err(TooLong)));
    }

    proptest! {
        #[test]
        fn chunk_borders_do_not_matter(cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12)) {
            let stream = "\u{feff}: hi\r\ndata: über\r\n\r\ndata: {\"a\":1}\ndata: 2\n\ndata: x\r\rdata: [DONE]\n\n".as_bytes();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len())).collect();
            cuts.extend([0, stream.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|pair| &stream[pair[0]..pair[1]]).collect();
            prop_assert_eq!(events(&chunks), ["über", "{\"a\":1}\n2", "x", "[DONE]"]);
        }

        #[test]
        fn garbage_does_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
            let _ = Parser::default().feed(&bytes, |_| {});
        }
    }
}
