//! What is not needed any more: revisions beyond `revisionHistoryLimit`, their snapshots, a front Service under a
//! former name. Pure.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use flotilla_core::rollout::{Decision, Standing};
use flotilla_core::seeded::{self, Bug};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt as _;

use super::build::{service, snapshot};
use super::dereference::{Observed, Revision};
use super::validate::Wanted;
use crate::runtime::Action;

/// A watch that is behind, or whose connection died in silence, has been replaced by then: see `runtime::informer`.
const SEEN_BY_THEN: SignedDuration = SignedDuration::from_secs(60);

/// The deletions. A revision's record goes last, so that a crash in between forgets nothing that is still there.
pub fn prune(
    observed: &Observed,
    wanted: Option<&Wanted>,
    decision: &Decision,
    now: Timestamp,
) -> Vec<Action> {
    if decision.stable.is_none() {
        return Vec::new();
    }
    let spec = &observed.pool.spec;
    let named = decision
        .stable
        .iter()
        .chain(&decision.candidate)
        .map(String::as_str);
    let named = named
        .chain(wanted.map(|wanted| wanted.revision.as_str()))
        .chain(spec.pinned_revision());
    let with_traffic = observed
        .status
        .traffic
        .iter()
        .map(|share| share.revision.as_str());
    let in_use: BTreeSet<&str> = named.chain(with_traffic).collect();
    let has_pods = |revision: &str| {
        let set = observed.sets.get(revision).and_then(|set| set.spec.as_ref());
        set.and_then(|spec| spec.replicas).unwrap_or_default() > 0 || !observed.pods_of(revision).is_empty()
    };
    let is_kept = |revision: &str| in_use.contains(revision) || has_pods(revision);

    let mut history: Vec<&Revision> = observed
        .revisions
        .iter()
        .filter(|known| !is_kept(&known.record.revision))
        .collect();
    // What was superseded before it was proved is worth least: a return goes to what has served.
    history.sort_by_key(|known| {
        let is_unproved = known.record.standing == Standing::Unproved;
        (
            is_unproved,
            Reverse((known.record.order, known.object.creation_timestamp())),
        )
    });
    if seeded::has(Bug::PruneNewest) {
        history.reverse();
    }
    let limit = usize::try_from(spec.revision_history_limit).unwrap_or_default();
    let surplus: Vec<&Revision> = history.into_iter().skip(limit).collect();
    let is_surplus = |revision: &str| surplus.iter().any(|known| known.record.revision == revision);
    // Children without a record: it was deleted by hand. Of young ones the record may only not have been seen yet, by an
    // operator that has just started.
    let is_young = |child: &ObjectMeta| {
        let made = child.creation_timestamp.as_ref().map(|time| time.0);
        made.is_some_and(|made| now.duration_since(made) < SEEN_BY_THEN)
    };
    let is_orphan = |revision: &str, child: &ObjectMeta| {
        observed.record(revision).is_none() && !is_kept(revision) && !is_young(child)
    };
    let goes = |revision: &str, child: &ObjectMeta| is_surplus(revision) || is_orphan(revision, child);

    let mut actions: Vec<Action> = observed
        .sets
        .iter()
        .filter(|(revision, set)| goes(revision, &set.metadata))
        .map(|(_, set)| Action::delete(&**set))
        .collect();
    let pool = observed.pool.name_any();
    let front = spec.traffic.has_front().then(|| spec.front_service(&pool));
    for of_pool in &observed.services {
        let name = of_pool.name_any();
        let is_unused = if service::is_of_revision(of_pool) {
            goes(&name, &of_pool.metadata)
        } else {
            front != Some(name.as_str())
        };
        if is_unused {
            actions.push(Action::delete(&**of_pool));
        }
    }
    if !spec.traffic.is_routed() {
        actions.extend(observed.routes.iter().map(|route| Action::delete(&**route)));
    }
    actions.extend(snapshots(observed, wanted, &is_surplus));
    actions.extend(surplus.iter().map(|known| Action::delete(&*known.object)));
    actions
}

/// Snapshots that no remaining revision uses. None goes while a record cannot be read: it may use any.
fn snapshots(observed: &Observed, wanted: Option<&Wanted>, is_surplus: &dyn Fn(&str) -> bool) -> Vec<Action> {
    let pool = observed.name();
    let mut used = BTreeSet::new();
    let mut add = |sources: &std::collections::BTreeMap<String, String>| {
        used.extend(
            sources
                .iter()
                .map(|(source, hash)| snapshot::name(&pool, source, hash)),
        );
    };
    for known in observed
        .revisions
        .iter()
        .filter(|known| !is_surplus(&known.record.revision))
    {
        match &known.record.content {
            Some(content) => add(&content.sources),
            None => return Vec::new(),
        }
    }
    // Made a moment ago for a record that is still to come.
    add(&observed.sources.hashes);
    if let Some(wanted) = wanted {
        add(&wanted.content.sources);
    }
    let unused = observed
        .snapshots
        .iter()
        .filter(|snapshot| !used.contains(&snapshot.name_any()));
    unused.map(|snapshot| Action::delete(&**snapshot)).collect()
}
