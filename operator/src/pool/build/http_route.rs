//! The HTTPRoute of a pool: the weights in force, to the Services of the revisions.
//!
//! Its lists are atomic for server-side apply, so the operator owns the whole object and a change by hand is put right at the next
//! visit, which the watch brings at once. Testers have a rule of their own: of two rules for the same path the one that looks at
//! more headers wins.

use flotilla_crds::AgentPool;
use flotilla_crds::agent_pool::TrafficShare;
use kube::ResourceExt as _;
use serde_json::{Value, json};

use super::child_meta;
use crate::gateway_api::HTTPRoute;

/// Port of the revisions' Services.
const PORT: i32 = 80;

/// The route that sends `traffic`; none when the pool wants none or nothing serves yet.
pub fn build(pool: &AgentPool, traffic: &[TrafficShare]) -> Option<HTTPRoute> {
    let wanted = pool.spec.traffic.http_route.as_ref();
    let wanted = wanted.filter(|_| pool.spec.traffic.is_routed() && !traffic.is_empty())?;
    let path = json!({"type": "PathPrefix", "value": wanted.path_prefix});
    let mut rules = Vec::new();
    let testers = pool.spec.rollout.preview.as_ref();
    if let Some((testers, share)) = testers.zip(traffic.iter().find(|share| share.preview)) {
        let header = json!({"type": "Exact", "name": testers.header, "value": testers.value});
        rules.push(json!({
            "matches": [{"path": path, "headers": [header]}],
            "backendRefs": [backend(&share.revision, 1)],
        }));
    }
    let all = traffic.iter().map(|share| backend(&share.revision, share.weight));
    rules.push(json!({"matches": [{"path": path}], "backendRefs": all.collect::<Vec<_>>()}));
    let mut spec = json!({"parentRefs": wanted.parent_refs, "rules": rules});
    if !wanted.hostnames.is_empty() {
        spec["hostnames"] = json!(wanted.hostnames);
    }
    Some(HTTPRoute::new(child_meta(pool, pool.name_any(), None), spec))
}

fn backend(revision: &str, weight: i32) -> Value {
    json!({"name": revision, "port": PORT, "weight": weight})
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::pool;
    use super::*;

    fn share(revision: &str, weight: i32, preview: bool) -> TrafficShare {
        TrafficShare {
            revision: revision.into(),
            weight,
            preview,
            ..TrafficShare::default()
        }
    }

    fn routed(spec: Value) -> AgentPool {
        let mut all = json!({"traffic": {"type": "HTTPRoute", "httpRoute": {
            "parentRefs": [{"name": "public", "namespace": "infra"}], "hostnames": ["support.example.com"],
        }}});
        for (key, value) in spec.as_object().unwrap() {
            all[key] = value.clone();
        }
        pool(all)
    }

    #[test]
    fn weights_go_to_the_revisions_services() {
        let traffic = [share("support-1", 90, false), share("support-2", 10, false)];
        let route = build(&routed(json!({})), &traffic).unwrap();
        assert_eq!(route.metadata.name.as_deref(), Some("support"));
        assert_eq!(
            route.spec,
            json!({
                "parentRefs": [{"name": "public", "namespace": "infra"}],
                "hostnames": ["support.example.com"],
                "rules": [{
                    "matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
                    "backendRefs": [
                        {"name": "support-1", "port": 80, "weight": 90},
                        {"name": "support-2", "port": 80, "weight": 10},
                    ],
                }],
            })
        );
        assert_eq!(build(&routed(json!({})), &[]), None);
        assert_eq!(build(&pool(json!({})), &traffic), None);
    }

    #[test]
    fn testers_have_a_rule_of_their_own_while_there_is_something_to_test() {
        let pool = routed(
            json!({"rollout": {"type": "Canary", "preview": {"header": "X-Preview", "value": "yes"}}}),
        );
        let rules = |preview| {
            let traffic = [share("support-1", 100, false), share("support-2", 0, preview)];
            build(&pool, &traffic).unwrap().spec["rules"].clone()
        };
        let both = rules(true);
        assert_eq!(both.as_array().map(Vec::len), Some(2));
        assert_eq!(
            both[0]["matches"][0]["headers"],
            json!([{"type": "Exact", "name": "X-Preview", "value": "yes"}])
        );
        assert_eq!(both[0]["backendRefs"][0]["name"], "support-2");
        assert_eq!(rules(false).as_array().map(Vec::len), Some(1));
    }
}
