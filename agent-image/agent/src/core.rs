//! What the protocols share: readiness, directives, sessions, tasks and the call of the model.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use flotilla_serve::{Body, json as json_response};
use http::Response;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{Config, Setup};
use crate::error::{AgentError, ModelError};
use crate::model::Reply;
use crate::session::{ChatMessage, OpenTurn, SessionRequest, SessionStore};
use crate::task_store::TaskStore;

/// One agent's state.
#[derive(Debug)]
pub(crate) struct Core {
    pub config: Config,
    pub tasks: Mutex<TaskStore>,
    /// A2A tasks at work; they can outlive their requests.
    pub working: TaskTracker,
    pub addr: OnceLock<SocketAddr>,
    pub shutdown: CancellationToken,
    setup: Result<Arc<Setup>, Vec<String>>,
    sessions: Mutex<SessionStore>,
    requests: AtomicU64,
    permits: Arc<Semaphore>,
}

impl Core {
    pub fn new(config: Config) -> Self {
        Self {
            setup: Setup::load(&config).map(Arc::new),
            sessions: Mutex::new(SessionStore::new(config.sessions)),
            tasks: Mutex::new(TaskStore::new(config.tasks)),
            working: TaskTracker::new(),
            addr: OnceLock::new(),
            shutdown: CancellationToken::new(),
            requests: AtomicU64::new(0),
            permits: Arc::new(Semaphore::new(config.max_in_flight.min(Semaphore::MAX_PERMITS))),
            config,
        }
    }

    /// Why the agent should get no traffic; empty when it should.
    pub fn unready(&self) -> Vec<String> {
        let mut reasons = self.setup.as_ref().err().cloned().unwrap_or_default();
        if self.shutdown.is_cancelled() {
            reasons.push("the agent is draining".to_owned());
        }
        reasons
    }

    /// A place among the requests at work.
    pub fn permit(&self) -> Result<OwnedSemaphorePermit, AgentError> {
        Arc::clone(&self.permits)
            .try_acquire_owned()
            .map_err(|_| AgentError::Overloaded)
    }

    /// The name of the model it calls; empty when there is none.
    pub fn model_name(&self) -> &str {
        self.setup
            .as_ref()
            .map(|setup| setup.client.model())
            .unwrap_or_default()
    }

    /// What the agent needs to answer, once for each request: here the `error-rate` directive strikes.
    pub fn admit(&self) -> Result<Arc<Setup>, AgentError> {
        let setup = self
            .setup
            .as_ref()
            .map_err(|reasons| AgentError::NotReady(reasons.join("; ")))?;
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        if setup.prompt.directives.fails(number) {
            Err(AgentError::Directive)
        } else {
            Ok(Arc::clone(setup))
        }
    }

    /// Begins a turn of a conversation.
    pub fn begin(&self, request: SessionRequest) -> Result<OpenTurn, AgentError> {
        Ok(self.sessions.lock().begin(request, Instant::now())?)
    }

    /// Keeps a turn that ended well.
    pub fn record(&self, turn: &OpenTurn, question: String, answer: String) {
        self.sessions
            .lock()
            .record(&turn.id, question, answer, Instant::now());
    }

    /// Calls the model for `question` in `turn`.
    pub async fn ask(
        &self,
        setup: &Setup,
        turn: &OpenTurn,
        question: &str,
        stream: bool,
    ) -> Result<Reply, ModelError> {
        tokio::time::sleep(setup.prompt.directives.latency).await;
        let mut messages = Vec::with_capacity(turn.history.len() + 2);
        messages.push(ChatMessage::new("system", setup.prompt.text.clone()));
        messages.extend(turn.history.iter().cloned());
        messages.push(ChatMessage::new("user", question));
        setup.client.ask(&messages, stream).await
    }
}

/// An error's body: OpenAI's shape, which is as good as any for plain chat too.
pub(crate) fn error_json(error: &AgentError) -> Value {
    json!({"error": {"message": error.to_string(), "type": error.reason(), "code": error.reason(), "param": null}})
}

/// An error as an HTTP response.
pub(crate) fn error_response(error: &AgentError) -> Response<Body> {
    log_failure(error);
    let mut response = json_response(error.status(), &error_json(error));
    if let Some(value) = error.retry_after() {
        response.headers_mut().insert(http::header::RETRY_AFTER, value);
    }
    response
}

/// Failures of ours or behind us are logged, clients' mistakes only when asked for.
pub(crate) fn log_failure(error: &AgentError) {
    if error.status().is_server_error() {
        tracing::warn!(reason = error.reason(), %error, "a request failed");
    } else {
        tracing::debug!(reason = error.reason(), %error, "a request was refused");
    }
}
