//! The agent against the simulator, both in this process, over real connections.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use flotilla_agent::{Agent, Config};
use flotilla_serve::SseDecoder;
use flotilla_simulator::log::EventKind;
use flotilla_simulator::{Simulator, limit::LimitMode, quota::LimitSpec, quota::LimitUnit};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

/// An agent, its provider and a client.
struct Fleet {
    agent: Agent,
    simulator: Simulator,
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Fleet {
    async fn with(
        model: &str,
        simulator: flotilla_simulator::Config,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let simulator = Simulator::start(simulator).await.expect("the simulator starts");
        let mut config = Config::local(simulator.base_url(), model);
        change(&mut config);
        let agent = Agent::start(config).await.expect("the agent starts");
        Self {
            agent,
            simulator,
            client: Client::builder(TokioExecutor::new()).build_http(),
        }
    }

    async fn of(model: &str) -> Self {
        Self::with(model, flotilla_simulator::Config::local(), |_| {}).await
    }

    async fn prompted(name: &str, prompt: &str) -> Self {
        let file = prompt_file(name, prompt);
        Self::with("sim", flotilla_simulator::Config::local(), |config| {
            config.prompt_file = file
        })
        .await
    }

    async fn open(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &Value,
    ) -> Response<Incoming> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.agent.url()));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request
            .body(Full::new(Bytes::from(body.to_string())))
            .expect("a request");
        self.client.request(request).await.expect("an answer")
    }

    async fn get(&self, path: &str) -> (StatusCode, HeaderMap, Value) {
        whole(self.open(Method::GET, path, &[], &Value::Null).await).await
    }

    async fn chat(&self, body: Value) -> (StatusCode, HeaderMap, Value) {
        whole(self.open(Method::POST, "/chat", &[], &body).await).await
    }

    async fn rpc_with(&self, headers: &[(&str, &str)], method: &str, params: Value) -> (StatusCode, Value) {
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        let (status, _, value) = whole(self.open(Method::POST, "/", headers, &body).await).await;
        assert_eq!(value["id"], 1, "{value}");
        (status, value)
    }

    async fn rpc(&self, method: &str, params: Value) -> Value {
        self.rpc_with(&[("A2A-Version", "1.0")], method, params).await.1
    }

    async fn rpc_stream(&self, method: &str, params: Value) -> Events {
        let body = json!({"jsonrpc": "2.0", "id": "s1", "method": method, "params": params});
        let response = self
            .open(Method::POST, "/", &[("A2A-Version", "1.0")], &body)
            .await;
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Events {
            body: response.into_body(),
            decoder: SseDecoder::new(1 << 20),
            ready: Vec::new(),
        }
    }

    fn logged(&self, kind: EventKind) -> usize {
        self.simulator
            .log()
            .events
            .iter()
            .filter(|event| event.kind == kind)
            .count()
    }

    async fn wait_for(&self, kind: EventKind) {
        for _ in 0..1_000 {
            if self.logged(kind) > 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("no {kind:?} in {:#?}", self.simulator.log());
    }
}

/// A stream of A2A events.
struct Events {
    body: Incoming,
    decoder: SseDecoder,
    ready: Vec<Value>,
}

impl Events {
    async fn next(&mut self) -> Option<Value> {
        while self.ready.is_empty() {
            let data = self
                .body
                .frame()
                .await?
                .expect("an undisturbed stream")
                .into_data()
                .unwrap_or_default();
            for event in self.decoder.push(&data).expect("events") {
                let event: Value = serde_json::from_str(&event).expect("JSON");
                assert_eq!((&event["jsonrpc"], &event["id"]), (&json!("2.0"), &json!("s1")));
                self.ready.push(event["result"].clone());
            }
        }
        Some(self.ready.remove(0))
    }

    async fn rest(mut self) -> Vec<Value> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            events.push(event);
        }
        events
    }
}

async fn whole(response: Response<Incoming>) -> (StatusCode, HeaderMap, Value) {
    let (head, body) = response.into_parts();
    let bytes = body.collect().await.expect("a whole body").to_bytes();
    let value = serde_json::from_slice(&bytes)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
    (head.status, head.headers, value)
}

fn prompt_file(name: &str, prompt: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("flotilla-agent-{}-{name}.md", std::process::id()));
    std::fs::write(&path, prompt).expect("written");
    path
}

fn message(text: &str) -> Value {
    json!({"message": {"messageId": "m1", "role": "ROLE_USER", "parts": [{"text": text}]}})
}

fn in_context(text: &str, context: &Value) -> Value {
    let mut params = message(text);
    params["message"]["contextId"] = context.clone();
    params
}

fn text_of(artifact_updates: &[Value]) -> String {
    let updates = artifact_updates
        .iter()
        .filter(|event| event.get("artifactUpdate").is_some());
    updates
        .filter_map(|event| event["artifactUpdate"]["artifact"]["parts"][0]["text"].as_str())
        .collect()
}

#[tokio::test]
async fn a_message_becomes_a_completed_task() {
    let fleet = Fleet::of("sim-tokens-12").await;
    let task = fleet.rpc("SendMessage", message("My parcel 48213 is late")).await["result"]["task"].clone();
    assert_eq!(task["status"]["state"], "TASK_STATE_COMPLETED");
    let reply = task["artifacts"][0]["parts"][0]["text"]
        .as_str()
        .expect("a reply");
    assert_eq!(reply.split(' ').count(), 12);
    assert_eq!(task["history"][0]["role"], "ROLE_USER");
    let usage = &task["status"]["message"]["metadata"]["flotilla.dev/usage"];
    assert_eq!(usage["outputTokens"], 12);
    assert!(
        usage["inputTokens"].as_u64() > Some(10),
        "the system prompt counts: {usage}"
    );
    assert_eq!(&task["metadata"]["flotilla.dev/usage"], usage);

    let known = fleet
        .rpc("GetTask", json!({"id": task["id"], "historyLength": 0}))
        .await["result"]
        .clone();
    assert_eq!(
        (&known["artifacts"], known.get("history")),
        (&task["artifacts"], None)
    );
    let late = fleet.rpc("CancelTask", json!({"id": task["id"]})).await;
    assert_eq!(late["error"]["code"], -32002);
    let ended = fleet.rpc("SubscribeToTask", json!({"id": task["id"]})).await;
    assert_eq!(ended["error"]["code"], -32004);
}

#[tokio::test]
async fn a_streamed_message_grows_one_artifact() {
    let fleet = Fleet::of("sim-tokens-12-speed-200").await;
    let events = fleet
        .rpc_stream("SendStreamingMessage", message("Where is my parcel?"))
        .await
        .rest()
        .await;
    assert_eq!(
        events.first().expect("events")["task"]["status"]["state"],
        "TASK_STATE_WORKING"
    );
    let last = &events.last().expect("events")["statusUpdate"];
    assert_eq!(last["status"]["state"], "TASK_STATE_COMPLETED");
    assert_eq!(
        last["status"]["message"]["metadata"]["flotilla.dev/usage"]["outputTokens"],
        12
    );
    let updates = &events[1..events.len() - 1];
    assert_eq!(updates.len(), 12, "one chunk for each token");
    let appends: Vec<bool> = updates
        .iter()
        .filter_map(|event| event["artifactUpdate"]["append"].as_bool())
        .collect();
    assert_eq!(appends, [vec![false], vec![true; 11]].concat());
    let task = fleet.rpc("GetTask", json!({"id": events[0]["task"]["id"]})).await["result"].clone();
    assert_eq!(task["artifacts"][0]["parts"][0]["text"], text_of(updates));
}

#[tokio::test]
async fn a_second_watcher_sees_what_the_first_sees() {
    let fleet = Fleet::of("sim-tokens-20-speed-100").await;
    let mut params = message("Where is my parcel?");
    params["configuration"] = json!({"returnImmediately": true});
    let task = fleet.rpc("SendMessage", params).await["result"]["task"].clone();
    assert_eq!(task["status"]["state"], "TASK_STATE_WORKING");

    let first = fleet
        .rpc_stream("SubscribeToTask", json!({"id": task["id"]}))
        .await;
    let mut second = fleet
        .rpc_stream("SubscribeToTask", json!({"id": task["id"]}))
        .await;
    let snapshot = second.next().await.expect("the task");
    assert_eq!(snapshot["task"]["id"], task["id"]);
    let (first, second) = tokio::join!(first.rest(), second.rest());
    let whole = fleet.rpc("GetTask", json!({"id": task["id"]})).await["result"].clone();
    let whole = whole["artifacts"][0]["parts"][0]["text"]
        .as_str()
        .expect("a reply")
        .to_owned();
    for (snapshot, updates) in [(&first[0], &first[1..]), (&snapshot, &second[..])] {
        let known = snapshot["task"]["artifacts"][0]["parts"][0]["text"]
            .as_str()
            .unwrap_or_default();
        assert_eq!(format!("{known}{}", text_of(updates)), whole);
        assert_eq!(
            updates.last().expect("a status")["statusUpdate"]["status"]["state"],
            "TASK_STATE_COMPLETED"
        );
    }
}

#[tokio::test]
async fn cancelling_a_task_stops_its_model() {
    let fleet = Fleet::of("sim-speed-10-tokens-1000").await;
    let mut stream = fleet
        .rpc_stream("SendStreamingMessage", message("Where is my parcel?"))
        .await;
    let id = stream.next().await.expect("the task")["task"]["id"].clone();
    stream.next().await.expect("a first chunk");
    let task = fleet.rpc("CancelTask", json!({"id": id})).await["result"].clone();
    assert_eq!(task["status"]["state"], "TASK_STATE_CANCELED");
    let rest = stream.rest().await;
    assert_eq!(
        rest.last().expect("a status")["statusUpdate"]["status"]["state"],
        "TASK_STATE_CANCELED"
    );
    fleet.wait_for(EventKind::Cancelled).await;
}

#[tokio::test]
async fn a_client_that_leaves_stops_its_model() {
    for protocol in ["A2A", "A2A stream", "chat", "OpenAI"] {
        let fleet = Fleet::of("sim-speed-10-tokens-1000").await;
        let question = json!({"role": "user", "content": "Where is my parcel?"});
        let (path, body) = match protocol {
            "A2A" => (
                "/",
                json!({"jsonrpc": "2.0", "id": 1, "method": "SendMessage", "params": message("late")}),
            ),
            "A2A stream" => (
                "/",
                json!({"jsonrpc": "2.0", "id": 1, "method": "SendStreamingMessage", "params": message("late")}),
            ),
            "chat" => ("/chat", json!({"message": "late"})),
            _ => (
                "/v1/chat/completions",
                json!({"model": "x", "messages": [question], "stream": true}),
            ),
        };
        let request = async {
            let mut body = fleet
                .open(Method::POST, path, &[("A2A-Version", "1.0")], &body)
                .await
                .into_body();
            while body.frame().await.is_some() {}
        };
        tokio::select! {
            () = request => panic!("{protocol}: the reply takes 100 s"),
            () = fleet.wait_for(EventKind::Admitted) => {}
        }
        fleet.wait_for(EventKind::Cancelled).await;
    }
}

#[tokio::test]
async fn a_conversation_goes_on_or_fails_visibly() {
    let fleet = Fleet::of("sim").await;
    let first = fleet.rpc("SendMessage", message("My parcel is late")).await["result"]["task"].clone();
    let second = fleet
        .rpc("SendMessage", in_context("And now?", &first["contextId"]))
        .await["result"]["task"]
        .clone();
    assert_eq!(second["contextId"], first["contextId"]);
    let tokens = |task: &Value| {
        task["metadata"]["flotilla.dev/usage"]["inputTokens"]
            .as_u64()
            .expect("usage")
    };
    assert!(
        tokens(&second) > tokens(&first) + 20,
        "the model sees the first turn"
    );

    let other = Fleet::of("sim").await;
    let lost = other
        .rpc("SendMessage", in_context("And now?", &first["contextId"]))
        .await;
    assert_eq!(lost["error"]["code"], -32602);
    assert!(
        lost["error"]["message"]
            .as_str()
            .expect("a message")
            .starts_with("session context lost")
    );
    assert_eq!(lost["error"]["data"][0]["reason"], "SESSION_CONTEXT_LOST");
    assert_eq!(other.logged(EventKind::Admitted), 0, "the model is not asked");
    let mut own = in_context("Hello", &json!("my-context"));
    own["message"]["metadata"] = json!({"flotilla.dev/turn": 1});
    assert_eq!(
        other.rpc("SendMessage", own).await["result"]["task"]["contextId"],
        "my-context"
    );

    let (status, headers, answer) = fleet.chat(json!({"message": "My bill is wrong"})).await;
    assert_eq!((status, &answer["turn"]), (StatusCode::OK, &json!(1)));
    assert_eq!(
        headers["x-session-id"],
        answer["session"].as_str().expect("a session")
    );
    assert!(answer["usage"]["outputTokens"].as_u64() > Some(0));
    let body = json!({"message": "And now?", "session": answer["session"], "turn": 2});
    assert_eq!(fleet.chat(body.clone()).await.2["turn"], 2);
    let (status, _, lost) = other.chat(body).await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert!(
        lost["error"]["message"]
            .as_str()
            .expect("a message")
            .starts_with("session context lost"),
        "{lost}"
    );
}

#[tokio::test]
async fn chat_streams_and_the_openai_form_is_handed_on() {
    let fleet = Fleet::of("sim-tokens-12").await;
    let response = fleet
        .open(
            Method::POST,
            "/chat",
            &[],
            &json!({"message": "late", "stream": true}),
        )
        .await;
    let bytes = response
        .into_body()
        .collect()
        .await
        .expect("a whole stream")
        .to_bytes();
    let events: Vec<Value> = SseDecoder::new(1 << 20)
        .push(&bytes)
        .expect("events")
        .iter()
        .map(|event| serde_json::from_str(event).expect("JSON"))
        .collect();
    let text: String = events
        .iter()
        .filter_map(|event| event["delta"].as_str())
        .collect();
    let last = events.last().expect("events");
    assert_eq!(
        (&last["reply"], &last["usage"]["outputTokens"]),
        (&json!(text), &json!(12))
    );

    let mut body =
        json!({"model": "whatever", "messages": [{"role": "user", "content": "late"}], "max_tokens": 5});
    let path = "/v1/chat/completions";
    let (status, _, completion) = whole(fleet.open(Method::POST, path, &[], &body).await).await;
    assert_eq!(
        (status, &completion["usage"]["completion_tokens"]),
        (StatusCode::OK, &json!(5))
    );
    assert_eq!(
        completion["model"], "sim-tokens-12",
        "the agent's own model is called"
    );
    body["stream"] = json!(true);
    let streamed = fleet.open(Method::POST, path, &[], &body).await;
    assert_eq!(streamed.headers()["content-type"], "text/event-stream");
    let bytes = streamed
        .into_body()
        .collect()
        .await
        .expect("a whole stream")
        .to_bytes();
    assert!(bytes.ends_with(b"data: [DONE]\n\n"));
}

#[tokio::test]
async fn what_the_provider_does_wrong_is_told_as_it_is() {
    for (model, status, reason) in [
        ("sim-error-100", 502, "ModelFailed"),
        ("sim-unavailable-100", 502, "ModelFailed"),
        ("sim-missing", 502, "ModelRefused"),
        ("sim-cut-100", 502, "ModelBroken"),
    ] {
        let fleet = Fleet::of(model).await;
        let (found, _, answer) = fleet.chat(json!({"message": "late"})).await;
        assert_eq!(
            (found.as_u16(), &answer["error"]["code"]),
            (status, &json!(reason)),
            "{model}: {answer}"
        );
        let task = fleet.rpc("SendMessage", message("late")).await["result"]["task"].clone();
        assert_eq!(task["status"]["state"], "TASK_STATE_FAILED", "{model}");
        let error = &task["status"]["message"]["metadata"]["flotilla.dev/error"];
        assert_eq!(
            (&error["status"], &error["reason"]),
            (&json!(status), &json!(reason))
        );
    }
    let limits = vec![LimitSpec {
        name: "one".to_owned(),
        unit: LimitUnit::Requests,
        mode: LimitMode::SlidingWindow,
        limit: 1,
        per_milliseconds: 3_600_000,
        burst: None,
        model: None,
    }];
    let config = flotilla_simulator::Config {
        limits,
        ..flotilla_simulator::Config::local()
    };
    let fleet = Fleet::with("sim", config, |_| {}).await;
    assert_eq!(fleet.chat(json!({"message": "late"})).await.0, StatusCode::OK);
    let (status, headers, _) = fleet.chat(json!({"message": "late"})).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    let seconds: u64 = headers["retry-after"]
        .to_str()
        .expect("text")
        .parse()
        .expect("seconds");
    assert!((3_500..=3_600).contains(&seconds), "{seconds}");
    let completions = json!({"model": "x", "messages": [{"role": "user", "content": "late"}]});
    let (status, headers, _) = whole(
        fleet
            .open(Method::POST, "/v1/chat/completions", &[], &completions)
            .await,
    )
    .await;
    assert!(status == StatusCode::TOO_MANY_REQUESTS && headers.contains_key("retry-after"));

    let fleet = Fleet::with("sim-timeout-100", flotilla_simulator::Config::local(), |config| {
        config.model_timeout = Duration::from_millis(50);
    })
    .await;
    assert_eq!(
        fleet.chat(json!({"message": "late"})).await.0,
        StatusCode::GATEWAY_TIMEOUT
    );
    let fleet = Fleet::with("sim", flotilla_simulator::Config::local(), |config| {
        config.model.base_url = Some("http://127.0.0.1:1/v1".to_owned());
    })
    .await;
    assert_eq!(
        fleet.chat(json!({"message": "late"})).await.2["error"]["code"],
        "ModelUnreachable"
    );
}

#[tokio::test]
async fn a_stream_that_breaks_is_not_taken_for_a_whole_one() {
    let fleet = Fleet::of("sim-cut-100-tokens-10-speed-100").await;
    let events = fleet
        .rpc_stream("SendStreamingMessage", message("late"))
        .await
        .rest()
        .await;
    let last = &events.last().expect("a status")["statusUpdate"]["status"];
    assert_eq!(last["state"], "TASK_STATE_FAILED");
    let openai = json!({"model": "x", "messages": [{"role": "user", "content": "late"}], "stream": true});
    for (path, body) in [
        ("/chat", json!({"message": "late", "stream": true})),
        ("/v1/chat/completions", openai),
    ] {
        let response = fleet.open(Method::POST, path, &[], &body).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert!(response.into_body().collect().await.is_err(), "{path} is reset");
    }
    let (_, _, next) = fleet.chat(json!({"message": "late", "session": "mine"})).await;
    assert_eq!(next["error"]["code"], "ModelBroken");
}

#[tokio::test]
async fn a_bad_prompt_fails_readiness_and_nothing_else() {
    for (name, prompt, reason) in [
        ("empty", " \n", "the prompt is empty"),
        (
            "placeholder",
            "You are {{agent_name}}.",
            "the prompt has an unresolved placeholder {{agent_name}}",
        ),
        (
            "directive",
            "x <!-- flotilla: not-ready=maintenance -->",
            "the prompt's directive says not-ready=maintenance",
        ),
    ] {
        let fleet = Fleet::prompted(name, prompt).await;
        let (status, _, ready) = fleet.get("/readyz").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(ready, json!({"ready": false, "reasons": [reason]}));
        assert_eq!(fleet.get("/healthz").await.0, StatusCode::OK);
        assert_eq!(
            fleet.chat(json!({"message": "late"})).await.0,
            StatusCode::SERVICE_UNAVAILABLE
        );
        let (status, error) = fleet
            .rpc_with(&[("A2A-Version", "1.0")], "SendMessage", message("late"))
            .await;
        assert_eq!((status.as_u16(), &error["error"]["code"]), (503, &json!(-32603)));
    }
    let fleet = Fleet::prompted("good", "You help.").await;
    assert_eq!(fleet.get("/readyz").await.0, StatusCode::OK);
}

#[tokio::test]
async fn directives_make_errors_and_slowness() {
    let fleet = Fleet::prompted("errors", "You help. <!-- flotilla: error-rate=0.5 -->").await;
    let mut statuses = Vec::new();
    for _ in 0..4 {
        statuses.push(fleet.chat(json!({"message": "late"})).await.0.as_u16());
    }
    assert_eq!(statuses, [200, 500, 200, 500]);
    fleet.rpc("SendMessage", message("late")).await;
    let (status, error) = fleet
        .rpc_with(&[("A2A-Version", "1.0")], "SendMessage", message("late"))
        .await;
    assert_eq!((status.as_u16(), &error["error"]["code"]), (500, &json!(-32603)));

    let fleet = Fleet::prompted(
        "slow",
        "You help. <!-- flotilla: latency-ms=300 model=sim-tokens-3 -->",
    )
    .await;
    let start = std::time::Instant::now();
    let (_, _, answer) = fleet.chat(json!({"message": "late"})).await;
    assert!(start.elapsed() >= Duration::from_millis(300));
    assert_eq!(
        answer["usage"]["outputTokens"], 3,
        "the directive's model is called"
    );
}

#[tokio::test]
async fn protocol_errors_are_the_specifications() {
    let fleet = Fleet::with("sim", flotilla_simulator::Config::local(), |config| {
        config.max_body_bytes = 2_000
    })
    .await;
    for (headers, code) in [
        (vec![], -32009),
        (vec![("A2A-Version", "0.3")], -32009),
        (vec![("A2A-Version", "2.0")], -32009),
        (vec![("A2A-Version", "1.0.1")], -32001),
    ] {
        let (status, answer) = fleet.rpc_with(&headers, "GetTask", json!({"id": "none"})).await;
        assert_eq!(
            (status, &answer["error"]["code"]),
            (StatusCode::OK, &json!(code)),
            "{headers:?}"
        );
        assert!(answer["error"]["data"][0]["@type"].is_string());
    }
    let mut file = message("x");
    file["message"]["parts"] = json!([{"url": "http://example.com/a.png"}]);
    let mut agent = message("x");
    agent["message"]["role"] = json!("ROLE_AGENT");
    let mut unknown_task = message("x");
    unknown_task["message"]["taskId"] = json!("none");
    for (method, params, code) in [
        ("SendMessage", json!({}), -32602),
        ("SendMessage", message(" "), -32602),
        ("SendMessage", file, -32005),
        ("SendMessage", agent, -32602),
        ("SendMessage", unknown_task, -32001),
        ("CancelTask", json!({"id": "none"}), -32001),
        ("SubscribeToTask", json!({"id": "none"}), -32001),
        ("ListTasks", json!({}), -32004),
        ("CreateTaskPushNotificationConfig", json!({}), -32003),
        ("GetExtendedAgentCard", json!({}), -32004),
        ("message/send", message("x"), -32601),
    ] {
        assert_eq!(
            fleet.rpc(method, params.clone()).await["error"]["code"],
            code,
            "{method} {params}"
        );
    }
    for path in ["/", "/chat", "/v1/chat/completions"] {
        let body = json!({"message": "x".repeat(3_000)});
        let response = fleet
            .open(Method::POST, path, &[("A2A-Version", "1.0")], &body)
            .await;
        assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE, "{path}");
        assert_eq!(
            fleet.open(Method::DELETE, path, &[], &Value::Null).await.status(),
            StatusCode::METHOD_NOT_ALLOWED
        );
    }
    assert_eq!(
        fleet.chat(json!({"message": ""})).await.0,
        StatusCode::BAD_REQUEST
    );
    assert_eq!(fleet.get("/nowhere").await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn the_card_is_where_clients_look() {
    let fleet = Fleet::with("sim", flotilla_simulator::Config::local(), |config| {
        config.public_url = Some("http://support.shop.svc".to_owned());
        config.version = "support-6f9c4d".to_owned();
    })
    .await;
    let path = "/.well-known/agent-card.json";
    let (status, headers, card) = fleet.get(path).await;
    assert_eq!(
        (status, &card["supportedInterfaces"][0]["url"]),
        (StatusCode::OK, &json!("http://support.shop.svc/"))
    );
    let etag = headers["etag"].to_str().expect("text").to_owned();
    let again = fleet
        .open(Method::GET, path, &[("if-none-match", &etag)], &Value::Null)
        .await;
    assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
}

#[tokio::test]
async fn as_many_requests_at_work_as_allowed() {
    let fleet = Fleet::with(
        "sim-speed-10-tokens-1000",
        flotilla_simulator::Config::local(),
        |config| {
            config.max_in_flight = 1;
        },
    )
    .await;
    let mut stream = fleet.rpc_stream("SendStreamingMessage", message("late")).await;
    stream.next().await.expect("the task");
    let (status, headers, _) = fleet.chat(json!({"message": "late"})).await;
    assert_eq!(
        (status.as_u16(), headers["retry-after"].to_str().ok()),
        (503, Some("1"))
    );
    assert_eq!(
        fleet.get("/readyz").await.0,
        StatusCode::OK,
        "health is not counted"
    );
}

#[tokio::test]
async fn a_drain_ends_streams_in_full_and_says_so_at_readiness() {
    let fleet = Fleet::of("sim-tokens-30-speed-60").await;
    let mut stream = fleet.rpc_stream("SendStreamingMessage", message("late")).await;
    stream.next().await.expect("the task");
    fleet.agent.drain();
    let (status, headers, ready) = fleet.get("/readyz").await;
    assert_eq!(
        (status, &ready["reasons"]),
        (StatusCode::SERVICE_UNAVAILABLE, &json!(["the agent is draining"]))
    );
    assert_eq!(headers["connection"], "close");
    assert_eq!(
        fleet.chat(json!({"message": "late"})).await.0,
        StatusCode::OK,
        "late requests are served"
    );
    let Fleet {
        agent,
        simulator: _simulator,
        ..
    } = fleet;
    let addr = agent.addr;
    let ((), events) = tokio::join!(agent.shutdown(), stream.rest());
    assert_eq!(
        events.last().expect("a status")["statusUpdate"]["status"]["state"],
        "TASK_STATE_COMPLETED"
    );
    assert!(
        tokio::net::TcpStream::connect(addr).await.is_err(),
        "the port is closed"
    );
}
