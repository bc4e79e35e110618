//! Ids from a response as it comes in, chunk by chunk.
//!
//! The gateway holds the first bytes of a response until its conversation is known and copied, so this gives up early: once both
//! ids are found, after [`MAX_EVENTS`] events of a stream, or beyond a number of bytes.

use std::fmt;

use super::{Ids, Keyer, response};

/// Events of a stream that are looked at. The first one names the task or the message in every A2A version.
pub const MAX_EVENTS: u32 = 4;

/// The ids of one response.
#[derive(Clone)]
pub struct ResponseIds {
    streamed: bool,
    limit: usize,
    seen: usize,
    events: u32,
    /// Of a stream: the present line. Else the body so far.
    buffer: Vec<u8>,
    /// Of a stream: the data of the present event.
    data: Vec<u8>,
    /// Of a stream: a line has just ended with CR, so an LF belongs to it.
    after_return: bool,
    /// Of a body: how much of it was there at the last try.
    tried: usize,
    ids: Ids,
    done: bool,
}

/// Without the bytes: they hold the raw ids.
impl fmt::Debug for ResponseIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseIds")
            .field("ids", &self.ids)
            .field("seen", &self.seen)
            .field("done", &self.done)
            .finish_non_exhaustive()
    }
}

impl ResponseIds {
    /// For a response with this `Content-Type`; at most `limit` bytes of it are looked at and kept.
    pub fn new(content_type: &str, limit: usize) -> Self {
        let kind = content_type.split(';').next().unwrap_or_default().trim();
        Self {
            streamed: kind.eq_ignore_ascii_case("text/event-stream"),
            limit,
            seen: 0,
            events: 0,
            buffer: Vec::new(),
            data: Vec::new(),
            after_return: false,
            tried: 0,
            ids: Ids::default(),
            done: false,
        }
    }

    /// Looks at the next bytes. True once more of them cannot tell more: then the response may go on.
    ///
    /// A body is read again whenever it has doubled, so the work is linear in its length.
    pub fn push(&mut self, keyer: &Keyer, chunk: &[u8]) -> bool {
        if self.done {
            return true;
        }
        let rest = self.limit.saturating_sub(self.seen);
        let part = chunk.get(..rest).unwrap_or(chunk);
        self.seen += part.len();
        if self.streamed {
            self.push_lines(keyer, part);
        } else {
            self.buffer.extend_from_slice(part);
            if self.buffer.len() >= self.tried.saturating_mul(2).max(1) {
                self.read_body(keyer);
            }
        }
        if part.len() < chunk.len() {
            self.finish(keyer);
        }
        self.done
    }

    /// The response has ended, or no more of it is to be looked at.
    pub fn finish(&mut self, keyer: &Keyer) {
        if !self.done && self.streamed {
            self.end_line(keyer);
            self.end_event(keyer);
        } else if !self.done {
            self.read_body(keyer);
        }
        self.done = true;
        (self.buffer, self.data) = (Vec::new(), Vec::new());
    }

    /// What has been found so far.
    pub fn ids(&self) -> Ids {
        self.ids
    }

    fn read_body(&mut self, keyer: &Keyer) {
        self.tried = self.buffer.len();
        let (ids, whole) = response(keyer, &self.buffer);
        self.ids = ids;
        self.done = whole || is_complete(ids);
    }

    fn push_lines(&mut self, keyer: &Keyer, part: &[u8]) {
        for byte in part {
            if self.done {
                return;
            }
            let ends = matches!(byte, b'\n' | b'\r');
            let second = *byte == b'\n' && self.after_return;
            self.after_return = *byte == b'\r';
            if second {
                continue;
            }
            if ends {
                self.end_line(keyer);
            } else {
                self.buffer.push(*byte);
            }
        }
    }

    fn end_line(&mut self, keyer: &Keyer) {
        let line = std::mem::take(&mut self.buffer);
        if line.is_empty() {
            return self.end_event(keyer);
        }
        let line = line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&line);
        if let Some(rest) = line.strip_prefix(b"data") {
            let value = match rest {
                [] => rest,
                [b':', b' ', value @ ..] | [b':', value @ ..] => value,
                _ => return,
            };
            if !self.data.is_empty() {
                self.data.push(b'\n');
            }
            self.data.extend_from_slice(value);
        }
    }

    fn end_event(&mut self, keyer: &Keyer) {
        if self.data.is_empty() {
            return;
        }
        let data = std::mem::take(&mut self.data);
        self.ids = response(keyer, &data).0.or(self.ids);
        self.events += 1;
        self.done = is_complete(self.ids) || self.events >= MAX_EVENTS;
    }
}

fn is_complete(ids: Ids) -> bool {
    ids.context.is_some() && ids.task.is_some()
}
