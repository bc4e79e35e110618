use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::json;

use super::*;
use crate::runtime::testing::{FakeApi, answer};
use jiff::Timestamp;

fn publisher(leadership: Leadership) -> (EventPublisher, FakeApi, CancellationToken) {
    let api = FakeApi::new(|got| async move { answer(201, &got.body) });
    let clock = Clock::virtual_from(Timestamp::UNIX_EPOCH);
    let (publisher, worker) = EventPublisher::new(api.clients().api, leadership, clock, api.metrics.clone());
    let stop = CancellationToken::new();
    tokio::spawn(worker.run(stop.clone()));
    (publisher, api, stop)
}

fn object(name: &str) -> Regarding {
    let value = json!({"metadata": {"name": name, "namespace": "a", "uid": format!("uid-{name}")}});
    Regarding::of(&serde_json::from_value::<ConfigMap>(value).unwrap())
}

async fn settle() {
    tokio::time::sleep(Duration::from_millis(10)).await;
}

#[tokio::test(start_paused = true)]
async fn the_same_note_is_sent_once_and_another_note_of_the_reason_is_sent_as_it_is() {
    let (publisher, api, _stop) = publisher(Leadership::always());
    for step in ["step 10 %", "step 25 %", "step 10 %"] {
        publisher.publish(object("x"), Note::normal("StepDone", step));
    }
    publisher.publish(object("y"), Note::warning("StepDone", "step 10 %"));
    settle().await;
    let sent = api.got();
    let notes: Vec<_> = sent
        .iter()
        .map(|got| (got.body["note"].clone(), got.body["type"].clone()))
        .collect();
    let expected = [
        ("step 10 %", "Normal"),
        ("step 25 %", "Normal"),
        ("step 10 %", "Warning"),
    ];
    assert_eq!(notes, expected.map(|(note, kind)| (json!(note), json!(kind))));
    assert_eq!(sent[0].path, "/apis/events.k8s.io/v1/namespaces/a/events");
    assert_eq!(sent[0].body["regarding"]["uid"], "uid-x");
    let names: std::collections::HashSet<_> = sent
        .iter()
        .map(|got| got.body["metadata"]["name"].to_string())
        .collect();
    assert_eq!(names.len(), 3);
    tokio::time::sleep(REPEAT).await;
    publisher.publish(object("x"), Note::normal("StepDone", "step 10 %"));
    settle().await;
    assert_eq!(api.got().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_flood_is_cut_to_the_budget() {
    let (publisher, api, _stop) = publisher(Leadership::always());
    for number in 0..100 {
        publisher.publish(object("x"), Note::normal("Flood", format!("note {number}")));
    }
    settle().await;
    assert_eq!(api.got().len(), 25);
    tokio::time::sleep(Duration::from_secs(3)).await;
    for number in 200..210 {
        publisher.publish(object("x"), Note::normal("Flood", format!("note {number}")));
    }
    settle().await;
    assert_eq!(api.got().len(), 28);
    let text = api.metrics.encode();
    assert!(
        text.contains(r#"flotilla_events_total{outcome="sent"} 28"#),
        "{text}"
    );
    assert!(
        text.contains(r#"flotilla_events_total{outcome="dropped"} 82"#),
        "{text}"
    );
}

#[tokio::test(start_paused = true)]
async fn long_notes_are_cut_and_a_standby_sends_none() {
    let (publisher, api, _stop) = publisher(Leadership::always());
    publisher.publish(object("x"), Note::normal("Long", "ü".repeat(1000)));
    settle().await;
    assert_eq!(api.got()[0].body["note"].as_str().map(str::len), Some(1024));

    let (publisher, api, _stop) = self::publisher(Leadership::never());
    publisher.publish(object("x"), Note::normal("Any", "thing"));
    settle().await;
    assert!(api.got().is_empty());
}
