use std::sync::atomic::{AtomicUsize, Ordering};

use futures::future::join_all;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams, WatchParams};

use super::*;
use crate::runtime::errors::{Error, Failure as _};
use crate::runtime::testing::{FakeApi, answer, endless, raw, status};

fn config_maps(api: &FakeApi) -> Api<ConfigMap> {
    Api::namespaced(api.clients().api, "a")
}

fn config_map() -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": "x", "namespace": "a"}})).unwrap()
}

async fn apply(api: &Api<ConfigMap>) -> kube::Result<ConfigMap> {
    api.patch(
        "x",
        &PatchParams::apply("flotilla/configmap").force(),
        &Patch::Apply(config_map()),
    )
    .await
}

#[tokio::test(start_paused = true)]
async fn a_create_answered_504_or_503_is_sent_once() {
    for code in [503, 504] {
        let api = FakeApi::new(move |_| async move { status(code, "Timeout", "later") });
        let error = config_maps(&api)
            .create(&PostParams::default(), &config_map())
            .await
            .unwrap_err();
        assert_eq!(api.got().len(), 1);
        assert_eq!(Error::from_kube("create", error).category(), "Unavailable");
    }
}

#[tokio::test(start_paused = true)]
async fn repeatable_verbs_are_tried_three_times_within_the_budget() {
    for code in [429, 503, 504] {
        let api = FakeApi::new(move |_| async move { status(code, "Later", "later") });
        let started = Instant::now();
        assert!(apply(&config_maps(&api)).await.is_err());
        assert_eq!(api.got().len(), 3);
        assert!(started.elapsed() < Duration::from_secs(1));
    }
    let api = FakeApi::new(|_| async { status(500, "InternalError", "no") });
    assert!(apply(&config_maps(&api)).await.is_err());
    assert_eq!(api.got().len(), 1, "500 says nothing about a second try");
}

#[tokio::test(start_paused = true)]
async fn a_create_refused_with_429_was_not_acted_on_and_is_tried_again() {
    let calls = Arc::new(AtomicUsize::new(0));
    let api = FakeApi::new(move |_| {
        let first = calls.fetch_add(1, Ordering::SeqCst) == 0;
        async move {
            if first {
                status(429, "TooManyRequests", "later")
            } else {
                answer(201, &json!(config_map()))
            }
        }
    });
    config_maps(&api)
        .create(&PostParams::default(), &config_map())
        .await
        .unwrap();
    assert_eq!(api.got().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_wish_to_wait_beyond_the_budget_is_not_waited_for() {
    let api = FakeApi::new(|_| async {
        let mut response = status(429, "TooManyRequests", "later")?;
        response
            .headers_mut()
            .insert(RETRY_AFTER, HeaderValue::from_static("30"));
        Ok(response)
    });
    let started = Instant::now();
    assert!(config_maps(&api).get("x").await.is_err());
    assert_eq!((api.got().len(), started.elapsed()), (1, Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn a_lease_renewal_is_tried_once() {
    let api = FakeApi::new(|_| async { status(429, "TooManyRequests", "later") });
    let leases = Api::<ConfigMap>::namespaced(api.clients().lease, "a");
    assert!(
        leases
            .replace("x", &PostParams::default(), &config_map())
            .await
            .is_err()
    );
    assert_eq!(api.got().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_never_answers_costs_five_seconds() {
    let api = FakeApi::new(|_| async { std::future::pending().await });
    let started = Instant::now();
    let error = config_maps(&api).get("x").await.unwrap_err();
    assert_eq!(started.elapsed(), CALL_TIMEOUT);
    let error = Error::from_kube("read ConfigMap a/x", error);
    assert_eq!(error.category(), "Unavailable");
    let text = crate::runtime::informer::Chain(&error).to_string();
    assert!(
        text.contains("no answer to GET /api/v1/namespaces/a/configmaps/x within 5 s"),
        "{text}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_body_that_never_ends_costs_five_seconds_for_good_and_bad_answers() {
    for code in [200, 500] {
        let api = FakeApi::new(move |_| async move { endless(code) });
        let started = Instant::now();
        assert!(config_maps(&api).get("x").await.is_err());
        assert_eq!(started.elapsed(), CALL_TIMEOUT);
    }
}

#[tokio::test(start_paused = true)]
async fn at_most_sixteen_calls_are_under_way() {
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (n, m) = (Arc::clone(&now), Arc::clone(&most));
    let api = FakeApi::new(move |_| {
        let (now, most) = (Arc::clone(&n), Arc::clone(&m));
        async move {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(100)).await;
            now.fetch_sub(1, Ordering::SeqCst);
            answer(200, &json!(config_map()))
        }
    });
    let maps = config_maps(&api);
    let results = join_all((0..100).map(|_| maps.get("x"))).await;
    assert!(results.iter().all(Result::is_ok));
    assert_eq!(most.load(Ordering::SeqCst), CONCURRENCY);
}

#[tokio::test(start_paused = true)]
async fn a_watch_outlives_the_call_timeout_and_takes_no_turn() {
    let api = FakeApi::new(|got| async move {
        if got.is_watch() {
            endless(200)
        } else {
            answer(200, &json!(config_map()))
        }
    });
    let maps = config_maps(&api);
    let mut watches = Vec::new();
    for _ in 0..CONCURRENCY {
        watches.push(Box::pin(maps.watch(&WatchParams::default(), "1").await.unwrap()));
    }
    assert!(maps.get("x").await.is_ok());
    let silent =
        tokio::time::timeout(Duration::from_secs(60), futures::StreamExt::next(&mut watches[0])).await;
    assert!(silent.is_err(), "the stream must stay open");

    let api = FakeApi::new(|_| async { std::future::pending().await });
    let started = Instant::now();
    assert!(
        config_maps(&api)
            .watch(&WatchParams::default(), "1")
            .await
            .is_err()
    );
    assert_eq!(started.elapsed(), CALL_TIMEOUT, "opening it is a call");
}

#[tokio::test(start_paused = true)]
async fn errors_are_judged_by_the_http_status() {
    for (code, body, category, message) in [
        (403, "{}", "Refused", "403 Forbidden"),
        (
            502,
            "<html>bad gateway</html>",
            "Unavailable",
            "<html>bad gateway</html>",
        ),
        (
            409,
            r#"{"reason":"AlreadyExists","message":"there"}"#,
            "Refused",
            "there",
        ),
        (
            409,
            r#"{"kind":"Status","code":409,"reason":"Conflict","message":"changed"}"#,
            "Conflict",
            "changed",
        ),
        (
            403,
            r#"{"kind":"Status","code":403,"reason":"Forbidden","message":"no","details":{"causes":[{"reason":"NamespaceTerminating","message":"n","field":"metadata.namespace"}]}}"#,
            "NamespaceTerminating",
            "no",
        ),
        (
            422,
            r#"{"kind":"Status","code":422,"reason":"Invalid","message":"metadata.uid: Invalid value: x: field is immutable"}"#,
            "Conflict",
            "metadata.uid: Invalid value: x: field is immutable",
        ),
        (
            422,
            r#"{"kind":"Status","code":422,"reason":"Invalid","message":"no"}"#,
            "Refused",
            "no",
        ),
    ] {
        let api = FakeApi::new(move |_| async move { raw(code, body) });
        let error = config_maps(&api)
            .create(&PostParams::default(), &config_map())
            .await
            .unwrap_err();
        let kube::Error::Api(status) = &error else {
            panic!("{error:?}")
        };
        assert_eq!((status.code, status.message.as_str()), (code, message));
        assert_eq!(Error::from_kube("create", error).category(), category);
    }
}

#[tokio::test(start_paused = true)]
async fn calls_are_counted_by_code_and_method() {
    let api = FakeApi::new(|got| async move {
        if got.method == Method::GET {
            answer(200, &json!(config_map()))
        } else {
            std::future::pending().await
        }
    });
    let maps = config_maps(&api);
    assert!(maps.get("x").await.is_ok());
    assert!(maps.create(&PostParams::default(), &config_map()).await.is_err());
    let text = api.metrics.encode();
    assert!(
        text.contains(r#"rest_client_requests_total{code="200",method="GET"} 1"#),
        "{text}"
    );
    assert!(
        text.contains(r#"rest_client_requests_total{code="<error>",method="POST"} 1"#),
        "{text}"
    );
    assert!(
        text.contains(r#"rest_client_request_duration_seconds_count{verb="GET"} 1"#),
        "{text}"
    );
}

#[tokio::test]
async fn a_refused_connection_is_tried_three_times_even_for_a_create() {
    // A port that was free a moment ago and has no listener.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let config = Config::new(format!("http://127.0.0.1:{port}").parse().unwrap());
    let metrics = Metrics::new();
    let clients = connect(&config, &metrics, &Jitter::seeded(1)).unwrap();
    let maps = Api::<ConfigMap>::namespaced(clients.api, "a");
    let error = maps
        .create(&PostParams::default(), &config_map())
        .await
        .unwrap_err();
    assert_eq!(Error::from_kube("create", error).category(), "Unavailable");
    assert!(
        metrics
            .encode()
            .contains(r#"rest_client_requests_total{code="<error>",method="POST"} 3"#)
    );
}

#[tokio::test]
async fn a_missing_kubeconfig_is_named() {
    let error = load(Some(Path::new("/nonexistent/kubeconfig")), None)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("/nonexistent/kubeconfig"));
}
