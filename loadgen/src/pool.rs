//! Keep-alive connections to the target.
//!
//! The last one given back is the first one taken, so no more are kept warm than the load needs. A connection that
//! the target closed while it lay idle is found out before anything is written, and replaced: that is not an
//! attempt. There is no limit here; `maxInFlight` is one.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpStream;

/// A connection that can send one request at a time.
pub type Connection = SendRequest<Full<Bytes>>;

/// How often the target's name is looked up again, at most, while connections fail.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(1);

/// The connections of one worker.
#[derive(Debug)]
pub struct Pool {
    host: String,
    port: u16,
    idle: Mutex<Vec<Connection>>,
    addresses: Mutex<Addresses>,
}

#[derive(Debug)]
struct Addresses {
    list: Vec<SocketAddr>,
    next: usize,
    resolved: Instant,
}

async fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let list: Vec<SocketAddr> = tokio::net::lookup_host((host, port)).await?.collect();
    if list.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
    }
    Ok(list)
}

impl Pool {
    /// A pool without connections; looks the name up.
    ///
    /// # Errors
    /// If the name cannot be resolved.
    pub async fn new(host: &str, port: u16) -> io::Result<Self> {
        let list = resolve(host, port).await?;
        let addresses = Addresses {
            list,
            next: 0,
            resolved: Instant::now(),
        };
        Ok(Self {
            host: host.to_owned(),
            port,
            idle: Mutex::new(Vec::new()),
            addresses: Mutex::new(addresses),
        })
    }

    /// An idle connection, if there is one.
    pub fn take_idle(&self) -> Option<Connection> {
        let mut idle = self.idle.lock();
        while let Some(connection) = idle.pop() {
            if connection.is_ready() {
                return Some(connection);
            }
        }
        None
    }

    /// A new connection.
    ///
    /// # Errors
    /// If it is refused or its handshake fails; there is no timeout here.
    pub async fn connect(&self) -> io::Result<Connection> {
        let address = {
            let mut addresses = self.addresses.lock();
            addresses.next = addresses.next.wrapping_add(1);
            addresses
                .list
                .get(addresses.next % addresses.list.len().max(1))
                .copied()
        };
        let address = address.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        match open(address).await {
            Ok(connection) => Ok(connection),
            Err(error) => {
                self.resolve_again().await;
                Err(error)
            }
        }
    }

    async fn resolve_again(&self) {
        {
            let mut addresses = self.addresses.lock();
            if addresses.resolved.elapsed() < RESOLVE_INTERVAL {
                return;
            }
            addresses.resolved = Instant::now();
        }
        if let Ok(list) = resolve(&self.host, self.port).await {
            self.addresses.lock().list = list;
        }
    }

    /// Keeps a connection whose answer has been read to its end, once it is ready for the next request.
    pub async fn give_back(&self, mut connection: Connection) {
        if connection.ready().await.is_ok() {
            self.idle.lock().push(connection);
        }
    }
}

async fn open(address: SocketAddr) -> io::Result<Connection> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::trace!(%error, "a connection ended");
        }
    });
    Ok(sender)
}
