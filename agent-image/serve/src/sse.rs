//! Server-sent events (WHATWG HTML, section 9.2), the subset that model APIs and A2A use: `data` fields.

use std::io;

use bytes::{Bytes, BytesMut};
use futures::Stream;
use http::{HeaderValue, Response, header};

use crate::body::{Body, stream};

/// One event with `data` on one line. `data` must not contain line breaks; JSON never does.
pub fn sse_event(data: &str) -> Bytes {
    debug_assert!(!data.contains('\n'), "an event's data is one line");
    Bytes::from(format!("data: {data}\n\n"))
}

/// A response that streams events. `X-Accel-Buffering: no` asks proxies in between not to hold them back.
pub fn sse_response<S>(events: S) -> Response<Body>
where
    S: Stream<Item = io::Result<Bytes>> + Send + 'static,
{
    let mut response = Response::new(stream(events));
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/event-stream"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// An event stream that cannot be read on.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SseError {
    /// An event is longer than the decoder's limit.
    #[error("an event is longer than {limit} bytes")]
    TooLong {
        /// The limit in bytes.
        limit: usize,
    },
    /// Event streams are UTF-8.
    #[error("an event is not valid UTF-8")]
    NotUtf8,
}

/// Splits a byte stream into events, whatever the chunk borders. Keeps at most one event's bytes.
#[derive(Debug)]
pub struct SseDecoder {
    pending: BytesMut,
    data: Option<String>,
    limit: usize,
}

impl SseDecoder {
    /// A decoder that refuses events longer than `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            pending: BytesMut::new(),
            data: None,
            limit,
        }
    }

    /// Takes the next bytes and returns the `data` of the events they complete.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<String>, SseError> {
        self.pending.extend_from_slice(bytes);
        let mut events = Vec::new();
        while let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
            let line = self.pending.split_to(end + 1);
            let line = std::str::from_utf8(&line)
                .map_err(|_| SseError::NotUtf8)?
                .trim_end_matches(['\n', '\r']);
            if line.is_empty() {
                events.extend(self.data.take());
            } else if let Some(value) = line.strip_prefix("data:") {
                let value = value.strip_prefix(' ').unwrap_or(value);
                match &mut self.data {
                    Some(data) => {
                        data.push('\n');
                        data.push_str(value);
                    }
                    None => self.data = Some(value.to_owned()),
                }
            }
            self.check()?;
        }
        self.check()?;
        Ok(events)
    }

    fn check(&self) -> Result<(), SseError> {
        let held = self.data.as_ref().map_or(0, String::len);
        let limit = self.limit;
        if held > limit || (held + self.pending.len() > limit && !self.pending.contains(&b'\n')) {
            return Err(SseError::TooLong { limit });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str =
        ": hello\ndata: {\"a\":1}\n\nevent: x\r\ndata: two\r\ndata:lines\r\n\r\nid: 7\n\ndata: [DONE]\n\n";

    #[test]
    fn events_do_not_depend_on_the_chunk_size() {
        for size in 1..=STREAM.len() {
            let mut decoder = SseDecoder::new(64);
            let mut events = Vec::new();
            for chunk in STREAM.as_bytes().chunks(size) {
                events.extend(decoder.push(chunk).expect("valid"));
            }
            assert_eq!(events, ["{\"a\":1}", "two\nlines", "[DONE]"], "chunks of {size}");
        }
    }

    #[test]
    fn an_event_over_the_limit_is_refused_whole_or_in_pieces() {
        let long = format!("data: {}\n\n", "x".repeat(65));
        assert_eq!(
            SseDecoder::new(64).push(long.as_bytes()),
            Err(SseError::TooLong { limit: 64 })
        );

        let mut decoder = SseDecoder::new(64);
        let mut refused = false;
        for _ in 0..70 {
            refused |= decoder.push(b"y").is_err();
        }
        assert!(refused, "a line without end is not kept for ever");
    }

    #[test]
    fn an_encoded_event_decodes_to_itself() {
        let events = SseDecoder::new(64)
            .push(&sse_event("{\"x\":\"ü\"}"))
            .expect("valid");
        assert_eq!(events, ["{\"x\":\"ü\"}"]);
    }
}
