//! The origin: what stands in for agents and providers, in a process of its own.
//!
//! One thread, prepared answers. What it does is chosen by the first bytes of the body, because some of the proxies
//! send on nothing else unchanged: `"model":"paced"` streams [`TOKENS`] events [`INTERVAL`] apart, `"model":"held"`
//! streams one event a second until the client goes, and everything else is a chat completion, of 16 KiB if the request
//! is longer than half of that, else of 1 KiB.
//!
//! Each event is written by itself, as a chunk of its own, at an absolute due time.

use anyhow::{Context as _, Result, bail};
use bytes::{Buf as _, Bytes, BytesMut};
use flotilla_loadgen::pacer::Pacer;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, oneshot};
use tokio::task::{LocalSet, spawn_local};

/// Addresses that it listens on: 127.0.0.1 and following, all at one port, as replicas.
pub const REPLICAS: u8 = 4;
/// Response header with the last byte of the address that answered.
pub const ORIGIN_HEADER: &str = "x-bench-origin";
/// Events of a paced stream; `[DONE]` is one more.
pub const TOKENS: usize = 64;
/// Between two events of a paced stream.
pub const INTERVAL: Duration = Duration::from_millis(5);
/// Between two events of a held stream.
const HELD_INTERVAL: Duration = Duration::from_secs(1);
/// Where in a body the model's name must be.
const HEAD_OF_BODY: usize = 512;
/// The pacer sleeps at least this long, so that it wakes for several streams at once.
const QUANTUM: Duration = Duration::from_micros(50);
const READ: usize = 32 * 1024;

const STREAM_HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n";

/// Serves until it is killed.
///
/// # Errors
/// When it cannot listen.
pub fn run(port: u16) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    LocalSet::new().block_on(&runtime, async {
        let pace = Rc::new(Pace::default());
        for replica in 1..=REPLICAS {
            let address = SocketAddr::from((Ipv4Addr::new(127, 0, 0, replica), port));
            let listener = TcpListener::bind(address)
                .await
                .with_context(|| format!("failed to listen on {address}"))?;
            spawn_local(accept(listener, Rc::new(Answers::new(replica)), pace.clone()));
        }
        pace.run().await
    })
}

/// A body of about `bytes` bytes that is a chat request for `model`. A stream asks for its usage, so that a gateway has no
/// reason to take that event out.
pub fn chat_request(model: &str, stream: bool, bytes: usize) -> String {
    let stream = if stream {
        r#"true,"stream_options":{"include_usage":true}"#
    } else {
        "false"
    };
    let start = format!(
        r#"{{"model":"{model}","stream":{stream},"max_tokens":64,"messages":[{{"role":"system","content":"You answer in one sentence."}},{{"role":"user","content":""#
    );
    let end = r#""}]}"#;
    let fill = filler(bytes.saturating_sub(start.len() + end.len()));
    format!("{start}{fill}{end}")
}

fn filler(bytes: usize) -> String {
    "How does the tide know when to turn? "
        .chars()
        .cycle()
        .take(bytes)
        .collect()
}

fn completion(bytes: usize) -> String {
    let start = r#"{"id":"chatcmpl-1","object":"chat.completion","created":1760000000,"model":"bench","choices":[{"index":0,"message":{"role":"assistant","content":""#;
    let end = r#""},"finish_reason":"stop"}],"usage":{"prompt_tokens":220,"completion_tokens":64,"total_tokens":284}}"#;
    let fill = filler(bytes.saturating_sub(start.len() + end.len()));
    format!("{start}{fill}{end}")
}

/// Prepared answers of one replica.
struct Answers {
    small: Bytes,
    large: Bytes,
    stream_head: Bytes,
}

impl Answers {
    fn new(replica: u8) -> Self {
        let whole = |bytes: usize| {
            let body = completion(bytes);
            Bytes::from(format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n{ORIGIN_HEADER}: {replica}\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            ))
        };
        Self {
            small: whole(1024),
            large: whole(16 * 1024),
            stream_head: Bytes::from(format!(
                "{STREAM_HEAD}{ORIGIN_HEADER}: {replica}\r\ntransfer-encoding: chunked\r\n\r\n"
            )),
        }
    }
}

async fn accept(listener: TcpListener, answers: Rc<Answers>, pace: Rc<Pace>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (answers, pace) = (answers.clone(), pace.clone());
                spawn_local(async move {
                    // It ends with the client, by whatever way.
                    let _ = serve(stream, &answers, &pace).await;
                });
            }
            Err(error) => {
                eprintln!("accept: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, answers: &Answers, pace: &Pace) -> Result<()> {
    stream.set_nodelay(true)?;
    let (mut read, write) = stream.into_split();
    let mut write = Rc::new(RefCell::new(write));
    let mut buffer = BytesMut::with_capacity(READ);
    loop {
        let Some((head, body)) = next_length(&mut read, &mut buffer).await? else {
            return Ok(());
        };
        while buffer.len() < head + body {
            buffer.reserve(READ);
            if read.read_buf(&mut buffer).await? == 0 {
                bail!("a request that ends early");
            }
        }
        let start = buffer
            .get(head..(head + body.min(HEAD_OF_BODY)))
            .unwrap_or_default();
        let kind = Kind::of(start, body);
        buffer.advance(head + body);
        match kind {
            Kind::Whole => {
                let answer = if body > 8 * 1024 {
                    &answers.large
                } else {
                    &answers.small
                };
                write_all(&mut write, answer).await?;
            }
            Kind::Stream { events, interval } => {
                write_all(&mut write, &answers.stream_head).await?;
                let (done, ended) = oneshot::channel();
                pace.add(Paced::new(write.clone(), events, interval, done));
                // A client that goes ends it early: the pacer cannot write any more.
                let _ = ended.await;
            }
        }
    }
}

/// Nobody else writes between streams, so the borrow is free.
async fn write_all(write: &mut Rc<RefCell<OwnedWriteHalf>>, bytes: &[u8]) -> Result<()> {
    match Rc::get_mut(write) {
        Some(own) => Ok(own.get_mut().write_all(bytes).await?),
        None => bail!("a stream is still being written"),
    }
}

/// What a request asks for.
enum Kind {
    Whole,
    Stream { events: usize, interval: Duration },
}

impl Kind {
    fn of(start: &[u8], length: usize) -> Self {
        let names = |model: &[u8]| start.windows(model.len()).any(|part| part == model);
        if length == 0 || names(br#""stream":false"#) {
            Self::Whole
        } else if names(br#""model":"paced""#) {
            Self::Stream {
                events: TOKENS,
                interval: INTERVAL,
            }
        } else if names(br#""model":"held""#) {
            Self::Stream {
                events: usize::MAX,
                interval: HELD_INTERVAL,
            }
        } else {
            Self::Whole
        }
    }
}

/// Bytes of the next head and of its body; `None` at the end.
async fn next_length(read: &mut OwnedReadHalf, buffer: &mut BytesMut) -> Result<Option<(usize, usize)>> {
    loop {
        if !buffer.is_empty() {
            let mut fields = [httparse::EMPTY_HEADER; 64];
            let mut request = httparse::Request::new(&mut fields);
            if let httparse::Status::Complete(head) = request.parse(buffer)? {
                let mut body = 0;
                for field in request.headers.iter() {
                    if field.name.eq_ignore_ascii_case("content-length") {
                        body = std::str::from_utf8(field.value)?.trim().parse()?;
                    } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
                        bail!("the origin reads bodies of known length only");
                    }
                }
                return Ok(Some((head, body)));
            }
        }
        buffer.reserve(READ);
        if read.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

/// A stream that is being written.
struct Paced {
    due: Instant,
    write: Rc<RefCell<OwnedWriteHalf>>,
    left: usize,
    interval: Duration,
    done: oneshot::Sender<()>,
}

impl Paced {
    fn new(
        write: Rc<RefCell<OwnedWriteHalf>>,
        events: usize,
        interval: Duration,
        done: oneshot::Sender<()>,
    ) -> Self {
        Self {
            due: Instant::now() + interval,
            write,
            left: events,
            interval,
            done,
        }
    }

    /// Writes the next event; false after the last one.
    fn step(&mut self, events: &Events) -> bool {
        let more = self.left > 0;
        let bytes = if more { &events.token } else { &events.last };
        self.left = self.left.saturating_sub(1);
        self.due += self.interval;
        let written = self.write.borrow_mut().try_write(bytes);
        // A client that does not read, or has gone, gets no more.
        more && written.is_ok_and(|count| count == bytes.len())
    }
}

/// Prepared events, each a chunk.
struct Events {
    token: Bytes,
    last: Bytes,
}

impl Default for Events {
    fn default() -> Self {
        let chunk = |data: &str| {
            let event = format!("data: {data}\n\n");
            format!("{:x}\r\n{event}\r\n", event.len())
        };
        let token = chunk(
            r#"{"id":"chatcmpl-1","object":"chat.completion.chunk","model":"bench","choices":[{"index":0,"delta":{"content":"tide "},"finish_reason":null}]}"#,
        );
        let usage = chunk(
            r#"{"model":"bench","choices":[],"usage":{"prompt_tokens":220,"completion_tokens":64,"total_tokens":284}}"#,
        );
        Self {
            token: token.into(),
            last: format!("{usage}{}0\r\n\r\n", chunk("[DONE]")).into(),
        }
    }
}

/// Streams by due time. Those with the same interval come due in the order in which they were written.
#[derive(Default)]
struct Pace {
    events: Events,
    paced: RefCell<VecDeque<Paced>>,
    held: RefCell<VecDeque<Paced>>,
    added: Notify,
}

impl Pace {
    fn add(&self, stream: Paced) {
        let queue = if stream.interval == INTERVAL {
            &self.paced
        } else {
            &self.held
        };
        queue.borrow_mut().push_back(stream);
        self.added.notify_one();
    }

    async fn run(&self) -> Result<()> {
        let mut pacer = Pacer::new()?;
        loop {
            let due = [&self.paced, &self.held]
                .into_iter()
                .filter_map(|queue| self.write_due(queue))
                .min();
            match due {
                Some(due) => {
                    let due = due.max(Instant::now() + QUANTUM);
                    tokio::select! {
                        waited = pacer.sleep_until(due) => waited?,
                        () = self.added.notified() => {}
                    }
                }
                None => self.added.notified().await,
            }
            tokio::task::yield_now().await;
        }
    }

    /// Writes every event that is due and gives the time of the next one.
    fn write_due(&self, queue: &RefCell<VecDeque<Paced>>) -> Option<Instant> {
        let mut queue = queue.borrow_mut();
        let now = Instant::now();
        while queue.front().is_some_and(|stream| stream.due <= now) {
            let Some(mut stream) = queue.pop_front() else {
                break;
            };
            if stream.step(&self.events) {
                queue.push_back(stream);
            } else {
                let Paced { write, done, .. } = stream;
                // The connection's task wants the writer back before it goes on.
                drop(write);
                let _ = done.send(());
            }
        }
        queue.front().map(|stream| stream.due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_have_the_length_that_is_asked_for() {
        for bytes in [1024, 16 * 1024] {
            assert_eq!(chat_request("bench", false, bytes).len(), bytes);
            assert_eq!(completion(bytes).len(), bytes);
            for body in [chat_request("bench", true, bytes), completion(bytes)] {
                serde_json::from_str::<serde_json::Value>(&body).expect("JSON");
            }
        }
    }

    #[test]
    fn the_model_chooses() {
        let kind = |model, stream| {
            let body = chat_request(model, stream, 1024);
            Kind::of(
                body.as_bytes().get(..HEAD_OF_BODY).unwrap_or_default(),
                body.len(),
            )
        };
        assert!(matches!(kind("bench", true), Kind::Whole));
        assert!(matches!(kind("paced", false), Kind::Whole));
        assert!(matches!(kind("paced", true), Kind::Stream { events: TOKENS, .. }));
        assert!(matches!(
            kind("held", true),
            Kind::Stream {
                interval: HELD_INTERVAL,
                ..
            }
        ));
    }
}
