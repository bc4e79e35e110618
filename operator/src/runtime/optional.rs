//! A kind that a cluster need not have, because its definition is somebody else's.
//!
//! Its cache is asked for once at the start. Where the API server does not know the kind, or does not let us read it, the watch
//! rests until somebody [wants](Optional::want) the kind, and then tries again every few seconds: so a cluster without it pays one
//! request, and one that gets it later needs no restart. Nobody waits for such a cache at the start.

use std::fmt;
use std::sync::Arc;

use tokio::sync::watch;

use super::cache::Cache;

/// Whether the API server serves a kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Presence {
    /// It was not asked yet, or has not answered.
    #[default]
    Unknown,
    /// Its objects are in the cache.
    Present,
    /// It does not know the kind.
    Absent,
    /// It does not let us read the kind.
    Forbidden,
}

/// The cache of a kind that need not be there. Cheap to clone.
pub struct Optional<K> {
    /// The objects; none while the kind is not [`Presence::Present`].
    pub cache: Cache<K>,
    pub(super) link: Link,
}

impl<K> Optional<K> {
    /// Whether the kind is there, as of the last answer.
    pub fn presence(&self) -> Presence {
        self.link.presence()
    }

    /// From now on the kind is looked for also where it is not there.
    pub fn want(&self) {
        self.link
            .0
            .wanted
            .send_if_modified(|wanted| !std::mem::replace(wanted, true));
    }
}

impl<K> Clone for Optional<K> {
    fn clone(&self) -> Self {
        Self {
            cache: self.cache.clone(),
            link: self.link.clone(),
        }
    }
}

impl<K> fmt::Debug for Optional<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Optional({:?}, {:?})", self.cache, self.presence())
    }
}

/// What the informer and the owner of the cache tell each other.
#[derive(Clone, Debug)]
pub(super) struct Link(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    wanted: watch::Sender<bool>,
    /// By shard (a watched namespace, or "" for all), all of them from the start: one that is not there is enough.
    presence: parking_lot::Mutex<std::collections::BTreeMap<String, Presence>>,
}

impl Link {
    pub(super) fn new() -> Self {
        Self(Arc::new(Shared {
            wanted: watch::Sender::new(false),
            presence: parking_lot::Mutex::default(),
        }))
    }

    fn presence(&self) -> Presence {
        let shards = self.0.presence.lock();
        let worst = shards.values().find(|presence| **presence != Presence::Present);
        worst.copied().unwrap_or(Presence::Present)
    }

    pub(super) fn set(&self, shard: &str, presence: Presence) {
        self.0.presence.lock().insert(shard.to_owned(), presence);
    }

    /// Resolves once somebody wants the kind.
    pub(super) async fn wanted(&self) {
        // The sender lives in `self`.
        let _ = self.0.wanted.subscribe().wait_for(|wanted| *wanted).await;
    }
}

/// What an error of a list or a watch says about the kind; none where it says something else.
pub(super) fn absence(error: &kube::runtime::watcher::Error) -> Option<Presence> {
    use kube::runtime::watcher::Error;
    let code = match error {
        Error::InitialListFailed(kube::Error::Api(status))
        | Error::WatchStartFailed(kube::Error::Api(status))
        | Error::WatchFailed(kube::Error::Api(status)) => status.code,
        Error::WatchError(status) => status.code,
        _ => return None,
    };
    match code {
        404 => Some(Presence::Absent),
        403 => Some(Presence::Forbidden),
        _ => None,
    }
}
