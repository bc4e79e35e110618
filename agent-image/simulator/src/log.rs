//! The log from which a test can recompute every window.
//!
//! An `Admitted` or `Refused` event carries the very `monotonicNanoseconds` that the limiters were asked with and
//! what was charged, and both happen under one lock: the log's order is the order of the decisions. In memory it is
//! bounded (the oldest go, and `dropped` says how many); the file has all of it, one JSON object a line,
//! written before the decision's response is.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

/// What happened to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EventKind {
    /// It passed every limit and was charged.
    Admitted,
    /// A limit refused it with 429; nothing was charged.
    Refused,
    /// It was answered 4xx before any limit was asked: key, body, model.
    Rejected,
    /// An admitted request was answered in full.
    Completed,
    /// An admitted request got its simulated failure.
    Failed,
    /// The client left an admitted request before its end.
    Cancelled,
}

/// One line of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LogEvent {
    /// Position in the log, from 0, without gaps; starts again at a reset.
    pub sequence: u64,
    /// Nanoseconds since the simulator's start or last reset, monotonic: the limiters' clock.
    pub monotonic_nanoseconds: u64,
    /// Wall clock, for people.
    pub unix_milliseconds: u64,
    /// The request, as in its `x-request-id` header.
    pub request_id: String,
    /// What happened.
    pub kind: EventKind,
    /// The model asked for; empty when the body could not be read.
    pub model: String,
    /// Whether the client asked for a stream.
    pub stream: bool,
    /// The status answered; 0 where there was no answer.
    pub status: u16,
    /// Tokens of the request.
    pub input_tokens: u64,
    /// `Admitted`, `Refused`: output tokens charged or asked for. `Completed`, `Failed`, `Cancelled`: those sent.
    pub output_tokens: u64,
    /// The limit that refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<String>,
    /// The wait that a refusal asked for; absent when it never will be admitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_nanoseconds: Option<u64>,
}

/// The log's part that is in memory, as `GET /admin/log` returns it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LogPage {
    /// Events that no longer are in memory.
    pub dropped: u64,
    /// In order, the oldest first.
    pub events: Vec<LogEvent>,
}

/// The bounded log.
#[derive(Debug)]
pub struct Log {
    events: VecDeque<LogEvent>,
    capacity: usize,
    next: u64,
    file: Option<File>,
}

impl Log {
    /// A log of at most `capacity` events in memory, all of them appended to `file` where given.
    pub fn open(capacity: usize, file: Option<&Path>) -> io::Result<Self> {
        let file = file
            .map(|path| File::options().create(true).append(true).open(path))
            .transpose()?;
        Ok(Self {
            events: VecDeque::new(),
            capacity: capacity.max(1),
            next: 0,
            file,
        })
    }

    /// Appends `event`, whose `sequence` is set here.
    pub fn push(&mut self, mut event: LogEvent) {
        event.sequence = self.next;
        self.next += 1;
        if let Some(file) = &mut self.file {
            let written = serde_json::to_vec(&event)
                .map_err(io::Error::from)
                .and_then(|mut line| {
                    line.push(b'\n');
                    file.write_all(&line)
                });
            if let Err(error) = written {
                tracing::error!(%error, "failed to write the request log, it is not written any more");
                self.file = None;
            }
        }
        if self.events.len() == self.capacity {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// The events from `sequence` on that are in memory.
    pub fn since(&self, sequence: u64) -> LogPage {
        let dropped = self.next - self.events.len() as u64;
        let events = self
            .events
            .iter()
            .filter(|event| event.sequence >= sequence)
            .cloned()
            .collect();
        LogPage { dropped, events }
    }

    /// Forgets the events in memory and starts at sequence 0 again. The file keeps what it has.
    pub fn reset(&mut self) {
        self.events.clear();
        self.next = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> LogEvent {
        LogEvent {
            sequence: 0,
            monotonic_nanoseconds: 5,
            unix_milliseconds: 6,
            request_id: "r".to_owned(),
            kind: EventKind::Admitted,
            model: "m".to_owned(),
            stream: false,
            status: 200,
            input_tokens: 1,
            output_tokens: 2,
            limit: None,
            retry_after_nanoseconds: None,
        }
    }

    #[test]
    fn the_memory_is_bounded_and_the_file_is_not() {
        let path = std::env::temp_dir().join(format!("flotilla-simulator-log-{}.ndjson", std::process::id()));
        let mut log = Log::open(2, Some(&path)).expect("opens");
        for _ in 0..5 {
            log.push(event());
        }
        let page = log.since(0);
        assert_eq!(
            (page.dropped, page.events.len(), page.events[0].sequence),
            (3, 2, 3)
        );
        assert_eq!(log.since(4).events.len(), 1);

        let text = std::fs::read_to_string(&path).expect("readable");
        std::fs::remove_file(&path).expect("removable");
        let lines: Vec<LogEvent> = text
            .lines()
            .map(|line| serde_json::from_str(line).expect("an event"))
            .collect();
        assert_eq!(
            lines.iter().map(|event| event.sequence).collect::<Vec<_>>(),
            [0, 1, 2, 3, 4]
        );

        log.reset();
        log.push(event());
        assert_eq!((log.since(0).dropped, log.since(0).events[0].sequence), (0, 0));
    }
}
