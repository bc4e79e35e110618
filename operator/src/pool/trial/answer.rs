//! What a prompt looks like on the wire, and what an agent says in its answer. Pure.

use flotilla_crds::load_test::LoadProtocol;
use serde_json::{Value, json};

/// A call to an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Path where the test names none.
    pub path: &'static str,
    /// `Content-Type` of the body.
    pub content_type: &'static str,
    /// The body.
    pub body: String,
}

/// The call that carries a prompt; `id` is unique to it.
pub fn call(protocol: LoadProtocol, prompt: &str, id: &str) -> Call {
    const JSON: &str = "application/json";
    let is_json =
        serde_json::from_str::<Value>(prompt).is_ok_and(|value| value.is_object() || value.is_array());
    match protocol {
        LoadProtocol::HTTP => Call {
            path: "/chat",
            content_type: if is_json {
                JSON
            } else {
                "text/plain; charset=utf-8"
            },
            body: prompt.to_owned(),
        },
        LoadProtocol::OpenAIChat => Call {
            path: "/v1/chat/completions",
            content_type: JSON,
            body: json!({"model": "default", "messages": [{"role": "user", "content": prompt}]}).to_string(),
        },
        LoadProtocol::A2A => Call {
            path: "/",
            content_type: JSON,
            body: json!({
                "jsonrpc": "2.0", "id": 1, "method": "SendMessage",
                "params": {"message": {"messageId": id, "role": "ROLE_USER", "parts": [{"text": prompt}]}},
            })
            .to_string(),
        },
    }
}

/// What an agent says in an answer of status 2xx.
///
/// # Errors
/// A sentence, if the answer is none of its protocol or says that the agent failed.
pub fn text(protocol: LoadProtocol, body: &str) -> Result<String, String> {
    let parsed =
        || serde_json::from_str::<Value>(body).map_err(|error| format!("the answer is no JSON: {error}"));
    match protocol {
        LoadProtocol::HTTP => Ok(body.to_owned()),
        LoadProtocol::OpenAIChat => {
            let answer = parsed()?;
            let content = answer
                .pointer("/choices/0/message/content")
                .and_then(Value::as_str);
            content.map(str::to_owned).ok_or_else(|| {
                "the answer is no chat completion: it has no choices[0].message.content".to_owned()
            })
        }
        LoadProtocol::A2A => a2a(&parsed()?),
    }
}

/// A message, or a task that is completed or asks its user back.
fn a2a(answer: &Value) -> Result<String, String> {
    if let Some(error) = answer.get("error").filter(|error| !error.is_null()) {
        let message = error
            .get("message")
            .and_then(Value::as_str)
            .unwrap_or("no message");
        return Err(format!("the agent answered with an error: {message}"));
    }
    let mut texts = Vec::new();
    if let Some(message) = answer.pointer("/result/message") {
        parts(message, &mut texts);
        return Ok(texts.join("\n"));
    }
    let Some(task) = answer.pointer("/result/task") else {
        return Err("the answer has neither a message nor a task".to_owned());
    };
    let state = task
        .pointer("/status/state")
        .and_then(Value::as_str)
        .unwrap_or("without a state");
    if let Some(message) = task.pointer("/status/message") {
        parts(message, &mut texts);
    }
    if !matches!(state, "TASK_STATE_COMPLETED" | "TASK_STATE_INPUT_REQUIRED") {
        return Err(format!("the task is {state}: {}", texts.join("\n")));
    }
    for artifact in task
        .get("artifacts")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        parts(artifact, &mut texts);
    }
    Ok(texts.join("\n"))
}

fn parts(holder: &Value, texts: &mut Vec<String>) {
    let parts = holder
        .get("parts")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    texts.extend(parts.filter_map(|part| part.get("text")?.as_str().map(str::to_owned)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_is_carried_by_each_protocol() {
        let body = |protocol, prompt: &str| -> (Call, Value) {
            let call = call(protocol, prompt, "m-1");
            let body = serde_json::from_str(&call.body).unwrap_or(json!(call.body));
            (call, body)
        };
        let (call, text) = body(LoadProtocol::HTTP, "ping");
        assert_eq!(
            (call.path, call.content_type, text),
            ("/chat", "text/plain; charset=utf-8", json!("ping"))
        );
        let (call, object) = body(LoadProtocol::HTTP, "{\"message\": \"ping\"}");
        assert_eq!(
            (call.content_type, object),
            ("application/json", json!({"message": "ping"}))
        );
        let (call, chat) = body(LoadProtocol::OpenAIChat, "ping");
        assert_eq!(
            (call.path, &chat["messages"][0]["content"]),
            ("/v1/chat/completions", &json!("ping"))
        );
        let (call, rpc) = body(LoadProtocol::A2A, "ping");
        assert_eq!((call.path, &rpc["method"]), ("/", &json!("SendMessage")));
        assert_eq!(rpc["params"]["message"]["parts"][0]["text"], "ping");
        assert_eq!(rpc["params"]["message"]["messageId"], "m-1");
    }

    #[test]
    fn what_an_agent_says_is_found_in_each_protocol() {
        let task = |state: &str| {
            json!({"result": {"task": {
                "status": {"state": state, "message": {"parts": [{"text": "done"}]}},
                "artifacts": [{"parts": [{"text": "pong"}, {"data": {}}]}],
            }}})
            .to_string()
        };
        let chat = json!({"choices": [{"message": {"content": "pong"}}]}).to_string();
        for (protocol, body, expected) in [
            (LoadProtocol::HTTP, "pong", "pong"),
            (LoadProtocol::OpenAIChat, chat.as_str(), "pong"),
            (
                LoadProtocol::A2A,
                r#"{"result": {"message": {"parts": [{"text": "pong"}]}}}"#,
                "pong",
            ),
            (LoadProtocol::A2A, &task("TASK_STATE_COMPLETED"), "done\npong"),
            (
                LoadProtocol::A2A,
                &task("TASK_STATE_INPUT_REQUIRED"),
                "done\npong",
            ),
        ] {
            assert_eq!(text(protocol, body).as_deref(), Ok(expected), "{body}");
        }
        for (protocol, body, part) in [
            (LoadProtocol::OpenAIChat, "no", "is no JSON"),
            (LoadProtocol::OpenAIChat, "{}", "no chat completion"),
            (
                LoadProtocol::A2A,
                r#"{"error": {"code": -32603, "message": "no model"}}"#,
                "error: no model",
            ),
            (
                LoadProtocol::A2A,
                r#"{"result": {}}"#,
                "neither a message nor a task",
            ),
            (
                LoadProtocol::A2A,
                &task("TASK_STATE_FAILED"),
                "the task is TASK_STATE_FAILED: done",
            ),
        ] {
            let error = text(protocol, body).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
