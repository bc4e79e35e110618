//! The access log: one JSON object a line, for a share of the requests.
//!
//! Lines are written by a thread of their own. When it does not keep up lines are dropped and counted, and requests go on.

use std::io::Write;
use std::time::Duration;

use serde::Serialize;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};

use super::{Ending, Facts, Noted, Plane};

/// Lines that may wait for the writer.
const MAX_WAITING: usize = 4096;
/// Characters of a path that are kept.
const MAX_PATH: usize = 1024;

/// Where lines go, and how many.
pub struct AccessLog {
    percent: u8,
    lines: NonBlocking,
    dropped: ErrorCounter,
    /// Writes what waits when it is dropped.
    _writer: WorkerGuard,
}

impl std::fmt::Debug for AccessLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AccessLog({} %)", self.percent)
    }
}

/// One line. Absent is what does not apply.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    /// End of the request.
    time: jiff::Timestamp,
    kind: &'static str,
    method: &'a str,
    path: &'a str,
    protocol: &'static str,
    client: std::net::IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
    ending: &'static str,
    duration_milliseconds: f64,
    response_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pool: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    replica: Option<std::net::SocketAddr>,
    #[serde(skip_serializing_if = "is_zero")]
    sends: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    provider: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    operation: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    input_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_chunk_milliseconds: Option<f64>,
}

fn is_zero(count: &u32) -> bool {
    *count == 0
}

fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

impl AccessLog {
    /// Writes lines for `percent` of the requests (0 to 100) to `to`.
    pub fn new(percent: u8, to: impl Write + Send + 'static) -> Self {
        let builder = NonBlockingBuilder::default()
            .buffered_lines_limit(MAX_WAITING)
            .lossy(true)
            .thread_name("access-log");
        let (lines, writer) = builder.finish(to);
        Self {
            percent,
            dropped: lines.error_counter(),
            lines,
            _writer: writer,
        }
    }

    /// Whether the next request is logged.
    pub(super) fn samples(&self) -> bool {
        match self.percent {
            0 => false,
            100.. => true,
            percent => rand::random_range(0..100) < percent,
        }
    }

    /// Lines dropped because the writer did not keep up.
    pub fn dropped(&self) -> u64 {
        self.dropped.dropped_lines() as u64
    }

    pub(super) fn write(&self, facts: &Facts, noted: &Noted) {
        let Ok(mut line) = serde_json::to_vec(&line(facts, noted)) else {
            return;
        };
        line.push(b'\n');
        // A full queue is counted by the writer; a writer that has gone says so on its own.
        let _ = self.lines.clone().write_all(&line);
    }
}

fn line<'a>(facts: &'a Facts, noted: &'a Noted) -> Line<'a> {
    let path = facts.uri.path();
    Line {
        time: jiff::Timestamp::now(),
        kind: match facts.plane {
            Plane::Ingress => "ingress",
            Plane::Egress => "egress",
            Plane::Admin => "admin",
        },
        method: facts.method.as_str(),
        path: path.get(..MAX_PATH).unwrap_or(path),
        protocol: match facts.version {
            http::Version::HTTP_2 => "HTTP/2",
            http::Version::HTTP_10 => "HTTP/1.0",
            _ => "HTTP/1.1",
        },
        client: facts.client,
        status: facts.status.map(|status| status.as_u16()),
        code: facts.code,
        ending: match facts.ending {
            Ending::Whole => "whole",
            Ending::Broken => "broken",
            Ending::Cancelled => "cancelled",
        },
        duration_milliseconds: milliseconds(facts.start.elapsed()),
        response_bytes: facts.bytes,
        request_id: facts.request_id.as_deref(),
        trace_id: facts.trace.map(|trace| trace.to_string()),
        pool: noted.pool.as_deref(),
        revision: noted.revision.as_deref(),
        replica: noted.replica,
        sends: noted.sends,
        provider: noted.provider.as_deref(),
        operation: noted.operation.map(|names| names.operation),
        model: noted.model.as_deref(),
        input_tokens: noted.input_tokens,
        output_tokens: noted.output_tokens,
        first_chunk_milliseconds: noted.first_chunk.map(milliseconds),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_kept() {
        let count = |percent| {
            let log = AccessLog::new(percent, std::io::sink());
            (0..10_000).filter(|_| log.samples()).count()
        };
        assert_eq!((count(0), count(100)), (0, 10_000));
        let tenth = count(10);
        assert!((700..1300).contains(&tenth), "{tenth}");
    }

    #[test]
    fn a_line_tells_no_query() {
        let facts = Facts {
            plane: Plane::Ingress,
            start: std::time::Instant::now(),
            method: http::Method::GET,
            uri: "/a/b?api_key=planted".parse().expect("an address"),
            version: http::Version::HTTP_11,
            client: [10, 0, 0, 9].into(),
            request_id: Some("id".into()),
            trace: None,
            status: Some(http::StatusCode::OK),
            code: None,
            bytes: 3,
            ending: Ending::Whole,
        };
        let noted = Noted::default();
        let json = serde_json::to_value(line(&facts, &noted)).expect("JSON");
        assert_eq!((&json["path"], &json["status"]), (&"/a/b".into(), &200.into()));
        assert!(json["pool"].is_null() && !json.to_string().contains("planted"));
    }
}
