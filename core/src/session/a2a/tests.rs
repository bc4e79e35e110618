use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};

fn keyer() -> Keyer {
    Keyer::new("uid")
}

/// The keys of these names.
fn ids(context: Option<&str>, task: Option<&str>) -> Ids {
    let keyer = keyer();
    Ids {
        method: None,
        context: context.and_then(|id| keyer.context(id)),
        task: task.and_then(|id| keyer.task(id)),
    }
}

#[test]
fn requests() {
    use Method::{
        CancelTask, GetTask, ListTasks, Other, PushConfig, SendMessage, SendStreamingMessage, SubscribeToTask,
    };
    for (method, is, params, context, task) in [
        (
            "SendMessage",
            SendMessage,
            json!({"message": {"role": "ROLE_USER", "parts": [{"text": "hi"}]}}),
            None,
            None,
        ),
        (
            "SendMessage",
            SendMessage,
            json!({"message": {"contextId": "c", "taskId": "t"}, "tenant": "x"}),
            Some("c"),
            Some("t"),
        ),
        (
            "SendStreamingMessage",
            SendStreamingMessage,
            json!({"message": {"contextId": "c"}}),
            Some("c"),
            None,
        ),
        (
            "GetTask",
            GetTask,
            json!({"id": "t", "historyLength": 3}),
            None,
            Some("t"),
        ),
        ("CancelTask", CancelTask, json!({"id": "t"}), None, Some("t")),
        (
            "SubscribeToTask",
            SubscribeToTask,
            json!({"id": "t"}),
            None,
            Some("t"),
        ),
        (
            "ListTasks",
            ListTasks,
            json!({"contextId": "c", "pageSize": 3}),
            Some("c"),
            None,
        ),
        (
            "CreateTaskPushNotificationConfig",
            PushConfig,
            json!({"taskId": "t", "id": "p", "url": "u"}),
            None,
            Some("t"),
        ),
        (
            "GetTaskPushNotificationConfig",
            PushConfig,
            json!({"id": "p", "taskId": "t"}),
            None,
            Some("t"),
        ),
        ("GetExtendedAgentCard", Other, json!({}), None, None),
        // 0.3
        (
            "message/send",
            SendMessage,
            json!({"message": {"kind": "message", "contextId": "c", "taskId": "t"}}),
            Some("c"),
            Some("t"),
        ),
        (
            "message/stream",
            SendStreamingMessage,
            json!({"message": {"taskId": "t"}}),
            None,
            Some("t"),
        ),
        ("tasks/get", GetTask, json!({"id": "t"}), None, Some("t")),
        (
            "tasks/resubscribe",
            SubscribeToTask,
            json!({"id": "t"}),
            None,
            Some("t"),
        ),
        ("tasks/cancel", CancelTask, json!({"id": "t"}), None, Some("t")),
        (
            "tasks/pushNotificationConfig/get",
            PushConfig,
            json!({"id": "t", "pushNotificationConfigId": "p"}),
            None,
            Some("t"),
        ),
        (
            "tasks/pushNotificationConfig/set",
            PushConfig,
            json!({"taskId": "t", "pushNotificationConfig": {"id": "p"}}),
            None,
            Some("t"),
        ),
        // Not A2A, but JSON-RPC.
        (
            "x",
            Other,
            json!({"message": {"contextId": 5, "taskId": null}, "id": ["t"]}),
            None,
            None,
        ),
        ("x", Other, json!([{"contextId": "c"}]), None, None),
        (
            "SendMessage",
            SendMessage,
            json!({"message": {"contextId": "", "metadata": {"contextId": "no"}}}),
            None,
            None,
        ),
        (
            "SendMessage",
            SendMessage,
            json!({"message": {"contextId": "c\u{e9}\"\\"}}),
            Some("c\u{e9}\"\\"),
            None,
        ),
    ] {
        let body = json!({"jsonrpc": "2.0", "id": "call", "method": method, "params": params}).to_string();
        let expected = Ids {
            method: Some(is),
            ..ids(context, task)
        };
        assert_eq!(request(&keyer(), body.as_bytes()), expected, "{body}");
    }
    assert!(Method::SendMessage.sends() && !Method::GetTask.sends());
}

#[test]
fn requests_of_the_http_binding() {
    let body = json!({"message": {"contextId": "c", "taskId": "t", "parts": [{"text": "x"}]}}).to_string();
    assert_eq!(request(&keyer(), body.as_bytes()), ids(Some("c"), Some("t")));
    for (path, task) in [
        ("/tasks/t", Some("t")),
        ("/v1/tasks/t", Some("t")),
        ("/acme/tasks/t:cancel", Some("t")),
        ("/tasks/t:subscribe", Some("t")),
        ("/tasks/t/pushNotificationConfigs/p", Some("t")),
        ("/tasks", None),
        ("/tasks/", None),
        ("/message:send", None),
        ("", None),
    ] {
        assert_eq!(task_in_path(&keyer(), path), ids(None, task).task, "{path}");
    }
}

/// Results, the conversation and the task in them.
fn results() -> Vec<(Value, Option<&'static str>, Option<&'static str>)> {
    let status = json!({"state": "TASK_STATE_WORKING", "message": {"contextId": "no", "taskId": "no"}});
    vec![
        (
            json!({"task": {"id": "t", "contextId": "c", "status": status}}),
            Some("c"),
            Some("t"),
        ),
        (
            json!({"task": {"history": [{"taskId": "no"}], "contextId": "c", "id": "t"}}),
            Some("c"),
            Some("t"),
        ),
        (
            json!({"message": {"messageId": "m", "contextId": "c", "role": "ROLE_AGENT"}}),
            Some("c"),
            None,
        ),
        (
            json!({"message": {"contextId": "c", "taskId": "t"}}),
            Some("c"),
            Some("t"),
        ),
        (
            json!({"statusUpdate": {"taskId": "t", "contextId": "c", "status": status}}),
            Some("c"),
            Some("t"),
        ),
        (
            json!({"artifactUpdate": {"taskId": "t", "contextId": "c", "artifact": {"artifactId": "a"}}}),
            Some("c"),
            Some("t"),
        ),
        // `GetTask`, and 0.3.
        (
            json!({"id": "t", "contextId": "c", "status": status}),
            Some("c"),
            Some("t"),
        ),
        (
            json!({"kind": "task", "id": "t", "contextId": "c", "artifacts": []}),
            Some("c"),
            Some("t"),
        ),
        (
            json!({"kind": "message", "messageId": "m", "contextId": "c", "taskId": "t"}),
            Some("c"),
            Some("t"),
        ),
        (
            json!({"kind": "status-update", "taskId": "t", "contextId": "c", "final": false}),
            Some("c"),
            Some("t"),
        ),
        // Neither a task nor a message.
        (json!({"id": "p", "taskId": "t", "url": "u"}), None, Some("t")),
        (
            json!({"tasks": [{"id": "t", "contextId": "c"}], "nextPageToken": ""}),
            None,
            None,
        ),
        (json!(null), None, None),
        (json!("contextId"), None, None),
    ]
}

#[test]
fn responses() {
    for (result, context, task) in results() {
        let body = json!({"jsonrpc": "2.0", "id": "call", "result": result}).to_string();
        assert_eq!(
            response(&keyer(), body.as_bytes()),
            (ids(context, task), true),
            "{body}"
        );
    }
    for body in [
        json!({"jsonrpc": "2.0", "id": "call", "error": {"code": -32602, "message": "contextId", "data": [{"contextId": "c"}]}}),
        json!({"id": "call", "result": {"id": "x"}, "jsonrpc": "2.0"}),
        json!([{"result": {"contextId": "c"}}]),
        json!(7),
    ] {
        assert_eq!(
            response(&keyer(), body.to_string().as_bytes()),
            (Ids::default(), true),
            "{body}"
        );
    }
    // HTTP+JSON: without the envelope.
    let task = json!({"id": "t", "contextId": "c", "status": {}}).to_string();
    assert_eq!(response(&keyer(), task.as_bytes()).0, ids(Some("c"), Some("t")));
    let wrapped = json!({"task": {"id": "t", "contextId": "c"}}).to_string();
    assert_eq!(
        response(&keyer(), wrapped.as_bytes()).0,
        ids(Some("c"), Some("t"))
    );
}

#[test]
fn a_beginning_is_enough_when_the_ids_are_in_it() {
    let body = r#"{"jsonrpc":"2.0","id":1,"result":{"task":{"id":"t","contextId":"c","artifacts":[{"parts":[{"text":"lo"#;
    assert_eq!(
        response(&keyer(), body.as_bytes()),
        (ids(Some("c"), Some("t")), false)
    );
    let cut = r#"{"jsonrpc":"2.0","method":"SendMessage","params":{"message":{"contextId":"c"#;
    assert_eq!(
        request(&keyer(), cut.as_bytes()).context,
        None,
        "half an id is none"
    );
    let deep = format!(r#"{{"params":{{"message":{{"parts":{}"#, "[".repeat(100_000));
    assert_eq!(request(&keyer(), deep.as_bytes()), Ids::default());
}

/// Feeds `text` in pieces of `size` and returns what was found and how many bytes that took.
fn feed(content_type: &str, limit: usize, text: &[u8], size: usize) -> (Ids, usize) {
    let keyer = keyer();
    let mut found = ResponseIds::new(content_type, limit);
    let mut taken = 0;
    for piece in text.chunks(size) {
        taken += piece.len();
        if found.push(&keyer, piece) {
            return (found.ids(), taken);
        }
    }
    found.finish(&keyer);
    (found.ids(), taken)
}

#[test]
fn streams_and_bodies_in_pieces() {
    for (result, context, task) in results() {
        let text = json!({"jsonrpc": "2.0", "id": "call", "result": result}).to_string();
        let (head, tail) = text.split_at(text.find(',').unwrap() + 1);
        let streams = [
            format!("data: {text}\n\ndata: {{}}\n\n"),
            format!("\u{feff}: hello\r\nevent: message\r\ndata:{text}\r\n\r\n"),
            format!("id: 1\rdata: {head}\rdata: {tail}\r\r"),
            format!("retry: 5\n\ndata\n\ndata: {text}\n\n"),
        ];
        for size in [1, 2, 7, 10_000] {
            for stream in &streams {
                let (found, _) = feed(
                    "text/event-stream; charset=utf-8",
                    65_536,
                    stream.as_bytes(),
                    size,
                );
                assert_eq!(found, ids(context, task), "{stream:?} by {size}");
            }
            let (found, _) = feed("application/json", 65_536, text.as_bytes(), size);
            assert_eq!(found, ids(context, task), "{text} by {size}");
        }
    }
}

#[test]
fn a_stream_that_tells_in_parts_and_one_that_never_does() {
    let told = r#"data: {"result":{"message":{"contextId":"c"}},"jsonrpc":"2.0"}

data: {"result":{"statusUpdate":{"taskId":"t","contextId":"c"}},"jsonrpc":"2.0"}

data: {}

"#;
    let (found, taken) = feed("text/event-stream", 65_536, told.as_bytes(), 1);
    assert_eq!(found, ids(Some("c"), Some("t")));
    assert!(taken < told.len() - 9, "done before the last event");
    let silent = "data: {}\n\n".repeat(100);
    assert_eq!(
        feed("text/event-stream", 65_536, silent.as_bytes(), 1),
        (Ids::default(), 10 * MAX_EVENTS as usize)
    );
    let cut = format!(
        "data: {{\"result\":{{\"task\":{{\"id\":\"t\",\"contextId\":\"c\",\"history\":\"{}",
        "x".repeat(5000)
    );
    assert_eq!(
        feed("text/event-stream", 1000, cut.as_bytes(), 100).0,
        ids(Some("c"), Some("t"))
    );
    let endless = vec![b'x'; 5000];
    assert_eq!(feed("text/event-stream", 1000, &endless, 100).1, 1100);
    assert_eq!(feed("application/json", 1000, &endless, 100).1, 1100);
}

#[test]
fn what_is_kept_shows_no_raw_id() {
    let body = json!({"result": {"task": {"id": "secret-task", "contextId": "secret-context"}}}).to_string();
    let mut found = ResponseIds::new("application/json", 65_536);
    let _ = found.push(&keyer(), &body.as_bytes()[..body.len() - 9]);
    assert!(!format!("{found:?}").contains("secret"));
    let _ = found.push(&keyer(), &body.as_bytes()[body.len() - 9..]);
    found.finish(&keyer());
    assert_eq!(found.ids(), ids(Some("secret-context"), Some("secret-task")));
    assert!(!format!("{:?} {found:?}", found.ids()).contains("secret"));
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
    ];
    let name = prop_oneof![
        Just("params"),
        Just("message"),
        Just("result"),
        Just("task"),
        Just("id"),
        Just("taskId"),
        Just("contextId"),
        Just("statusUpdate"),
        Just("method"),
        Just("jsonrpc"),
        Just("x"),
    ];
    leaf.prop_recursive(5, 64, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::vec((name.clone(), inner), 0..6).prop_map(|fields| fields
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect()),
        ]
    })
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes: Vec<u8>, size in 1usize..9, streamed: bool) {
        let _ = request(&keyer(), &bytes);
        let _ = response(&keyer(), &bytes);
        let kind = if streamed { "text/event-stream" } else { "application/json" };
        let _ = feed(kind, 64, &bytes, size);
    }

    /// Any JSON, whole, cut anywhere, and in pieces: the pieces tell what the whole tells.
    #[test]
    fn any_json_is_read_to_its_end(value in any_json(), cut in any::<prop::sample::Index>(), size in 1usize..40) {
        let text = value.to_string();
        let (whole, read) = response(&keyer(), text.as_bytes());
        prop_assert!(read);
        let _ = request(&keyer(), text.as_bytes());
        let _ = request(&keyer(), &text.as_bytes()[..cut.index(text.len())]);
        let event = format!("data: {text}\n\n");
        prop_assert_eq!(feed("text/event-stream", 1 << 20, event.as_bytes(), size).0, whole);
    }

    /// The walk finds in the plain shapes exactly what a reader of the whole document finds.
    #[test]
    fn message_ids_are_those_of_the_document(context in "[a-z\\\\\"\u{e4}]{0,5}", task in "[a-z\u{1F600}/]{0,5}", before in any_json(), after in any_json()) {
        let body = json!({
            "method": "SendMessage",
            "params": {"metadata": before, "message": {"parts": after, "taskId": task, "contextId": context}},
        });
        let found = request(&keyer(), body.to_string().as_bytes());
        prop_assert_eq!(found.context, keyer().context(&context));
        prop_assert_eq!(found.task, keyer().task(&task));
    }
}
