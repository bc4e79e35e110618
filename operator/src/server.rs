//! The operator's own HTTP server: `/metrics`, `/healthz`, `/readyz`.
//!
//! It answers from memory and never asks the API server, so a scrape or a probe costs nothing there. A standby is as
//! ready as the leader: its caches are warm, and a rolling update must not wait for a leadership it will not get.

use std::net::SocketAddr;
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{Response, StatusCode};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use warp::{Filter, Reply};

use crate::metrics::{self, Metrics};
use crate::runtime::readiness::Readiness;

/// How long open connections get at shutdown. warp waits for ever for a request that was begun and never ended.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);

/// The port cannot be had.
#[derive(Debug, thiserror::Error)]
#[error(
    "failed to listen on {address}: {}",
    if source.kind() == std::io::ErrorKind::AddrInUse {
        "another process does already; stop it or choose another --http-address"
    } else {
        "choose another --http-address"
    }
)]
pub struct BindError {
    address: SocketAddr,
    #[source]
    source: std::io::Error,
}

/// Takes the port, so that a clash is an error at start and not a panic later.
///
/// # Errors
/// [`BindError`].
pub async fn bind(address: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| BindError { address, source })
}

/// Serves until `stop`.
pub async fn serve(listener: TcpListener, metrics: Metrics, readiness: Readiness, stop: CancellationToken) {
    let graceful = stop.clone().cancelled_owned();
    let server = warp::serve(routes(metrics, readiness))
        .incoming(listener)
        .graceful(graceful)
        .run();
    tokio::pin!(server);
    tokio::select! {
        () = &mut server => return,
        () = stop.cancelled() => {}
    }
    if tokio::time::timeout(DRAIN_LIMIT, server).await.is_err() {
        tracing::debug!("connections were still open at the end");
    }
}

fn routes(
    metrics: Metrics,
    readiness: Readiness,
) -> impl Filter<Extract = (impl Reply,), Error = warp::Rejection> + Clone + Send + Sync + 'static {
    let metrics = warp::path!("metrics")
        .map(move || reply(StatusCode::OK, metrics::CONTENT_TYPE, metrics.encode()))
        .boxed();
    let health = warp::path!("healthz")
        .map(|| reply(StatusCode::OK, TEXT, "ok\n".to_owned()))
        .boxed();
    let ready = warp::path!("readyz")
        .map(move || {
            let pending = readiness.pending();
            if pending.is_empty() {
                reply(StatusCode::OK, TEXT, "ok\n".to_owned())
            } else {
                let list = pending.iter().map(|part| format!("pending: {part}\n")).collect();
                reply(StatusCode::SERVICE_UNAVAILABLE, TEXT, list)
            }
        })
        .boxed();
    let read = warp::get().or(warp::head()).unify();
    read.and(metrics.or(health).unify().or(ready).unify())
        .or_else(|rejection: warp::Rejection| async move {
            if rejection.is_not_found() {
                let paths = "try /metrics, /healthz or /readyz\n".to_owned();
                Ok::<_, warp::Rejection>((reply(StatusCode::NOT_FOUND, TEXT, paths),))
            } else {
                Err(rejection)
            }
        })
}

const TEXT: &str = "text/plain; charset=utf-8";

fn reply(status: StatusCode, content_type: &'static str, body: String) -> Response<String> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn serves_metrics_and_probes_and_ends_in_spite_of_an_unfinished_request() {
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (readiness, stop) = (Readiness::default(), CancellationToken::new());
        readiness.expect("cache of pods");
        let server = tokio::spawn(serve(listener, Metrics::new(), readiness.clone(), stop.clone()));

        let text = get(address, "/readyz").await;
        assert!(
            text.starts_with("HTTP/1.1 503") && text.contains("pending: cache of pods"),
            "{text}"
        );
        readiness.done("cache of pods");
        assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 200"));
        assert!(get(address, "/healthz").await.starts_with("HTTP/1.1 200"));
        let text = get(address, "/metrics").await;
        assert!(
            text.contains("application/openmetrics-text") && text.contains("# EOF"),
            "{text}"
        );
        assert!(get(address, "/other").await.starts_with("HTTP/1.1 404"));

        let mut unfinished = TcpStream::connect(address).await.unwrap();
        unfinished.write_all(b"GET /metr").await.unwrap();
        stop.cancel();
        server.await.unwrap();
    }

    #[tokio::test]
    async fn a_taken_port_is_a_sentence() {
        let first = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let error = bind(first.local_addr().unwrap()).await.unwrap_err();
        assert!(
            error.to_string().contains("another process does already"),
            "{error}"
        );
    }
}
