use super::*;

/// The plan of the API's own example.
pub(crate) fn example() -> LoadPlan {
    serde_json::from_value(serde_json::json!({
        "name": "support-x7k2p",
        "seed": 1,
        "workers": {"count": 4, "minCoveragePercent": 99, "startDeadlineSeconds": 180},
        "target": {"url": "http://support.shop.svc", "protocol": "A2A"},
        "requests": {"timeoutMilliseconds": 30000, "maxAttempts": 1, "stream": true},
        "scenarios": [
            {"name": "damaged-product", "weight": 4, "prompt": "My {{product}} arrived broken."},
            {"name": "billing-inquiry", "weight": 3, "prompt": "Why was I charged twice for order {{order}}?"},
        ],
        "warmup": {"requests": 20},
        "stages": [
            {"name": "smoke", "type": "Batch", "batch": {"size": 5, "delaySeconds": 5, "requests": 10}},
            {"name": "steady", "type": "ConstantRate",
             "constantRate": {"perSecond": "25", "seconds": 120, "arrival": "Poisson", "maxInFlight": 200}},
        ],
    }))
    .unwrap()
}

#[test]
fn the_example_is_valid_and_counts_its_requests() {
    let plan = example();
    plan.validate().unwrap();
    assert_eq!((plan.requests(), plan.seconds()), (3010, 130));
    assert_eq!(plan.path().unwrap(), "/");
}

#[test]
fn json_round_trips() {
    let plan = example();
    let json = serde_json::to_string(&plan).unwrap();
    assert_eq!(serde_json::from_str::<LoadPlan>(&json).unwrap(), plan);
    assert!(serde_json::from_str::<LoadPlan>(&json.replacen("\"seed\"", "\"sead\"", 1)).is_err());
}

#[test]
fn the_hash_covers_the_workload_and_nothing_else() {
    type Change = fn(&mut LoadPlan);
    let hash = example().workload_hash();
    assert_eq!(hash.len(), "sha256:".len() + 32);
    let changed = |change: Change| {
        let mut plan = example();
        change(&mut plan);
        plan.workload_hash() != hash
    };
    let determining: [Change; 4] = [
        |plan| plan.seed = 2,
        |plan| plan.scenarios[0].weight = 5,
        |plan| plan.requests.stream = false,
        |plan| plan.stages[0].name = "other".to_owned(),
    ];
    let indifferent: [Change; 4] = [
        |plan| plan.workers.count = 7,
        |plan| plan.name = "other".to_owned(),
        |plan| plan.target.url = "http://elsewhere:81".to_owned(),
        |plan| plan.requests.timeout_milliseconds = 1,
    ];
    assert!(determining.into_iter().all(changed));
    assert!(!indifferent.into_iter().any(changed));
}

#[test]
fn every_error_says_what_to_write() {
    type Break = fn(&mut LoadPlan);
    let cases: [(Break, &str); 15] = [
        (
            |plan| plan.workers.count = 0,
            "workers.count is 0; write a number from 1 to 1000",
        ),
        (
            |plan| plan.target.url = "support".to_owned(),
            "write http://host[:port][/path]",
        ),
        (
            |plan| plan.target.url = "https://support".to_owned(),
            "give the http address inside the cluster",
        ),
        (
            |plan| plan.requests.max_attempts = 11,
            "requests.maxAttempts is 11",
        ),
        (|plan| plan.requests.model.clear(), "name the model"),
        (
            |plan| plan.requests.path = Some("chat".to_owned()),
            "starts with \"/\"",
        ),
        (
            |plan| plan.requests.content_type = "a\nb".to_owned(),
            "such as \"application/json\"",
        ),
        (|plan| plan.scenarios.clear(), "scenarios: their number is 0"),
        (
            |plan| plan.scenarios[0].prompt = "{{ordr}}".to_owned(),
            "known are: order",
        ),
        (
            |plan| plan.scenarios[1].name = "damaged-product".to_owned(),
            "occurs twice",
        ),
        (
            |plan| plan.scenarios[0].weight = 0,
            "scenarios[damaged-product].weight is 0",
        ),
        (|plan| plan.stages.clear(), "stages: their number is 0"),
        (
            |plan| rate(plan).per_second = "fast".to_owned(),
            "such as \"25\" or \"0.5\"",
        ),
        (
            |plan| rate(plan).per_second = "0".to_owned(),
            "from \"0.001\" to \"100000\"",
        ),
        (
            |plan| rate(plan).max_in_flight = 3,
            "write at least 4, or fewer workers",
        ),
    ];
    for (break_it, sentence) in cases {
        let mut plan = example();
        break_it(&mut plan);
        let error = plan.validate().expect_err(sentence).to_string();
        assert!(error.contains(sentence), "{error}");
    }
    let mut plan = example();
    rate(&mut plan).per_second = "100000".to_owned();
    rate(&mut plan).seconds = 600_000;
    assert!(plan.validate().unwrap_err().to_string().contains("too many"));
}

fn rate(plan: &mut LoadPlan) -> &mut ConstantRate {
    match &mut plan.stages[1].arrivals {
        Arrivals::ConstantRate { constant_rate } => constant_rate,
        Arrivals::Batch { .. } => unreachable!("the example's second stage has a constant rate"),
    }
}

#[test]
fn urls_are_split() {
    for (url, host, port, path) in [
        ("http://support", "support", 80, ""),
        (
            "http://support.shop.svc:8080/chat?x=1",
            "support.shop.svc",
            8080,
            "/chat?x=1",
        ),
        ("http://[::1]:9/", "::1", 9, "/"),
        ("http://10.0.0.1?a", "10.0.0.1", 80, "/?a"),
    ] {
        let parsed = TargetUrl::parse(url).unwrap();
        assert_eq!(
            (parsed.host.as_str(), parsed.port, parsed.path.as_str()),
            (host, port, path)
        );
    }
    for url in [
        "",
        "http://",
        "http://:80",
        "http://a:b",
        "http://a:0",
        "http://u@a",
        "http://a b",
        "http://[::1",
        "http://a/x>y",
        "http://a/?q=\"x\"",
        "http://a/`",
    ] {
        assert!(TargetUrl::parse(url).is_err(), "{url:?}");
    }
}

#[test]
fn paths_default_by_protocol() {
    let mut plan = example();
    plan.target.protocol = Protocol::OpenAIChat;
    assert_eq!(plan.path().unwrap(), "/v1/chat/completions");
    plan.target.url.push_str("/v2/chat");
    assert_eq!(plan.path().unwrap(), "/v2/chat");
    plan.target.protocol = Protocol::HTTP;
    plan.target.url = "http://support/".to_owned();
    assert_eq!(plan.path().unwrap(), "/chat");
    plan.requests.path = Some("/healthz".to_owned());
    assert_eq!(plan.path().unwrap(), "/healthz");
}
