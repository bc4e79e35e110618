//! What a pool's gateways have done, out of their reports. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use flotilla_core::rollout::Gateways;
use flotilla_core::stats::PoolStats;
use k8s_openapi::api::core::v1::Pod;

use super::dereference::{address, is_ready};
use crate::scrape::View;

/// The reports of a namespace's gateways about one pool.
#[derive(Clone, Copy, Debug)]
pub struct Reports<'a> {
    /// Name of the pool.
    pub pool: &'a str,
    /// All gateways of the namespace.
    pub views: &'a [View],
    /// What keeps them from being whole, where it is known.
    pub problem: Option<&'a str>,
}

impl<'a> Reports<'a> {
    /// Gateways that take requests: only they have to confirm anything. One that is stopping is told by Kubernetes
    /// and by its own watches, and takes nothing new.
    fn serving(&self) -> impl Iterator<Item = &'a View> {
        self.views.iter().filter(|view| view.ready)
    }

    fn of(&self, view: &'a View) -> Option<&'a PoolStats> {
        view.stats.as_ref()?.pools.get(self.pool)
    }

    /// Whether every gateway has applied this `trafficGeneration` and serves the pool on this port.
    pub fn confirmation(&self, generation: i64, port: Option<i32>) -> Gateways {
        if self.serving().next().is_none() {
            let why = self
                .problem
                .map(|problem| format!(": {problem}"))
                .unwrap_or_default();
            return Gateways::Unreachable(format!("no gateway of the namespace is ready yet{why}"));
        }
        for view in self.serving() {
            if let Some(problem) = view.problem.as_ref().filter(|_| !view.fresh) {
                return Gateways::Unreachable(format!("gateway {} does not answer: {problem}", view.pod));
            }
        }
        let has_applied = |view| {
            self.of(view).is_some_and(|stats| {
                stats.traffic_generation == generation && (port.is_none() || stats.port == port)
            })
        };
        if self.serving().all(has_applied) {
            Gateways::Confirmed
        } else {
            Gateways::Pending
        }
    }

    /// How many of `pods` are available and seen by every gateway as endpoints of `revision`.
    pub fn seen(&self, revision: &str, pods: &[Arc<Pod>]) -> usize {
        let mut lists = Vec::new();
        for view in self.serving() {
            let stats = self
                .of(view)
                .filter(|_| view.fresh)
                .and_then(|stats| stats.revisions.get(revision));
            let Some(stats) = stats else { return 0 };
            lists.push(&stats.endpoints);
        }
        if lists.is_empty() {
            return 0;
        }
        let is_seen = |pod: &&Arc<Pod>| {
            let address = address(pod);
            is_ready(pod)
                && address.is_some_and(|address| {
                    lists
                        .iter()
                        .all(|endpoints| endpoints.iter().any(|endpoint| is_at(endpoint, address)))
                })
        };
        pods.iter().filter(is_seen).count()
    }

    /// Whether gateways know conversations of `revision`, or cannot tell: only what one says under the weights in force counts, for
    /// before them the revision may have got new ones.
    pub fn has_conversations(&self, revision: &str, generation: Option<i64>) -> bool {
        let has_none = |view: &View| {
            self.of(view).is_some_and(|stats| {
                let sessions = stats.revisions.get(revision).map_or(0, |stats| stats.sessions);
                Some(stats.traffic_generation) == generation && sessions == 0
            })
        };
        !self.serving().all(has_none) || self.serving().next().is_none()
    }

    /// Requests in flight by address, over all gateways and revisions.
    pub fn in_flight(&self) -> BTreeMap<String, u64> {
        let mut sum = BTreeMap::new();
        for stats in self.views.iter().filter_map(|view| self.of(view)) {
            for (address, count) in stats
                .revisions
                .values()
                .flat_map(|revision| &revision.in_flight_by_address)
            {
                *sum.entry(host(address).to_owned()).or_default() += count;
            }
        }
        sum
    }

    /// Whether a question is still open whose answer would tell what is in flight.
    pub fn is_answer_coming(&self) -> bool {
        self.serving().any(|view| !view.fresh && view.problem.is_none())
    }
}

/// Whether an endpoint (`10.0.0.1` or `10.0.0.1:8080`) is at an address.
fn is_at(endpoint: &str, address: &str) -> bool {
    endpoint == address || host(endpoint) == address
}

fn host(endpoint: &str) -> &str {
    match endpoint.parse::<std::net::SocketAddr>() {
        Ok(_) => endpoint
            .rsplit_once(':')
            .map_or(endpoint, |(host, _)| host.trim_matches(['[', ']'])),
        Err(_) => endpoint,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_core::stats::{RevisionStats, Stats};
    use serde_json::json;

    fn view(pod: &str, generation: i64, endpoints: &[&str]) -> View {
        let revision = RevisionStats {
            endpoints: endpoints.iter().map(|endpoint| (*endpoint).to_owned()).collect(),
            in_flight_by_address: [("10.0.0.1:8080".to_owned(), 2)].into(),
            ..RevisionStats::default()
        };
        let pool = PoolStats {
            traffic_generation: generation,
            port: Some(20_001),
            revisions: [("r".to_owned(), revision)].into(),
            ..PoolStats::default()
        };
        let stats = Stats {
            pools: [("p".to_owned(), pool)].into(),
            ..Stats::default()
        };
        View {
            pod: pod.into(),
            ready: true,
            stats: Some(Arc::new(stats)),
            fresh: true,
            problem: None,
        }
    }

    fn reports(views: &[View]) -> Reports<'_> {
        Reports {
            pool: "p",
            views,
            problem: Some("ImagePull: no such image"),
        }
    }

    fn pod(address: &str) -> Arc<Pod> {
        let status = json!({"podIP": address, "conditions": [{"type": "Ready", "status": "True"}]});
        Arc::new(serde_json::from_value(json!({"metadata": {}, "status": status})).unwrap())
    }

    #[test]
    fn every_ready_gateway_has_to_confirm() {
        let confirmation = |views: &[View]| reports(views).confirmation(7, Some(20_001));
        let silent = View {
            stats: None,
            fresh: false,
            problem: Some("refused".into()),
            ..view("c", 0, &[])
        };
        let unasked = View {
            stats: None,
            fresh: false,
            ..view("d", 0, &[])
        };
        let stopping = View {
            ready: false,
            ..silent.clone()
        };
        assert_eq!(
            confirmation(&[view("a", 7, &[]), view("b", 7, &[])]),
            Gateways::Confirmed
        );
        assert_eq!(
            confirmation(&[view("a", 7, &[]), view("b", 6, &[])]),
            Gateways::Pending
        );
        assert_eq!(confirmation(&[view("a", 7, &[]), unasked]), Gateways::Pending);
        assert_eq!(confirmation(&[view("a", 7, &[]), stopping]), Gateways::Confirmed);
        assert!(
            matches!(confirmation(&[view("a", 7, &[]), silent]), Gateways::Unreachable(text) if text.contains("refused"))
        );
        assert!(
            matches!(confirmation(&[]), Gateways::Unreachable(text) if text.ends_with("ready yet: ImagePull: no such image"))
        );
        assert_eq!(
            reports(&[view("a", 7, &[])]).confirmation(7, Some(20_002)),
            Gateways::Pending
        );
    }

    #[test]
    fn seen_is_what_all_of_them_see() {
        let pods = [pod("10.0.0.1"), pod("10.0.0.2")];
        let both = view("a", 1, &["10.0.0.1", "10.0.0.2:8080"]);
        let one = view("b", 1, &["10.0.0.2"]);
        assert_eq!(reports(std::slice::from_ref(&both)).seen("r", &pods), 2);
        assert_eq!(reports(&[both.clone(), one]).seen("r", &pods), 1);
        assert_eq!(
            reports(&[
                both.clone(),
                View {
                    fresh: false,
                    ..both.clone()
                }
            ])
            .seen("r", &pods),
            0
        );
        assert_eq!(reports(&[both]).seen("unknown", &pods), 0);
        assert_eq!(reports(&[]).seen("r", &pods), 0);
    }

    #[test]
    fn conversations_have_ended_when_all_gateways_say_so_under_the_weights_in_force() {
        let none = view("a", 7, &[]);
        let mut some = view("b", 7, &[]);
        let mut stats = some.stats.as_deref().cloned().unwrap_or_default();
        let revisions = stats.pools.get_mut("p").map(|pool| &mut pool.revisions);
        if let Some(revision) = revisions.and_then(|revisions| revisions.get_mut("r")) {
            revision.sessions = 3;
        }
        some.stats = Some(Arc::new(stats));
        let silent = View {
            stats: None,
            ..view("c", 7, &[])
        };
        let has = |views: &[View]| reports(views).has_conversations("r", Some(7));
        assert!(!has(std::slice::from_ref(&none)));
        assert!(has(&[none.clone(), some]));
        assert!(has(&[none.clone(), silent]));
        assert!(
            has(&[none, view("d", 6, &[])]),
            "it may have led new ones there since"
        );
        assert!(has(&[]));
    }

    #[test]
    fn in_flight_adds_up_by_address() {
        let sum = reports(&[view("a", 1, &[]), view("b", 1, &[])]).in_flight();
        assert_eq!(sum, [("10.0.0.1".to_owned(), 4)].into());
        assert_eq!(
            (host("[fd00::1]:80"), host("fd00::1"), host("10.0.0.1")),
            ("fd00::1", "fd00::1", "10.0.0.1")
        );
    }
}
