//! What is remembered of a pool between two visits. A restarted operator does without it: it waits a little longer,
//! asks the gateways once more, or writes one more status.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use flotilla_core::rollout::{Progress, Reached, Reason, Subject};
use flotilla_crds::AgentPoolStatus;
use jiff::Timestamp;
use parking_lot::Mutex;

use super::judge::Heard;
use super::trial::sitting::Sitting;
use super::validate::WAITING_FOR_REFERENCE;
use crate::runtime::Key;

/// What is remembered of one pool.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Memory {
    /// UID of the pool it is about.
    pub uid: String,
    /// The revision that waits for its release, and since when it is the same.
    pub resting: Option<(String, Timestamp)>,
    /// The count towards the deadline.
    pub progress: Option<Progress>,
    /// The newest sentence about the trouble of each revision.
    pub troubles: BTreeMap<String, Reason>,
    /// Since when a reference is missing.
    pub waiting_since: Option<Timestamp>,
    /// Since when the API server refuses what the plan says.
    pub blocked_since: Option<Timestamp>,
    /// The `trafficGeneration` that every gateway was once seen to have applied while nothing else was going on.
    pub confirmed: Option<i64>,
    /// The revision whose pods the API server has accepted in a dry run.
    pub accepted: Option<String>,
    /// The revision whose pods it refused, with its sentence, and when to ask again.
    pub refused: Option<(String, String, Timestamp)>,
    /// The generation of the HTTPRoute that every Gateway has accepted, and since when that is known.
    pub routed: Option<(i64, Timestamp)>,
    /// The rung that the candidate has reached.
    pub reached: Option<Reached>,
    /// What was heard about it at this visit.
    pub heard: Option<Arc<Heard>>,
    /// The tests at that rung.
    pub sitting: Option<Arc<Sitting>>,
    /// The LoadTest that sends synthetic requests for it.
    pub top_up: Option<String>,
}

impl Memory {
    /// What a new operator can know from status.
    pub fn recovered(uid: &str, status: &AgentPoolStatus) -> Self {
        let rollout = status.rollout.clone().unwrap_or_default();
        let start = rollout.start_time.map(|time| time.0);
        let is_reference = rollout
            .waiting_for
            .is_some_and(|waiting| waiting.reason == WAITING_FOR_REFERENCE);
        let subject = match &status.candidate {
            Some(candidate) => {
                let attempt = candidate.attempt.max(1);
                Subject::Release {
                    revision: candidate.revision.clone(),
                    attempt,
                }
            }
            None => Subject::Serving,
        };
        let reached = rollout.step.as_ref().zip(status.candidate.as_ref());
        let reached = reached.and_then(|(step, candidate)| {
            Some(Reached {
                revision: candidate.revision.clone(),
                attempt: candidate.attempt.max(1),
                weight: step.weight,
                since: step.start_time.as_ref()?.0,
            })
        });
        let best = match &status.candidate {
            Some(candidate) => candidate.ready_replicas,
            None => status.stable.as_ref().map_or(0, |stable| stable.ready_replicas),
        };
        Self {
            uid: uid.to_owned(),
            progress: start.filter(|_| !is_reference).map(|start| Progress {
                subject,
                start,
                moved: rollout.progress_time.map(|time| time.0),
                best,
            }),
            waiting_since: start.filter(|_| is_reference),
            sitting: reached
                .as_ref()
                .and_then(|reached| Sitting::recovered(reached, status))
                .map(Arc::new),
            reached,
            ..Self::default()
        }
    }
}

/// The memories of all pools.
#[derive(Debug, Default)]
pub struct Memories(Mutex<HashMap<Key, Memory>>);

impl Memories {
    /// What is remembered of a pool.
    pub fn recall(&self, key: &Key, uid: &str, status: &AgentPoolStatus) -> Memory {
        let remembered = self.0.lock().get(key).filter(|memory| memory.uid == uid).cloned();
        remembered.unwrap_or_else(|| Memory::recovered(uid, status))
    }

    /// Whether anything is remembered of a pool: it was visited since this process began.
    pub fn know(&self, key: &Key, uid: &str) -> bool {
        self.0.lock().get(key).is_some_and(|memory| memory.uid == uid)
    }

    /// Remembers.
    pub fn keep(&self, key: &Key, memory: Memory) {
        self.0.lock().insert(key.clone(), memory);
    }

    /// Forgets a pool.
    pub fn forget(&self, key: &Key) {
        self.0.lock().remove(key);
    }
}

/// What commands are checked against: which revisions a pool is about, as of its last visit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standpoint {
    /// UID of the pool.
    pub uid: String,
    /// `metadata.generation` that was looked at.
    pub generation: i64,
    /// The revision the spec asks for; none while that cannot be told.
    pub target: Option<String>,
    /// The revision that serves.
    pub stable: Option<String>,
    /// The revision being released.
    pub candidate: Option<String>,
    /// The step it is at, where a ladder leads.
    pub step: Option<StepPoint>,
}

/// The step a candidate is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepPoint {
    /// Its index, from 0; the number of steps with all the traffic.
    pub index: usize,
    /// Its weight.
    pub weight: i32,
    /// It waits for a person, not for evidence.
    pub awaits_person: bool,
    /// It waits for tests that are not passed.
    pub awaits_tests: bool,
}

/// The standpoints of all pools. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Standpoints(Arc<Mutex<HashMap<Key, Standpoint>>>);

impl Standpoints {
    /// That of one pool, once it has been visited.
    pub fn get(&self, key: &Key) -> Option<Standpoint> {
        self.0.lock().get(key).cloned()
    }

    pub(crate) fn set(&self, key: &Key, standpoint: Standpoint) {
        self.0.lock().insert(key.clone(), standpoint);
    }

    pub(crate) fn forget(&self, key: &Key) {
        self.0.lock().remove(key);
    }
}
