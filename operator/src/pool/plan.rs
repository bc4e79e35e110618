//! What to write for a pool, as data. Pure: what there is, what was remembered and the time in; actions, the decision
//! and what to remember out.
//!
//! The decision is [`flotilla_core::rollout::decide`]'s. Here is what it is taken on; `draft` turns its
//! words into objects.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use flotilla_core::release;
use flotilla_core::rollout::{
    Arm, Decision, Gateways, Ladder, Member, Reason, Situation, Standing, State, Target, Waiting, decide,
};
use flotilla_crds::agent_pool::{AgentPoolSpec, ReleasePlan, SessionKeyType};
use flotilla_crds::common::{condition, is_true};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;

use super::dereference::{Observed, is_ready};
use super::draft::Draft;
use super::forecast;
use super::gateways::Reports;
use super::judge;
use super::memory::Memory;
use super::routing;
use super::trial::sitting;
use super::trouble;
use super::validate::{INVALID_POD_TEMPLATE, Problem, Wanted};
use crate::runtime::{Action, Presence};

/// While pods are waited for, troubles that show only by their age are looked for this often.
const LOOK_FOR_TROUBLE: Duration = Duration::from_secs(10);
/// While a candidate is judged, its evidence is looked at this often.
const LOOK_AT_EVIDENCE: Duration = Duration::from_secs(5);
/// While the Gateway API is missing it is looked for this often.
const LOOK_FOR_ROUTES: Duration = Duration::from_secs(5);
/// While former revisions are kept for their conversations, it is looked whether these have ended; gateways are asked as often.
const LOOK_AT_CONVERSATIONS: Duration = Duration::from_secs(15);
/// A scale-down waits this long for gateways to say what is in flight; their answer comes earlier.
const AWAIT_REPORT: Duration = Duration::from_secs(1);

/// A restart of the stable revision's pods that is under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restarting {
    /// Pods made before this are replaced.
    pub before: Timestamp,
    /// Pods replaced so far.
    pub replaced: i32,
    /// Pods there will be.
    pub of: i32,
}

/// What to do for a pool.
#[derive(Debug)]
pub struct Plan {
    /// The writes, in order.
    pub actions: Vec<Action>,
    /// What was decided.
    pub decision: Decision,
    /// Why the spec cannot be followed, if so.
    pub problem: Option<Problem>,
    /// The members the decision was made on, for status.
    pub members: Vec<Member>,
    /// A restart under way.
    pub restarting: Option<Restarting>,
    /// The plan needs the bytes of a source that was not read: it must be made again with them before it is carried out.
    pub lacks_bytes: bool,
    /// A pod to dry-run before the actions, with the revision it is of.
    pub check: Option<(String, Pod)>,
    /// Whether gateways are to be asked every second.
    pub eager: bool,
    /// The latest time of the next visit.
    pub look_again: Option<Duration>,
    /// What to remember.
    pub memory: Memory,
    /// What a release would do, in a dry run.
    pub forecast: Option<ReleasePlan>,
}

/// Makes the plan.
pub fn plan(observed: &Observed, wanted: &Result<Wanted, Problem>, memory: &Memory, now: Timestamp) -> Plan {
    let mut memory = memory.clone();
    let (wanted, problem) = accepted(wanted, &memory, now);
    memory.waiting_since = match &problem {
        Some(problem) if problem.may_mend => Some(memory.waiting_since.unwrap_or(now)),
        _ => None,
    };
    let name = observed.name();
    let by_number = observed.pool.spec.traffic.is_by_number();
    let reports = Reports {
        pool: &name,
        // They know nothing of a pool whose weights are numbers of replicas.
        views: if by_number { &[] } else { &observed.gateways },
        problem: observed.gateway_problem.as_deref(),
    };
    let members = members(observed, &reports, &mut memory, now);
    let is_dry = forecast::is_dry(&observed.pool);
    let is_first = !members.iter().any(|member| member.standing == Standing::Stable);
    // The first revision would not be held by a pause.
    let released = wanted.filter(|_| !(is_dry && is_first));
    let target = target(observed, released, &mut memory, now);
    let unrouted = routing::obstacle(observed, &mut memory, now);
    let gateways = gateways(observed, &reports, &members, &memory, unrouted);
    let spec = &observed.pool.spec;
    let attempt = wanted
        .and_then(|wanted| observed.record(&wanted.revision))
        .map_or(1, |record| record.attempt);
    let start = judge::start(observed);
    let ladder = release::ladder(spec).map(|ladder| Ladder {
        starts_above: start.as_ref().map(|(above, _)| *above),
        ..ladder
    });
    let mut decision = decide(&Situation {
        now,
        replicas: spec.effective_replicas(),
        surge_percent: spec.rolling_update().max_surge_percent,
        paused: spec.rollout.paused || is_dry,
        stopped: spec.stopped,
        deadline: deadline(observed),
        target,
        attempt,
        members: members.clone(),
        gateways: gateways.clone(),
        progress: memory.progress.clone(),
        ladder,
        gate: sitting::combine(
            memory.sitting.as_deref(),
            memory.heard.as_ref().map(|heard| heard.gate.clone()),
            memory.reached.as_ref(),
        ),
        reached: memory.reached.clone(),
        max_drain: max_drain(spec),
    });
    let forecast = wanted
        .filter(|_| is_dry)
        .and_then(|wanted| forecast::build(observed, Some(wanted), decision.stable.as_deref()));
    if let Some(forecast) = &forecast
        && let (State::Paused | State::Empty, false) = (&decision.state, spec.rollout.paused)
    {
        decision.waiting = Some(Waiting {
            reason: forecast::held(&forecast.revision),
            deadline: None,
        });
    }
    memory.progress.clone_from(&decision.progress);
    memory.reached.clone_from(&decision.reached);
    let is_alone = decision.candidate.is_none();
    if is_alone && gateways == Gateways::Confirmed {
        memory.confirmed = observed.status.traffic_generation;
    }

    let mut draft = Draft {
        observed,
        wanted,
        decision: &decision,
        start,
        now,
        actions: Vec::new(),
        check: None,
        lacks_bytes: false,
        held: false,
    };
    let restarting = draft.write(&reports, &memory);
    let Draft {
        actions,
        check,
        lacks_bytes,
        held,
        ..
    } = draft;

    let is_retiring = members.iter().any(|member| {
        member.arm.wanted > 0
            && decision.stable.as_ref() != Some(&member.revision)
            && decision.candidate.as_ref() != Some(&member.revision)
            && !is_draining(&decision, &member.revision)
    });
    let is_moving = (decision.candidate.is_some() || is_retiring || gateways != Gateways::Confirmed)
        && !matches!(decision.state, State::Paused | State::Stopped | State::Empty);
    let look_again = look_again(
        &decision,
        problem.as_ref(),
        &memory,
        held,
        // Nobody tells when the Gateway API is installed.
        spec.traffic.is_routed() && observed.routing != Presence::Present,
        now,
        deadline(observed),
    );
    Plan {
        actions,
        eager: !by_number && (is_moving || held || restarting.is_some()),
        decision,
        problem,
        members,
        restarting,
        check,
        lacks_bytes,
        look_again,
        memory,
        forecast,
    }
}

/// `maxDrainSeconds` of a pool that keeps conversations.
fn max_drain(spec: &AgentPoolSpec) -> Option<SignedDuration> {
    let keeps = spec.sessions.key.type_ != SessionKeyType::None;
    keeps.then(|| SignedDuration::from_secs(spec.sessions.max_drain_seconds.into()))
}

fn is_draining(decision: &Decision, revision: &str) -> bool {
    decision.draining.iter().any(|(name, _)| name == revision)
}

/// `progressDeadlineSeconds`.
pub fn deadline(observed: &Observed) -> SignedDuration {
    SignedDuration::from_secs(observed.pool.spec.rollout.progress_deadline_seconds.into())
}

/// What is wanted, unless the API server has just refused its pods.
fn accepted<'a>(
    wanted: &'a Result<Wanted, Problem>,
    memory: &Memory,
    now: Timestamp,
) -> (Option<&'a Wanted>, Option<Problem>) {
    match (wanted, &memory.refused) {
        (Err(problem), _) => (None, Some(problem.clone())),
        (Ok(wanted), Some((revision, sentence, until))) if *revision == wanted.revision && now < *until => (
            None,
            Some(Problem::invalid(INVALID_POD_TEMPLATE, sentence.clone())),
        ),
        (Ok(wanted), _) => (Some(wanted), None),
    }
}

fn members(observed: &Observed, reports: &Reports<'_>, memory: &mut Memory, now: Timestamp) -> Vec<Member> {
    let recorded = observed
        .revisions
        .iter()
        .map(|known| known.record.revision.as_str());
    let names: BTreeSet<&str> = recorded.chain(observed.sets.keys().map(String::as_str)).collect();
    let before = std::mem::take(&mut memory.troubles);
    let members = names.into_iter().map(|revision| {
        let record = observed.record(revision);
        let set = observed.sets.get(revision);
        let pods = observed.pods_of(revision);
        let count = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
        let wanted = set
            .and_then(|set| set.spec.as_ref())
            .and_then(|spec| spec.replicas)
            .unwrap_or_default();
        let available = pods.iter().filter(|pod| is_ready(pod)).count();
        let available = available.min(set.map_or(usize::MAX, |set| most_ready(set)));
        let trouble = (count(available) < wanted)
            .then(|| {
                let deadline = observed.pool.spec.rollout.progress_deadline_seconds;
                trouble::find(
                    set.map(|set| &**set),
                    pods.iter().map(|pod| &**pod),
                    deadline,
                    now,
                )
            })
            .flatten()
            .map(|mut trouble| {
                trouble.reason = trouble::steady(before.get(revision), trouble.reason);
                memory
                    .troubles
                    .insert(revision.to_owned(), trouble.reason.clone());
                trouble
            });
        let share = observed
            .status
            .traffic
            .iter()
            .find(|share| share.revision == revision);
        Member {
            revision: revision.to_owned(),
            standing: record.map(|record| record.standing).unwrap_or_default(),
            order: record.map(|record| record.order).unwrap_or_default(),
            arm: Arm {
                wanted,
                existing: count(pods.len()),
                available: count(available),
                seen: if observed.pool.spec.traffic.is_by_number() {
                    count(available)
                } else {
                    count(reports.seen(revision, pods))
                },
            },
            weight: share.map(|share| share.weight),
            trouble,
            down_since: trouble::down_since(set.map(|set| &**set), pods.iter().map(|pod| &**pod)),
            rejected: record
                .and_then(|record| record.rejected.clone())
                .map(|(reason, _)| reason),
            passed: record.and_then(|record| record.passed),
            is_trusted: record.is_some_and(|record| record.is_trusted),
            has_conversations: reports.has_conversations(revision, observed.status.traffic_generation),
            drain_until: share.and_then(|share| Some(share.drain_deadline_time.as_ref()?.0)),
        }
    });
    members.collect()
}

/// How many pods of a ReplicaSet can be ready by what it says itself: news of pods that are gone may come late, above all of
/// those that it was told to stop a moment ago.
fn most_ready(set: &ReplicaSet) -> usize {
    let size = |number: Option<i32>| usize::try_from(number.unwrap_or_default()).unwrap_or_default();
    let Some(status) = &set.status else {
        return usize::MAX;
    };
    let ready = size(status.ready_replicas);
    if status.observed_generation >= set.metadata.generation {
        ready
    } else {
        ready.min(size(set.spec.as_ref().and_then(|spec| spec.replicas)))
    }
}

/// The target for the decision, and since when it rests.
fn target(observed: &Observed, wanted: Option<&Wanted>, memory: &mut Memory, now: Timestamp) -> Target {
    let Some(wanted) = wanted else {
        return Target::Unknown;
    };
    let revision = wanted.revision.clone();
    let is_in_force = observed
        .record(&revision)
        .is_some_and(|record| matches!(record.standing, Standing::Stable | Standing::Candidate));
    let is_first = !observed
        .revisions
        .iter()
        .any(|known| known.record.standing == Standing::Stable);
    if is_in_force || is_first || wanted.is_pinned {
        memory.resting = None;
        return Target::Revision {
            revision,
            settles: None,
        };
    }
    let since = match &memory.resting {
        Some((resting, since)) if *resting == revision => *since,
        _ => now,
    };
    memory.resting = Some((revision.clone(), since));
    let rest = SignedDuration::from_secs(observed.pool.spec.rollout.settle_seconds.into());
    Target::Revision {
        revision,
        settles: Some(since.checked_add(rest).unwrap_or(now)),
    }
}

/// What the gateways have applied. While only one revision has ever been in question since they last confirmed, they
/// need not be asked again: neither a scale-up nor a restart of the operator wakes them. `unrouted` is why an HTTPRoute does not
/// carry the weights.
fn gateways(
    observed: &Observed,
    reports: &Reports<'_>,
    members: &[Member],
    memory: &Memory,
    unrouted: Option<Reason>,
) -> Gateways {
    if observed.pool.spec.traffic.is_by_number() {
        return Gateways::Confirmed;
    }
    let Some(generation) = observed.status.traffic_generation else {
        return if reports.views.iter().any(|view| view.ready) {
            Gateways::Pending
        } else {
            reports.confirmation(-1, None)
        };
    };
    // What is kept for its conversations gets no new ones, whoever has applied that.
    let drains = |member: &Member| member.drain_until.is_some();
    let traffic = &observed.status.traffic;
    let is_alone = traffic
        .iter()
        .filter(|share| share.drain_deadline_time.is_none())
        .count()
        == 1
        && members
            .iter()
            .filter(|member| member.arm.wanted > 0 && !drains(member))
            .count()
            <= 1
        && !members
            .iter()
            .any(|member| member.standing == Standing::Candidate);
    let was_ready = is_true(&observed.status.conditions, condition::READY);
    // A route that was changed by hand is put right before anybody need know.
    if let Some(reason) = unrouted.filter(|reason| !(is_alone && was_ready && routing::is_passing(reason))) {
        return Gateways::Unrouted(reason);
    }
    if is_alone && (was_ready || memory.confirmed == Some(generation)) {
        return Gateways::Confirmed;
    }
    reports.confirmation(generation, observed.port)
}

fn look_again(
    decision: &Decision,
    problem: Option<&Problem>,
    memory: &Memory,
    held: bool,
    awaits_routes: bool,
    now: Timestamp,
    deadline: SignedDuration,
) -> Option<Duration> {
    let until = |time: Timestamp| Duration::try_from(time.duration_since(now)).unwrap_or_default();
    let of_wait = decision.waiting.as_ref().and_then(|waiting| waiting.deadline);
    let of_problem = memory
        .waiting_since
        .and_then(|since| since.checked_add(deadline).ok());
    let of_refusal = memory
        .refused
        .as_ref()
        .filter(|_| problem.is_some())
        .map(|(_, _, until)| *until);
    let of_route = routing::settles(memory, now);
    let times = [of_wait, of_problem, of_refusal, of_route]
        .into_iter()
        .flatten()
        .filter(|time| *time > now)
        .map(until);
    let is_waiting_for_pods = decision
        .progress
        .as_ref()
        .is_some_and(|progress| progress.moved.is_some());
    times
        .chain(is_waiting_for_pods.then_some(LOOK_FOR_TROUBLE))
        .chain(held.then_some(AWAIT_REPORT))
        .chain(decision.reached.is_some().then_some(LOOK_AT_EVIDENCE))
        .chain(awaits_routes.then_some(LOOK_FOR_ROUTES))
        .chain(
            decision
                .draining
                .iter()
                .map(|(_, until_then)| until(*until_then).min(LOOK_AT_CONVERSATIONS)),
        )
        .min()
}

/// The weights of a decision by revision.
pub fn weights(decision: &Decision) -> BTreeMap<&str, i32> {
    decision
        .traffic
        .iter()
        .map(|(revision, weight)| (revision.as_str(), *weight))
        .collect()
}
