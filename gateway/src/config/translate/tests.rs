//! Objects as users write them, and what becomes of them.

use super::*;
use crate::config::ProviderType;
use serde_json::json;

fn slice(service: &str, revision: Option<&str>, endpoints: serde_json::Value) -> EndpointSlice {
    let mut labels = json!({"kubernetes.io/service-name": service});
    if let Some(revision) = revision {
        labels["flotilla.dev/pool"] = json!("support");
        labels["flotilla.dev/revision"] = json!(revision);
    }
    serde_json::from_value(json!({
        "metadata": {"name": format!("{service}-x"), "labels": labels},
        "addressType": "IPv4",
        "ports": [{"port": 8080}],
        "endpoints": endpoints,
    }))
    .expect("a slice")
}

fn endpoint(address: &str, ready: bool, terminating: bool) -> serde_json::Value {
    json!({
        "addresses": [address],
        "conditions": {"ready": ready, "serving": true, "terminating": terminating},
        "targetRef": {"kind": "Pod", "uid": format!("uid-{address}"), "name": format!("pod-{address}")},
    })
}

fn objects() -> Objects {
    let pool: AgentPool = serde_json::from_value(json!({
        "apiVersion": "flotilla.dev/v1alpha1", "kind": "AgentPool",
        "metadata": {"name": "support", "uid": "u1"},
        "spec": {"agent": {"image": "i", "concurrency": 3}, "traffic": {"serviceName": "help"}},
        "status": {"gatewayPort": 20001, "trafficGeneration": 4,
            "traffic": [{"revision": "support-a", "weight": 90}, {"revision": "support-b", "weight": 10}]},
    }))
    .expect("a pool");
    let mut objects = Objects::default();
    objects.pools.insert("support".into(), pool);
    objects.slices.insert(
        "a".into(),
        slice(
            "support-a",
            Some("support-a"),
            json!([
                endpoint("10.0.0.1", true, false),
                endpoint("10.0.0.2", false, false),
                endpoint("10.0.0.3", true, true),
            ]),
        ),
    );
    objects.slices.insert(
        "front".into(),
        slice("help", None, json!([endpoint("10.0.9.9", true, false)])),
    );
    objects.gateways.insert(
        "g".into(),
        slice(
            "flotilla-gateway",
            None,
            json!([
                endpoint("10.0.1.1", true, false),
                endpoint("10.0.1.2", true, false),
                endpoint("10.0.1.3", true, true),
            ]),
        ),
    );
    objects
}

#[test]
fn a_pool_has_its_weights_its_endpoints_and_its_share_of_slots() {
    let config = config(&objects(), "uid-10.0.1.1");
    let pool = &config.pools["support"];
    assert_eq!(
        (pool.service.as_str(), pool.port, pool.generation),
        ("help", Some(20001), 4)
    );
    assert_eq!(
        pool.weights,
        [("support-a".to_owned(), 90), ("support-b".to_owned(), 10)]
    );
    let revision = &pool.revisions["support-a"];
    let ready: Vec<String> = revision
        .endpoints
        .iter()
        .filter(|(_, e)| e.ready)
        .map(|(address, _)| address.to_string())
        .collect();
    assert_eq!(
        ready,
        ["10.0.0.1:8080"],
        "not the unready one and not the leaving one"
    );
    assert!(pool.revisions["support-b"].endpoints.is_empty());
    assert!(!config.terminating);
}

#[test]
fn testers_go_where_status_says() {
    let mut objects = objects();
    assert_eq!(config(&objects, "").pools["support"].preview, None);
    let pool = objects.pools.get_mut("support").expect("the pool");
    pool.spec.rollout.preview = Some(flotilla_crds::agent_pool::Preview {
        header: "X-Preview".into(),
        value: "yes".into(),
    });
    let revision = |objects: &Objects| {
        let preview = config(objects, "").pools["support"]
            .preview
            .clone()
            .expect("testers");
        assert_eq!(
            (preview.header.as_str(), preview.value.as_bytes()),
            ("x-preview", &b"yes"[..])
        );
        preview.revision
    };
    assert_eq!(revision(&objects), None);
    let pool = objects.pools.get_mut("support").expect("the pool");
    let status = pool.status.as_mut().expect("a status");
    status.traffic[1].preview = true;
    assert_eq!(revision(&objects).as_deref(), Some("support-b"));
}

#[test]
fn a_pool_whose_work_comes_another_way_has_agents_and_no_port() {
    let mut objects = objects();
    let pool = objects.pools.get_mut("support").expect("the pool");
    pool.spec.traffic.type_ = flotilla_crds::agent_pool::TrafficType::ReplicaRatio;
    let config = config(&objects, "");
    assert!(config.pools.is_empty() && config.agents.len() == 3);
}

#[test]
fn agents_are_the_pods_of_revisions_ready_or_not_and_never_a_gateway() {
    let config = config(&objects(), "");
    let pods: Vec<&str> = config.gateway_pods.keys().map(String::as_str).collect();
    assert_eq!(pods, ["pod-10.0.1.1", "pod-10.0.1.2", "pod-10.0.1.3"]);
    let agent: IpAddr = "10.0.0.2".parse().expect("an address");
    assert_eq!(
        config.agent_pools.get(&agent).map(|pool| &**pool),
        Some("support")
    );
    assert_eq!(config.agent_pools.len(), config.agents.len());
    let agents = config.agents;
    let mut agents: Vec<String> = agents.iter().map(ToString::to_string).collect();
    agents.sort();
    assert_eq!(agents, ["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
}

#[test]
fn a_revision_that_asks_for_tokens_is_known_by_its_label() {
    let mut objects = objects();
    let pods = config(&objects, "").pods;
    assert!(pods.proven.is_empty());
    assert_eq!(pods.addresses["uid-10.0.0.1"].to_string(), "10.0.0.1");
    let labels = objects
        .slices
        .get_mut("a")
        .and_then(|slice| slice.metadata.labels.as_mut())
        .expect("labels");
    labels.insert(names::EGRESS_IDENTITY.into(), "Token".into());
    let config = config(&objects, "");
    assert_eq!(config.pods.proven, config.agents, "all of them are of slice a");
    assert!(config.pods.addresses.len() == config.agents.len());
}

#[test]
fn a_revisions_own_concurrency_wins_over_the_present_spec() {
    let mut objects = objects();
    let labels = objects
        .slices
        .get_mut("a")
        .and_then(|slice| slice.metadata.labels.as_mut())
        .expect("labels");
    labels.insert(CONCURRENCY.into(), "9".into());
    let config = config(&objects, "uid-10.0.1.1");
    let revision = &config.pools["support"].revisions["support-a"];
    let slots = revision.endpoints.values().map(|endpoint| endpoint.slots);
    assert!(slots.clone().count() > 0 && slots.clone().all(|slots| matches!(slots, Some(4 | 5))));
}

#[test]
fn gateways_divide_a_replicas_slots_exactly() {
    let mut objects = objects();
    let ready: Vec<_> = (1..=3)
        .map(|n| endpoint(&format!("10.0.1.{n}"), true, false))
        .collect();
    objects
        .gateways
        .insert("g".into(), slice("flotilla-gateway", None, ready.into()));
    let gateways = ["uid-10.0.1.1", "uid-10.0.1.2", "uid-10.0.1.3"].map(|uid| Gateways::new(&objects, uid));
    let mut favoured = [0; 3];
    for concurrency in 1..=20 {
        for replica in 0..50 {
            let slots = [0, 1, 2].map(|g| gateways[g].slots(concurrency, &format!("pod-{replica}")));
            assert!(
                slots
                    .iter()
                    .max()
                    .zip(slots.iter().min())
                    .is_some_and(|(max, min)| max - min <= 1)
            );
            let total: u32 = slots.iter().sum();
            assert_eq!(
                total,
                (concurrency as u32).max(3),
                "one each where there are fewer than gateways"
            );
            if concurrency == 4 {
                (0..3).filter(|g| slots[*g] == 2).for_each(|g| favoured[g] += 1);
            }
        }
    }
    assert!(
        favoured.iter().all(|count| (8..=26).contains(count)),
        "{favoured:?}"
    );
    // One that is not ready takes none of those left over.
    let starting = Gateways::new(&objects, "uid-10.0.1.9");
    assert_eq!(starting.slots(5, "pod-1"), 1);
}

#[test]
fn the_other_gateways_are_all_that_are_listed() {
    let others = config(&objects(), "uid-10.0.1.1").gateways;
    let others: Vec<String> = others.iter().map(ToString::to_string).collect();
    assert_eq!(others, ["10.0.1.2:9090", "10.0.1.3:9090"]);
}

#[test]
fn a_provider_has_its_prices_and_what_is_spent_of_its_budget() {
    let mut objects = objects();
    let provider = |currency: &str| {
        serde_json::from_value(json!({
            "metadata": {"name": "main", "generation": 3},
            "spec": {
                "type": "Anthropic", "endpoint": "https://m/v1", "budget": {"limit": "500.00"},
                "models": [
                    {"name": "m", "price": {"inputPerMillion": "1", "outputPerMillion": "2"}, "budget": {"limit": "7"}},
                    {"name": "n"},
                ],
            },
            "status": {
                "budget": {
                    "spent": "12.5", "percent": 2, "limit": "500", "currency": currency, "base": "3",
                    "startTime": "2026-11-01T00:00:00Z", "endTime": "2026-12-01T00:00:00Z",
                },
                "modelBudgets": [{"name": "m", "budget": {
                    "spent": "2.5", "percent": 35, "limit": "7", "currency": "USD", "base": "0",
                    "startTime": "2026-11-01T00:00:00Z", "endTime": "2026-12-01T00:00:00Z",
                }}],
                "usage": {"counted": [
                    {"instance": "i", "pod": "g-1", "spend": [{"currency": "USD", "amount": "4.25"}], "models": [
                        {"name": "m", "spend": [{"currency": "USD", "amount": "1.5"}]},
                    ]},
                    {"instance": "j", "pod": "g-2"},
                ]},
            },
        }))
        .expect("a provider")
    };
    objects.providers.insert("main".into(), provider("USD"));
    let found = config(&objects, "");
    let main = &found.providers["main"];
    assert_eq!((main.type_, main.prices.len()), (ProviderType::Anthropic, 1));
    assert_eq!(main.budget.expect("a budget").limit.to_string(), "500");
    let spend = &found.spends["main"];
    assert_eq!(
        (
            spend.spent.to_string(),
            spend.of("i").counted.to_string(),
            spend.of("j").counted.to_string()
        ),
        ("12.5".into(), "4.25".into(), "0".into())
    );
    assert_eq!(main.model_budgets["m"].limit.to_string(), "7");
    let spend = &found.model_spends["main"]["m"];
    assert_eq!(
        (spend.spent.to_string(), spend.of("i").counted.to_string()),
        ("2.5".into(), "1.5".into())
    );
    assert_eq!(found.ready_gateways, 2);
    objects.providers.insert("main".into(), provider("EUR"));
    assert_eq!(config(&objects, "").spends.get("main"), None);
}

#[test]
fn the_slices_port_names_the_protocol() {
    let mut objects = objects();
    let protocol =
        |objects: &Objects| config(objects, "").pools["support"].revisions["support-a"].app_protocol;
    assert_eq!(protocol(&objects), AppProtocol::HTTP1);
    let slice = objects.slices.get_mut("a").expect("the slice");
    for port in slice.ports.iter_mut().flatten() {
        port.app_protocol = Some("kubernetes.io/h2c".into());
    }
    assert_eq!(protocol(&objects), AppProtocol::H2C);
}

#[test]
fn its_own_terminating_endpoint_is_noticed() {
    assert!(config(&objects(), "uid-10.0.1.3").terminating);
}
