//! What a reconciler is given: one visit to one object.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::NamespaceResourceScope;
use kube::api::PostParams;
use kube::{Api, Resource};
use parking_lot::Mutex;
use serde::{Serialize, de::DeserializeOwned};

use super::action::{Action, Applied, Child, Ownership};
use super::errors::Error;
use super::events::{Note, Regarding};
use super::key::Key;
use super::manager::Context;
use super::status::{StatusOutcome, StatusWrite};

/// What the API server says to a dry run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DryRun {
    /// It would accept the object.
    Accepted,
    /// It refuses it, with this HTTP status and this sentence.
    Rejected {
        /// HTTP status: 403 (quota, Pod Security, policy), 422 (invalid) …
        code: u16,
        /// The server's sentence.
        message: String,
    },
}

/// One visit of a reconciler to one object.
pub struct Visit {
    pub(super) context: Arc<Context>,
    pub(super) controller: &'static str,
    pub(super) key: Key,
    pub(super) regarding: Regarding,
    /// The earliest time a deferred write wants the next visit.
    pub(super) again: Mutex<Option<Duration>>,
}

impl Visit {
    /// The time of the day. Decisions take it as a parameter.
    pub fn now(&self) -> Timestamp {
        self.context.clock.now()
    }

    /// The visited object.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Carries the actions out in their order; stops at the first that fails. What is already as desired costs no
    /// request. Each write needs leadership for longer than a call can take.
    ///
    /// # Errors
    /// [`Error::NameTaken`], [`Error::BeingCollected`], [`Error::Conflict`], [`Error::Refused`],
    /// [`Error::Unavailable`], [`Error::NotLeader`].
    pub async fn execute(&self, actions: Vec<Action>) -> Result<Applied, Error> {
        super::executor::execute(self, actions).await
    }

    /// As [`Visit::execute`], for objects that another controller plans from: its next visit of `reader` waits, too, until
    /// the caches have seen them.
    ///
    /// # Errors
    /// As [`Visit::execute`].
    pub async fn execute_for(
        &self,
        reader: (&'static str, &Key),
        actions: Vec<Action>,
    ) -> Result<Applied, Error> {
        let applied = self.execute(actions).await;
        self.context.gate.share((self.controller, &self.key), reader);
        applied
    }

    /// Writes `desired` to the status of `object` (as it was read from the cache) if it differs, at most once a
    /// second; see [`StatusWrite`]. A deferred write brings the next visit forward by itself.
    ///
    /// # Errors
    /// As [`Visit::execute`].
    pub async fn write_status<K, S>(
        &self,
        object: &K,
        desired: &S,
        how: StatusWrite,
    ) -> Result<StatusOutcome, Error>
    where
        K: Resource<DynamicType = ()> + Serialize,
        S: Serialize,
    {
        let outcome = super::status::write(self, object, desired, how).await?;
        if let StatusOutcome::Deferred(pause) = outcome {
            self.visit_again_in(pause);
        }
        Ok(outcome)
    }

    /// Sends an Event on the visited object, best effort; never waits, never fails.
    pub fn note(&self, note: Note) {
        self.context.events.publish(self.regarding.clone(), note);
    }

    /// Makes sure that the next visit is at most `pause` away.
    pub fn visit_again_in(&self, pause: Duration) {
        let mut again = self.again.lock();
        *again = Some(again.map_or(pause, |earlier| earlier.min(pause)));
    }

    /// Reads one object live, for kinds whose content is not cached (bytes of a ConfigMap). `None` when it is not
    /// there. Call it only when something cached says that the content changed: steady state makes no requests.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Unavailable`].
    pub async fn read<K>(&self, key: &Key) -> Result<Option<K>, Error>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
    {
        let api = Api::<K>::namespaced(self.context.client.clone(), &key.namespace);
        let action = || format!("read {} {key}", K::kind(&()));
        api.get_opt(&key.name)
            .await
            .map_err(|error| Error::from_kube(action(), error))
    }

    /// Asks the API server whether it would accept the creation of `object` (`dryRun=All`: defaulting, validation,
    /// admission and quota run, nothing is stored). It appears in audit logs as a create.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when it could not be asked, [`Error::Conflict`].
    pub async fn dry_run<K>(&self, object: &K) -> Result<DryRun, Error>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Serialize
            + DeserializeOwned
            + Debug,
    {
        let child = Child::new(object, Ownership::Controller);
        let api = super::executor::dynamic_api(&self.context.client, &child.resource, &child.key);
        let params = PostParams {
            dry_run: true,
            field_manager: Some(child.field_manager()),
        };
        let body = super::executor::dynamic_object(&child)?;
        let action = || format!("check {} {}", child.resource.kind, child.key);
        match api
            .create(&params, &body)
            .await
            .map_err(|error| Error::from_kube(action(), error))
        {
            Ok(_) => Ok(DryRun::Accepted),
            // Validation and admission come before the look-up of the name.
            Err(Error::Refused { code: 409, .. }) => Ok(DryRun::Accepted),
            Err(Error::Refused { code, message, .. }) => Ok(DryRun::Rejected { code, message }),
            Err(error) => Err(error),
        }
    }

    /// The shared handles, for what the methods above do not cover.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }
}
