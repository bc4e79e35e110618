//! Protocols and failures, against a target that misbehaves on purpose.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use common::{Answer, Target, answer, chunks, plan, run_workers};
use flotilla_core::load::plan::{LoadPlan, Protocol};
use flotilla_core::load::result::ErrorCategory;
use flotilla_core::load::wire::WorkerResult;
use http::{Request, StatusCode};

const EVENTS: &str = "text/event-stream";

fn batch(size: u32) -> serde_json::Value {
    serde_json::json!([{"name": "b", "type": "Batch", "batch": {"size": size, "delaySeconds": 1, "requests": size}}])
}

/// Sends `size` requests of `protocol` at once, with a timeout of 1.5 s.
fn send<F, R>(
    protocol: Protocol,
    stream: bool,
    size: u32,
    change: fn(&mut LoadPlan),
    behave: F,
) -> (WorkerResult, Target)
where
    F: Fn(Request<String>) -> R + Clone + Send + 'static,
    R: Future<Output = Answer> + Send + 'static,
{
    let target = Target::start(behave);
    let mut plan = plan(&target, 1, batch(size));
    plan.target.protocol = protocol;
    plan.requests.stream = stream;
    plan.requests.timeout_milliseconds = 1500;
    change(&mut plan);
    (run_workers(&plan).remove(0).unwrap(), target)
}

fn failures(result: &WorkerResult) -> Vec<(ErrorCategory, u64)> {
    result
        .errors
        .by_frequency()
        .into_iter()
        .map(|entry| (entry.category, entry.count))
        .collect()
}

#[test]
fn a_chat_stream_gives_first_token_gaps_and_usage() {
    let (result, target) = send(
        Protocol::OpenAIChat,
        true,
        2,
        |_| {},
        |_| async {
            let token = |text: &str| {
                Some(format!(
                    "data: {{\"choices\":[{{\"delta\":{{\"content\":\"{text}\"}}}}]}}\n\n"
                ))
            };
            let millis = Duration::from_millis;
            chunks(
            EVENTS,
            vec![
                (millis(50), Some("data: {\"choices\":[{\"delta\":{\"role\":\"assistant\"}}]}\n".to_owned())),
                (millis(0), Some("\n: keep-alive\n\n".to_owned())),
                (millis(50), token("Hel")),
                (millis(60), token("lo")),
                (millis(0), Some("data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n".to_owned())),
                (millis(0), Some("data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":2}}\n\n".to_owned())),
                (millis(40), Some("data: [DONE]\n\n".to_owned())),
            ],
        )
        },
    );
    assert_eq!(failures(&result), []);
    assert_eq!(
        (result.tokens.input, result.tokens.output, result.tokens.reported),
        (14, 4, 2)
    );
    let series = &result.series;
    assert_eq!(
        (series.first_token.count(), series.inter_token_gap.count()),
        (2, 2)
    );
    assert!(series.first_token.min().unwrap() >= 100_000 && series.inter_token_gap.min().unwrap() >= 50_000);
    assert!(series.latency.min().unwrap() >= 200_000);
    let request = &target.received()[0];
    assert_eq!(request.path, "/v1/chat/completions");
    assert!(
        request.body.contains("\"include_usage\":true"),
        "{}",
        request.body
    );
}

#[test]
fn an_a2a_stream_ends_with_a_state() {
    let (result, target) = send(
        Protocol::A2A,
        true,
        3,
        |_| {},
        |request| async move {
            assert_eq!(request.headers()["a2a-version"], "1.0");
            let failed = request.body().contains("\"id\":1,");
            let state = if failed {
                "TASK_STATE_FAILED"
            } else {
                "TASK_STATE_COMPLETED"
            };
            let event = |result: &str| {
                (
                    Duration::from_millis(10),
                    Some(format!(
                        "data: {{\"jsonrpc\":\"2.0\",\"result\":{result}}}\r\n\r\n"
                    )),
                )
            };
            chunks(
                EVENTS,
                vec![
                    event(r#"{"task":{"id":"t","status":{"state":"TASK_STATE_WORKING"}}}"#),
                    event(r#"{"artifactUpdate":{"artifact":{"artifactId":"a","parts":[{"text":"Hi"}]}}}"#),
                    event(&format!(
                        r#"{{"statusUpdate":{{"status":{{"state":"{state}","message":{{"parts":[],"metadata":{{"flotilla.dev/usage":{{"inputTokens":3,"outputTokens":4}}}}}}}}}}}}"#
                    )),
                ],
            )
        },
    );
    assert_eq!(failures(&result), [(ErrorCategory::AgentError, 1)]);
    assert_eq!((result.tokens.input, result.tokens.reported), (9, 3));
    assert_eq!(result.series.first_token.count(), 3);
    assert!(target.received()[0].body.contains("SendStreamingMessage"));
}

#[test]
fn an_unstreamed_a2a_answer_is_a_task() {
    let (result, target) = send(
        Protocol::A2A,
        false,
        1,
        |_| {},
        |_| async {
            let body = r#"{"jsonrpc":"2.0","id":0,"result":{"task":{"id":"t","status":{"state":"TASK_STATE_COMPLETED"}}}}"#;
            answer(StatusCode::OK, "application/json", body)
        },
    );
    assert_eq!(failures(&result), []);
    assert!(target.received()[0].body.contains("\"SendMessage\""));
}

/// Every way to fail has its category, and a failure stays in the latency series.
#[test]
fn failures_are_told_apart() {
    let (result, _target) = send(
        Protocol::OpenAIChat,
        true,
        9,
        |_| {},
        |request| async move {
            let index: u64 = request.headers()["x-flotilla-request"]
                .to_str()
                .unwrap()
                .parse()
                .unwrap();
            let now = Duration::ZERO;
            match index {
                0 => answer(StatusCode::TOO_MANY_REQUESTS, "text/plain", "slow down"),
                1 => answer(StatusCode::NOT_FOUND, "text/plain", "no"),
                2 => answer(StatusCode::BAD_GATEWAY, "text/plain", "no"),
                3 => answer(StatusCode::OK, "application/json", "<html>"),
                // Breaks off without the end of its body, and without the protocol's own end.
                4 => chunks(
                    EVENTS,
                    vec![
                        (now, Some("data: {\"choices\":[]}\n\n".to_owned())),
                        (Duration::from_millis(20), None),
                    ],
                ),
                5 => chunks(EVENTS, vec![(now, Some("data: {\"choices\":[]}\n\n".to_owned()))]),
                6 => chunks(EVENTS, vec![(now, Some("data: nonsense\n\n".to_owned()))]),
                7 => {
                    tokio::time::sleep(Duration::from_secs(20)).await;
                    answer(StatusCode::OK, "text/plain", "late")
                }
                _ => chunks(
                    EVENTS,
                    vec![(
                        now,
                        Some("data: {\"choices\":[{\"finish_reason\":\"stop\"}]}\n\n".to_owned()),
                    )],
                ),
            }
        },
    );
    use ErrorCategory::{ClientError, Malformed, ServerError, StreamCut, Throttled, Timeout};
    let mut seen = failures(&result);
    seen.sort();
    assert_eq!(
        seen,
        [
            (Timeout, 1),
            (ClientError, 1),
            (Throttled, 1),
            (ServerError, 1),
            (StreamCut, 2),
            (Malformed, 2)
        ]
    );
    assert_eq!(
        (
            result.stages[0].done,
            result.stages[0].failed,
            result.series.latency.count()
        ),
        (9, 8, 9)
    );
    assert!(result.series.latency.max().unwrap() >= 1_500_000);
}

#[test]
fn a_target_that_is_not_there_fails_to_connect() {
    let target = Target::echo();
    let mut plan = plan(&target, 1, batch(3));
    plan.target.url = format!("http://{}", common::free_address());
    let result = run_workers(&plan).remove(0).unwrap();
    assert_eq!(failures(&result), [(ErrorCategory::Connect, 3)]);
    assert!(result.series.service.is_empty());
}

/// A target that takes the request and closes is a reset, not a retry.
#[test]
fn a_connection_that_breaks_is_a_reset() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let target = Target::echo();
    let mut plan = plan(&target, 1, batch(2));
    plan.requests.max_attempts = 3;
    plan.target.url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = std::io::Read::read(&mut stream, &mut [0; 1024]);
        }
    });
    let result = run_workers(&plan).remove(0).unwrap();
    assert_eq!(
        (failures(&result), result.retries),
        (vec![(ErrorCategory::Reset, 2)], 0)
    );
}

#[test]
fn further_attempts_follow_only_what_was_not_worked_on() {
    let calls = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&calls);
    let (result, _target) = send(
        Protocol::HTTP,
        false,
        1,
        |plan| plan.requests.max_attempts = 4,
        move |_| {
            let call = counter.fetch_add(1, Ordering::Relaxed);
            async move {
                match call {
                    0 => answer(StatusCode::TOO_MANY_REQUESTS, "text/plain", ""),
                    1 => answer(StatusCode::SERVICE_UNAVAILABLE, "text/plain", ""),
                    _ => answer(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", ""),
                }
            }
        },
    );
    assert_eq!((calls.load(Ordering::Relaxed), result.retries), (3, 2));
    assert_eq!(failures(&result), [(ErrorCategory::ServerError, 1)]);
}

#[test]
fn connections_are_kept_alive_and_replaced_when_closed() {
    let (result, _target) = send(
        Protocol::HTTP,
        false,
        1,
        |plan| {
            plan.stages =
                serde_json::from_value(serde_json::json!([common::constant_rate("50", 1, "Uniform")]))
                    .unwrap();
        },
        |_| async {
            let mut answer = answer(StatusCode::OK, "text/plain", "ok");
            answer
                .headers_mut()
                .insert("connection", http::HeaderValue::from_static("close"));
            answer
        },
    );
    assert_eq!((failures(&result), result.stages[0].done), (vec![], 50));
}
