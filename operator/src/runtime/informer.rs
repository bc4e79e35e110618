//! Fills a [`Cache`] from kube's `watcher`.
//!
//! A watch lasts 25 s, after which it resumes from the last resourceVersion, a cheap request. With the watcher's
//! 5 s of grace a connection that died in silence is replaced after 30 s at most, not after 295. The plain list with a
//! consistent read is used, never streaming lists: those start from any old state of any API server.

use std::fmt::Debug;
use std::time::Duration;

use futures::{StreamExt as _, pin_mut};
use kube::core::DeserializeGuard;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tracing::{debug, warn};

use super::cache::{Cache, Relist, Undecodable};
use super::optional::{Link, Presence, absence};
use super::time::Jitter;
use crate::metrics::Metrics;

/// Length of one watch request, in seconds.
const WATCH_SECONDS: u32 = 25;
/// Objects per page of a list. All kinds are listed at once at the start, and a page is in memory as text and as
/// untrimmed objects at the same time: with the usual 500 that moment would be the operator's peak for ever.
const PAGE: u32 = 100;
/// First pause after a failed list or watch.
const MIN_PAUSE: Duration = Duration::from_millis(500);
/// Longest pause: an API server that is back is seen within this time.
const MAX_PAUSE: Duration = Duration::from_secs(4);
/// Pause before a kind that is not there is looked for again, once somebody wants it.
const ABSENT_PAUSE: Duration = Duration::from_secs(5);
/// A watch that worked this long starts with the first pause again.
const STEADY: Duration = Duration::from_secs(30);

/// What to select, and how to report.
#[derive(Clone)]
pub(super) struct Informer {
    pub(super) labels: Option<String>,
    pub(super) fields: Option<String>,
    pub(super) metrics: Metrics,
    pub(super) jitter: Jitter,
    /// Of a kind that need not be there.
    pub(super) link: Option<Link>,
}

/// An object as the watch delivers it: itself, or a guard around something that may not decode.
pub(super) trait Delivered<K>: Resource<DynamicType = ()> {
    fn open(self) -> Result<K, Undecodable>;
}

/// A kind whose objects always decode.
impl<K: Resource<DynamicType = ()>> Delivered<K> for K {
    fn open(self) -> Result<K, Undecodable> {
        Ok(self)
    }
}

/// A kind of which one object may not decode without stopping the others.
impl<K: Resource<DynamicType = ()>> Delivered<K> for DeserializeGuard<K> {
    fn open(self) -> Result<K, Undecodable> {
        self.0.map_err(|invalid| Undecodable {
            metadata: Box::new(invalid.metadata),
            error: invalid.error,
        })
    }
}

impl Informer {
    /// Watches for ever. `shard` is the watched namespace, or "" for all.
    pub(super) async fn run<K, D>(self, cache: Cache<K>, api: Api<D>, shard: String)
    where
        K: Resource<DynamicType = ()> + Send + Sync + 'static,
        D: Delivered<K> + Clone + DeserializeOwned + Debug + Send + 'static,
    {
        let kind = K::kind(&()).into_owned();
        let config = watcher::Config {
            label_selector: self.labels,
            field_selector: self.fields,
            ..watcher::Config::default().timeout(WATCH_SECONDS).page_size(PAGE)
        };
        let stream = watcher(api, config);
        pin_mut!(stream);
        let mut relist = Relist::default();
        let mut pause = MIN_PAUSE;
        let mut last_failure: Option<tokio::time::Instant> = None;
        while let Some(event) = stream.next().await {
            match event {
                Ok(watcher::Event::Init) => relist = Relist::default(),
                Ok(watcher::Event::InitApply(object)) => relist.add(&cache, opened(&kind, object)),
                Ok(watcher::Event::InitDone) => {
                    debug!(kind, "listed");
                    self.metrics.relist(&kind);
                    cache.finish(&shard, std::mem::take(&mut relist));
                    if let Some(link) = &self.link {
                        link.set(&shard, Presence::Present);
                    }
                }
                Ok(watcher::Event::Apply(object)) => cache.upsert(&shard, opened(&kind, object)),
                Ok(watcher::Event::Delete(object)) => cache.remove(&shard, object.meta()),
                // The version to resume from is compacted, as after a restart of the API server: the list comes next.
                Err(watcher::Error::WatchError(status)) if status.code == 410 => {
                    debug!(kind, message = status.message, "watch starts anew");
                }
                Err(error) if self.link.is_some() && absence(&error).is_some() => {
                    debug!(kind, error = %Chain(&error), "the kind is not served");
                    cache.finish(&shard, Relist::default());
                    if let (Some(link), Some(presence)) = (&self.link, absence(&error)) {
                        link.set(&shard, presence);
                        link.wanted().await;
                    }
                    tokio::time::sleep(self.jitter.spread(ABSENT_PAUSE)).await;
                }
                Err(error) => {
                    self.metrics.watch_error(&kind);
                    if last_failure.is_none_or(|last| last.elapsed() > STEADY) {
                        pause = MIN_PAUSE;
                        warn!(kind, error = %Chain(&error), "watch failed, trying again");
                    } else {
                        debug!(kind, error = %Chain(&error), "watch failed again");
                    }
                    tokio::time::sleep(self.jitter.spread(pause)).await;
                    pause = (pause * 2).min(MAX_PAUSE);
                    last_failure = Some(tokio::time::Instant::now());
                }
            }
        }
    }
}

fn opened<K, D: Delivered<K>>(kind: &str, object: D) -> Result<K, Undecodable> {
    let opened = object.open();
    if let Err(undecodable) = &opened {
        warn!(
            kind,
            namespace = undecodable.metadata.namespace,
            name = undecodable.metadata.name,
            error = undecodable.error,
            "object does not decode and is left alone"
        );
    }
    opened
}

/// An error with its sources, in one line.
pub(super) struct Chain<'a>(pub(super) &'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut last = self.0.to_string();
        f.write_str(&last)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            // kube's messages often contain their source already.
            let text = error.to_string();
            if !last.contains(&text) {
                write!(f, ": {text}")?;
            }
            last = text;
            source = error.source();
        }
        Ok(())
    }
}
