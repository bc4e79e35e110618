//! Probes of a candidate: requests, connections and names, each without a retry.
//!
//! Requests go to the candidate's own Service and nowhere else, connections to Services of its namespace: the operator reaches
//! more of the network than the author of a pool may, and must not lend that. Redirects are not followed, bodies are read up to
//! a limit, and no answer is kept but a short excerpt of one that is not as it should be.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use flotilla_crds::agent_pool::{Agent, Protocol};
use flotilla_crds::load_test::LoadProtocol;
use flotilla_crds::release_test::{AgentTest, DnsTest, HttpTest, HttpTestMethod, TcpTest};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::header::{CONTENT_TYPE, HOST, HeaderName, HeaderValue, USER_AGENT};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::Instant;

use super::answer;
use super::list::Probe;

/// Marks requests that no user sent.
pub const SYNTHETIC_HEADER: HeaderName = HeaderName::from_static("x-flotilla-synthetic");
/// Its value here.
const SMOKE_TEST: HeaderValue = HeaderValue::from_static("smoke-test");
/// Read of an answer to a test of type HTTP.
const HTTP_BODY: usize = 64 << 10;
/// Read of an answer to a test of type Agent.
const AGENT_BODY: usize = 1 << 20;
/// Characters of an answer that are quoted.
const EXCERPT: usize = 200;
/// Port of a revision's Service.
const SERVICE_PORT: u16 = 80;

/// The candidate's own Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Namespace of the pool.
    pub namespace: String,
    /// Its name in the cluster's DNS, sent as Host.
    pub name: String,
    /// Its address, where it has one: a name that was asked for too early is cached as unknown.
    pub address: Option<IpAddr>,
    /// Its port.
    pub port: u16,
    /// What the candidate speaks.
    pub protocol: LoadProtocol,
}

impl Target {
    /// The Service of a revision of `agent`, with its cluster IP.
    pub fn of_revision(namespace: &str, revision: &str, address: Option<&str>, agent: &Agent) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: format!("{revision}.{namespace}.svc"),
            address: address.and_then(|address| address.parse().ok()),
            port: SERVICE_PORT,
            protocol: match agent.protocol {
                Protocol::HTTP => LoadProtocol::HTTP,
                Protocol::A2A => LoadProtocol::A2A,
            },
        }
    }

    fn authority(&self) -> String {
        match self.address {
            Some(address) => SocketAddr::new(address, self.port).to_string(),
            None => format!("{}:{}", self.name, self.port),
        }
    }
}

/// Why an attempt did not pass: a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Miss {
    /// Nobody took the connection to the candidate's Service: it was refused, or there was no route.
    Unreached(String),
    /// Everything else: an answer that is not as it should be, or something that the test needs besides the candidate.
    Failed(String),
}

impl From<String> for Miss {
    fn from(sentence: String) -> Self {
        Self::Failed(sentence)
    }
}

/// Carries probes out. Replaced in tests of the controller.
pub trait Ask: Send + Sync + 'static {
    /// One attempt: a sentence in either case.
    fn ask(&self, probe: Probe, target: Target) -> BoxFuture<'static, Result<String, Miss>>;
}

/// Carries probes out on the network.
#[derive(Clone, Debug)]
pub struct Network(Client<HttpConnector, Full<Bytes>>);

impl Default for Network {
    fn default() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        // A connection of its own for each: an earlier replica's must not answer for the one that is tested.
        Self(
            Client::builder(TokioExecutor::new())
                .pool_max_idle_per_host(0)
                .build(connector),
        )
    }
}

impl Ask for Network {
    fn ask(&self, probe: Probe, target: Target) -> BoxFuture<'static, Result<String, Miss>> {
        let network = self.clone();
        async move {
            match probe {
                Probe::Http(test) => network.http(&test, &target).await,
                Probe::Agent(test) => network.agent(&test, &target).await,
                Probe::Tcp(test) => connect(&test, &target).await,
                Probe::Dns(test) => Ok(resolve(&test, &target).await?),
            }
        }
        .boxed()
    }
}

impl Network {
    async fn http(&self, test: &HttpTest, target: &Target) -> Result<String, Miss> {
        let method = match test.method {
            HttpTestMethod::GET => Method::GET,
            HttpTestMethod::POST => Method::POST,
            HttpTestMethod::PUT => Method::PUT,
            HttpTestMethod::DELETE => Method::DELETE,
        };
        let body = Bytes::from(test.body.clone().unwrap_or_default());
        let mut request = request(&method, &test.path, target, body)?;
        for header in &test.headers {
            let name = HeaderName::try_from(&header.name).map_err(|error| error.to_string())?;
            let value = HeaderValue::try_from(&header.value)
                .map_err(|_| format!("header {} has a value that cannot be sent", header.name))?;
            request.headers_mut().insert(name, value);
        }
        let (status, body) = self.send(request, HTTP_BODY).await?;
        let what = format!("{method} {}", test.path);
        if i32::from(status.as_u16()) != test.expect_status {
            let (got, wanted) = (status.as_u16(), test.expect_status);
            return Err(format!("{what} was answered with {got}, not {wanted}{}", excerpt(&body)).into());
        }
        if let Some(wanted) = test
            .expect_contains
            .as_ref()
            .filter(|wanted| !body.contains(*wanted))
        {
            return Err(format!(
                "the answer to {what} does not contain {wanted:?}{}",
                excerpt(&body)
            )
            .into());
        }
        Ok(format!("{what} was answered with {}", status.as_u16()))
    }

    async fn agent(&self, test: &AgentTest, target: &Target) -> Result<String, Miss> {
        let protocol = test.protocol.unwrap_or(target.protocol);
        let id = format!("smoke-test-{:016x}", rand::random::<u64>());
        let call = answer::call(protocol, &test.prompt, &id);
        let path = test.path.as_deref().unwrap_or(call.path);
        let mut request = request(&Method::POST, path, target, Bytes::from(call.body))?;
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(call.content_type));
        if protocol == LoadProtocol::A2A {
            headers.insert("a2a-version", HeaderValue::from_static("1.0"));
        }
        let began = Instant::now();
        let (status, body) = self.send(request, AGENT_BODY).await?;
        let milliseconds = began.elapsed().as_millis();
        if !status.is_success() {
            return Err(format!(
                "POST {path} was answered with {}{}",
                status.as_u16(),
                excerpt(&body)
            )
            .into());
        }
        let said = answer::text(protocol, &body)?;
        if said.trim().is_empty() {
            return Err("the answer is empty".to_owned().into());
        }
        let (heard, lower) = (said.to_lowercase(), |text: &String| text.to_lowercase());
        if let Some(wanted) = test
            .expect_contains
            .as_ref()
            .filter(|wanted| !heard.contains(&lower(wanted)))
        {
            return Err(format!("the answer does not contain {wanted:?}{}", excerpt(&said)).into());
        }
        if let Some(banned) = test
            .expect_without
            .as_ref()
            .filter(|banned| heard.contains(&lower(banned)))
        {
            return Err(format!("the answer contains {banned:?}{}", excerpt(&said)).into());
        }
        match test.max_milliseconds.and_then(|limit| u128::try_from(limit).ok()) {
            Some(limit) if milliseconds > limit => {
                Err(format!("the answer took {milliseconds} ms, {limit} ms are allowed").into())
            }
            _ => Ok(format!("answered in {milliseconds} ms")),
        }
    }

    /// The status and as much of the body as is read, as text.
    async fn send(&self, request: Request<Full<Bytes>>, limit: usize) -> Result<(StatusCode, String), Miss> {
        let response = self.0.request(request).await.map_err(|error| {
            let sentence = root_cause(&error);
            match error.is_connect() && is_unreached(&error) {
                true => Miss::Unreached(sentence),
                false => Miss::Failed(sentence),
            }
        })?;
        let status = response.status();
        let body = read(response.into_body(), limit).await?;
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }
}

fn request(
    method: &Method,
    path: &str,
    target: &Target,
    body: Bytes,
) -> Result<Request<Full<Bytes>>, String> {
    Request::builder()
        .method(method)
        .uri(format!("http://{}{path}", target.authority()))
        .header(HOST, &target.name)
        .header(
            USER_AGENT,
            concat!("flotilla-operator/", env!("CARGO_PKG_VERSION")),
        )
        .header(SYNTHETIC_HEADER, SMOKE_TEST)
        .body(Full::new(body))
        .map_err(|error| format!("the request cannot be sent: {error}"))
}

/// The first `limit` bytes of a body.
async fn read(mut body: Incoming, limit: usize) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    while bytes.len() < limit {
        match body.frame().await {
            None => break,
            Some(Err(error)) => return Err(format!("the answer broke off: {}", root_cause(&error))),
            Some(Ok(frame)) => {
                let data = frame.into_data().unwrap_or_default();
                bytes.extend(data.iter().take(limit - bytes.len()));
            }
        }
    }
    Ok(bytes)
}

async fn connect(test: &TcpTest, target: &Target) -> Result<String, Miss> {
    let port = u16::try_from(test.port).map_err(|_| format!("{} is no port", test.port))?;
    let (name, addresses) = match &test.service_name {
        Some(service) => {
            let name = format!("{service}.{}.svc", target.namespace);
            let addresses = look_up(&name, port).await?;
            (name, addresses)
        }
        None => {
            let port = if port == SERVICE_PORT { target.port } else { port };
            let addresses = match target.address {
                Some(address) => vec![SocketAddr::new(address, port)],
                None => look_up(&target.name, port).await?,
            };
            (target.name.clone(), addresses)
        }
    };
    let opened = TcpStream::connect(addresses.as_slice()).await;
    opened.map_err(|error| {
        let sentence = format!("no connection to {name}:{port}: {error}");
        // Another Service's endpoints are not new with the candidate.
        match test.service_name.is_none() && is_unreached(&error) {
            true => Miss::Unreached(sentence),
            false => Miss::Failed(sentence),
        }
    })?;
    Ok(format!("{name}:{port} takes connections"))
}

async fn resolve(test: &DnsTest, target: &Target) -> Result<String, String> {
    let name = if test.host.contains('.') {
        test.host.clone()
    } else {
        format!("{}.{}.svc", test.host, target.namespace)
    };
    let count = look_up(&name, 0).await?.len();
    Ok(format!("{name} has {count} addresses"))
}

async fn look_up(name: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
    let found = lookup_host((name, port))
        .await
        .map_err(|error| format!("{name} has no address: {error}"))?;
    let addresses: Vec<_> = found.collect();
    if addresses.is_empty() {
        return Err(format!("{name} has no address"));
    }
    Ok(addresses)
}

/// Whether a connection was refused, or found no route.
fn is_unreached(error: &(dyn std::error::Error + 'static)) -> bool {
    use std::io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable};
    std::iter::successors(Some(error), |error| error.source())
        .filter_map(|error| error.downcast_ref::<std::io::Error>())
        .any(|error| {
            matches!(
                error.kind(),
                ConnectionRefused | HostUnreachable | NetworkUnreachable
            )
        })
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// The beginning of an answer in one line, for the end of a sentence.
fn excerpt(body: &str) -> String {
    let words: Vec<&str> = body
        .split(|char: char| char.is_whitespace() || char.is_control())
        .collect();
    let line: String = words
        .into_iter()
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
        .chars()
        .take(EXCERPT)
        .collect();
    if line.is_empty() {
        String::new()
    } else {
        format!(": {line}")
    }
}

#[cfg(test)]
mod tests;
