//! Watches: what happened since a version, as it happens, with bookmarks.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use super::failure::Failure;
use super::request::{Path, Request, View};
use super::selector::Selector;
use super::{Call, metadata_only};
use crate::cluster::Cluster;
use crate::kinds::KindId;
use crate::pulse::Changes;
use crate::state::State;

/// How long a watch lasts that says nothing about it.
const LONGEST: Duration = Duration::from_secs(1800);
/// How often a quiet watch is told the version.
const BOOKMARKS: Duration = Duration::from_secs(60);
/// How long before its end a watch is told the version.
const LAST_BOOKMARK: Duration = Duration::from_secs(2);

/// A watch that was asked for.
#[derive(Clone, Debug)]
pub struct Plan {
    kind: KindId,
    namespace: Option<String>,
    selector: Selector,
    view: View,
    /// `None` for "from now, with all that is there".
    since: Option<u64>,
    /// Whether the end of what is there is told by a bookmark.
    tell_end: bool,
    bookmarks: bool,
    length: Duration,
}

/// Understands a request for a watch.
///
/// # Errors
/// 400.
pub fn plan(request: &Request, path: &Path, call: &Call<'_>) -> Result<Plan, Failure> {
    let query = &request.query;
    let version = query.get("resourceVersion").unwrap_or_default();
    let initial = query.flag("sendInitialEvents");
    let since = match version {
        "" | "0" => None,
        _ if initial => None,
        text => Some(text.parse().map_err(|_| {
            Failure::bad_request(format!("invalid resource version {text:?}: it is no number"))
        })?),
    };
    Ok(Plan {
        kind: call.id,
        namespace: path.namespace.clone(),
        selector: Selector::parse(call.kind, query.get("labelSelector"), query.get("fieldSelector"))?,
        view: request.view,
        since,
        tell_end: initial,
        bookmarks: query.flag("allowWatchBookmarks"),
        length: query
            .number("timeoutSeconds")
            .map_or(LONGEST, Duration::from_secs),
    })
}

struct Watcher {
    cluster: Cluster,
    changed: Changes,
    plan: Plan,
    since: u64,
    begun: bool,
    /// It has once been up to date.
    live: bool,
    over: bool,
    end: Instant,
    bookmark: Instant,
    waiting: VecDeque<Bytes>,
}

/// The lines of a watch, one event each.
pub fn stream(cluster: Cluster, plan: Plan) -> impl Stream<Item = Bytes> + Send + 'static {
    let now = Instant::now();
    let end = now + plan.length;
    let watcher = Watcher {
        changed: cluster.changes_of(plan.kind),
        since: plan.since.unwrap_or_default(),
        begun: plan.since.is_some(),
        live: false,
        over: false,
        end,
        bookmark: next_bookmark(now, end),
        waiting: VecDeque::new(),
        cluster,
        plan,
    };
    futures::stream::unfold(watcher, |mut watcher| async move {
        let line = watcher.next().await?;
        Some((line, watcher))
    })
}

fn next_bookmark(now: Instant, end: Instant) -> Instant {
    let last = end.checked_sub(LAST_BOOKMARK).unwrap_or(end);
    if now < last {
        (now + BOOKMARKS).min(last)
    } else {
        end
    }
}

impl Watcher {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(line) = self.waiting.pop_front() {
                return Some(line);
            }
            if self.over {
                return None;
            }
            self.changed.mark_seen();
            let cluster = self.cluster.clone();
            cluster.with(|state| self.collect(state));
            if !self.waiting.is_empty() {
                continue;
            }
            let now = Instant::now();
            if now >= self.end {
                return None;
            }
            if self.plan.bookmarks && now >= self.bookmark {
                self.bookmark = next_bookmark(now, self.end);
                let version = self.since;
                let cluster = self.cluster.clone();
                cluster.with(|state| self.push_bookmark(state, version, false));
                continue;
            }
            let wake = if self.plan.bookmarks {
                self.bookmark.min(self.end)
            } else {
                self.end
            };
            // Whether it was a change or the time is seen in the next round.
            let _ = timeout_at(wake, self.changed.changed()).await;
        }
    }

    /// Takes what is new.
    fn collect(&mut self, state: &State) {
        let Self { plan, waiting, .. } = self;
        let namespace = plan.namespace.as_deref();
        // What nobody had to tell it is nothing it has missed, whatever history is still kept.
        let is_current = self.live && state.store.changed(plan.kind) <= self.since;
        self.live = true;
        if is_current {
            self.since = state.store.revision();
            return;
        }
        if !self.begun {
            self.begun = true;
            for (_, object) in state.store.of_kind(plan.kind, namespace) {
                if plan.selector.matches(object) {
                    waiting.push_back(line("ADDED", object, plan.view));
                }
            }
            self.since = state.store.revision();
            if plan.tell_end {
                self.push_bookmark(state, self.since, true);
            }
            return;
        }
        let news = match state.store.since(self.since) {
            Ok(news) => news,
            Err(oldest) => {
                let message = format!("too old resource version: {} ({oldest})", self.since);
                let line =
                    json!({"type": "ERROR", "object": Failure::expired(message).body()}).to_string() + "\n";
                waiting.push_back(line.into());
                self.over = true;
                return;
            }
        };
        for change in news {
            let is_ours = change.key.kind == plan.kind
                && namespace.is_none_or(|namespace| change.key.namespace == namespace);
            if !is_ours {
                continue;
            }
            if let Some((type_, object)) = change.told(|object| plan.selector.matches(object)) {
                waiting.push_back(line(type_, &object, plan.view));
            }
        }
        self.since = self.since.max(state.store.revision());
    }

    fn push_bookmark(&mut self, state: &State, version: u64, is_end: bool) {
        let kind = state.registry.get(self.plan.kind);
        let mut object = json!({
            "kind": kind.kind, "apiVersion": kind.api_version(),
            "metadata": {"resourceVersion": version.to_string(), "creationTimestamp": null},
        });
        if is_end {
            object["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        if self.plan.view == View::Metadata {
            object = metadata_only(&object);
        }
        let line = json!({"type": "BOOKMARK", "object": object}).to_string() + "\n";
        self.waiting.push_back(line.into());
    }
}

fn line(type_: &str, object: &Value, view: View) -> Bytes {
    let line = match view {
        View::Full => format!("{{\"type\":\"{type_}\",\"object\":{object}}}\n"),
        View::Metadata => {
            format!("{{\"type\":\"{type_}\",\"object\":{}}}\n", metadata_only(object))
        }
    };
    line.into()
}
