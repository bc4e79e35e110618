//! A2A 1.0 over JSON-RPC (`POST /`), with the official SDK's wire types.
//!
//! Every message makes a task; its reply is one artifact that grows while the model speaks. A conversation is an A2A
//! context: contexts are named by agents, so an unknown `contextId` is a lost conversation, unless the message's
//! metadata says `"flotilla.dev/turn": 1`.
//!
//! JSON-RPC answers are HTTP 200, as the specification's are, with one exception: where the agent itself is broken
//! (not ready, overloaded, told to fail by a directive) the HTTP status says so too, because load balancers and
//! release gates look at that. What the model's provider does wrong is a task that failed, with its reason.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use a2a::{
    A2AError, CancelTaskRequest, GetTaskRequest, JsonRpcError, JsonRpcId, JsonRpcRequest, JsonRpcResponse,
    Message, PartContent, Role, SendMessageRequest, SendMessageResponse, StreamResponse,
    SubscribeToTaskRequest, Task, TaskState, TypedDetail, error_code, methods,
};
use bytes::Bytes;
use flotilla_serve::{Body, json as json_response, read_body, sse_event, sse_response};
use futures::stream::unfold;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::Instant;

use crate::config::Setup;
use crate::core::{Core, error_response, log_failure};
use crate::error::{AgentError, ModelError};
use crate::model::{Piece, Usage};
use crate::session::{OpenTurn, SessionError, SessionRequest};
use crate::task::{TaskEnd, TaskEntry, TaskFailure, WatchPosition, Watcher};

/// Where a message's metadata says which turn of its conversation it is.
const TURN_KEY: &str = "flotilla.dev/turn";

/// A call that failed: the JSON-RPC error, and the HTTP status it goes with.
struct CallError {
    status: StatusCode,
    error: JsonRpcError,
}

impl From<A2AError> for CallError {
    fn from(error: A2AError) -> Self {
        Self {
            status: StatusCode::OK,
            error: error.to_jsonrpc_error(),
        }
    }
}

impl From<AgentError> for CallError {
    fn from(error: AgentError) -> Self {
        log_failure(&error);
        match error {
            AgentError::BadRequest(message) => A2AError::invalid_params(message).into(),
            AgentError::Session(SessionError::ContextLost { ref id }) => {
                let metadata = [("contextId".to_owned(), id.clone())].into();
                let detail = TypedDetail::error_info("SESSION_CONTEXT_LOST", "flotilla.dev", Some(metadata));
                let data = serde_json::to_value([detail]).ok();
                let error = JsonRpcError {
                    code: error_code::INVALID_PARAMS,
                    message: error.to_string(),
                    data,
                };
                Self {
                    status: StatusCode::OK,
                    error,
                }
            }
            AgentError::Session(error) => A2AError::invalid_params(error.to_string()).into(),
            error => Self {
                status: error.status(),
                error: A2AError::internal(error.to_string()).to_jsonrpc_error(),
            },
        }
    }
}

/// `POST /`.
pub(crate) async fn handle(core: Arc<Core>, request: Request<Incoming>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let version = head
        .headers
        .get(a2a::SVC_PARAM_VERSION)
        .map(|value| value.to_str().unwrap_or("unreadable"));
    let version = version
        .or_else(|| query_version(head.uri.query().unwrap_or_default()))
        .unwrap_or_default();
    let version = version.to_owned();
    let body = match read_body(body, core.config.max_body_bytes).await {
        Ok(body) => body,
        Err(error) => return error_response(&AgentError::Body(error)),
    };
    let (id, call) = match parse(&body) {
        Ok(call) => call,
        Err((id, error)) => return answer(id, Err(error.into())),
    };
    if !speaks(&version) {
        let asked = if version.is_empty() {
            "0.3 (the header A2A-Version is missing)"
        } else {
            &version
        };
        let message = format!(
            "A2A version {asked} is not supported; this agent speaks {}",
            a2a::VERSION
        );
        return answer(
            id,
            Err(A2AError::new(error_code::VERSION_NOT_SUPPORTED, message).into()),
        );
    }
    match dispatch(&core, &id, call).await {
        Ok(Outcome::Value(value)) => answer(id, Ok(value)),
        Ok(Outcome::Stream(response)) => response,
        Err(error) => answer(id, Err(error)),
    }
}

/// Whether the version asked for is 1.0. Patch numbers do not count (A2A 1.0, section 3.6), a missing one means 0.3.
fn speaks(version: &str) -> bool {
    let version = version.trim();
    version == "1"
        || version == a2a::VERSION
        || version
            .strip_prefix("1.0.")
            .is_some_and(|patch| !patch.is_empty())
}

fn query_version(query: &str) -> Option<&str> {
    query
        .split('&')
        .find_map(|pair| pair.strip_prefix("A2A-Version="))
}

fn parse(body: &[u8]) -> Result<(JsonRpcId, JsonRpcRequest), (JsonRpcId, A2AError)> {
    let value: Value = serde_json::from_slice(body).map_err(|error| {
        (
            JsonRpcId::Null,
            A2AError::parse_error(format!("invalid JSON payload: {error}")),
        )
    })?;
    let id = value
        .get("id")
        .and_then(|id| serde_json::from_value(id.clone()).ok())
        .unwrap_or(JsonRpcId::Null);
    match serde_json::from_value::<JsonRpcRequest>(value) {
        Ok(request) if request.jsonrpc == "2.0" => Ok((id, request)),
        Ok(_) => Err((id, A2AError::invalid_request("'jsonrpc' must be \"2.0\""))),
        Err(error) => Err((
            id,
            A2AError::invalid_request(format!("not a JSON-RPC request: {error}")),
        )),
    }
}

fn answer(id: JsonRpcId, result: Result<Value, CallError>) -> Response<Body> {
    match result {
        Ok(value) => json_response(StatusCode::OK, &JsonRpcResponse::success(id, value)),
        Err(CallError { status, error }) => json_response(status, &JsonRpcResponse::error(id, error)),
    }
}

enum Outcome {
    Value(Value),
    Stream(Response<Body>),
}

async fn dispatch(core: &Arc<Core>, id: &JsonRpcId, call: JsonRpcRequest) -> Result<Outcome, CallError> {
    let params = call.params.unwrap_or(Value::Object(serde_json::Map::new()));
    match call.method.as_str() {
        methods::SEND_MESSAGE => {
            let request: SendMessageRequest = from_params(params)?;
            let task = send(core, request).await?;
            value(&SendMessageResponse::Task(task)).map(Outcome::Value)
        }
        methods::SEND_STREAMING_MESSAGE => {
            let request: SendMessageRequest = from_params(params)?;
            let grace = Some(core.config.orphan_grace);
            let (task, watcher) = start(core, request.message, true, grace)?;
            Ok(Outcome::Stream(events(task, watcher, id.clone())))
        }
        methods::GET_TASK => {
            let request: GetTaskRequest = from_params(params)?;
            let task = find(core, &request.id)?;
            value(&task.snapshot(request.history_length)).map(Outcome::Value)
        }
        methods::CANCEL_TASK => {
            let request: CancelTaskRequest = from_params(params)?;
            let task = find(core, &request.id)?;
            if task.has_ended() {
                return Err(A2AError::task_not_cancelable(&request.id).into());
            }
            task.cancel();
            task.ended().await;
            let snapshot = task.snapshot(None);
            if snapshot.status.state != TaskState::Canceled {
                return Err(A2AError::task_not_cancelable(&request.id).into());
            }
            value(&snapshot).map(Outcome::Value)
        }
        methods::SUBSCRIBE_TO_TASK => {
            let request: SubscribeToTaskRequest = from_params(params)?;
            let task = find(core, &request.id)?;
            if task.has_ended() {
                let message = format!("task {} has ended; GetTask returns it", request.id);
                return Err(A2AError::unsupported_operation(message).into());
            }
            let watcher = task.watch();
            Ok(Outcome::Stream(events(task, watcher, id.clone())))
        }
        methods::CREATE_PUSH_CONFIG
        | methods::GET_PUSH_CONFIG
        | methods::LIST_PUSH_CONFIGS
        | methods::DELETE_PUSH_CONFIG => Err(A2AError::push_notification_not_supported().into()),
        methods::LIST_TASKS | methods::GET_EXTENDED_AGENT_CARD => {
            Err(A2AError::unsupported_operation(format!("this agent does not offer {}", call.method)).into())
        }
        other => Err(A2AError::method_not_found(other).into()),
    }
}

fn from_params<T: DeserializeOwned>(params: Value) -> Result<T, CallError> {
    serde_json::from_value(params)
        .map_err(|error| A2AError::invalid_params(format!("invalid parameters: {error}")).into())
}

fn value<T: serde::Serialize>(result: &T) -> Result<Value, CallError> {
    serde_json::to_value(result).map_err(|error| A2AError::internal(error.to_string()).into())
}

fn find(core: &Core, id: &str) -> Result<Arc<TaskEntry>, CallError> {
    core.tasks
        .lock()
        .get(id)
        .ok_or_else(|| A2AError::task_not_found(id).into())
}

/// `SendMessage`: until the task's end, or at once where the client asks for that. A client that leaves while it waits
/// cannot know the task, so the task ends with it.
async fn send(core: &Arc<Core>, request: SendMessageRequest) -> Result<Task, CallError> {
    let configuration = request.configuration;
    let history_length = configuration
        .as_ref()
        .and_then(|configuration| configuration.history_length);
    let at_once = configuration
        .and_then(|configuration| configuration.return_immediately)
        .unwrap_or(false);
    let grace = (!at_once).then_some(Duration::ZERO);
    // A task that is not waited for may be subscribed to, so its model streams.
    let (task, watcher) = start(core, request.message, at_once, grace)?;
    if !at_once {
        task.ended().await;
    }
    drop(watcher);
    Ok(task.snapshot(history_length))
}

/// Starts a task for `message`. With a `grace`, the task ends when nobody has watched it for that long.
fn start(
    core: &Arc<Core>,
    message: Message,
    stream: bool,
    grace: Option<Duration>,
) -> Result<(Arc<TaskEntry>, Watcher), CallError> {
    let question = question(&message)?;
    check_task(core, &message)?;
    let setup = core.admit()?;
    let turn = message
        .metadata
        .as_ref()
        .and_then(|metadata| metadata.get(TURN_KEY))
        .map(|turn| {
            turn.as_u64()
                .ok_or_else(|| AgentError::BadRequest(format!("metadata {TURN_KEY} is a number from 1")))
        });
    let request = SessionRequest {
        id: message.context_id.clone(),
        turn: turn.transpose()?,
        only_issued_ids: true,
    };
    let turn = core.begin(request)?;
    let created = core.tasks.lock().create(turn.id.clone(), message, Instant::now());
    let task = created.map_err(|_| AgentError::Overloaded)?;
    let watcher = task.watch();
    let asked = Asked {
        setup,
        turn,
        question,
        stream,
    };
    core.working
        .spawn(run(Arc::clone(core), Arc::clone(&task), asked, grace));
    Ok((task, watcher))
}

/// The text of a user's message. Structured data is given to the model as JSON; files it cannot see.
fn question(message: &Message) -> Result<String, CallError> {
    if message.role != Role::User {
        return Err(A2AError::invalid_params("message.role must be ROLE_USER").into());
    }
    let mut texts = Vec::new();
    for part in &message.parts {
        match &part.content {
            PartContent::Text(text) => texts.push(text.clone()),
            PartContent::Data(data) => texts.push(data.to_string()),
            PartContent::Raw(_) | PartContent::Url(_) => {
                return Err(A2AError::content_type_not_supported().into());
            }
        }
    }
    let text = texts.join("\n");
    if text.trim().is_empty() {
        return Err(A2AError::invalid_params("message.parts must have some text").into());
    }
    Ok(text)
}

/// A message to an existing task: tasks here are one question and one reply, so none takes another message.
fn check_task(core: &Core, message: &Message) -> Result<(), CallError> {
    let Some(id) = &message.task_id else { return Ok(()) };
    let task = find(core, id)?;
    if message
        .context_id
        .as_ref()
        .is_some_and(|context| context != task.context_id())
    {
        return Err(A2AError::invalid_params(format!("task {id} belongs to another context")).into());
    }
    let message = format!("task {id} takes no further message; send one with its contextId only");
    Err(A2AError::unsupported_operation(message).into())
}

/// What a task's model is asked.
struct Asked {
    setup: Arc<Setup>,
    turn: OpenTurn,
    question: String,
    stream: bool,
}

/// The task's work, until its reply, its failure, or nobody wants it.
async fn run(core: Arc<Core>, task: Arc<TaskEntry>, asked: Asked, grace: Option<Duration>) {
    let abandoned = async {
        match grace {
            Some(grace) => task.abandoned(grace).await,
            None => std::future::pending().await,
        }
    };
    let (end, usage) = tokio::select! {
        biased;
        () = task.cancelled() => (TaskEnd::Canceled("Canceled by the client."), None),
        result = work(&core, &task, &asked) => match result {
            Ok(usage) => (TaskEnd::Completed, usage),
            Err(error) => (TaskEnd::Failed(failure(error)), None),
        },
        () = abandoned => (TaskEnd::Canceled("Canceled because its client left."), None),
    };
    if end == TaskEnd::Completed {
        core.record(&asked.turn, asked.question, task.text());
    }
    task.end(end, usage, Instant::now());
}

async fn work(core: &Core, task: &TaskEntry, asked: &Asked) -> Result<Option<Usage>, ModelError> {
    let Asked {
        setup,
        turn,
        question,
        stream,
    } = asked;
    let mut reply = core.ask(setup, turn, question, *stream).await?;
    let mut usage = None;
    while let Some(piece) = reply.next().await? {
        match piece {
            Piece::Text(text) => task.push(&text),
            Piece::Usage(found) => usage = Some(found),
        }
    }
    Ok(usage)
}

fn failure(error: ModelError) -> TaskFailure {
    let error = AgentError::Model(error);
    log_failure(&error);
    let retry_after = error
        .retry_after()
        .and_then(|value| value.to_str().ok().map(str::to_owned));
    TaskFailure {
        message: error.to_string(),
        reason: error.reason(),
        status: error.status().as_u16(),
        retry_after,
    }
}

/// The stream of a task's events: the task as it is, what follows, and its last status.
fn events(task: Arc<TaskEntry>, watcher: Watcher, id: JsonRpcId) -> Response<Body> {
    let (snapshot, seen) = task.snapshot_to_watch();
    let state = Events {
        task,
        _watcher: watcher,
        id,
        first: Some(Box::new(snapshot)),
        position: WatchPosition::after(seen),
    };
    sse_response(unfold(state, Events::next))
}

struct Events {
    task: Arc<TaskEntry>,
    _watcher: Watcher,
    id: JsonRpcId,
    first: Option<Box<Task>>,
    position: WatchPosition,
}

impl Events {
    async fn next(mut self) -> Option<(io::Result<Bytes>, Self)> {
        let event = match self.first.take() {
            Some(task) => StreamResponse::Task(*task),
            None => self.task.next_event(&mut self.position).await?,
        };
        let encoded = serde_json::to_value(&event)
            .map(|value| JsonRpcResponse::success(self.id.clone(), value))
            .and_then(|response| serde_json::to_string(&response));
        Some((
            encoded.map(|text| sse_event(&text)).map_err(io::Error::from),
            self,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        for (version, spoken) in [
            ("1.0", true),
            (" 1.0 ", true),
            ("1.0.1", true),
            ("1", true),
            ("", false),
            ("0.3", false),
            ("1.1", false),
            ("2.0", false),
            ("10.0", false),
            ("1.0.", false),
            ("unreadable", false),
        ] {
            assert_eq!(speaks(version), spoken, "{version:?}");
        }
        assert_eq!(query_version("a=b&A2A-Version=1.0"), Some("1.0"));
        assert_eq!(query_version("x-A2A-Version=1.0"), None);
    }

    #[test]
    fn requests_that_are_none() {
        for (body, code, id) in [
            ("{", error_code::PARSE_ERROR, JsonRpcId::Null),
            ("[]", error_code::INVALID_REQUEST, JsonRpcId::Null),
            (r#"{"id": 7}"#, error_code::INVALID_REQUEST, JsonRpcId::Number(7)),
            (
                r#"{"jsonrpc":"1.0","id":"a","method":"GetTask"}"#,
                error_code::INVALID_REQUEST,
                JsonRpcId::from("a"),
            ),
            (
                r#"{"jsonrpc":"2.0","id":[],"method":"GetTask"}"#,
                error_code::INVALID_REQUEST,
                JsonRpcId::Null,
            ),
        ] {
            let (found_id, error) = parse(body.as_bytes()).expect_err(body);
            assert_eq!((error.code, found_id), (code, id), "{body}");
        }
    }
}
