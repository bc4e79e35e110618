//! Messages between the gateways of a namespace.
//!
//! Every gateway has one [`Link`] to each other one: a queue, and a task that posts what is in the queue to the other's admin
//! port ([`PATH`]), one request at a time, so that what comes up while one is on its way goes with the next. A message may be
//! lost (a full queue, a dead connection): whoever sent it repeats it. The answer to a post carries what the other has to
//! say at once, and which process it is: pods keep their address when their container restarts, and a process that has
//! lost its memory must not be taken for the one before it.
//!
//! Questions and answers, for which requests wait, go before copies, of which a change of members makes thousands; and no post holds
//! more copies than are read in a few milliseconds.
//!
//! Only addresses of this namespace's gateway pods may post; see [`super::Sessions::serve`].

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use flotilla_core::session::MemberId;
use flotilla_core::session::wire::{Envelope, Message, VERSION};
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::net::TcpSocket;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::debug;

use super::Sessions;

/// Where gateways post to each other, on the admin port.
pub const PATH: &str = "/peers/sessions";
/// Bytes of one post or of its answer.
pub(super) const MAX_BODY: usize = 8 << 20;
/// Questions and answers in one post, a few hundred bytes each.
const MAX_BATCH: usize = 256;
/// Messages with copies in one post, a few tens of kilobytes each.
const MAX_COPIES: usize = 2;
/// Messages that wait for one gateway; further ones are lost and repeated later.
const QUEUE: usize = 8192;
/// For a connection, and for a post with its answer. Nobody waits for these: who waits for what is said decides by itself how
/// long, and what was under way is lost with the connection.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Pause after a failed connection, doubled up to [`MAX_PAUSE`].
const MIN_PAUSE: Duration = Duration::from_millis(50);
/// See [`MIN_PAUSE`].
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// What gateways post.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Post {
    /// [`VERSION`].
    pub version: u32,
    /// The process that says it, as in `/stats`.
    pub instance: String,
    /// What it says.
    #[serde(default)]
    pub envelopes: Vec<Envelope>,
}

/// The other gateways.
pub(super) struct Network {
    started: Instant,
    links: ArcSwap<Vec<Arc<Link>>>,
    /// The address that posts come from, where it matters.
    source: OnceLock<IpAddr>,
    lost: AtomicU64,
}

/// Another gateway's address, and the process there.
pub(super) struct Link {
    /// Its admin port.
    pub address: SocketAddr,
    member: Mutex<Option<MemberId>>,
    urgent: mpsc::Sender<Envelope>,
    copies: mpsc::Sender<Envelope>,
    /// It has been asked who it is, with or without success.
    tried: AtomicBool,
}

impl Link {
    /// The process there, once it has said who it is.
    pub fn member(&self) -> Option<MemberId> {
        *self.member.lock()
    }

    fn queue(&self, envelope: &Envelope) -> &mpsc::Sender<Envelope> {
        match envelope.message {
            Message::Entries { .. } => &self.copies,
            _ => &self.urgent,
        }
    }

    /// True when that is news.
    pub fn meet(&self, member: MemberId) -> bool {
        self.tried.store(true, Ordering::SeqCst);
        self.member.lock().replace(member) != Some(member)
    }
}

impl Network {
    pub fn new() -> Self {
        Self {
            started: Instant::now(),
            links: ArcSwap::default(),
            source: OnceLock::new(),
            lost: AtomicU64::new(0),
        }
    }

    /// Milliseconds since the start, for the shards.
    pub fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Posts are to come from `address`; without this the system chooses.
    pub fn set_source(&self, address: IpAddr) {
        // Told twice the same.
        let _ = self.source.set(address);
    }

    pub fn links(&self) -> Arc<Vec<Arc<Link>>> {
        self.links.load_full()
    }

    /// The gateway pod with this address.
    pub fn find(&self, address: IpAddr) -> Option<Arc<Link>> {
        let links = self.links.load();
        links.iter().find(|link| link.address.ip() == address).cloned()
    }

    /// Messages that found no queue with room.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Hands a message to the link of its addressee.
    pub fn send(&self, envelope: Envelope) {
        let links = self.links.load();
        let link = links.iter().find(|link| link.member() == Some(envelope.to));
        if link.is_none_or(|link| link.queue(&envelope).try_send(envelope).is_err()) {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Keeps links to exactly these; true when there were others. Links that go take their tasks with them.
    pub fn follow(&self, addresses: &BTreeSet<SocketAddr>, sessions: &Weak<Sessions>) -> bool {
        let before = self.links.load_full();
        let same = before.len() == addresses.len();
        if same && before.iter().all(|link| addresses.contains(&link.address)) {
            return false;
        }
        let links = addresses.iter().map(|address| {
            let known = before.iter().find(|link| link.address == *address);
            known.cloned().unwrap_or_else(|| {
                let (urgent, questions) = mpsc::channel(QUEUE);
                let (copies, bulk) = mpsc::channel(QUEUE);
                let inboxes = [questions, bulk];
                let link = Arc::new(Link {
                    address: *address,
                    member: Mutex::default(),
                    urgent,
                    copies,
                    tried: AtomicBool::new(false),
                });
                let source = self.source.get().copied();
                tokio::spawn(run(
                    Arc::downgrade(&link),
                    *address,
                    source,
                    inboxes,
                    sessions.clone(),
                ));
                link
            })
        });
        self.links.store(Arc::new(links.collect()));
        true
    }

    /// Every gateway that is listed has been asked who it is.
    pub fn is_joined(&self) -> bool {
        let tried = |link: &Arc<Link>| link.tried.load(Ordering::SeqCst);
        self.links.load().iter().all(tried)
    }
}

/// Why a post failed.
enum Failure {
    /// There is no listener: nobody is there.
    Refused(io::Error),
    /// The connection had carried posts before, and may just have been idle for too long.
    Stale,
    Other(String),
}

/// A link's task, for as long as the link exists.
async fn run(
    link: Weak<Link>,
    address: SocketAddr,
    source: Option<IpAddr>,
    [mut urgent, mut copies]: [mpsc::Receiver<Envelope>; 2],
    sessions: Weak<Sessions>,
) {
    let mut connection = None;
    let mut pause = MIN_PAUSE;
    // When it is asked who it is; none once it has said so.
    let mut probe = Some(Instant::now());
    loop {
        let mut batch = Vec::new();
        let mut room = MAX_COPIES;
        let first = tokio::select! {
            biased;
            question = urgent.recv() => Some(question),
            copy = copies.recv() => {
                room -= 1;
                Some(copy)
            }
            () = tokio::time::sleep_until(probe.unwrap_or_else(Instant::now)), if probe.is_some() => None,
        };
        match first {
            Some(Some(envelope)) => batch.push(envelope),
            // The link is gone.
            Some(None) => return,
            None => {}
        }
        batch.extend((1..MAX_BATCH).map_while(|_| urgent.try_recv().ok()));
        batch.extend((0..room).map_while(|_| copies.try_recv().ok()));
        let Some(all) = sessions.upgrade() else { return };
        let post = Post {
            version: VERSION,
            instance: all.instance().to_owned(),
            envelopes: batch,
        };
        drop(all);
        // Our own types are JSON.
        let Ok(body) = serde_json::to_vec(&post).map(Bytes::from) else {
            continue;
        };
        let mut result = exchange(&mut connection, address, source, body.clone()).await;
        if matches!(result, Err(Failure::Stale)) {
            connection = None;
            result = exchange(&mut connection, address, source, body).await;
        }
        let (Some(all), Some(link)) = (sessions.upgrade(), link.upgrade()) else {
            return;
        };
        match result {
            Ok(answer) => {
                (pause, probe) = (MIN_PAUSE, None);
                all.met(&link, &answer.instance);
                all.receive(answer.envelopes, None);
            }
            Err(failure) => {
                connection = None;
                link.tried.store(true, Ordering::SeqCst);
                match failure {
                    Failure::Refused(error) => {
                        debug!(%address, %error, "no gateway there");
                        all.unreachable(&link);
                    }
                    Failure::Stale => debug!(%address, "a gateway closes its connections"),
                    Failure::Other(error) => debug!(%address, error, "a gateway does not answer"),
                }
                probe = Some(Instant::now() + pause);
                pause = (pause * 2).min(MAX_PAUSE);
            }
        }
    }
}

type Connection = SendRequest<Full<Bytes>>;

async fn exchange(
    connection: &mut Option<Connection>,
    address: SocketAddr,
    source: Option<IpAddr>,
    body: Bytes,
) -> Result<Post, Failure> {
    let late = |_| Failure::Other("it took too long".to_owned());
    let reused = connection.as_ref().is_some_and(|sender| !sender.is_closed());
    if !reused {
        let made = tokio::time::timeout(TIMEOUT, connect(address, source));
        *connection = Some(made.await.map_err(late)??);
    }
    let Some(sender) = connection else {
        return Err(Failure::Stale);
    };
    let stale = |error: hyper::Error| {
        if reused && (error.is_closed() || error.is_canceled() || error.is_incomplete_message()) {
            Failure::Stale
        } else {
            Failure::Other(error.to_string())
        }
    };
    let request = Request::post(PATH)
        .header(header::HOST, address.to_string())
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(body))
        .map_err(|error| Failure::Other(error.to_string()))?;
    let answer = async {
        sender.ready().await.map_err(stale)?;
        let response = sender.send_request(request).await.map_err(stale)?;
        let status = response.status();
        let whole = Limited::new(response.into_body(), MAX_BODY).collect().await;
        let whole = whole
            .map_err(|error| Failure::Other(error.to_string()))?
            .to_bytes();
        if status != StatusCode::OK {
            return Err(Failure::Other(format!("it answered {status}")));
        }
        serde_json::from_slice(&whole).map_err(|error| Failure::Other(error.to_string()))
    };
    tokio::time::timeout(TIMEOUT, answer).await.map_err(late)?
}

async fn connect(address: SocketAddr, source: Option<IpAddr>) -> Result<Connection, Failure> {
    let refused = |error: io::Error| match error.kind() {
        io::ErrorKind::ConnectionRefused => Failure::Refused(error),
        _ => Failure::Other(error.to_string()),
    };
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }
    .map_err(refused)?;
    if let Some(source) = source {
        socket.bind(SocketAddr::new(source, 0)).map_err(refused)?;
    }
    let stream = socket.connect(address).await.map_err(refused)?;
    stream.set_nodelay(true).map_err(refused)?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| Failure::Other(error.to_string()))?;
    tokio::spawn(async move {
        // Its end shows at the next post.
        let _ = connection.await;
    });
    Ok(sender)
}
