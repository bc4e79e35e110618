//! Watches on a bad line: late, doubled, broken, ended by 410, silent in a black hole.

use std::collections::VecDeque;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use http_body::Frame;
use serde_json::json;
use tokio::time::{Instant, sleep_until};
use tower::BoxError;

use super::line::{EventDoom, Line};
use crate::api::failure::Failure;

type Lines = Pin<Box<dyn Stream<Item = Bytes> + Send>>;

struct Carrier {
    lines: Lines,
    line: Line,
    life: u64,
    late: Duration,
    /// What was sent, and when it arrives.
    coming: VecDeque<(Instant, Bytes)>,
    /// Nothing more is sent.
    ended: bool,
    again: Option<Bytes>,
    over: bool,
}

/// The frames of a watch as they arrive.
pub(super) fn carry(
    lines: impl Stream<Item = Bytes> + Send + 'static,
    line: Line,
    life: u64,
    late: Duration,
) -> impl Stream<Item = Result<Frame<Bytes>, BoxError>> + Send + 'static {
    let carrier = Carrier {
        lines: Box::pin(lines),
        line,
        life,
        late,
        coming: VecDeque::new(),
        ended: false,
        again: None,
        over: false,
    };
    futures::stream::unfold(carrier, |mut carrier| async move {
        let frame = carrier.next().await?;
        Some((frame, carrier))
    })
}

impl Carrier {
    /// The next line, as long after it was sent as the plan says.
    async fn arrive(&mut self) -> Option<Bytes> {
        if self.late.is_zero() {
            return self.lines.next().await;
        }
        loop {
            let due = self.coming.front().map(|(due, _)| *due);
            if due.is_some_and(|due| due <= Instant::now()) || (self.ended && due.is_none()) {
                return self.coming.pop_front().map(|(_, line)| line);
            }
            tokio::select! {
                biased;
                line = self.lines.next(), if !self.ended => match line {
                    Some(line) => self.coming.push_back((Instant::now() + self.late, line)),
                    None => self.ended = true,
                },
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
            }
        }
    }

    async fn next(&mut self) -> Option<Result<Frame<Bytes>, BoxError>> {
        if let Some(line) = self.again.take() {
            return Some(Ok(Frame::data(line)));
        }
        if self.over {
            return None;
        }
        let line = self.arrive().await?;
        while let Some(end) = self.line.0.plan.hole(self.line.0.cluster.age()) {
            let left = end.saturating_sub(self.line.0.cluster.age());
            sleep_until(Instant::now() + left).await;
        }
        if !self.line.is_alive(self.life) {
            return std::future::pending().await;
        }
        match self.line.event() {
            EventDoom::None => {}
            EventDoom::Twice => self.again = Some(line.clone()),
            EventDoom::Broken => {
                self.over = true;
                let broken = std::io::Error::new(
                    std::io::ErrorKind::ConnectionReset,
                    "the connection broke, as planned",
                );
                return Some(Err(Box::new(broken)));
            }
            EventDoom::Gone => {
                self.over = true;
                let failure = Failure::expired("too old resource version: as planned");
                let line = json!({"type": "ERROR", "object": failure.body()}).to_string() + "\n";
                return Some(Ok(Frame::data(line.into())));
            }
        }
        Some(Ok(Frame::data(line)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Cluster;
    use crate::faults::Plan;

    #[tokio::test(start_paused = true)]
    async fn late_events_are_late_and_no_slower() {
        let line = Line::new(&Cluster::new(1), Plan::none(1));
        let _wire = line.connect();
        let sent = futures::stream::iter(["a", "b", "c"].map(Bytes::from));
        let start = Instant::now();
        let arrived: Vec<_> = carry(sent, line, 1, Duration::from_secs(10)).collect().await;
        assert_eq!((arrived.len(), start.elapsed().as_secs()), (3, 10));
    }
}
