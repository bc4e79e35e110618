//! How a report reaches the gateway that is elected, and its answer comes back; and how that one asks its witness.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flotilla_core::quota::{Reply, Report, Vouch};
use futures::future::BoxFuture;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::debug;

use super::election::{Doubt, Leader, Look};
use super::office::Asked;
use crate::peers::Peers;

/// Where reports are taken, on the admin port.
pub const PATH: &str = "/quota/v1/report";
/// Where the witness is told, on the admin port.
pub const VOUCH_PATH: &str = "/quota/v1/vouch";
/// For a report and its answer, writing included.
const TIMEOUT: Duration = Duration::from_millis(1_500);
/// For a connection to another gateway.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// Idle connections are closed after this time; reports come every second, or after a rest.
const IDLE: Duration = Duration::from_secs(15);
/// The longest report or answer: 64 limits of some 300 bytes.
pub(super) const MAX_BYTES: usize = 64 * 1024;

/// What is sent.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Message {
    /// The ModelProvider.
    pub provider: String,
    /// What the holder has and wants.
    pub report: Report,
}

/// What a witness is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Word {
    /// The ModelProvider.
    pub provider: String,
    /// The holder that is the witness.
    pub by: String,
    /// What it is to remember.
    pub vouch: Vouch,
}

/// Why a message had no effect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The process has ended: its pod is gone, or there is a machine on which nobody listens.
    #[error("{0}")]
    Ended(String),
    /// It was not reached, or did not answer.
    #[error("{0}")]
    Silent(String),
    /// It answered that it will not.
    #[error("{0}")]
    Unwilling(String),
}

/// Brings messages to the gateway in a pod.
pub trait Transport: Send + Sync + 'static {
    /// The answer to a report; none if there was none.
    ///
    /// # Errors
    /// When that gateway could not be reached or deals out nothing.
    fn send<'a>(&'a self, pod: &'a str, message: Message) -> BoxFuture<'a, Result<Option<Reply>, SendError>>;

    /// Tells the witness.
    ///
    /// # Errors
    /// When it could not be reached or is none.
    fn vouch<'a>(&'a self, pod: &'a str, word: Word) -> BoxFuture<'a, Result<(), SendError>>;
}

/// Over HTTP, to the admin port.
pub struct Http {
    client: Client<HttpConnector, Full<Bytes>>,
    peers: Arc<Peers>,
}

impl Http {
    /// To gateways that `peers` knows, from the address that this one listens on: they know it by that.
    pub fn new(peers: Arc<Peers>, listen: IpAddr) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_local_address(Some(listen).filter(|address| !address.is_unspecified()));
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .build(connector);
        Self { client, peers }
    }

    /// The answer's status and body.
    async fn post(
        &self,
        pod: &str,
        path: &str,
        message: &impl Serialize,
    ) -> Result<(StatusCode, Bytes), SendError> {
        let unwilling = |error: &dyn std::fmt::Display| SendError::Unwilling(error.to_string());
        let address = match self.peers.admin(pod) {
            Some(address) => address,
            None if self.peers.has_left(pod) => {
                return Err(SendError::Ended(format!("gateway pod {pod} is gone")));
            }
            None => {
                let unknown = format!("the address of gateway pod {pod} is not known");
                return Err(SendError::Silent(unknown));
            }
        };
        let body = serde_json::to_vec(message).map_err(|error| unwilling(&error))?;
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("http://{address}{path}"))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| unwilling(&error))?;
        let response = self.client.request(request).await.map_err(|error| {
            let text = error.to_string();
            if is_refused(&error) {
                SendError::Ended(text)
            } else {
                SendError::Silent(text)
            }
        })?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_BYTES)
            .collect()
            .await
            .map_err(|error| SendError::Silent(error.to_string()))?;
        Ok((status, body.to_bytes()))
    }
}

/// Whether the other machine said that nobody listens.
fn is_refused(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source()).any(|error| {
        let error = error.downcast_ref::<std::io::Error>();
        error.is_some_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
    })
}

fn unwilling(status: StatusCode, body: &[u8]) -> SendError {
    SendError::Unwilling(format!("{status}: {}", String::from_utf8_lossy(body).trim()))
}

impl Transport for Http {
    fn send<'a>(&'a self, pod: &'a str, message: Message) -> BoxFuture<'a, Result<Option<Reply>, SendError>> {
        Box::pin(async move {
            let (status, body) = self.post(pod, PATH, &message).await?;
            match status {
                StatusCode::OK => serde_json::from_slice(&body)
                    .map(Some)
                    .map_err(|error| SendError::Unwilling(error.to_string())),
                StatusCode::NO_CONTENT => Ok(None),
                status => Err(unwilling(status, &body)),
            }
        })
    }

    fn vouch<'a>(&'a self, pod: &'a str, word: Word) -> BoxFuture<'a, Result<(), SendError>> {
        Box::pin(async move {
            match self.post(pod, VOUCH_PATH, &word).await? {
                (StatusCode::NO_CONTENT, _) => Ok(()),
                (status, body) => Err(unwilling(status, &body)),
            }
        })
    }
}

/// The way to whoever is elected. Cheap to clone.
#[derive(Clone)]
pub(super) struct Link {
    pub(super) leader: watch::Receiver<Leader>,
    /// Asks the election to look at once.
    pub(super) look: Arc<Look>,
    pub(super) office: mpsc::Sender<Asked>,
    pub(super) transport: Arc<dyn Transport>,
}

impl Link {
    /// Brings a report to its answer; none if there was none within some time.
    pub(super) async fn report(&self, provider: &str, report: Report) -> Option<Reply> {
        let leader = self.leader.borrow().clone();
        let pod = match &leader {
            Leader::Other(pod) => Some(pod.as_str()),
            Leader::Nobody | Leader::Me => None,
        };
        let answer = async {
            match &leader {
                Leader::Nobody => Err(SendError::Unwilling("nobody is elected".to_owned())),
                Leader::Me => Ok(self.here(provider.to_owned(), report).await),
                Leader::Other(pod) => {
                    let provider = provider.to_owned();
                    self.transport.send(pod, Message { provider, report }).await
                }
            }
        };
        let failure = match tokio::time::timeout(TIMEOUT, answer).await {
            Ok(Ok(reply)) => {
                if let Some(pod) = pod {
                    self.look.reached(pod);
                }
                return reply;
            }
            Ok(Err(failure)) => failure,
            Err(_) => SendError::Silent("no answer in time".to_owned()),
        };
        debug!(provider, %failure, "a report of a quota's use was not answered");
        let doubt = match failure {
            SendError::Ended(_) => Some(Doubt::Ended),
            SendError::Silent(_) => Some(Doubt::Silent),
            SendError::Unwilling(_) => None,
        };
        self.look.at_once(pod.zip(doubt));
        None
    }

    /// The answer of this gateway's own allocator.
    pub(super) async fn here(&self, provider: String, report: Report) -> Option<Reply> {
        let (answer, answered) = oneshot::channel();
        let asked = Asked {
            provider,
            report,
            answer,
        };
        self.office.send(asked).await.ok()?;
        answered.await.ok()
    }

    /// Whether this gateway is elected.
    pub(super) fn is_elected(&self) -> bool {
        *self.leader.borrow() == Leader::Me
    }
}
