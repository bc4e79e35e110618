//! What a pool says about its conversations, as plain values.

use std::collections::BTreeMap;
use std::time::Duration;

use flotilla_core::session::{Route, Share};
use flotilla_crds::AgentPool;
use flotilla_crds::agent_pool::SessionKeyType;
use http::HeaderName;

use crate::config::PoolConfig;

/// How a pool's conversations are known and kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionsConfig {
    /// Where a request names its conversation.
    pub key: KeySource,
    /// A conversation is forgotten this long after its last request, at the earliest.
    pub idle: Duration,
    /// `status.traffic[].sinceGeneration` by revision, where the operator has set it.
    pub since: BTreeMap<String, i64>,
    /// `status.rejected[].revision`: why their conversations have to move.
    pub rejected: Vec<String>,
}

/// Where a request names its conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// In this header.
    Header(HeaderName),
    /// In the cookie of this name, which the gateway sets where it is missing.
    Cookie(String),
    /// In an A2A message: the `contextId`, or the id of one of its tasks.
    A2AContext,
}

/// What `pool` says; none when it keeps no conversations.
pub fn of_pool(pool: &AgentPool) -> Option<SessionsConfig> {
    let sessions = &pool.spec.sessions;
    let key = match sessions.key.type_ {
        SessionKeyType::None => return None,
        // The API server has checked the name.
        SessionKeyType::Header => KeySource::Header(sessions.key.header_name().parse().ok()?),
        SessionKeyType::Cookie => KeySource::Cookie(sessions.key.cookie_name().to_owned()),
        SessionKeyType::A2AContext => KeySource::A2AContext,
    };
    let status = pool.status.as_ref();
    let traffic = status.map(|status| status.traffic.as_slice()).unwrap_or_default();
    let rejected = status
        .map(|status| status.rejected.as_slice())
        .unwrap_or_default();
    Some(SessionsConfig {
        key,
        idle: Duration::from_secs(u64::try_from(sessions.idle_seconds).unwrap_or(1)),
        since: traffic
            .iter()
            .filter_map(|share| Some((share.revision.clone(), share.since_generation?)))
            .collect(),
        rejected: rejected
            .iter()
            .map(|rejected| rejected.revision.clone())
            .collect(),
    })
}

/// Where new conversations of `pool` go and which may stay: on every revision that `status.traffic` lists, also at weight 0.
///
/// None while there are no weights: they are not known yet or were lost with the status, and what is known stays in force.
pub(super) fn route(pool: &PoolConfig, sessions: &SessionsConfig) -> Option<Route> {
    if pool.weights.is_empty() {
        return None;
    }
    let listed = pool.weights.iter().map(|(revision, weight)| Share {
        revision: revision.as_str().into(),
        weight: *weight,
        keeps: true,
        since: sessions.since.get(revision).copied().unwrap_or(0),
    });
    let is_listed = |name: &String| pool.weights.iter().any(|(revision, _)| revision == name);
    let rejected = sessions.rejected.iter().filter(|name| !is_listed(name));
    let withdrawn = rejected.map(|revision| Share {
        revision: revision.as_str().into(),
        weight: 0,
        keeps: false,
        since: 0,
    });
    Some(Route {
        generation: pool.generation,
        shares: listed.chain(withdrawn).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pool(key: &Value) -> AgentPool {
        serde_json::from_value(json!({
            "apiVersion": "flotilla.dev/v1alpha1", "kind": "AgentPool", "metadata": {"name": "support"},
            "spec": {"agent": {"image": "i"}, "sessions": {"key": key, "idleSeconds": 60}},
            "status": {"traffic": [{"revision": "support-a", "weight": 90, "sinceGeneration": 1},
                    {"revision": "support-b", "weight": 10, "sinceGeneration": 4}],
                "rejected": [{"revision": "support-c", "reason": "CrashLoop"}]},
        }))
        .expect("a pool")
    }

    #[test]
    fn every_kind_of_key_has_its_default_name() {
        let key = |value: Value| of_pool(&pool(&value)).map(|config| config.key);
        let header = |name: &'static str| Some(KeySource::Header(HeaderName::from_static(name)));
        for (value, expected) in [
            (json!({}), None),
            (json!({"type": "None"}), None),
            (json!({"type": "Header"}), header("x-session-id")),
            (json!({"type": "Header", "header": "X-Chat"}), header("x-chat")),
            (
                json!({"type": "Cookie"}),
                Some(KeySource::Cookie("flotilla-session".into())),
            ),
            (
                json!({"type": "Cookie", "cookie": "sid"}),
                Some(KeySource::Cookie("sid".into())),
            ),
            (json!({"type": "A2AContext"}), Some(KeySource::A2AContext)),
        ] {
            assert_eq!(key(value.clone()), expected, "{value}");
        }
    }

    #[test]
    fn the_route_is_what_status_lists_and_rejected_revisions_keep_nobody() {
        let config = of_pool(&pool(&json!({"type": "A2AContext"}))).expect("sessions");
        assert_eq!(config.idle, Duration::from_secs(60));
        let mut of_weights = PoolConfig {
            generation: 5,
            weights: vec![("support-a".into(), 90), ("support-b".into(), 10)],
            ..PoolConfig::default()
        };
        let found = route(&of_weights, &config).expect("weights are known");
        let shares: Vec<_> = found
            .shares
            .iter()
            .map(|share| (&*share.revision, share.weight, share.keeps, share.since))
            .collect();
        let expected = [
            ("support-a", 90, true, 1),
            ("support-b", 10, true, 4),
            ("support-c", 0, false, 0),
        ];
        assert_eq!((found.generation, shares.as_slice()), (5, &expected[..]));
        assert_eq!(found.since(), 4);
        of_weights.weights.clear();
        assert_eq!(route(&of_weights, &config), None);
    }
}
