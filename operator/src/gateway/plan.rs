//! When a namespace's gateway is changed.
//!
//! A change of the pod template replaces every gateway pod of the namespace, with a drain of minutes. So a change is not
//! simply made when it is wanted:
//!
//! - *The first Deployment* is made at once; but when a pool names a ModelProvider that is not there yet, up to
//!   [`FIRST_WAIT`] later, because `kubectl apply -f` sends one object after the other and the pods would be replaced a
//!   second later.
//! - *What a user caused* (a provider with a key, a pool that comes or goes as an owner) is made once the wish has rested for
//!   [`REST`], so that ten providers applied together are one rollout, and after [`MAX_REST`] in any case.
//! - *What the operator caused* (a new version, a new image) waits for a turn, see [`turns`](super::turns).
//! - *Anything else* that differs (somebody edited the Deployment, the wanted number of replicas) is put right at once.
//!
//! Which of these a difference is shows in two annotations on the Deployment: a hash of the credentials that the template
//! mounts, and one of the whole template.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use flotilla_core::seeded::{self, Bug};
use flotilla_crds::agent_pool::Model;
use flotilla_crds::{AgentPool, ModelProvider};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Resource, ResourceExt as _};

use super::Desired;
use super::build::deployment::{CREDENTIALS_HASH, TEMPLATE_HASH};
use crate::runtime::uid_of;

/// How long a wish must rest before the pods are replaced for it.
const REST: SignedDuration = SignedDuration::from_secs(3);
/// The longest that ever new wishes put it off.
const MAX_REST: SignedDuration = SignedDuration::from_secs(30);
/// How long the first Deployment waits for a provider that a pool names, counted from the oldest pool's creation. The
/// API server's timestamps are whole seconds, so this is between one and two.
const FIRST_WAIT: SignedDuration = SignedDuration::from_secs(2);
/// The most pools that are written as owners.
///
/// A thousand owner references are 150 kB in each of five objects. With fewer than all of them the garbage collector
/// removes a gateway that others still need only if this many pools go while no operator runs; the next operator makes
/// it anew.
const MAX_OWNERS: usize = 64;

/// What is seen.
pub struct Observed<'a> {
    /// The namespace's Deployment of the gateway's name.
    pub deployment: Option<&'a Deployment>,
    /// UIDs of the pools that are not being deleted.
    pub live_pools: &'a BTreeSet<String>,
    /// Whether a pool names a provider that is not there.
    pub awaited: bool,
    /// Creation of the oldest pool.
    pub oldest_pool: Option<Timestamp>,
}

/// A wish that rests. Kept in memory: a restarted operator lets it rest anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// What is wished.
    wish: String,
    /// Since when it is just this.
    since: Timestamp,
    /// Since when there has been any wish.
    first: Timestamp,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Make everything as desired.
    ApplyAll,
    /// Make everything as desired but the Deployment.
    WaitForTurn,
    /// Leave everything as it is, and decide again after this pause.
    Rest(Duration),
}

/// Decides, and says what to remember until the next time. `turn` is asked only when a turn is needed.
pub fn decide(
    observed: &Observed<'_>,
    desired: &Desired,
    pending: Option<Pending>,
    turn: &mut dyn FnMut() -> bool,
    now: Timestamp,
) -> (Decision, Option<Pending>) {
    let Some(deployment) = observed.deployment else {
        let waited = observed
            .oldest_pool
            .map_or(FIRST_WAIT, |created| now.duration_since(created));
        return match left(FIRST_WAIT, waited) {
            Some(pause) if observed.awaited => (Decision::Rest(pause), None),
            _ => (Decision::ApplyAll, None),
        };
    };
    let owners = |object: &Deployment| -> BTreeSet<String> {
        object
            .owner_references()
            .iter()
            .map(|owner| owner.uid.clone())
            .collect()
    };
    let (owned, wanted) = (owners(deployment), owners(&desired.deployment));
    // The collector is about to take it: its last recorded owner goes.
    let orphaned = owned.is_disjoint(observed.live_pools);
    let mark = |object: &Deployment, name: &str| object.annotations().get(name).cloned();
    let differs = |name: &str| mark(deployment, name) != mark(&desired.deployment, name);

    if differs(CREDENTIALS_HASH) || wanted != owned {
        let wish = format!("{:?} {wanted:?}", mark(&desired.deployment, CREDENTIALS_HASH));
        let pending = match pending {
            Some(pending) if pending.wish == wish => pending,
            Some(pending) => Pending {
                wish,
                since: now,
                first: pending.first,
            },
            None => Pending {
                wish,
                since: now,
                first: now,
            },
        };
        let rest = left(REST, now.duration_since(pending.since));
        let at_most = left(MAX_REST, now.duration_since(pending.first));
        return match rest.zip(at_most).map(|(rest, at_most)| rest.min(at_most)) {
            Some(pause) if !orphaned => (Decision::Rest(pause), Some(pending)),
            _ => (Decision::ApplyAll, None),
        };
    }
    if differs(TEMPLATE_HASH) && !turn() {
        return (Decision::WaitForTurn, None);
    }
    (Decision::ApplyAll, None)
}

/// What is left of `limit` after `passed`; `None` when nothing is. Clocks that disagree wait at most the limit.
fn left(limit: SignedDuration, passed: SignedDuration) -> Option<Duration> {
    let left = limit.checked_sub(passed.max(SignedDuration::ZERO))?;
    Duration::try_from(left).ok().filter(|left| !left.is_zero())
}

/// Whether a pool names a ModelProvider that is not there.
pub fn awaits_a_provider(pools: &[Arc<AgentPool>], providers: &[Arc<ModelProvider>]) -> bool {
    let there: BTreeSet<String> = providers.iter().map(|provider| provider.name_any()).collect();
    let mut named = pools
        .iter()
        .flat_map(|pool| &pool.spec.agent.models)
        .flat_map(Model::choices);
    named.any(|(provider, _)| !there.contains(provider))
}

/// The owner references that the gateway's objects should carry: those recorded whose pools live, then the oldest of
/// the others, [`MAX_OWNERS`] in all; in the order of their UIDs, so that equal sets are equal lists.
pub fn owners(recorded: &[OwnerReference], live: &[&AgentPool]) -> Vec<OwnerReference> {
    let is_recorded = |pool: &AgentPool| recorded.iter().any(|owner| owner.uid == uid_of(pool));
    let mut pools: Vec<&AgentPool> = live.to_vec();
    pools.sort_by_cached_key(|pool| {
        (
            !is_recorded(pool),
            pool.creation_timestamp().map(|time| time.0),
            pool.name_any(),
        )
    });
    let most = if seeded::has(Bug::GatewayOfFirst) {
        1
    } else {
        MAX_OWNERS
    };
    let mut owners: Vec<OwnerReference> = pools.into_iter().take(most).map(reference).collect();
    owners.sort_by(|a, b| a.uid.cmp(&b.uid));
    owners
}

/// A reference that makes no claim to be the controller: an object has at most one of those, and pools share it.
fn reference(pool: &AgentPool) -> OwnerReference {
    OwnerReference {
        api_version: AgentPool::api_version(&()).into_owned(),
        kind: AgentPool::kind(&()).into_owned(),
        name: pool.name_any(),
        uid: uid_of(pool),
        controller: None,
        block_owner_deletion: None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn deployment(template: &str, credentials: &str, owners: &[&str]) -> Deployment {
        let owners: Vec<_> = owners
            .iter()
            .map(|uid| json!({"apiVersion": "flotilla.dev/v1alpha1", "kind": "AgentPool", "name": uid, "uid": uid}))
            .collect();
        serde_json::from_value(json!({"metadata": {
            "name": "flotilla-gateway",
            "annotations": {TEMPLATE_HASH: template, CREDENTIALS_HASH: credentials},
            "ownerReferences": owners,
        }}))
        .unwrap()
    }

    fn desired(template: &str, credentials: &str, owners: &[&str]) -> Desired {
        Desired {
            deployment: deployment(template, credentials, owners),
            others: Vec::new(),
        }
    }

    fn pool(name: &str, created: i64) -> AgentPool {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "shop", "uid": name, "creationTimestamp": at(created)},
            "spec": {"agent": {"image": "a", "models": [{"name": "default", "providerRef": {"name": "main"}, "model": "m"}]}},
        }))
        .unwrap()
    }

    fn live(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn the_first_deployment_is_made_at_once_unless_a_provider_is_on_its_way() {
        let decide_first = |awaited, now| {
            let pools = live(&["a"]);
            let observed = Observed {
                deployment: None,
                live_pools: &pools,
                awaited,
                oldest_pool: Some(at(10)),
            };
            decide(
                &observed,
                &desired("t", "c", &["a"]),
                None,
                &mut || panic!("no turn is needed"),
                at(now),
            )
            .0
        };
        assert_eq!(decide_first(false, 10), Decision::ApplyAll);
        assert_eq!(decide_first(true, 10), Decision::Rest(Duration::from_secs(2)));
        assert_eq!(decide_first(true, 12), Decision::ApplyAll);
        assert_eq!(
            decide_first(true, 7),
            Decision::Rest(Duration::from_secs(2)),
            "a clock that is behind"
        );
    }

    #[test]
    fn whose_change_it_is_decides_how_it_is_made() {
        for (what, there, turn, expected) in [
            (
                "nothing differs",
                deployment("t", "c", &["a", "b"]),
                false,
                Decision::ApplyAll,
            ),
            (
                "a pool has gone",
                deployment("t", "c", &["a", "b", "z"]),
                false,
                Decision::Rest(Duration::from_secs(3)),
            ),
            (
                "a provider is new",
                deployment("t", "old", &["a", "b"]),
                false,
                Decision::Rest(Duration::from_secs(3)),
            ),
            (
                "a pool is new",
                deployment("t", "c", &["a"]),
                false,
                Decision::Rest(Duration::from_secs(3)),
            ),
            (
                "a pool is new and the others are gone",
                deployment("t", "c", &["z"]),
                false,
                Decision::ApplyAll,
            ),
            (
                "the operator is new",
                deployment("old", "c", &["a", "b"]),
                false,
                Decision::WaitForTurn,
            ),
            (
                "the operator is new and may",
                deployment("old", "c", &["a", "b"]),
                true,
                Decision::ApplyAll,
            ),
            (
                "made by an operator without marks",
                Deployment::default(),
                false,
                Decision::ApplyAll,
            ),
        ] {
            let pools = live(&["a", "b"]);
            let observed = Observed {
                deployment: Some(&there),
                live_pools: &pools,
                awaited: true,
                oldest_pool: None,
            };
            let (decision, _) = decide(
                &observed,
                &desired("t", "c", &["a", "b"]),
                None,
                &mut || turn,
                at(0),
            );
            assert_eq!(decision, expected, "{what}");
        }
    }

    #[test]
    fn wishes_rest_and_new_ones_cannot_put_it_off_for_ever() {
        let there = deployment("t", "0", &["a"]);
        let pools = live(&["a"]);
        let observed = Observed {
            deployment: Some(&there),
            live_pools: &pools,
            awaited: false,
            oldest_pool: None,
        };
        let mut pending = None;
        let mut look = |credentials: i64, now: i64| {
            let wish = desired("t", &credentials.to_string(), &["a"]);
            let (decision, kept) = decide(&observed, &wish, pending.take(), &mut || false, at(now));
            pending = kept;
            decision
        };
        assert_eq!(look(1, 0), Decision::Rest(Duration::from_secs(3)));
        assert_eq!(look(1, 2), Decision::Rest(Duration::from_secs(1)));
        assert_eq!(
            look(2, 2),
            Decision::Rest(Duration::from_secs(3)),
            "another wish rests anew"
        );
        assert_eq!(look(2, 5), Decision::ApplyAll);
        for second in (10..40).step_by(2) {
            let expected = Duration::from_secs(if second == 38 { 2 } else { 3 });
            assert_eq!(look(second, second), Decision::Rest(expected), "second {second}");
        }
        assert_eq!(look(40, 40), Decision::ApplyAll);
    }

    #[test]
    fn a_pool_that_names_an_absent_provider_is_awaited() {
        let provider: ModelProvider = serde_json::from_value(
            json!({"metadata": {"name": "main"}, "spec": {"endpoint": "http://m/v1"}}),
        )
        .unwrap();
        let pools = [Arc::new(pool("a", 1))];
        assert!(awaits_a_provider(&pools, &[]));
        assert!(!awaits_a_provider(&pools, &[Arc::new(provider)]));
    }

    #[test]
    fn owners_stay_and_the_oldest_fill_up() {
        let pools: Vec<AgentPool> = (0..70).map(|n| pool(&format!("p{n:02}"), 100 - n)).collect();
        let all: Vec<&AgentPool> = pools.iter().collect();
        let first = owners(&[], &all);
        assert_eq!(first.len(), MAX_OWNERS);
        assert!(
            first
                .iter()
                .all(|owner| owner.name != "p00" && owner.controller.is_none()),
            "the newest is left out"
        );
        let without: Vec<&AgentPool> = pools.iter().filter(|pool| pool.name_any() != "p69").collect();
        let second = owners(&first, &without);
        let kept = first.iter().filter(|owner| second.contains(owner)).count();
        assert_eq!((second.len(), kept), (MAX_OWNERS, MAX_OWNERS - 1));
    }
}
