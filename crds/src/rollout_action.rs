//! `RolloutAction`: a command to a release, as an object.
//!
//! Commands are objects of their own, not fields of the pool: they have their own RBAC (on-call may abort without
//! being able to change the image), leave an audit trail, and do not fight GitOps over `spec`.

#![allow(clippy::duplicated_attributes, reason = "each printcolumn has the same keys")]

use crate::common::LocalRef;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A command to a pool's release, given once and answered in status.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "flotilla.dev",
    version = "v1alpha1",
    kind = "RolloutAction",
    plural = "rolloutactions",
    shortname = "raction",
    category = "flotilla",
    namespaced,
    status = "RolloutActionStatus",
    derive = "PartialEq",
    doc = "RolloutAction is a command to a pool's release, given once and answered in status.",
    printcolumn(name = "Pool", type_ = "string", json_path = ".spec.poolRef.name"),
    printcolumn(name = "Type", type_ = "string", json_path = ".spec.type"),
    printcolumn(name = "Result", type_ = "string", json_path = ".status.result"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(
    validation = Rule::new("self == oldSelf")
        .message("a RolloutAction cannot be changed: it is a command; create a new one (metadata.generateName helps)"),
    validation = Rule::new("self.type == 'Restart' || has(self.expect)")
        .message("expect: every command but Restart must say which revision it means, so that a late command does not hit another release; write expect: {revision: <pool>-<hash>} as the pool's status shows it"),
    validation = Rule::new("!has(self.expect) || self.expect.revision.startsWith(self.poolRef.name + '-')")
        .message("expect.revision must be a revision of the pool in poolRef, written as its status shows it: <pool>-<hash>"),
    validation = Rule::new("!has(self.expect) || !has(self.expect.step) || self.type in ['Promote', 'PromoteFull', 'SkipStep', 'Abort']")
        .message("expect.step is the step of a release under way; leave it out for Restart and Retry"),
    validation = Rule::new("self.type != 'Promote' && self.type != 'SkipStep' || has(self.expect) && has(self.expect.step)")
        .message("expect.step: Promote and SkipStep must say which step they mean, so that one given twice passes one step; write the index that status.rollout.step shows"),
    validation = Rule::new("self.type != 'Restart' || !has(self.expect) || !has(self.expect.attempt)")
        .message("expect.attempt counts the releases of a candidate, and Restart is about the revision that serves; leave it out")
)]
#[serde(rename_all = "camelCase")]
pub struct RolloutActionSpec {
    /// poolRef names the AgentPool in this namespace.
    pub pool_ref: LocalRef,
    /// type of command: Restart replaces the pods of the serving revision batch by batch; Abort stops the release and
    /// returns to the stable revision; Retry releases a rejected revision again; Promote approves the present step, whose
    /// evidence is there (approval: Manual) or is not decided in time; SkipStep passes it without evidence; PromoteFull
    /// passes all that are left, so that all the traffic comes.
    #[serde(rename = "type")]
    pub type_: ActionType,
    /// expect is what must be true when the command is carried out; otherwise it is Rejected with a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<Expect>,
    /// reason for people and the audit trail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub reason: Option<String>,
}

/// The commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ActionType {
    /// Replaces the pods of the serving revision batch by batch.
    Restart,
    /// Stops the release and returns to the stable revision.
    Abort,
    /// Releases a rejected revision again.
    Retry,
    /// Approves the present step.
    Promote,
    /// Passes the present step without evidence.
    SkipStep,
    /// Passes all steps that are left.
    PromoteFull,
}

impl ActionType {
    /// The value as the API spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Restart => "Restart",
            Self::Abort => "Abort",
            Self::Retry => "Retry",
            Self::Promote => "Promote",
            Self::SkipStep => "SkipStep",
            Self::PromoteFull => "PromoteFull",
        }
    }
}

/// What a command expects to find.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Expect {
    /// revision meant: the rejected one for Retry, the stable one for Restart, else the candidate.
    #[schemars(length(min = 1, max = 63))]
    pub revision: String,
    /// attempt meant. Default: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    pub attempt: Option<i32>,
    /// step meant, from 0, as `status.rollout.step.index` shows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 20))]
    pub step: Option<i32>,
}

/// The answer to a command.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RolloutActionStatus {
    /// result: Applied or Rejected; absent until decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "ActionResult")]
    pub result: Option<ActionResult>,
    /// message in one sentence.
    #[serde(default)]
    #[schemars(length(max = 1024))]
    pub message: String,
    /// time at which it was decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<Time>,
}

/// The results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ActionResult {
    /// The command was carried out.
    Applied,
    /// What the command expected was not so.
    Rejected,
}
