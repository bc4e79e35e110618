//! RolloutActions: commands to a release, each carried out exactly once or refused with a sentence.
//!
//! A command is carried out by one patch of one ControllerRevision, on the version it was decided on, and that patch
//! carries the command's UID. So whether it was carried out can be read from where it took effect: an operator that
//! dies before it has answered finds its own mark and answers `Applied`; one that dies before the patch decides anew.
//! Commands of a pool go one after the other, by time and name; the mark of one is read before the next may overwrite it.
//!
//! What follows from the changed record (traffic back, pods replaced) is the pool controller's work.
//!
//! | step | module | client |
//! |---|---|---|
//! | what there is | [`Reconciler::reconcile`](crate::runtime::Reconciler::reconcile) | no: caches |
//! | may it be, and what would it change | [`command`] | no: pure |
//! | patch, then answer | [`Visit`](crate::runtime::Visit) | yes |

pub mod command;

use std::sync::Arc;
use std::time::Duration;

use flotilla_core::seeded::{self, Bug};
use flotilla_crds::rollout_action::ActionResult;
use flotilla_crds::{AgentPool, RolloutAction, RolloutActionStatus, names};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use kube::{Resource as _, ResourceExt as _};
use serde_json::json;

use crate::caches::{BY_POOL, Caches};
use crate::pool::build::controller_revision::{LAST_ACTION, read};
use crate::pool::dereference::Revision;
use crate::pool::memory::{Standpoint, Standpoints};
use crate::runtime::{
    Action, Blame, Controller, Error, Failure, Key, Manager, Next, Note, Reconciler, StatusWrite, Trigger,
    Visit, key_of, owned_by, uid_of,
};
use command::Verdict;

/// Decided commands of a pool that are kept.
const KEPT: usize = 20;
/// How long a command waits for its pool: an apply of both at once may bring it first.
const POOL_PATIENCE: SignedDuration = SignedDuration::from_secs(60);
/// How long a command waits for its step: so long may an operator that has just started need to find out where a release is.
const EARLY_PATIENCE: SignedDuration = SignedDuration::from_secs(15);
/// Pause while another command or the pool's own visit has to come first; both also lead to a visit.
const SOON: Duration = Duration::from_secs(1);

/// Answers RolloutActions.
pub struct ActionReconciler {
    caches: Caches,
    standpoints: Standpoints,
}

/// Makes the controller; `standpoints` is what the pool controller tells.
pub fn register(manager: &mut Manager, caches: &Caches, standpoints: Standpoints) -> Trigger {
    let open_actions = |caches: &Caches| {
        let actions = caches.actions.clone();
        move |namespace: &str, pool: &str| -> Vec<Key> {
            let of_pool = actions.by_index(BY_POOL, &format!("{namespace}/{pool}"));
            of_pool
                .iter()
                .filter(|action| !is_decided(action))
                .map(|action| key_of(&**action))
                .collect()
        }
    };
    let (by_pool, by_record) = (open_actions(caches), open_actions(caches));
    Controller::new("rolloutaction", &caches.actions)
        .watches(&caches.pools, move |pool: &AgentPool| {
            by_pool(&pool.namespace().unwrap_or_default(), &pool.name_any())
        })
        .watches(
            &caches.controller_revisions,
            move |record: &ControllerRevision| {
                let pool = record.labels().get(names::POOL);
                pool.map(|pool| by_record(&record.namespace().unwrap_or_default(), pool))
                    .unwrap_or_default()
            },
        )
        .register(
            manager,
            ActionReconciler {
                caches: caches.clone(),
                standpoints,
            },
        )
}

/// Why a command could not be answered.
#[derive(Debug, thiserror::Error)]
pub enum ActionError {
    /// The runtime could not carry it out.
    #[error(transparent)]
    Runtime(#[from] Error),
}

impl Failure for ActionError {
    fn category(&self) -> &'static str {
        let Self::Runtime(error) = self;
        error.category()
    }

    fn blame(&self) -> Blame {
        let Self::Runtime(error) = self;
        error.blame()
    }

    fn backoff_cap(&self) -> Duration {
        let Self::Runtime(error) = self;
        error.backoff_cap()
    }

    fn is_notable(&self) -> bool {
        let Self::Runtime(error) = self;
        error.is_notable()
    }
}

impl Reconciler for ActionReconciler {
    type Kind = RolloutAction;
    type Error = ActionError;

    async fn reconcile(&self, action: Arc<RolloutAction>, visit: &Visit) -> Result<Next, ActionError> {
        if action.metadata.deletion_timestamp.is_some() {
            return Ok(Next::on_change());
        }
        let (key, now) = (visit.key(), visit.now());
        let pool_key = Key::new(&key.namespace, &action.spec.pool_ref.name);
        let siblings = self.caches.actions.by_index(BY_POOL, &pool_key.to_string());
        if is_decided(&action) {
            visit.execute(surplus(&siblings)).await?;
            return Ok(Next::on_change());
        }
        let Some(pool) = self.caches.pools.get(&pool_key) else {
            return self.wait_for_pool(&action, visit, now).await;
        };
        if let Some(patch) = adoption(&action, &pool) {
            visit.execute(vec![patch]).await?;
            return Ok(Next::after(Duration::ZERO));
        }
        if siblings
            .iter()
            .any(|other| !is_decided(other) && order(other) < order(&action))
        {
            return Ok(Next::after(SOON));
        }
        let records = self.caches.controller_revisions.owned_by(&uid_of(&*pool));
        let records: Vec<_> = records
            .into_iter()
            .map(|object| Revision {
                record: read(&object),
                object,
            })
            .collect();
        let uid = uid_of(&*action);
        let marked = records
            .iter()
            .find(|known| known.object.annotations().get(LAST_ACTION) == Some(&uid));
        if let Some(known) = marked {
            let message = command::carried_out(action.spec.type_, &known.record);
            return self
                .answer(&action, visit, ActionResult::Applied, message, now)
                .await;
        }
        let standpoint = self.standpoints.get(&pool_key).filter(|standpoint| {
            standpoint.uid == uid_of(&*pool) && Some(standpoint.generation) == pool.metadata.generation
        });
        let Some(standpoint) = standpoint else {
            return Ok(Next::after(SOON));
        };
        match command::decide(&action, &standpoint, &records, now) {
            Verdict::Reject(sentence) => {
                if is_behind(&action, &standpoint, &records, visit).await? {
                    return Ok(Next::after(SOON));
                }
                self.answer(&action, visit, ActionResult::Rejected, sentence, now)
                    .await
            }
            Verdict::Hold(sentence) => {
                let until = action.creation_timestamp().map_or(now, |time| time.0) + EARLY_PATIENCE;
                let left = until.duration_since(now);
                if !left.is_positive() {
                    return self
                        .answer(&action, visit, ActionResult::Rejected, sentence, now)
                        .await;
                }
                let message = format!("waits until {until}: {sentence}");
                self.wait(&action, visit, message, left).await
            }
            Verdict::Apply {
                revision,
                patch,
                message,
            } => {
                let Some(known) = records.iter().find(|known| known.record.revision == revision) else {
                    return Ok(Next::after(SOON));
                };
                if seeded::has(Bug::AnswerBeforePatch) {
                    let message = message.clone();
                    self.answer(&action, visit, ActionResult::Applied, message, now)
                        .await?;
                }
                let actions = vec![Action::patch_exactly(&*known.object, patch)];
                visit
                    .execute_for((crate::pool::CONTROLLER, &pool_key), actions)
                    .await?;
                self.answer(&action, visit, ActionResult::Applied, message, now)
                    .await
            }
        }
    }
}

impl ActionReconciler {
    async fn wait_for_pool(
        &self,
        action: &RolloutAction,
        visit: &Visit,
        now: Timestamp,
    ) -> Result<Next, ActionError> {
        let name = &action.spec.pool_ref.name;
        let made = action.creation_timestamp().map_or(now, |time| time.0);
        let left = POOL_PATIENCE - now.duration_since(made);
        if left.is_positive() {
            let message = format!("WaitingForReference: AgentPool {name} does not exist yet");
            return self.wait(action, visit, message, left).await;
        }
        let sentence =
            format!("AgentPool {name} does not exist; name a pool of this namespace in spec.poolRef");
        self.answer(action, visit, ActionResult::Rejected, sentence, now)
            .await
    }

    /// Says what is waited for; whatever changes it leads to a visit, and so does the end of the time.
    async fn wait(
        &self,
        action: &RolloutAction,
        visit: &Visit,
        message: String,
        left: SignedDuration,
    ) -> Result<Next, ActionError> {
        let status = RolloutActionStatus {
            message,
            ..RolloutActionStatus::default()
        };
        visit
            .write_status(action, &status, StatusWrite::default())
            .await?;
        Ok(Next::after(Duration::try_from(left).unwrap_or(SOON)))
    }

    async fn answer(
        &self,
        action: &RolloutAction,
        visit: &Visit,
        result: ActionResult,
        message: String,
        now: Timestamp,
    ) -> Result<Next, ActionError> {
        let message = crate::runtime::conditions::truncate(&message, 1024).to_owned();
        let status = RolloutActionStatus {
            result: Some(result),
            message,
            time: Some(Time(now)),
        };
        visit.write_status(action, &status, StatusWrite::urgent()).await?;
        if result == ActionResult::Rejected {
            visit.note(Note::warning("ActionRejected", status.message));
        }
        Ok(Next::on_change())
    }
}

/// Whether the API server holds another version of the record that a command is about than the one it is judged by. A refusal is
/// final, and who gave the command may have seen what the caches have not: so it is never given on old news.
async fn is_behind(
    action: &RolloutAction,
    standpoint: &Standpoint,
    records: &[Revision],
    visit: &Visit,
) -> Result<bool, ActionError> {
    let expected = action.spec.expect.as_ref().map(|expect| &expect.revision);
    let Some(name) = expected.or(standpoint.stable.as_ref()) else {
        return Ok(false);
    };
    let live: Option<ControllerRevision> = visit.read(&Key::new(&visit.key().namespace, name)).await?;
    let is_of_pool =
        |live: &ControllerRevision| live.labels().get(names::POOL) == Some(&action.spec.pool_ref.name);
    let live = live.filter(is_of_pool);
    let known = records.iter().find(|known| known.object.name_any() == *name);
    Ok(live.map(|live| live.resource_version()) != known.map(|known| known.object.resource_version()))
}

fn is_decided(action: &RolloutAction) -> bool {
    action
        .status
        .as_ref()
        .is_some_and(|status| status.result.is_some())
}

/// The place of a command among those of its pool.
fn order(action: &RolloutAction) -> (Option<Timestamp>, String) {
    (action.creation_timestamp().map(|time| time.0), action.name_any())
}

/// The patch that makes the pool an owner, so that commands go with it; none when it is one.
fn adoption(action: &RolloutAction, pool: &AgentPool) -> Option<Action> {
    let owners = action.owner_references();
    if owners.iter().any(|owner| owner.uid == uid_of(pool)) || seeded::has(Bug::NoAdoption) {
        return None;
    }
    let ours = OwnerReference {
        controller: None,
        ..owned_by(pool)
    };
    let is_other =
        |owner: &&OwnerReference| owner.kind != AgentPool::kind(&()) || owner.name != pool.name_any();
    let all: Vec<_> = owners.iter().filter(is_other).cloned().chain([ours]).collect();
    Some(Action::patch_exactly(
        action,
        json!({"metadata": {"ownerReferences": all}}),
    ))
}

/// Deletions of the oldest decided commands beyond [`KEPT`].
fn surplus(siblings: &[Arc<RolloutAction>]) -> Vec<Action> {
    let mut decided: Vec<_> = siblings.iter().filter(|action| is_decided(action)).collect();
    decided.sort_by_key(|action| std::cmp::Reverse(order(action)));
    decided
        .into_iter()
        .skip(KEPT)
        .map(|action| Action::delete(&**action))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn action(name: &str, second: i64, decided: bool, owners: serde_json::Value) -> RolloutAction {
        let status = if decided {
            json!({"result": "Applied"})
        } else {
            json!({})
        };
        serde_json::from_value(json!({
            "apiVersion": "flotilla.dev/v1alpha1", "kind": "RolloutAction",
            "metadata": {
                "namespace": "shop", "name": name, "uid": name, "ownerReferences": owners,
                "creationTimestamp": Timestamp::from_second(second).unwrap().to_string(),
            },
            "spec": {"poolRef": {"name": "support"}, "type": "Restart"},
            "status": status,
        }))
        .unwrap()
    }

    fn pool(uid: &str) -> AgentPool {
        serde_json::from_value(json!({
            "apiVersion": "flotilla.dev/v1alpha1", "kind": "AgentPool",
            "metadata": {"namespace": "shop", "name": "support", "uid": uid},
            "spec": {"agent": {"image": "a"}},
        }))
        .unwrap()
    }

    #[test]
    fn the_oldest_decided_go_and_open_ones_stay() {
        let mut all: Vec<_> = (0..23)
            .map(|at| Arc::new(action(&format!("a-{at:02}"), at, true, json!([]))))
            .collect();
        all.push(Arc::new(action("open", 0, false, json!([]))));
        let names: Vec<_> = surplus(&all)
            .into_iter()
            .map(|action| match action {
                Action::Delete { target, .. } => target.key.name,
                other => panic!("unexpected {other:?}"),
            })
            .collect();
        assert_eq!(names, ["a-02", "a-01", "a-00"]);
    }

    #[test]
    fn a_pool_of_the_same_name_takes_over_from_its_predecessor() {
        let patched = |owners: serde_json::Value| match adoption(&action("a", 0, false, owners), &pool("u-2"))
        {
            Some(Action::Patch { patch, .. }) => Some(patch["metadata"]["ownerReferences"].clone()),
            _ => None,
        };
        let of = |uid: &str| json!({"apiVersion": "flotilla.dev/v1alpha1", "kind": "AgentPool", "name": "support", "uid": uid});
        let person = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "c", "uid": "c"});
        assert_eq!(patched(json!([of("u-2")])), None);
        let owners = patched(json!([person, of("u-1")])).unwrap();
        let uids: Vec<_> = owners
            .as_array()
            .unwrap()
            .iter()
            .map(|owner| owner["uid"].as_str().unwrap())
            .collect();
        assert_eq!(uids, ["c", "u-2"]);
    }
}
