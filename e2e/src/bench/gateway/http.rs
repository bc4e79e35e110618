//! A client that costs next to nothing: prepared bytes out, one answer at a time in, over one kept connection.
//!
//! A client of the usual kind spends more per request than some of the proxies that are measured, and on two cores that
//! would be most of what is seen.

use anyhow::{Context as _, Result, bail};
use bytes::{Buf as _, BytesMut};
use std::net::SocketAddr;
use std::net::{IpAddr, Ipv4Addr};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use super::chunks::Chunks;

/// Room for a whole answer of 16 KiB, so that it takes one read.
const READ: usize = 32 * 1024;
const MAX_HEADERS: usize = 64;
/// How much of an error's body is shown.
const DETAIL: usize = 300;

/// One connection with at most one request on it.
pub struct Connection {
    stream: TcpStream,
    buffer: BytesMut,
}

/// How a body ends.
#[derive(Clone, Debug)]
pub enum Framing {
    /// Bytes that are left.
    Length(usize),
    /// Chunked.
    Chunked(Box<Chunks>),
}

/// The head of an answer.
#[derive(Clone, Debug)]
pub struct Head {
    /// HTTP status.
    pub status: u16,
    /// How the body ends.
    pub framing: Framing,
    /// The last byte of the origin's address, as it says itself.
    pub origin: Option<u8>,
    /// The connection will be closed.
    pub closes: bool,
}

impl Connection {
    /// Connects from 127.0.0.1, which the gateway knows as an agent's address.
    ///
    /// # Errors
    /// When nobody listens.
    pub async fn open(to: SocketAddr) -> Result<Self> {
        Self::open_from(IpAddr::V4(Ipv4Addr::LOCALHOST), to).await
    }

    /// Connects from an address of this machine.
    ///
    /// # Errors
    /// When nobody listens.
    pub async fn open_from(from: IpAddr, to: SocketAddr) -> Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(from, 0))?;
        let stream = socket
            .connect(to)
            .await
            .with_context(|| format!("failed to connect to {to}"))?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            buffer: BytesMut::with_capacity(READ),
        })
    }

    /// Sends `request` and reads its answer to the end.
    ///
    /// # Errors
    /// When there is none, or its status is not 200.
    pub async fn exchange(&mut self, request: &[u8]) -> Result<Head> {
        let mut head = self.send(request).await?;
        while !self.take_body(&mut head.framing)? {
            self.read().await?;
        }
        if head.closes {
            bail!("the connection is closed after the answer; kept connections are compared");
        }
        Ok(head)
    }

    /// Sends `request` and reads the head of its answer.
    ///
    /// # Errors
    /// When there is none, or its status is not 200.
    pub async fn send(&mut self, request: &[u8]) -> Result<Head> {
        self.stream.write_all(request).await.context("failed to send")?;
        loop {
            if !self.buffer.is_empty()
                && let Some((head, length)) = parse(&self.buffer)?
            {
                self.buffer.advance(length);
                if head.status != 200 {
                    let _ = tokio::time::timeout(std::time::Duration::from_millis(50), self.read()).await;
                    let text = String::from_utf8_lossy(&self.buffer);
                    let text: String = text.chars().take(DETAIL).collect();
                    bail!("status {}: {text}", head.status);
                }
                return Ok(head);
            }
            self.read().await?;
        }
    }

    /// Takes what has come of the body; true when it is whole.
    ///
    /// # Errors
    /// When its framing is broken.
    pub fn take_body(&mut self, framing: &mut Framing) -> Result<bool> {
        match framing {
            Framing::Length(left) => {
                let taken = self.buffer.len().min(*left);
                self.buffer.advance(taken);
                *left -= taken;
                Ok(*left == 0)
            }
            Framing::Chunked(chunks) => {
                chunks.feed(&self.buffer)?;
                self.buffer.clear();
                Ok(chunks.is_done())
            }
        }
    }

    /// Waits for more bytes.
    ///
    /// # Errors
    /// When there are none to come.
    pub async fn read(&mut self) -> Result<()> {
        self.buffer.reserve(READ);
        if self
            .stream
            .read_buf(&mut self.buffer)
            .await
            .context("failed to read")?
            == 0
        {
            bail!("the connection was closed in the middle of an answer");
        }
        Ok(())
    }
}

fn parse(bytes: &[u8]) -> Result<Option<(Head, usize)>> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut fields);
    let httparse::Status::Complete(length) = response.parse(bytes)? else {
        return Ok(None);
    };
    let mut head = Head {
        status: response.code.unwrap_or(0),
        framing: Framing::Length(0),
        origin: None,
        closes: false,
    };
    let mut framed = false;
    for field in response.headers.iter() {
        if field.name.eq_ignore_ascii_case("content-length") {
            let text = std::str::from_utf8(field.value)?;
            head.framing = Framing::Length(text.trim().parse()?);
            framed = true;
        } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
            head.framing = Framing::Chunked(Box::default());
            framed = true;
        } else if field.name.eq_ignore_ascii_case("connection") {
            head.closes = field.value.eq_ignore_ascii_case(b"close");
        } else if field.name.eq_ignore_ascii_case(super::origin::ORIGIN_HEADER) {
            head.origin = std::str::from_utf8(field.value)
                .ok()
                .and_then(|text| text.parse().ok());
        }
    }
    if !framed {
        bail!("an answer without a length");
    }
    Ok(Some((head, length)))
}
