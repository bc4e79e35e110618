//! Requests of testers: to the candidate whatever its weight, and in nobody's counts.

use flotilla_gateway::config::{Config, KeySource, PreviewConfig, SessionsConfig};
use http::{HeaderName, HeaderValue, Request, StatusCode};

use crate::support::{Agent, Answer, Body, Client, Fixture, PoolExt as _, config, full, pool};

async fn agents() -> [Agent; 2] {
    [Agent::named("a").await, Agent::named("b").await]
}

/// Revision `a` has all the traffic, `b` none; testers go to `tested`.
fn canary(agents: &[Agent; 2], tested: Option<&str>) -> Config {
    let mut pool =
        pool()
            .revision("a", 100, 8, &[agents[0].address])
            .revision("b", 0, 8, &[agents[1].address]);
    pool.preview = Some(PreviewConfig {
        header: HeaderName::from_static("x-preview"),
        value: HeaderValue::from_static("yes"),
        revision: tested.map(str::to_owned),
    });
    config(pool)
}

async fn ask(fixture: &Fixture, headers: &[(&str, &str)]) -> Answer {
    let mut request: http::request::Builder = Request::builder()
        .uri(fixture.path("/"))
        .header("host", "gateway");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request: Request<Body> = request.body(full("")).unwrap();
    let mut client = Client::connect(fixture.gateway.ingress).await;
    let answer = client.send(request).await.unwrap();
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    answer
}

fn answered_by(answer: &Answer) -> Option<&str> {
    let header = answer.headers.get("x-flotilla-revision");
    header.map(|value| value.to_str().unwrap())
}

/// Requests in the windows of both revisions.
async fn counted(fixture: &Fixture) -> [u64; 2] {
    let stats = fixture.stats().await;
    ["a", "b"].map(|revision| {
        let windows = &stats.pools["support"].revisions[revision].windows;
        windows.iter().map(|window| window.started).sum()
    })
}

#[tokio::test]
async fn testers_reach_the_candidate_and_count_for_nobody() {
    let agents = agents().await;
    let fixture = Fixture::with(canary(&agents, Some("b"))).await;
    for (headers, expected, shown) in [
        (&[][..], "a", None),
        (&[("x-preview", "yes")][..], "b", Some("b")),
        (&[("x-preview", "no")][..], "a", None),
        (&[("x-preview", "yes"), ("x-preview", "no")][..], "a", None),
    ] {
        let answer = ask(&fixture, headers).await;
        assert_eq!(
            (answer.text().as_str(), answered_by(&answer)),
            (expected, shown),
            "{headers:?}"
        );
    }
    assert_eq!(counted(&fixture).await, [3, 0]);
    let metrics = fixture.metrics().await;
    for line in [
        "flotilla_gateway_preview_requests_total{pool=\"support\"} 1",
        "flotilla_gateway_requests_total{pool=\"support\",revision=\"b\",code=\"2xx\"} 1",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
}

#[tokio::test]
async fn with_nothing_to_test_testers_go_where_all_go_and_are_told() {
    let agents = agents().await;
    let fixture = Fixture::with(canary(&agents, None)).await;
    let answer = ask(&fixture, &[("x-preview", "yes")]).await;
    assert_eq!((answer.text().as_str(), answered_by(&answer)), ("a", Some("a")));
    assert_eq!(counted(&fixture).await, [0, 0]);
    // A candidate without a replica cannot be tried.
    let mut config = canary(&agents, Some("b"));
    let pool = config.pools.get_mut("support").unwrap();
    pool.revisions.get_mut("b").unwrap().endpoints.clear();
    fixture.tell(config).await;
    let answer = ask(&fixture, &[("x-preview", "yes")]).await;
    assert_eq!((answer.text().as_str(), answered_by(&answer)), ("a", Some("a")));
}

#[tokio::test]
async fn a_conversation_that_a_tester_begins_stays_and_others_are_not_moved() {
    let agents = agents().await;
    let mut config = canary(&agents, Some("b"));
    config.pools.get_mut("support").unwrap().sessions = Some(SessionsConfig {
        key: KeySource::Header(HeaderName::from_static("x-session-id")),
        idle: std::time::Duration::from_secs(60),
        since: std::collections::BTreeMap::new(),
        rejected: Vec::new(),
    });
    let fixture = Fixture::with(config).await;
    let tester = ("x-preview", "yes");
    let own = ("x-session-id", "tester's");
    let other = ("x-session-id", "somebody's");
    assert_eq!(ask(&fixture, &[other]).await.text(), "a");
    for headers in [&[tester, own][..], &[own][..], &[tester, own][..]] {
        assert_eq!(ask(&fixture, headers).await.text(), "b", "{headers:?}");
    }
    // Looking at the candidate with somebody's conversation does not take it along.
    assert_eq!(ask(&fixture, &[tester, other]).await.text(), "b");
    assert_eq!(ask(&fixture, &[other]).await.text(), "a");
}
