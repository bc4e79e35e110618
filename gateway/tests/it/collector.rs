//! A collector of spans, and of all else that the gateway tells.

use std::io::Write;
use std::sync::{Arc, Mutex};

use crate::support::{Agent, full};
use bytes::Bytes;
use flotilla_gateway::observe::Observe;
use flotilla_gateway::observe::access_log::AccessLog;
use flotilla_gateway::observe::otlp::{self, Identity};
use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;

/// Text that is written by one and read by another.
#[derive(Clone, Default)]
pub struct Text(Arc<Mutex<Vec<u8>>>);

impl Text {
    pub fn read(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl Write for Text {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Takes in what a gateway tells.
pub struct Collector {
    pub observe: Observe,
    pub lines: Text,
    exports: Arc<Mutex<Vec<Bytes>>>,
    _server: Agent,
}

impl Collector {
    /// One that gets a line and a span for every request.
    pub async fn start() -> Self {
        let exports = Arc::new(Mutex::new(Vec::new()));
        let inbox = exports.clone();
        let server = Agent::start(move |request: Request<Incoming>| {
            let inbox = inbox.clone();
            async move {
                assert_eq!(request.uri().path(), "/v1/traces");
                assert_eq!(request.headers()["content-type"], "application/x-protobuf");
                let body = request.into_body().collect().await.unwrap().to_bytes();
                inbox.lock().unwrap().push(body);
                Response::new(full(""))
            }
        })
        .await;
        let identity = Identity {
            namespace: "apps".into(),
            pod: "gateway-0".into(),
        };
        let endpoint = format!("http://{}/v1/traces", server.address);
        let tls = flotilla_gateway::egress::tls::client_config();
        let lines = Text::default();
        let observe = Observe {
            access_log: Some(Arc::new(AccessLog::new(100, lines.clone()))),
            spans: Some(otlp::start(&identity, &tls, Some(&endpoint)).unwrap()),
        };
        Self {
            observe,
            lines,
            exports,
            _server: server,
        }
    }

    /// Has everything sent; nothing more comes after that. Gives the exports as they came.
    pub async fn finish(&self) -> Vec<Bytes> {
        let spans = self.observe.spans.clone().unwrap();
        tokio::task::spawn_blocking(move || spans.shutdown())
            .await
            .unwrap();
        self.exports.lock().unwrap().clone()
    }

    /// The spans that have come, once all are sent.
    pub async fn spans(&self) -> Vec<Span> {
        let exports = self.finish().await;
        exports
            .iter()
            .flat_map(|export| {
                ExportTraceServiceRequest::decode(export.clone())
                    .unwrap()
                    .resource_spans
            })
            .flat_map(|resource| resource.scope_spans)
            .flat_map(|scope| scope.spans)
            .collect()
    }

    /// The lines of the access log, once there are `count`.
    pub async fn json_lines(&self, count: usize) -> Vec<serde_json::Value> {
        for _ in 0..500 {
            let text = self.lines.read();
            if text.lines().count() >= count {
                return text
                    .lines()
                    .map(|line| serde_json::from_str(line).unwrap())
                    .collect();
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("not {count} lines: {}", self.lines.read());
    }
}

/// An attribute of a span, as text.
pub fn attribute(span: &Span, key: &str) -> Option<String> {
    let found = span.attributes.iter().find(|attribute| attribute.key == key)?;
    Some(match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        Value::DoubleValue(number) => number.to_string(),
        other => format!("{other:?}"),
    })
}

/// An id of a span, in hexadecimal.
pub fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}
