//! One life of a client on its line: a tower service.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Method, Response, header};
use http_body_util::{BodyExt as _, StreamBody};
use kube::client::Body;
use serde_json::json;
use tokio::time::sleep;
use tower::{BoxError, Service};

use super::line::{Doom, Line};
use super::watch::carry;
use crate::api::request::{Path, Query, Request};
use crate::api::{Answer, watch as watching};
use crate::cluster::{AnswerBody, whole};

/// How long lists are stale after a start.
const STALE: Duration = Duration::from_secs(10);

/// One life of a client. Cheap to clone; clones share its fate.
#[derive(Clone, Debug)]
pub struct Wire {
    line: Line,
    life: u64,
    born: Duration,
}

impl Wire {
    pub(super) fn new(line: Line, life: u64, born: Duration) -> Self {
        Self { line, life, born }
    }

    async fn dead<T>(&self) -> T {
        std::future::pending().await
    }

    fn crash<T>(&self) -> impl Future<Output = T> + use<'_, T> {
        self.line.0.state.lock().crashed = true;
        self.line.0.crash.notify_waiters();
        self.dead()
    }

    async fn carry(&self, request: Request) -> Result<Response<AnswerBody>, BoxError> {
        if !self.line.is_alive(self.life) {
            return self.dead().await;
        }
        sleep(self.line.latency()).await;
        let age = self.line.0.cluster.age();
        if self.line.0.plan.hole(age).is_some() || !self.line.is_alive(self.life) {
            return self.dead().await;
        }
        let counted = is_counted(&request);
        let record = self.line.record(&request, counted);
        let doom = if counted { self.line.doom() } else { Doom::None };
        match doom {
            Doom::CrashBefore => return self.crash().await,
            Doom::Hang(false) => return self.dead().await,
            Doom::Refused(code) => {
                self.line.answered(record, code, false);
                return refused(code);
            }
            Doom::None | Doom::CrashAfter | Doom::Lost | Doom::Hang(true) => {}
        }
        let request = self.aged(request);
        let version = || self.line.0.cluster.with(|state| state.store.revision());
        let before = version();
        let answer = self.line.0.cluster.answer(&request);
        let code = match &answer {
            Ok(Answer::Whole { code, .. }) => *code,
            Ok(Answer::Watch(_)) => 200,
            Err(failure) => failure.code,
        };
        self.line.answered(record, code, version() != before);
        match doom {
            Doom::CrashAfter => return self.crash().await,
            Doom::Hang(_) => return self.dead().await,
            Doom::Lost => {
                let broken = std::io::Error::new(
                    std::io::ErrorKind::ConnectionReset,
                    "the answer was lost, as planned",
                );
                return Err(Box::new(broken));
            }
            Doom::None | Doom::CrashBefore | Doom::Refused(_) => {}
        }
        sleep(self.line.latency()).await;
        if !self.line.is_alive(self.life) {
            return self.dead().await;
        }
        match answer {
            Ok(Answer::Whole { code, body }) => whole(code, &body),
            Ok(Answer::Watch(plan)) => {
                let lines = watching::stream(self.line.0.cluster.clone(), plan);
                let plural = Path::parse(&request.path)
                    .map(|path| path.plural)
                    .unwrap_or_default();
                let late = self.line.0.plan.late(&plural);
                let frames = carry(lines, self.line.clone(), self.life, late);
                Ok(Response::builder()
                    .status(200)
                    .header(header::CONTENT_TYPE, "application/json")
                    .body(StreamBody::new(frames).boxed_unsync())?)
            }
            Err(failure) => whole(failure.code, &failure.body()),
        }
    }

    /// A list as an API server with an old cache answers it.
    fn aged(&self, mut request: Request) -> Request {
        let is_list = request.method == Method::GET
            && !request.is_watch()
            && request.query.get("continue").is_none()
            && Path::parse(&request.path).is_ok_and(|path| path.name.is_none() && !path.plural.is_empty());
        let young = self.line.0.cluster.age().saturating_sub(self.born) < STALE;
        // The first start finds an API server that is as new.
        if let Some(versions) = self
            .line
            .0
            .plan
            .stale()
            .filter(|_| is_list && young && self.life > 1)
        {
            let now = self.line.0.cluster.with(|state| state.store.revision());
            let then = now.saturating_sub(versions).max(crate::store::OLDEST);
            request.query = Query::parse(&format!("{}&continue=v1.{then}..", request.raw_query));
        }
        request
    }
}

/// Whether faults count a request as a write: leases and events come by the clock, dry runs change nothing.
fn is_counted(request: &Request) -> bool {
    request.is_write()
        && !request.dry_run().0
        && !request.path.contains("/events")
        && !request.path.contains("/leases")
}

fn refused(code: u16) -> Result<Response<AnswerBody>, BoxError> {
    let reason = match code {
        409 => "Conflict",
        429 => "TooManyRequests",
        503 => "ServiceUnavailable",
        504 => "Timeout",
        _ => "InternalError",
    };
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code, "reason": reason,
        "message": "refused, as planned",
    });
    whole(code, &body)
}

impl Service<http::Request<Body>> for Wire {
    type Response = Response<AnswerBody>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let wire = self.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let body = body.collect_bytes().await?;
            let (path, query) = (parts.uri.path(), parts.uri.query().unwrap_or_default());
            match Request::new(parts.method, path, query, &parts.headers, &body) {
                Ok(request) => wire.carry(request).await,
                Err(failure) => whole(failure.code, &failure.body()),
            }
        })
    }
}
