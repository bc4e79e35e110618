//! `Transfer-Encoding: chunked`, read without keeping the bytes, and how many server-sent events each chunk holds.

use anyhow::{Result, bail};

/// Where in the framing the next byte belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Size,
    Extension,
    Data(usize),
    AfterData,
    /// In the trailer; true at the beginning of a line.
    Trailer(bool),
    Done,
}

/// Reads one body.
#[derive(Clone, Debug)]
pub struct Chunks {
    place: Place,
    size: usize,
    newlines: usize,
    ended_before: usize,
    /// Events that ended in one chunk with another: somebody on the way has joined what was sent apart.
    pub joined: usize,
}

impl Default for Chunks {
    fn default() -> Self {
        Self {
            place: Place::Size,
            size: 0,
            newlines: 0,
            ended_before: 0,
            joined: 0,
        }
    }
}

impl Chunks {
    /// Events whose end has come. One ends with an empty line, and the origin's hold no other.
    pub fn events(&self) -> usize {
        self.newlines / 2
    }

    /// True after the last byte.
    pub fn is_done(&self) -> bool {
        self.place == Place::Done
    }

    /// Takes in what came.
    ///
    /// # Errors
    /// When it is no chunk.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<()> {
        while let Some((first, rest)) = bytes.split_first() {
            match self.place {
                Place::Size => {
                    match first {
                        b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F' => {
                            let digit = char::from(*first).to_digit(16).unwrap_or(0);
                            self.size = (self.size << 4) | digit as usize;
                        }
                        b';' | b'\r' => self.place = Place::Extension,
                        other => bail!("{other:#04x} is no digit of a chunk's size"),
                    }
                    bytes = rest;
                }
                Place::Extension => {
                    if *first == b'\n' {
                        let size = std::mem::take(&mut self.size);
                        self.place = if size == 0 {
                            Place::Trailer(true)
                        } else {
                            Place::Data(size)
                        };
                    }
                    bytes = rest;
                }
                Place::Data(left) => {
                    let (data, after) = bytes.split_at(left.min(bytes.len()));
                    self.newlines += data.iter().filter(|byte| **byte == b'\n').count();
                    self.place = match left - data.len() {
                        0 => {
                            self.chunk_ended();
                            Place::AfterData
                        }
                        left => Place::Data(left),
                    };
                    bytes = after;
                }
                Place::AfterData => {
                    if *first == b'\n' {
                        self.place = Place::Size;
                    }
                    bytes = rest;
                }
                Place::Trailer(at_start) => {
                    self.place = match first {
                        b'\n' if at_start => Place::Done,
                        b'\n' => Place::Trailer(true),
                        b'\r' => Place::Trailer(at_start),
                        _ => Place::Trailer(false),
                    };
                    bytes = rest;
                }
                Place::Done => bail!("bytes after the end of the body"),
            }
        }
        Ok(())
    }

    fn chunk_ended(&mut self) {
        let ended = self.events() - self.ended_before;
        self.ended_before = self.events();
        if ended > 1 {
            self.joined += ended;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &[u8] = b"9\r\ndata: 1\n\n\r\n12;x=y\r\ndata: 2\n\ndata: 3\n\n\r\n0\r\nx: y\r\n\r\n";

    #[test]
    fn events_are_counted_whatever_the_pieces() {
        for cut in 1..=BODY.len() {
            let mut chunks = Chunks::default();
            for piece in BODY.chunks(cut) {
                assert!(!chunks.is_done());
                chunks.feed(piece).expect("a body");
            }
            assert!(chunks.is_done(), "{cut}");
            assert_eq!((chunks.events(), chunks.joined), (3, 2), "{cut}");
        }
    }

    #[test]
    fn an_event_may_be_cut_anywhere() {
        let mut chunks = Chunks::default();
        chunks
            .feed(b"8\r\ndata: 1\n\r\n1\r\n\n\r\n0\r\n\r\n")
            .expect("a body");
        assert_eq!((chunks.events(), chunks.joined), (1, 0));
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(Chunks::default().feed(b"x\r\n").is_err());
        assert!(Chunks::default().feed(b"0\r\n\r\nmore").is_err());
    }
}
