//! How a report reaches the gateway that is elected, and its answer comes back.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flotilla_core::quota::{Reply, Report};
use futures::future::BoxFuture;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tracing::debug;

use super::election::Leader;
use super::office::Asked;
use crate::peers::Peers;

/// Where reports are taken, on the admin port.
pub const PATH: &str = "/quota/v1/report";
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

/// Brings a message to the gateway in a pod.
pub trait Transport: Send + Sync + 'static {
    /// The answer; none if there was none.
    ///
    /// # Errors
    /// When that gateway could not be reached or deals out nothing.
    fn send<'a>(&'a self, pod: &'a str, message: Message) -> BoxFuture<'a, Result<Option<Reply>, String>>;
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

    async fn post(&self, pod: &str, message: &Message) -> Result<Option<Reply>, String> {
        let address = self
            .peers
            .admin(pod)
            .ok_or_else(|| format!("the address of gateway pod {pod} is not known"))?;
        let body = serde_json::to_vec(message).map_err(|error| error.to_string())?;
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("http://{address}{PATH}"))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| error.to_string())?;
        let response = self
            .client
            .request(request)
            .await
            .map_err(|error| error.to_string())?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_BYTES)
            .collect()
            .await
            .map_err(|error| error.to_string())?
            .to_bytes();
        match status {
            StatusCode::OK => serde_json::from_slice(&body)
                .map(Some)
                .map_err(|error| error.to_string()),
            StatusCode::NO_CONTENT => Ok(None),
            status => Err(format!("{status}: {}", String::from_utf8_lossy(&body).trim())),
        }
    }
}

impl Transport for Http {
    fn send<'a>(&'a self, pod: &'a str, message: Message) -> BoxFuture<'a, Result<Option<Reply>, String>> {
        Box::pin(async move { self.post(pod, &message).await })
    }
}

/// The way to whoever is elected. Cheap to clone.
#[derive(Clone)]
pub(super) struct Link {
    pub(super) leader: watch::Receiver<Leader>,
    /// Asks the election to look at once.
    pub(super) look: Arc<Notify>,
    pub(super) office: mpsc::Sender<Asked>,
    pub(super) transport: Arc<dyn Transport>,
}

impl Link {
    /// Brings a report to its answer; none if there was none within some time.
    pub(super) async fn report(&self, provider: &str, report: Report) -> Option<Reply> {
        let leader = self.leader.borrow().clone();
        let answer = async {
            match leader {
                Leader::Nobody => Err("nobody is elected".to_owned()),
                Leader::Me => Ok(self.here(provider.to_owned(), report).await),
                Leader::Other(pod) => {
                    let provider = provider.to_owned();
                    self.transport.send(&pod, Message { provider, report }).await
                }
            }
        };
        let failure = match tokio::time::timeout(TIMEOUT, answer).await {
            Ok(Ok(reply)) => return reply,
            Ok(Err(failure)) => failure,
            Err(_) => "no answer in time".to_owned(),
        };
        debug!(provider, failure, "a report of a quota's use was not answered");
        self.look.notify_one();
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
