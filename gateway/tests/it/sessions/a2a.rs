//! A2A: names are learnt from responses, and requests about a task go to the replica that has it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use flotilla_gateway::config::{Config, KeySource};
use futures::stream;
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::{Cluster, sessions};
use crate::support::{Agent, Body, Client, PoolExt as _, config, full, pool};

/// An agent that keeps its contexts and tasks to itself, as most do.
#[derive(Clone)]
struct Memory {
    name: &'static str,
    contexts: Arc<Mutex<HashMap<String, String>>>,
    /// Streams go on after their first event only with a permit.
    gate: Arc<Semaphore>,
}

static NEXT: AtomicUsize = AtomicUsize::new(1);

async fn agent(name: &'static str) -> (Agent, Memory) {
    let memory = Memory {
        name,
        contexts: Arc::default(),
        gate: Arc::new(Semaphore::new(0)),
    };
    let inner = memory.clone();
    let agent = Agent::start(move |request| {
        let memory = inner.clone();
        async move {
            assert!(
                request
                    .headers()
                    .get("accept-encoding")
                    .is_none_or(|coding| coding == "identity"),
                "what cannot be read must not be asked for"
            );
            let body = request.into_body().collect().await.unwrap().to_bytes();
            memory.answer(&serde_json::from_slice(&body).unwrap())
        }
    })
    .await;
    (agent, memory)
}

impl Memory {
    fn answer(&self, call: &Value) -> Response<Body> {
        let reply = |result: Value| {
            let body = json!({"jsonrpc": "2.0", "id": call["id"], "result": result}).to_string();
            Response::builder()
                .header("content-type", "application/json")
                .header("x-agent", self.name)
                .body(full(body))
                .unwrap()
        };
        let message = &call["params"]["message"];
        let method = call["method"].as_str().unwrap();
        match method {
            "SendMessage" | "SendStreamingMessage" => {
                let number = NEXT.fetch_add(1, Ordering::SeqCst);
                let context = match message["contextId"].as_str() {
                    Some(context) => {
                        let known = self.contexts.lock().values().any(|known| known == context);
                        assert!(known, "{} does not know {context}", self.name);
                        context.to_owned()
                    }
                    None => format!("context-{number}"),
                };
                let task = format!("task-{number}");
                self.contexts.lock().insert(task.clone(), context.clone());
                let task = json!({"task": {"id": task, "contextId": context, "status": {"state": "TASK_STATE_WORKING"}}});
                if method == "SendMessage" {
                    reply(task)
                } else {
                    self.stream(call, task)
                }
            }
            "GetTask" | "CancelTask" | "SubscribeToTask" => {
                let id = call["params"]["id"].as_str().unwrap();
                let contexts = self.contexts.lock();
                let context = contexts
                    .get(id)
                    .unwrap_or_else(|| panic!("{} does not know {id}", self.name));
                if method == "CancelTask" {
                    self.gate.add_permits(1);
                }
                reply(json!({"id": id, "contextId": context}))
            }
            other => panic!("{other}"),
        }
    }

    fn stream(&self, call: &Value, first: Value) -> Response<Body> {
        let event = |result: Value| {
            let data = json!({"jsonrpc": "2.0", "id": call["id"], "result": result});
            Bytes::from(format!("data: {data}\n\n"))
        };
        let events = [event(first), event(json!({"statusUpdate": {"final": true}}))];
        let gate = self.gate.clone();
        let stream = stream::unfold((0, events, gate), |(at, events, gate)| async move {
            let event = events.get(at)?.clone();
            if at > 0 {
                gate.acquire().await.unwrap().forget();
            }
            Some((Ok::<_, hyper::Error>(Frame::data(event)), (at + 1, events, gate)))
        });
        Response::builder()
            .header("content-type", "text/event-stream")
            .header("x-agent", self.name)
            .body(StreamBody::new(stream).boxed())
            .unwrap()
    }
}

fn halves(a: &[SocketAddr], b: &[SocketAddr], slots: u32) -> Config {
    let mut pool = pool().revision("a", 50, slots, a).revision("b", 50, slots, b);
    pool.sessions = Some(sessions(KeySource::A2AContext, &[]));
    config(pool)
}

fn post(call: &Value) -> Request<Body> {
    Request::builder()
        .method(Method::POST)
        .uri("/pools/support/")
        .header("host", "gateway")
        .header("content-type", "application/json")
        .header("accept-encoding", "identity")
        .body(full(call.to_string()))
        .unwrap()
}

/// The name of the agent that answered, and the result.
async fn call(to: SocketAddr, method: &str, params: Value) -> (String, Value) {
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
    let answer = Client::connect(to).await.send(post(&call)).await.unwrap();
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    let agent = answer.headers["x-agent"].to_str().unwrap().to_owned();
    let body: Value = serde_json::from_slice(&answer.body).unwrap();
    (agent, body["result"].clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conversations_and_tasks_stay_with_the_replica_that_has_them() {
    let (agents, _memories): (Vec<_>, Vec<_>) = [
        agent("a1").await,
        agent("a2").await,
        agent("b1").await,
        agent("b2").await,
    ]
    .into_iter()
    .unzip();
    let at = |index: usize| agents[index].address;
    let cluster = Cluster::start(3, halves(&[at(0), at(1)], &[at(2), at(3)], 100)).await;
    let node = |number: usize| cluster.nodes[number % 3].ingress;
    let mut used = HashMap::new();
    let number = 30;
    for talk in 0..number {
        let (first, result) = call(node(talk), "SendMessage", json!({"message": {"messageId": "m"}})).await;
        let context = result["task"]["contextId"].as_str().unwrap().to_owned();
        *used.entry(first.clone()).or_insert(0) += 1;
        let mut tasks = vec![result["task"]["id"].as_str().unwrap().to_owned()];
        for turn in 1..4 {
            let message = json!({"message": {"contextId": context, "messageId": "m"}});
            let (again, result) = call(node(talk + turn), "SendMessage", message).await;
            assert_eq!(
                (again, &result["task"]["contextId"]),
                (first.clone(), &json!(context))
            );
            tasks.push(result["task"]["id"].as_str().unwrap().to_owned());
        }
        for (turn, task) in tasks.iter().enumerate() {
            for method in ["GetTask", "SubscribeToTask"] {
                let (again, found) = call(node(talk + turn + 1), method, json!({"id": task})).await;
                assert_eq!((again, &found["contextId"]), (first.clone(), &json!(context)));
            }
        }
    }
    assert_eq!(used.len(), 4, "{used:?}");
    assert_eq!(
        cluster.metric("flotilla_gateway_sessions_assigned_total").await,
        number as u64 * 5,
        "a conversation and its four tasks"
    );
    let mut assigned = 0;
    for node in &cluster.nodes {
        let stats = node.stats().await;
        let revisions = stats.pools["support"].revisions.values();
        assigned += revisions.map(|revision| revision.sessions_assigned).sum::<u64>();
    }
    assert_eq!(assigned, number as u64, "tasks are no conversations");
}

/// The slot that the task holds must not be waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_holds_the_only_slot_can_be_cancelled() {
    let (agents, _memories): (Vec<_>, Vec<_>) = [agent("a").await, agent("b").await].into_iter().unzip();
    let cluster = Cluster::start(2, halves(&[agents[0].address], &[agents[1].address], 1)).await;
    let streaming =
        json!({"jsonrpc": "2.0", "id": 1, "method": "SendStreamingMessage", "params": {"message": {}}});
    let mut client = Client::connect(cluster.nodes[0].ingress).await;
    let response = client.sender.send_request(post(&streaming)).await.unwrap();
    let agent = response.headers()["x-agent"].clone();
    let mut body = response.into_body();
    // The first event is through while the stream goes on.
    let event = body.frame().await.unwrap().unwrap().into_data().unwrap();
    let text = std::str::from_utf8(&event).unwrap();
    let event: Value = serde_json::from_str(text.strip_prefix("data: ").unwrap().trim()).unwrap();
    let task = &event["result"]["task"]["id"];
    let (found, _) = call(cluster.nodes[1].ingress, "GetTask", json!({"id": task})).await;
    assert_eq!(found.as_str(), agent);
    let cancelled = call(cluster.nodes[0].ingress, "CancelTask", json!({"id": task}));
    let (found, _) = tokio::time::timeout(Duration::from_secs(3), cancelled)
        .await
        .unwrap();
    assert_eq!(found.as_str(), agent);
    let rest = body.collect().await.unwrap().to_bytes();
    assert!(rest.starts_with(b"data: "), "{rest:?}");
}

/// Large messages are not held in memory, and their conversation is found all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_message_finds_its_conversation_by_its_beginning() {
    let (agents, _memories): (Vec<_>, Vec<_>) = [agent("a").await, agent("b").await].into_iter().unzip();
    let cluster = Cluster::start(2, halves(&[agents[0].address], &[agents[1].address], 10)).await;
    for talk in 0..8 {
        let (first, result) = call(cluster.nodes[0].ingress, "SendMessage", json!({"message": {}})).await;
        let context = result["task"]["contextId"].clone();
        let parts = json!([{"text": "x".repeat(300_000)}]);
        // serde_json sorts names: contextId comes before parts.
        let message = json!({"message": {"contextId": context, "parts": parts}});
        let (again, result) = call(cluster.nodes[talk % 2].ingress, "SendMessage", message).await;
        assert_eq!((again, &result["task"]["contextId"]), (first, &context));
    }
}

/// Both are led to the same revision, where one agent serves both here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_moves_with_its_conversation_when_their_revision_goes() {
    let (a, _) = agent("a").await;
    let mut config = halves(&[a.address], &[a.address], 10);
    let pool = config.pools.get_mut("support").unwrap();
    pool.weights = vec![("a".into(), 100)];
    let mut cluster = Cluster::start(2, config.clone()).await;
    let (_, result) = call(cluster.nodes[0].ingress, "SendMessage", json!({"message": {}})).await;
    let task = json!({"id": result["task"]["id"]});
    let pool = config.pools.get_mut("support").unwrap();
    pool.weights = vec![("b".into(), 100)];
    pool.generation = 2;
    cluster.tell(config);
    cluster.settle().await;
    call(cluster.nodes[1].ingress, "GetTask", task).await;
    let mut on = (0, 0);
    for _ in 0..500 {
        on = (0, 0);
        for node in &cluster.nodes {
            let stats = node.stats().await;
            let revisions = &stats.pools["support"].revisions;
            let of = |name: &str| revisions.get(name).map_or(0, |revision| revision.sessions);
            on = (on.0 + of("a"), on.1 + of("b"));
        }
        if on == (0, 4) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(on, (0, 4), "both, at each of their two homes");
    assert_eq!(cluster.metric("flotilla_gateway_sessions_moved_total").await, 2);
}
