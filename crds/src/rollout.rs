//! `spec.rollout` of an AgentPool: how a new revision is released, and what it is judged by.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::common::LocalRef;
use crate::release_test::{SmokeTest, StepLoadTest};
use crate::rules;
use crate::sourced_metric::SourcedMetric;
use crate::traffic::Preview;

/// How a new revision replaces the one that serves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("self.type == 'RollingUpdate' || !has(self.rollingUpdate)")
        .message("rollingUpdate holds the settings of type RollingUpdate; remove it or change type"),
    validation = Rule::new("self.type == 'Canary' || !has(self.canary)")
        .message("canary holds the settings of type Canary; remove it or write type: Canary"),
    validation = Rule::new("self.type == 'BlueGreen' || !has(self.blueGreen)")
        .message("blueGreen holds the settings of type BlueGreen; remove it or write type: BlueGreen"),
    validation = Rule::new("self.type != 'RollingUpdate' || !has(self.preview)")
        .message("preview is for a Canary or a BlueGreen release; a RollingUpdate has no time for testers: remove preview or change type"),
    validation = Rule::new("self.type != 'RollingUpdate' || !has(self.analysis)")
        .message("analysis judges a Canary or a BlueGreen release; a RollingUpdate goes on by readiness alone: remove analysis or change type"),
    validation = Rule::new("self.type == 'Canary' || !has(self.analysis) || !has(self.analysis.topUp)")
        .message("analysis.topUp is for the steps of a Canary; leave it out, or write type: Canary"),
    validation = Rule::new("self.type != 'RollingUpdate' || !has(self.smokeTests) || self.smokeTests.all(t, t.when == 'BeforeTraffic')")
        .message("smokeTests: after a RollingUpdate there is no way back, so its tests run before traffic only; write when: BeforeTraffic or change type")
)]
#[serde(rename_all = "camelCase")]
pub struct Rollout {
    /// type of release: RollingUpdate replaces replicas in batches, the traffic following the available share. Canary raises
    /// the new revision's traffic step by step, each step judged by evidence. BlueGreen starts all replicas of the new
    /// revision beside the old ones and swaps the traffic at once. Default RollingUpdate.
    #[serde(default, rename = "type")]
    pub type_: RolloutType,
    /// rollingUpdate holds the settings of type RollingUpdate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rolling_update: Option<RollingUpdate>,
    /// canary holds the settings of type Canary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<Canary>,
    /// blueGreen holds the settings of type BlueGreen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blue_green: Option<BlueGreen>,
    /// analysis says what a new revision is judged by while it has traffic (Canary and BlueGreen). Default: failed
    /// requests against those of the revision that serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub analysis: Option<Analysis>,
    /// smokeTests that a new revision must pass before it gets traffic, and, where a test says so, again when it has all of
    /// it. They go to the revision's own Service, at the same time unless one depends on another. One that fails stops the
    /// release. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(
        merge_strategy = ListMerge::Map(vec!["name".into()]),
        validation = Rule::new("self.all(t, !has(t.dependsOn) || t.dependsOn.all(d, d != t.name && self.exists(o, o.name == d)))")
            .message("smokeTests: dependsOn must name other tests of the list, further up"),
        validation = Rule::new("self.all(t, !has(t.dependsOn) || self.all(o, !(o.name in t.dependsOn) || o.when == 'BeforeAndAfter' || o.when == t.when))")
            .message("smokeTests: a test must run whenever one that depends on it does; give both the same when, or this one BeforeAndAfter")
    )]
    pub smoke_tests: Vec<SmokeTest>,
    /// initialGates says what the first revision of a pool has to pass. Enforce: the smokeTests that run before traffic, so that the
    /// pool is not Ready and serves nobody until it has passed them; Skip: nothing, since there is nothing to go back to. Default
    /// Enforce.
    #[serde(default)]
    pub initial_gates: InitialGates,
    /// preview lets testers in before everybody else: requests with this header go to the new revision as soon as it has a ready
    /// replica, whatever its weight, and count for nobody (Canary and BlueGreen). Without a release they go where all others go.
    /// Default: none do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preview: Option<Preview>,
    /// paused stops a release where it stands; what serves goes on serving. Default false.
    #[serde(default)]
    pub paused: bool,
    /// pinnedRevision goes (back) to this revision whatever `spec.agent` says, for example `support-6f9c4d`. It must
    /// be in the history. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub pinned_revision: Option<String>,
    /// rollbackWindowRevisions is how many of the revisions that served last are taken back without being judged again,
    /// batch by batch. 0 judges every one. Default 3.
    #[serde(default = "three")]
    #[schemars(range(min = 0, max = 50))]
    pub rollback_window_revisions: i32,
    /// settleSeconds that the spec and the ConfigMaps it refers to must rest before a release starts, so that one
    /// sync of many objects is one revision. Default 5.
    #[serde(default = "five")]
    #[schemars(range(min = 0, max = 3600))]
    pub settle_seconds: i32,
    /// progressDeadlineSeconds a release may wait for its pods without progress before it is stopped (`Stalled`); what
    /// serves goes on serving. It does not run while a step is judged. Default 600.
    #[serde(default = "ten_minutes")]
    #[schemars(range(min = 10, max = 86400))]
    pub progress_deadline_seconds: i32,
}

impl Default for Rollout {
    fn default() -> Self {
        Self {
            type_: RolloutType::default(),
            rolling_update: None,
            canary: None,
            blue_green: None,
            analysis: None,
            smoke_tests: Vec::new(),
            initial_gates: InitialGates::default(),
            preview: None,
            paused: false,
            pinned_revision: None,
            rollback_window_revisions: 3,
            settle_seconds: 5,
            progress_deadline_seconds: 600,
        }
    }
}

/// The types of release.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RolloutType {
    /// In batches; the traffic follows the available share.
    #[default]
    RollingUpdate,
    /// Step by step, each judged by evidence.
    Canary,
    /// All replicas beside the old ones, then all the traffic at once.
    BlueGreen,
}

/// Settings of a rolling update.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RollingUpdate {
    /// maxSurgePercent of `replicas` that may run in addition, rounded up: the size of a batch. Default 25.
    #[serde(default = "quarter")]
    #[schemars(range(min = 1, max = 100))]
    pub max_surge_percent: i32,
}

impl Default for RollingUpdate {
    fn default() -> Self {
        Self {
            max_surge_percent: 25,
        }
    }
}

/// Settings of a canary.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Canary {
    /// candidateMinReplicas is the fewest pods the new revision has while it has traffic, up to `replicas`: one pod on a bad
    /// node must not decide a release. With traffic.type ReplicaRatio each of them takes its part of the work: write 1 where the
    /// first step should be as small as it can be. Default 2.
    #[serde(default = "two")]
    #[schemars(range(min = 1, max = 1000))]
    pub candidate_min_replicas: i32,
    /// steps are the shares of the traffic at which the new revision must prove itself; 100 is implied. Default: 1, 10, 25
    /// and 50 %, starting at the smallest one that this pool's traffic can judge in time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    #[x_kube(
        merge_strategy = ListMerge::Atomic,
        validation = Rule::new("self.map(s, s.weight).isSorted() && self.all(s, self.exists_one(t, t.weight == s.weight))")
            .message("steps must have rising weights, for example 1, 10, 25, 50")
    )]
    pub steps: Vec<CanaryStep>,
    /// stableScale says what the old revision's pods do meanwhile: Keep keeps them all, so that the way back needs no new
    /// pods; Shrink gives up those whose traffic the new revision has taken over. Default Keep.
    #[serde(default)]
    pub stable_scale: StableScale,
    /// bakeSeconds after 100 % in which the new revision is still judged, against what the old one showed, and can still be
    /// led back by itself. 0 ends the release at once. Default 600.
    #[serde(default = "ten_minutes")]
    #[schemars(range(min = 0, max = 604800))]
    pub bake_seconds: i32,
    /// scaleDownDelaySeconds for which the old revision's pods stay after 100 %. With traffic.type ReplicaRatio they would go on
    /// working, so they go at once. Default 300.
    #[serde(default = "five_minutes")]
    #[schemars(range(min = 0, max = 604800))]
    pub scale_down_delay_seconds: i32,
    /// onUndecided says what happens when a step is not decided within its time: Hold waits on, for a person or for more
    /// evidence; Promote goes on; Abort leads back. Default Hold.
    #[serde(default)]
    pub on_undecided: OnUndecided,
}

impl Default for Canary {
    fn default() -> Self {
        Self {
            candidate_min_replicas: 2,
            steps: Vec::new(),
            stable_scale: StableScale::default(),
            bake_seconds: 600,
            scale_down_delay_seconds: 300,
            on_undecided: OnUndecided::default(),
        }
    }
}

/// One step of a canary.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("self.minDurationSeconds <= self.decideWithinSeconds")
        .message("minDurationSeconds must not be above decideWithinSeconds, or no step could be decided in time")
)]
#[serde(rename_all = "camelCase")]
pub struct CanaryStep {
    /// weight of the new revision, in percent.
    #[schemars(range(min = 1, max = 99))]
    pub weight: i32,
    /// ruleOutTimesWorse is the harm that must be ruled out before the weight rises: 3 means that it must be shown that the
    /// new revision does not fail three times as often as the old one (for each metric). Larger is decided sooner. Default 3.
    #[serde(default = "three")]
    #[schemars(range(min = 2, max = 1000))]
    pub rule_out_times_worse: i32,
    /// minDurationSeconds this step lasts at least. Default 300.
    #[serde(default = "five_minutes")]
    #[schemars(range(min = 0, max = 604800))]
    pub min_duration_seconds: i32,
    /// decideWithinSeconds after which `onUndecided` says what happens; the time of outages of both revisions does not count. Default 3600.
    #[serde(default = "hour")]
    #[schemars(range(min = 1, max = 2592000))]
    pub decide_within_seconds: i32,
    /// replicas of the new revision at this step, where it should have more than its weight needs. Never more than
    /// `spec.replicas`. Default: as many as the weight needs, at least `candidateMinReplicas`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    pub replicas: Option<i32>,
    /// approval is Automatic, or Manual: then a RolloutAction of type Promote is needed besides the evidence. Default
    /// Automatic.
    #[serde(default)]
    pub approval: Approval,
    /// loadTest that the new revision must pass at this step, besides the evidence: one that has Failed leads back. Default:
    /// none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_test: Option<StepLoadTest>,
}

/// What the first revision of a pool has to pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum InitialGates {
    /// Its smoke tests.
    #[default]
    Enforce,
    /// Nothing.
    Skip,
}

/// Who lets a step pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Approval {
    /// The evidence.
    #[default]
    Automatic,
    /// A person, once the evidence is there.
    Manual,
}

/// What the old revision's pods do during a canary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum StableScale {
    /// All stay.
    #[default]
    Keep,
    /// Those whose traffic has gone go.
    Shrink,
}

/// What happens when a step is not decided in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnUndecided {
    /// Waits on.
    #[default]
    Hold,
    /// Goes on.
    Promote,
    /// Leads back.
    Abort,
}

/// Settings of a blue-green release.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct BlueGreen {
    /// previewReplicas of the new revision before the swap is approved; all of them are there before the traffic is. Default:
    /// `spec.replicas`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    pub preview_replicas: Option<i32>,
    /// approval of the swap is Automatic, as soon as the new replicas are there, or Manual: then a RolloutAction of type
    /// Promote is needed. Default Automatic.
    #[serde(default)]
    pub approval: Approval,
    /// bakeSeconds after the swap in which the new revision is judged, against what the old one showed before it, and can be
    /// led back by itself. 0 ends the release at once. Default 600.
    #[serde(default = "ten_minutes")]
    #[schemars(range(min = 0, max = 604800))]
    pub bake_seconds: i32,
    /// scaleDownDelaySeconds for which the old revision's pods stay after the swap, so that the way back needs no new pods.
    /// Default 300.
    #[serde(default = "five_minutes")]
    #[schemars(range(min = 0, max = 604800))]
    pub scale_down_delay_seconds: i32,
}

impl Default for BlueGreen {
    fn default() -> Self {
        Self {
            preview_replicas: None,
            approval: Approval::default(),
            bake_seconds: 600,
            scale_down_delay_seconds: 300,
        }
    }
}

/// What a new revision is judged by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Analysis {
    /// strictness: with Standard, of 100 good releases at most 1 is led back, and of 100 that are as bad as a step must rule
    /// out at most 5 pass it; Relaxed: 5 and 10, decided sooner; Strict: 0.1 and 1, decided later. Default Standard.
    #[serde(default)]
    pub strictness: Strictness,
    /// errors judges failed requests: status 500 and above, a reset, a cut stream, a timeout.
    #[serde(default)]
    pub errors: ErrorAnalysis,
    /// latency judges how many requests take longer than each of some thresholds. Default: latency is not judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<LatencyAnalysis>,
    /// firstByte judges how many requests wait for the first byte of the answer's body for longer than each of some thresholds, for
    /// example `{thresholdsMilliseconds: [500, 1000, 2000]}`: what people feel of an agent that streams. Default: the first byte is
    /// not judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_byte: Option<LatencyAnalysis>,
    /// metrics whose numbers come from another source than the gateways: counts that are compared, or values with limits.
    /// Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub metrics: Vec<SourcedMetric>,
    /// topUp runs synthetic load through the gateway while a step of a canary has too little traffic to be judged. Default:
    /// none; such a step waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_up: Option<TopUp>,
    /// warmupSeconds at the start of each step whose requests do not count, on either side: new pods are cold. Default 30.
    #[serde(default = "half_minute")]
    #[schemars(range(min = 0, max = 3600))]
    pub warmup_seconds: i32,
}

impl Default for Analysis {
    fn default() -> Self {
        Self {
            strictness: Strictness::default(),
            errors: ErrorAnalysis::default(),
            latency: None,
            first_byte: None,
            metrics: Vec::new(),
            top_up: None,
            warmup_seconds: half_minute(),
        }
    }
}

/// Synthetic load for a quiet pool. Its requests carry the header `X-Flotilla-Synthetic: load-test`, cost tokens like any other, and
/// count on both revisions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TopUp {
    /// templateRef names a LoadTest of this namespace that is copied, with this pool as its target, and run again and again until
    /// the step is decided. One with `suspend: true` never runs itself.
    pub template_ref: LocalRef,
    /// minRequestsPerSecond of the whole pool below which the load begins, as a decimal string, for example `"0.5"`. Default
    /// `"1"`.
    #[serde(default = "one_per_second")]
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(validation = Rule::new(rules::RATE).message("topUp.minRequestsPerSecond must be a decimal string from \"0.001\" to \"100000\", for example \"0.5\""))]
    pub min_requests_per_second: String,
}

/// How sure a verdict must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Strictness {
    /// Decides sooner and errs more often.
    Relaxed,
    /// For production.
    #[default]
    Standard,
    /// Errs least and needs more traffic.
    Strict,
}

/// How failed requests are judged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ErrorAnalysis {
    /// mode is Enforce, or Observe: then errors are judged and shown, and decide nothing. Default Enforce.
    #[serde(default)]
    pub mode: AnalysisMode,
    /// tolerateWorsePercent: a revision that fails by so much more often than the old one is still good. Default 20.
    #[serde(default = "twenty")]
    #[schemars(range(min = 0, max = 1000))]
    pub tolerate_worse_percent: i32,
    /// acceptableErrorPercent of failed requests that is good enough whatever the old revision's is, for example `"1"`; `"0"`
    /// is none: then only the comparison counts. Default `"1"`.
    #[serde(default = "one_percent")]
    #[schemars(length(min = 1, max = 10))]
    #[x_kube(validation = rules::percent())]
    pub acceptable_error_percent: String,
    /// abortAbovePercent of failed requests leads back whatever the old revision's is, unless that one is degraded, too; for
    /// example `"5"`. Default: only the comparison counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 10))]
    #[x_kube(validation = rules::percent())]
    pub abort_above_percent: Option<String>,
}

impl Default for ErrorAnalysis {
    fn default() -> Self {
        Self {
            mode: AnalysisMode::default(),
            tolerate_worse_percent: 20,
            acceptable_error_percent: one_percent(),
            abort_above_percent: None,
        }
    }
}

/// How the time of an answer, or the time to its first byte, is judged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct LatencyAnalysis {
    /// mode is Enforce, or Observe: then the time is judged and shown, and decides nothing. Default Enforce.
    #[serde(default)]
    pub mode: AnalysisMode,
    /// thresholdsMilliseconds whose excess is counted, rising, for example `[1000, 2000, 4000, 8000]`: a few around what users
    /// notice, so that a shift of the body and one of the tail are both seen.
    #[schemars(length(min = 1, max = 8), inner(range(min = 1, max = 86400000)))]
    #[x_kube(
        merge_strategy = ListMerge::Set,
        validation = Rule::new("self.isSorted()").message("thresholdsMilliseconds must rise, for example [1000, 2000, 4000]")
    )]
    pub thresholds_milliseconds: Vec<i64>,
    /// tolerateWorsePercent: a revision that exceeds a threshold by so much more often than the old one is still good. Default 5.
    #[serde(default = "five")]
    #[schemars(range(min = 0, max = 1000))]
    pub tolerate_worse_percent: i32,
}

/// Whether a metric decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AnalysisMode {
    /// It decides.
    #[default]
    Enforce,
    /// It is only shown.
    Observe,
}

impl Rollout {
    /// The settings of a canary, with their defaults when the member is absent; none for another type.
    pub fn canary(&self) -> Option<Canary> {
        (self.type_ == RolloutType::Canary).then(|| self.canary.clone().unwrap_or_default())
    }

    /// The settings of a blue-green release, with their defaults when the member is absent; none for another type.
    pub fn blue_green(&self) -> Option<BlueGreen> {
        (self.type_ == RolloutType::BlueGreen).then(|| self.blue_green.clone().unwrap_or_default())
    }

    /// What a new revision is judged by, with its defaults.
    pub fn analysis(&self) -> Analysis {
        self.analysis.clone().unwrap_or_default()
    }
}

fn two() -> i32 {
    2
}
fn three() -> i32 {
    3
}
fn five() -> i32 {
    5
}
fn twenty() -> i32 {
    20
}
fn quarter() -> i32 {
    25
}
fn half_minute() -> i32 {
    30
}
fn five_minutes() -> i32 {
    300
}
fn ten_minutes() -> i32 {
    600
}
fn hour() -> i32 {
    3600
}
fn one_per_second() -> String {
    "1".to_owned()
}
fn one_percent() -> String {
    "1".to_owned()
}
