//! What load generator workers leave and say, and what their targets answer them.

use std::sync::LazyLock;

use flotilla_core::histogram::Histogram;
use flotilla_core::load::plan::{LoadPlan, TargetUrl};
use flotilla_core::load::random::Stream;
use flotilla_core::load::result::{Price, RunResult, StageCounts};
use flotilla_core::load::template::Template;
use flotilla_core::load::wire::{Progress, ProgressTable, WorkerProgress, WorkerResult};
use flotilla_loadgen::protocol::{Answer, RequestBuilder};
use flotilla_loadgen::sse::Parser;

use super::{BARE, bare, packed, refused, texts};
use crate::{Target, magnitude, outcome, pieces};

/// Bytes of a termination message, as kubelet keeps them.
const MAX_MESSAGE: usize = 4096;
/// What a message begins with.
const PREFIX: &str = "lt1:";

pub(super) const TARGETS: &[Target] = &[
    Target {
        name: "termination-message",
        about: "a worker's result",
        corpus: || {
            let mut messages = texts(&["lt1:", "panicked at src/run.rs", "lt1:AA\n"]);
            for message in results().iter().map(WorkerResult::to_message) {
                messages.push(bare(message.trim_start_matches(PREFIX)));
                messages.push(message.into_bytes());
            }
            messages
        },
        words: &["lt1:", "AA", "////", "\n", "gA", "=", "+"],
        execute: termination_message,
    },
    Target {
        name: "progress",
        about: "snapshots of workers and of the coordinator",
        corpus: progress_corpus,
        words: &[
            "index",
            "attempt",
            "sequence",
            "stage",
            "counts",
            "planned",
            "started",
            "done",
            "failed",
            "latency",
            "finished",
            "state",
            "Running",
            "percent",
            "perSecond",
            "p95Milliseconds",
            "workersDesired",
        ],
        execute: progress,
    },
    Target {
        name: "load-plan",
        about: "the plan in a ConfigMap, and its url and templates",
        corpus: || {
            texts(&[
                PLAN,
                r#"{"name":"t","seed":1,"target":{"url":"http://[::1]:81/x?y","protocol":"HTTP"},"scenarios":[{"name":"a","weight":1,"prompt":"{{{{ {{number:1-9}} {{choice:a|b}}"}],"stages":[{"name":"s","type":"Batch","batch":{"size":5,"delaySeconds":5,"requests":10}}]}"#,
            ])
        },
        words: &[
            "{{order}}",
            "{{number:0-18446744073709551615}}",
            "{{choice:a|}}",
            "{{",
            "}}",
            "http://",
            "https://",
            "[::1]",
            ":0",
            "perSecond",
            "seconds",
            "batch",
            "constantRate",
            "type",
            "Batch",
            "ConstantRate",
            "Poisson",
            "stages",
            "scenarios",
            "weight",
            "workers",
            "requests",
            "warmup",
            "4294967295",
            "0.000001",
            "999999999999",
        ],
        execute: load_plan,
    },
    Target {
        name: "answers",
        about: "answers of agents under load, streamed and whole",
        corpus: || {
            texts(&[
                "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\ndata: {\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2}}\n\ndata: [DONE]\n\n",
                r#"{"choices":[{"message":{"content":"x"},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":4}}"#,
                "data: {\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"artifactUpdate\":{\"taskId\":\"t\",\"contextId\":\"c\",\"artifact\":{\"artifactId\":\"a\",\"parts\":[{\"text\":\"x\"}]}}}}\n\ndata: {\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"statusUpdate\":{\"taskId\":\"t\",\"contextId\":\"c\",\"status\":{\"state\":\"TASK_STATE_COMPLETED\"}}}}\n\n",
                r#"{"jsonrpc":"2.0","id":1,"result":{"message":{"messageId":"m","role":"ROLE_AGENT","parts":[{"text":"x"}],"metadata":{"flotilla.dev/usage":{"inputTokens":1,"outputTokens":2}}}}}"#,
                r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32603,"message":"no"}}"#,
                r#"{"error":{"message":"rate limited","type":"rate_limit"}}"#,
            ])
        },
        words: &[
            "data: ",
            "data:",
            "\n\n",
            "\r\n",
            "[DONE]",
            "choices",
            "delta",
            "content",
            "usage",
            "prompt_tokens",
            "result",
            "task",
            "message",
            "artifactUpdate",
            "statusUpdate",
            "status",
            "state",
            "TASK_STATE_FAILED",
            "TASK_STATE_INPUT_REQUIRED",
            "parts",
            "metadata",
            "flotilla.dev/usage",
            "error",
            "code",
            "null",
        ],
        execute: answers,
    },
];

fn results() -> Vec<WorkerResult> {
    let latency: Histogram = (1..300u64).map(|n| n * 1_311).collect();
    let mut first = WorkerResult {
        index: 1,
        workers: 4,
        attempt: 1,
        workload: 0x1234_5678_9abc_def0,
        retries: 3,
        start_skew_microseconds: 900,
        stages: vec![
            StageCounts {
                planned: 300,
                started: 300,
                done: 299,
                failed: 2,
            };
            2
        ],
        ..WorkerResult::default()
    };
    first.series.latency = latency;
    let second = WorkerResult {
        index: 3,
        interrupted: true,
        ..first.clone()
    };
    vec![WorkerResult::default(), first, second]
}

fn termination_message(input: &[u8]) -> u64 {
    let text = packed(input);
    let text = if input.first() == Some(&BARE) {
        format!("{PREFIX}{text}")
    } else {
        text
    };
    let result = match WorkerResult::from_message(&text) {
        Ok(result) => result,
        Err(error) => return refused(error),
    };
    let message = result.to_message();
    assert!(
        message.len() <= MAX_MESSAGE || result.stages.len() > 8,
        "{} bytes",
        message.len()
    );
    let again = WorkerResult::from_message(&message).expect("what is written can be read");
    assert_eq!(
        (again.index, again.attempt, again.workload),
        (result.index, result.attempt, result.workload)
    );
    assert_eq!(again.series.latency.count(), result.series.latency.count());
    let others = results();
    let all: Vec<WorkerResult> = others.into_iter().chain([result.clone(), again]).collect();
    let run = RunResult::merge(result.workers, 1_000, result.workload, &all);
    assert!(run.reported <= result.workers);
    let price = Price::parse("USD", "0.25", "2.00").ok();
    let summary = run.summary(price.as_ref());
    let _ = (
        run.coverage_percent(),
        run.totals(),
        serde_json::to_string(&summary),
    );
    outcome([
        1,
        u64::from(result.interrupted),
        result.stages.len() as u64,
        magnitude(result.series.latency.count()),
        magnitude(u64::from(run.reported)),
    ])
}

fn progress_corpus() -> Vec<Vec<u8>> {
    let worker = WorkerProgress {
        index: 2,
        attempt: 1,
        sequence: 7,
        stage: 1,
        counts: StageCounts {
            planned: 100,
            started: 50,
            done: 49,
            failed: 1,
        },
        latency: [120, 4_000, 90_000].into_iter().collect(),
        finished: false,
    };
    let whole = Progress {
        start_time: Some("2026-11-21T16:00:00Z".into()),
        stage: "steady".into(),
        workers_desired: 4,
        percent: 50,
        per_second: "25.0".into(),
        ..Progress::default()
    };
    [serde_json::to_vec(&worker), serde_json::to_vec(&whole)]
        .into_iter()
        .filter_map(Result::ok)
        .collect()
}

fn progress(input: &[u8]) -> u64 {
    let whole = serde_json::from_slice::<Progress>(input).is_ok();
    let Ok(worker) = serde_json::from_slice::<WorkerProgress>(input) else {
        return u64::from(whole);
    };
    let mut table = ProgressTable::default();
    let later = WorkerProgress {
        index: worker.index ^ 1,
        sequence: worker.sequence.wrapping_add(1),
        ..worker.clone()
    };
    table.accept(worker.clone());
    table.accept(later);
    table.accept(worker);
    let totals = table.totals();
    outcome([
        2,
        magnitude(totals.counts.done),
        magnitude(totals.latency.count()),
        u64::from(totals.finished),
    ])
}

const PLAN: &str = r#"{"name":"support-x7k2p","seed":1,"workers":{"count":4,"minCoveragePercent":99,"startDeadlineSeconds":180},"target":{"url":"http://support.shop.svc","protocol":"A2A"},"requests":{"timeoutMilliseconds":30000,"maxAttempts":1,"stream":true},"scenarios":[{"name":"damaged-product","weight":4,"prompt":"My {{product}} arrived broken."},{"name":"billing-inquiry","weight":3,"prompt":"Why was I charged twice for order {{order}}?"}],"warmup":{"requests":20},"stages":[{"name":"smoke","type":"Batch","batch":{"size":5,"delaySeconds":5,"requests":10}},{"name":"steady","type":"ConstantRate","constantRate":{"perSecond":"25","seconds":120,"arrival":"Poisson","maxInFlight":200}}]}"#;

fn load_plan(input: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(input);
    // Each part by itself as well: it is read before the whole is found good.
    let template = Template::parse(&text).map(|template| template.render(Stream::new(1, 2), 3).len());
    if let Ok(url) = TargetUrl::parse(&text) {
        assert!(url.port > 0 && !url.host.is_empty());
    }
    let Ok(plan) = serde_json::from_slice::<LoadPlan>(input) else {
        return outcome([0, u64::from(template.is_ok())]);
    };
    let valid = plan.validate().is_ok();
    let (requests, hash) = (plan.requests(), plan.workload_hash());
    assert_eq!(hash, plan.clone().workload_hash());
    if valid {
        for scenario in &plan.scenarios {
            let template = Template::parse(&scenario.prompt).expect("a valid plan has valid prompts");
            let _ = template.render(Stream::new(plan.seed, 1), u64::MAX);
        }
        assert!(plan.seconds() > 0 || requests > 0);
        let path = plan.path().expect("a valid plan has a path");
        assert!(path.starts_with('/'), "{path}");
        RequestBuilder::new(&plan, "host").expect("a valid plan makes requests");
    }
    outcome([1, u64::from(valid), magnitude(requests), plan.stages.len() as u64])
}

static BUILDERS: LazyLock<Vec<RequestBuilder>> = LazyLock::new(|| {
    ["A2A", "OpenAIChat", "HTTP"]
        .iter()
        .map(|protocol| {
            let plan = PLAN.replace("\"protocol\":\"A2A\"", &format!("\"protocol\":\"{protocol}\""));
            let plan = plan.replace("\"stream\":true", "\"stream\":true,\"model\":\"m\"");
            let plan: LoadPlan = serde_json::from_str(&plan).expect("the plan above");
            RequestBuilder::new(&plan, "host").expect("the plan above")
        })
        .collect()
});

fn streamed(mut answer: Answer, chunks: &mut dyn Iterator<Item = &[u8]>) -> Vec<u64> {
    let mut parser = Parser::default();
    let mut seen = Vec::new();
    for chunk in chunks {
        let fed = parser.feed(chunk, |data| seen.push(answer.event(data).map_or(9, u64::from)));
        if fed.is_err() {
            seen.push(8);
            break;
        }
    }
    seen.push(u64::from(answer.end_of_stream().is_ok()));
    seen.push(answer.usage().map_or(0, |usage| 1 + magnitude(usage.output)));
    seen
}

fn answers(input: &[u8]) -> u64 {
    let mut parts = Vec::new();
    for builder in BUILDERS.iter() {
        let whole = streamed(builder.answer(), &mut std::iter::once(input));
        assert_eq!(
            whole,
            streamed(builder.answer(), &mut pieces(input)),
            "pieces give something else"
        );
        parts.push(outcome(whole.into_iter().take(8)));
        let mut body = builder.answer();
        parts.push(u64::from(body.body(input).is_ok()));
        parts.push(body.usage().map_or(0, |usage| 1 + magnitude(usage.input)));
    }
    outcome(parts)
}
