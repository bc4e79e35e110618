//! Whether a pool's HTTPRoute carries the weights in force. Pure.
//!
//! A weight counts once the route has it and every parent says `Accepted` and `ResolvedRefs` at this generation of the route.
//! That is what the control plane knows; proxies follow within moments, of which nobody tells. So it must have been so for
//! [`SETTLING`] before anything is taken away.

use flotilla_core::rollout::Reason;
use flotilla_crds::agent_pool::ParentRef;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt as _;

use super::build::http_route;
use super::dereference::Observed;
use super::memory::Memory;
use crate::gateway_api::{GROUP, HTTPRoute, ParentStatus};
use crate::runtime::Presence;
use crate::runtime::subset::is_subset;

/// From the acceptance of a route until every proxy is taken to follow it.
pub const SETTLING: SignedDuration = SignedDuration::from_secs(3);

/// Reason: the cluster has no Gateway API.
pub const GATEWAY_API_MISSING: &str = "GatewayAPIMissing";
/// Reason: a Gateway has refused the route.
pub const ROUTE_NOT_ACCEPTED: &str = "RouteNotAccepted";
/// Reason: the Gateways have not said yet that they follow the route.
pub const ROUTE_PENDING: &str = "RoutePending";

/// Why the weights in force are not those of the route; none when they are, or when the pool has no route.
pub fn obstacle(observed: &Observed, memory: &mut Memory, now: Timestamp) -> Option<Reason> {
    if !observed.pool.spec.traffic.is_routed() {
        memory.routed = None;
        return None;
    }
    let found = judge(observed);
    let generation = found.as_ref().ok().copied().flatten();
    memory.routed = generation.map(|generation| match memory.routed {
        Some((known, since)) if known == generation => (known, since),
        // Of an operator that has just begun nobody knows since when, so it waits once more.
        _ => (generation, now),
    });
    match (found, memory.routed) {
        (Err(reason), _) => Some(reason),
        (Ok(_), Some((_, since))) if now.duration_since(since) < SETTLING => Some(Reason::new(
            ROUTE_PENDING,
            "every proxy has to follow the HTTPRoute",
        )),
        (Ok(_), _) => None,
    }
}

/// When a route that was accepted is taken to be followed, if that is still to come.
pub fn settles(memory: &Memory, now: Timestamp) -> Option<Timestamp> {
    let (_, since) = memory.routed?;
    since.checked_add(SETTLING).ok().filter(|until| *until > now)
}

/// Whether a reason is that of a route that may come right by itself within moments.
pub fn is_passing(reason: &Reason) -> bool {
    reason.word == ROUTE_PENDING
}

/// The generation at which every parent has accepted the route; none while there is nothing to route.
fn judge(observed: &Observed) -> Result<Option<i64>, Reason> {
    let name = observed.name();
    match observed.routing {
        Presence::Absent => {
            let message = "the cluster has no HTTPRoute of gateway.networking.k8s.io/v1; install the CRDs of the Gateway \
                           API, or set spec.traffic.type: Gateway";
            return Err(Reason::new(GATEWAY_API_MISSING, message));
        }
        Presence::Forbidden => {
            let message = "the operator may not read HTTPRoutes; give it the rules for gateway.networking.k8s.io that the \
                           chart's ClusterRole flotilla-operator has, or set spec.traffic.type: Gateway";
            return Err(Reason::new(GATEWAY_API_MISSING, message));
        }
        Presence::Unknown => {
            return Err(Reason::new(ROUTE_PENDING, "HTTPRoutes have not been read yet"));
        }
        Presence::Present => {}
    }
    let Some(wanted) = http_route::build(&observed.pool, &observed.status.traffic) else {
        return Ok(None);
    };
    let route = observed.routes.iter().find(|route| route.name_any() == name);
    let Some(route) = route.filter(|route| is_subset(&wanted.spec, &route.spec)) else {
        return Err(Reason::new(
            ROUTE_PENDING,
            "the HTTPRoute has to get the weights in force",
        ));
    };
    let parents = observed.pool.spec.traffic.http_route.iter();
    for parent in parents.flat_map(|wanted| &wanted.parent_refs) {
        accepted(route, parent)?;
    }
    Ok(Some(generation(&route.metadata)))
}

fn generation(metadata: &ObjectMeta) -> i64 {
    metadata.generation.unwrap_or_default()
}

/// Whether every controller that speaks of this parent accepts the route, and at least one does.
fn accepted(route: &HTTPRoute, parent: &ParentRef) -> Result<(), Reason> {
    let (generation, name) = (generation(&route.metadata), shown(route, parent));
    let spoken = route.status.iter().flat_map(|status| &status.parents);
    let mut spoken = spoken
        .filter(|spoken| is_same(route, &spoken.parent_ref, parent))
        .peekable();
    let silent = || {
        Reason::new(
            ROUTE_PENDING,
            format!("{name} has to accept the HTTPRoute; does it exist, and does a controller serve it?"),
        )
    };
    if spoken.peek().is_none() {
        return Err(silent());
    }
    for spoken in spoken {
        for type_ in ["Accepted", "ResolvedRefs"] {
            match said(spoken, type_, generation) {
                Some((true, _)) => {}
                Some((false, why)) => {
                    return Err(Reason::new(
                        ROUTE_NOT_ACCEPTED,
                        format!("{name} does not take the HTTPRoute: {type_} is False: {why}"),
                    ));
                }
                None => return Err(silent()),
            }
        }
    }
    Ok(())
}

/// Whether a condition holds at this generation, and why; none while it is not known.
fn said(spoken: &ParentStatus, type_: &str, generation: i64) -> Option<(bool, String)> {
    let condition = spoken
        .conditions
        .iter()
        .find(|condition| condition.type_ == type_)?;
    let is_current = condition.observed_generation == Some(generation);
    match condition.status.as_str() {
        _ if !is_current => None,
        "True" => Some((true, String::new())),
        "False" => Some((false, format!("{}: {}", condition.reason, condition.message))),
        _ => None,
    }
}

fn is_same(route: &HTTPRoute, one: &ParentRef, other: &ParentRef) -> bool {
    let whole = |parent: &ParentRef| {
        let or = |value: &Option<String>, default: &str| value.clone().unwrap_or_else(|| default.to_owned());
        let own = route.metadata.namespace.clone().unwrap_or_default();
        (
            or(&parent.group, GROUP),
            or(&parent.kind, "Gateway"),
            or(&parent.namespace, &own),
            parent.name.clone(),
            parent.section_name.clone(),
            parent.port,
        )
    };
    whole(one) == whole(other)
}

fn shown(route: &HTTPRoute, parent: &ParentRef) -> String {
    let own = route.metadata.namespace.as_deref().unwrap_or_default();
    let namespace = parent.namespace.as_deref().unwrap_or(own);
    let kind = parent.kind.as_deref().unwrap_or("Gateway");
    format!("{kind} {namespace}/{}", parent.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn route(generation: i64, parents: Value) -> HTTPRoute {
        serde_json::from_value(json!({
            "metadata": {"name": "support", "namespace": "shop", "generation": generation},
            "spec": {}, "status": {"parents": parents},
        }))
        .unwrap()
    }

    fn says(parent: Value, accepted: (&str, i64), resolved: (&str, i64)) -> Value {
        let condition = |type_: &str, (status, generation): (&str, i64)| {
            json!({
                "type": type_, "status": status, "observedGeneration": generation, "reason": "NotAllowedByListeners",
                "message": "no listener lets shop in",
            })
        };
        json!({"parentRef": parent, "controllerName": "x.example/c", "conditions": [
            condition("Accepted", accepted), condition("ResolvedRefs", resolved),
        ]})
    }

    fn parent() -> ParentRef {
        serde_json::from_value(json!({"name": "public", "namespace": "infra"})).unwrap()
    }

    #[test]
    fn every_controller_must_have_accepted_this_generation() {
        let full = json!({"group": GROUP, "kind": "Gateway", "name": "public", "namespace": "infra"});
        let (good, old) = (("True", 3), ("True", 2));
        for (what, parents, expected) in [
            ("nobody speaks", json!([]), Some(ROUTE_PENDING)),
            (
                "defaults written out",
                json!([says(full.clone(), good, good)]),
                None,
            ),
            (
                "an older generation",
                json!([says(full.clone(), good, old)]),
                Some(ROUTE_PENDING),
            ),
            (
                "refused",
                json!([says(full.clone(), ("False", 3), good)]),
                Some(ROUTE_NOT_ACCEPTED),
            ),
            (
                "unresolved",
                json!([says(full.clone(), good, ("False", 3))]),
                Some(ROUTE_NOT_ACCEPTED),
            ),
            (
                "refused before",
                json!([says(full.clone(), ("False", 2), good)]),
                Some(ROUTE_PENDING),
            ),
            (
                "not known",
                json!([says(full.clone(), ("Unknown", 3), good)]),
                Some(ROUTE_PENDING),
            ),
            (
                "one of two controllers",
                json!([says(full.clone(), good, good), says(full.clone(), good, old)]),
                Some(ROUTE_PENDING),
            ),
            (
                "another listener",
                json!([says(
                    json!({"name": "public", "namespace": "infra", "sectionName": "web"}),
                    good,
                    good
                )]),
                Some(ROUTE_PENDING),
            ),
            (
                "the pool's own namespace",
                json!([says(json!({"name": "public"}), good, good)]),
                Some(ROUTE_PENDING),
            ),
        ] {
            let found = accepted(&route(3, parents), &parent()).err();
            assert_eq!(found.map(|reason| reason.word).as_deref(), expected, "{what}");
        }
    }

    #[test]
    fn a_refusal_says_who_and_why() {
        let parents = json!([says(
            json!({"name": "public", "namespace": "infra"}),
            ("False", 1),
            ("True", 1)
        )]);
        let reason = accepted(&route(1, parents), &parent()).unwrap_err();
        assert_eq!(
            reason.message,
            "Gateway infra/public does not take the HTTPRoute: Accepted is False: NotAllowedByListeners: no listener lets \
             shop in"
        );
    }
}
