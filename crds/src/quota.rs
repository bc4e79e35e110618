//! `ModelProvider.spec.quotas`: limits that all gateways of a namespace hold together.

use crate::rules;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("self.resource == 'Concurrency' ? !has(self.window) && !has(self.windowSeconds) : has(self.window) != has(self.windowSeconds)")
        .message("quotas: write exactly one of windowSeconds and window, for example windowSeconds: 60; resource Concurrency has neither"),
    validation = Rule::new("self.timeZone == 'UTC' || has(self.window) && (self.window == 'Day' || self.window == 'Month')")
        .message("quotas: timeZone is for window: Day or Month; leave it out"),
    validation = Rule::new("!has(self.slope) || has(self.windowSeconds) || has(self.window) && (self.window == 'Minute' || self.window == 'Hour')")
        .message("quotas: slope needs windowSeconds, or window: Minute or Hour"),
    validation = Rule::new("!has(self.slope) || self.slope.start <= self.limit")
        .message("quotas: slope.start must be at most limit"),
    validation = Rule::new("self.floor <= self.limit")
        .message("quotas: floor must be at most limit; it is meant to be a small part of it, for example limit divided by ten times the gateway's replicas")
)]
#[serde(rename_all = "camelCase")]
pub struct Quota {
    /// name of the quota, unique in its provider, for example `rpm`. Refusals, metrics and the status show it.
    #[schemars(length(min = 1, max = 40))]
    #[x_kube(validation = rules::entry_name())]
    pub name: String,
    /// resource that is counted: Requests; InputTokens; OutputTokens; Tokens (input and output together); or Concurrency
    /// (requests that have not ended, without a window).
    pub resource: QuotaResource,
    /// limit in units of the resource: what all gateways of the namespace together may use in one window, for example
    /// 1000000.
    #[schemars(range(min = 1, max = 1_000_000_000_000_i64))]
    pub limit: i64,
    /// windowSeconds is the window's length. It holds for every stretch of that length, wherever it begins, so it is right
    /// whether the provider counts by the clock or by a sliding window. At most 31 days. Default: see window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 2_678_400))]
    pub window_seconds: Option<i32>,
    /// window is Minute or Hour (the same as 60 or 3600 windowSeconds), or Day or Month: of the calendar, from midnight in
    /// timeZone. Use windowSeconds: 86400 where a provider's day is the last 24 hours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "QuotaWindow")]
    pub window: Option<QuotaWindow>,
    /// timeZone in whose midnight a window of Day or Month begins, by its name in the time zone database, for example
    /// America/Los_Angeles. Default UTC.
    #[serde(default = "utc")]
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z][-+_/A-Za-z0-9]*$')").message("timeZone must be a name of the time zone database, for example Europe/Berlin"))]
    pub time_zone: String,
    /// models whose requests count. Default: those of all models. A request that does not say its model counts in every
    /// quota.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 253)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub models: Vec<String>,
    /// slope bounds how fast use may grow, for providers that refuse sudden traffic although it is below their limit.
    /// Default: not at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slope: Option<QuotaSlope>,
    /// floor is what each gateway replica may go on using, per window, when it cannot reach the one that deals out the
    /// quota. It is set aside for every replica, so keep it small. In windows of Day and Month any floor above 0 means: what
    /// is left of the replica's share. Default 0: after the replica's share its requests wait.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1_000_000_000_000_i64))]
    pub floor: i64,
}

/// What a quota counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum QuotaResource {
    /// Requests.
    #[default]
    Requests,
    /// Input tokens.
    InputTokens,
    /// Output tokens.
    OutputTokens,
    /// Input and output tokens together.
    Tokens,
    /// Requests that have not ended.
    Concurrency,
}

/// Windows that have a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum QuotaWindow {
    /// 60 seconds.
    Minute,
    /// 3600 seconds.
    Hour,
    /// From midnight to midnight.
    Day,
    /// From the first of a month to the next.
    Month,
}

/// How fast use may grow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct QuotaSlope {
    /// start in units per window that are always allowed, for example a tenth of the limit.
    #[schemars(range(min = 1, max = 1_000_000_000_000_i64))]
    pub start: i64,
    /// stepPercent by which a window may use more than the recent maximum. Default 20.
    #[serde(default = "step_percent")]
    #[schemars(range(min = 1, max = 1000))]
    pub step_percent: i32,
    /// memoryWindows that count as recent. After so many quiet windows use begins at start again. Default 15.
    #[serde(default = "memory_windows")]
    #[schemars(range(min = 1, max = 1000))]
    pub memory_windows: i32,
}

/// How much of a quota is used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct QuotaStatus {
    /// name of the quota.
    #[schemars(length(min = 1, max = 40))]
    pub name: String,
    /// used units of the window that is on, those set aside for requests under way among them.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub used: i64,
    /// limit that is in force: the spec's, or less while the provider's headers or the slope say so.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub limit: i64,
    /// throttled requests: made to wait or refused because of this quota, by the gateway processes that run now since
    /// they were started.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub throttled: i64,
}

fn utc() -> String {
    "UTC".into()
}
fn step_percent() -> i32 {
    20
}
fn memory_windows() -> i32 {
    15
}
