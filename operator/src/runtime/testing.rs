//! A scripted API server for unit tests.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tower::{BoxError, util::BoxCloneService};

use super::client::{Clients, on_service};
use super::time::Jitter;
use crate::metrics::Metrics;

/// A request as the server got it.
#[derive(Clone, Debug)]
pub(crate) struct Got {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) body: Value,
}

impl Got {
    pub(crate) fn is_watch(&self) -> bool {
        self.query.contains("watch=true")
    }
}

pub(crate) type AnswerBody = UnsyncBoxBody<Bytes, BoxError>;
pub(crate) type Answer = Result<Response<AnswerBody>, BoxError>;

/// Records every request and answers by a function.
#[derive(Clone)]
pub(crate) struct FakeApi {
    got: Arc<Mutex<Vec<Got>>>,
    handler: Arc<dyn Fn(Got) -> BoxFuture<'static, Answer> + Send + Sync>,
    pub(crate) metrics: Metrics,
}

impl FakeApi {
    pub(crate) fn new<F>(handler: impl Fn(Got) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        Self {
            got: Arc::default(),
            handler: Arc::new(move |got| Box::pin(handler(got))),
            metrics: Metrics::new(),
        }
    }

    pub(crate) fn clients(&self) -> Clients {
        let fake = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let fake = fake.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect_bytes().await?;
                let got = Got {
                    method: parts.method,
                    path: parts.uri.path().to_owned(),
                    query: parts.uri.query().unwrap_or_default().to_owned(),
                    body: serde_json::from_slice(&body).unwrap_or_default(),
                };
                fake.got.lock().push(got.clone());
                (fake.handler)(got).await
            }
        });
        on_service(BoxCloneService::new(service), &self.metrics, &Jitter::seeded(1))
    }

    pub(crate) fn got(&self) -> Vec<Got> {
        self.got.lock().clone()
    }

    /// The requests that are not reads.
    pub(crate) fn writes(&self) -> Vec<Got> {
        self.got()
            .into_iter()
            .filter(|got| got.method != Method::GET)
            .collect()
    }
}

pub(crate) fn answer(code: u16, body: &Value) -> Answer {
    raw(code, body.to_string())
}

pub(crate) fn raw(code: u16, body: impl Into<Bytes>) -> Answer {
    let body = Full::new(body.into())
        .map_err(|never| match never {})
        .boxed_unsync();
    Ok(Response::builder().status(code).body(body)?)
}

pub(crate) fn status(code: u16, reason: &str, message: &str) -> Answer {
    answer(
        code,
        &json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message}),
    )
}

/// A body that never ends.
pub(crate) fn endless(code: u16) -> Answer {
    let frames = futures::stream::pending::<Result<http_body::Frame<Bytes>, BoxError>>();
    Ok(Response::builder()
        .status(code)
        .body(http_body_util::StreamBody::new(frames).boxed_unsync())?)
}

/// An empty list of a kind.
pub(crate) fn list(kind: &str, api_version: &str, items: &[Value]) -> Answer {
    answer(
        200,
        &json!({"kind": format!("{kind}List"), "apiVersion": api_version, "metadata": {"resourceVersion": "100"}, "items": items}),
    )
}
