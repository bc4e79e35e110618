//! Spans to a collector by OTLP over HTTP with protobuf.
//!
//! Everything is configured by the standard variables: `OTEL_EXPORTER_OTLP_ENDPOINT` (or `…_TRACES_ENDPOINT`) turns it on;
//! `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_EXPORTER_OTLP_TIMEOUT`, `OTEL_TRACES_SAMPLER`, `OTEL_RESOURCE_ATTRIBUTES` and the
//! limits of batches (`OTEL_BSP_…`) are the SDK's. Batches are made on a thread of the SDK and sent by the runtime's
//! own HTTP client; a collector that is away costs spans, counted and logged by the SDK, and never a request.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use opentelemetry::KeyValue;
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tokio::runtime::Handle;

use super::spans::Spans;

/// Any of these turns spans on.
const ENDPOINTS: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
];
/// The switch of the conventions.
const DISABLED: &str = "OTEL_SDK_DISABLED";
/// For one batch, should the SDK's own limit not end it.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of a collector's answer that are read.
const MAX_ANSWER: usize = 64 * 1024;

/// Who sends spans.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Namespace that is served.
    pub namespace: String,
    /// Name of this pod.
    pub pod: String,
}

/// Spans as the environment wants them; none where it names no collector. Needs a runtime.
pub fn from_environment(
    identity: &Identity,
    tls: &Arc<rustls::ClientConfig>,
) -> anyhow::Result<Option<Arc<Spans>>> {
    let is_set = |name: &&str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let disabled = std::env::var(DISABLED).is_ok_and(|value| value.eq_ignore_ascii_case("true"));
    if disabled || !ENDPOINTS.iter().any(is_set) {
        return Ok(None);
    }
    start(identity, tls, None).map(Some)
}

/// Spans to `endpoint` (with its path, `/v1/traces` as a rule), or to the environment's. Needs a runtime.
pub fn start(
    identity: &Identity,
    tls: &Arc<rustls::ClientConfig>,
    endpoint: Option<&str>,
) -> anyhow::Result<Arc<Spans>> {
    let mut exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(Sender::new(tls))
        .with_protocol(Protocol::HttpBinary);
    if let Some(endpoint) = endpoint {
        exporter = exporter.with_endpoint(endpoint);
    }
    let exporter = exporter
        .build()
        .context("failed to set up the export of spans (OTEL_EXPORTER_OTLP_…)")?;
    // The environment wins over these.
    let resource = Resource::builder_empty()
        .with_attributes([
            KeyValue::new("service.name", "flotilla-gateway"),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", identity.pod.clone()),
            KeyValue::new("k8s.namespace.name", identity.namespace.clone()),
            KeyValue::new("k8s.pod.name", identity.pod.clone()),
        ])
        .with_detectors(&[Box::new(opentelemetry_sdk::resource::EnvResourceDetector::new())])
        .build();
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(resource)
        .build();
    Ok(Arc::new(Spans::new(provider)))
}

/// Sends batches on the runtime; the SDK's thread has none.
#[derive(Clone, Debug)]
struct Sender {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    runtime: Handle,
}

impl Sender {
    fn new(tls: &Arc<rustls::ClientConfig>) -> Self {
        let mut tls = rustls::ClientConfig::clone(tls);
        // The connector sets it by what it may speak.
        tls.alpn_protocols.clear();
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .build();
        Self {
            client: Client::builder(TokioExecutor::new()).build(connector),
            runtime: Handle::current(),
        }
    }
}

#[async_trait]
impl HttpClient for Sender {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        let sending = async move {
            let (head, body) = client.request(request.map(Full::new)).await?.into_parts();
            let body = Limited::new(body, MAX_ANSWER).collect().await?.to_bytes();
            Ok::<_, HttpError>(Response::from_parts(head, body))
        };
        let timed = self
            .runtime
            .spawn(async move { tokio::time::timeout(TIMEOUT, sending).await });
        timed.await??
    }
}
