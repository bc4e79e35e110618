//! Follows the API server, with watches of its own.
//!
//! - The client does not retry by itself and every request has a time limit: kube's default would retry for minutes and a
//!   silently cut watch would stay stale for five.
//! - A watch lasts 25 s and is then resumed, so a dead connection is noticed within 30 s.
//! - While the API server is away the last configuration stays in force.
//! - An object that does not decode keeps its last good state and does not stop the others.
//!
//! All events that are there are taken in before a configuration is made of them, so a burst costs one. A configuration is made
//! of everything, which takes some 10 ms with a thousand pools; after it a pause that is a multiple of that lets events gather
//! ([`pause_after`]), so that where pools come and go all the time this does not take a processor.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use flotilla_crds::agent_pool::AgentPool;
use flotilla_crds::model_provider::ModelProvider;
use flotilla_crds::names;
use futures::{StreamExt as _, pin_mut};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::client::ClientBuilder;
use kube::core::DeserializeGuard;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client, Config as ClientConfig, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::issuer::{self, Issuer};
use super::translate::{self, Objects, SERVICE_NAME};
use super::{Config, Source};

/// Length of one watch request.
const WATCH_SECONDS: u32 = 25;
/// For a connection to the API server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Without a byte from the API server; more than a watch lasts.
const READ_TIMEOUT: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 10);
/// First pause after a failure.
const MIN_PAUSE: Duration = Duration::from_millis(250);
/// Longest pause: an API server that is back is seen within this time.
const MAX_PAUSE: Duration = Duration::from_secs(4);
/// The longest pause between two configurations: a weight is in force this much later at worst.
const MAX_GATHERING: Duration = Duration::from_millis(50);
/// A watch that worked this long starts with the first pause again.
const STEADY: Duration = Duration::from_secs(30);

/// When the API server last answered, by kind.
pub struct Freshness {
    started: Instant,
    /// Milliseconds after `started`.
    seen: [AtomicU64; KINDS.len()],
}

const KINDS: [&str; 3] = ["AgentPool", "ModelProvider", "EndpointSlice"];
const PATHS: [&str; 3] = ["/agentpools", "/modelproviders", "/endpointslices"];

impl Default for Freshness {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            seen: Default::default(),
        }
    }
}

impl Freshness {
    /// By kind, the time since the API server last answered a list or opened a watch.
    pub fn ages(&self) -> impl Iterator<Item = (&'static str, Duration)> {
        let now = self.started.elapsed();
        KINDS.iter().zip(&self.seen).map(move |(kind, seen)| {
            (
                *kind,
                now.saturating_sub(Duration::from_millis(seen.load(Ordering::Relaxed))),
            )
        })
    }

    fn answered(&self, path: &str) {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        if let Some(index) = PATHS.iter().position(|end| path.ends_with(end))
            && let Some(seen) = self.seen.get(index)
        {
            seen.store(now, Ordering::Relaxed);
        }
    }
}

/// A client for watches that notes in `freshness` when it was answered.
pub async fn client(freshness: Arc<Freshness>) -> anyhow::Result<Client> {
    let mut config = ClientConfig::infer().await?;
    config.default_retry = false;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(READ_TIMEOUT);
    config.write_timeout = Some(CONNECT_TIMEOUT);
    let note = tower::layer::layer_fn(move |service| Noting {
        service,
        freshness: freshness.clone(),
    });
    Ok(ClientBuilder::try_from(config)?.with_layer(&note).build())
}

/// Notes successful answers.
#[derive(Clone)]
struct Noting<S> {
    service: S,
    freshness: Arc<Freshness>,
}

impl<S, B, R> tower::Service<http::Request<B>> for Noting<S>
where
    S: tower::Service<http::Request<B>, Response = http::Response<R>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = futures::future::BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), S::Error>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let path = request.uri().path().to_owned();
        let freshness = self.freshness.clone();
        let response = self.service.call(request);
        Box::pin(async move {
            let response = response.await?;
            if response.status().is_success() {
                freshness.answered(&path);
            }
            Ok(response)
        })
    }
}

/// Watches `namespace` for ever, in tasks of its own; `pod_uid` is this gateway's pod.
pub fn start(client: Client, namespace: &str, pod_uid: &str) -> Source {
    let (events, inbox) = mpsc::unbounded_channel();
    let pools = Api::<DeserializeGuard<AgentPool>>::namespaced(client.clone(), namespace);
    tokio::spawn(follow(pools, None, Change::Pool, events.clone()));
    let providers = Api::<DeserializeGuard<ModelProvider>>::namespaced(client.clone(), namespace);
    tokio::spawn(follow(providers, None, Change::Provider, events.clone()));
    let tokens = Arc::new(Notify::new());
    tokio::spawn(issuer::follow(
        client.clone(),
        tokens.clone(),
        Change::Issuer,
        events.clone(),
    ));
    let slices = Api::<DeserializeGuard<EndpointSlice>>::namespaced(client, namespace);
    tokio::spawn(follow(
        slices.clone(),
        Some(names::REVISION.to_owned()),
        Change::Slice,
        events.clone(),
    ));
    let own = format!("{SERVICE_NAME}={}", names::GATEWAY);
    tokio::spawn(follow(slices, Some(own), Change::Gateway, events));
    let (sender, source) = tokio::sync::watch::channel(None);
    tokio::spawn(collect(inbox, sender, pod_uid.to_owned(), tokens));
    source
}

/// What a watch tells of one object, or of all.
enum Event<K> {
    /// It is there, or has changed; `None`: it does not decode.
    Applied(String, Option<Box<K>>),
    Deleted(String),
    /// A complete list.
    Listed(Vec<(String, Option<Box<K>>)>),
}

enum Change {
    Pool(Event<AgentPool>),
    Provider(Event<ModelProvider>),
    Slice(Event<EndpointSlice>),
    Gateway(Event<EndpointSlice>),
    Issuer(Arc<Issuer>),
}

/// Watches one kind and sends what it sees.
async fn follow<K>(
    api: Api<DeserializeGuard<K>>,
    labels: Option<String>,
    change: fn(Event<K>) -> Change,
    events: mpsc::UnboundedSender<Change>,
) where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    K: Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let kind = K::kind(&()).into_owned();
    let config = watcher::Config {
        label_selector: labels,
        ..watcher::Config::default().timeout(WATCH_SECONDS)
    };
    let stream = watcher(api, config);
    pin_mut!(stream);
    let mut listed = Vec::new();
    let mut pause = MIN_PAUSE;
    let mut last_failure = Instant::now();
    while let Some(event) = stream.next().await {
        let event = match event {
            Ok(watcher::Event::Init) => {
                listed.clear();
                continue;
            }
            Ok(watcher::Event::InitApply(object)) => {
                listed.push(opened(&kind, object));
                continue;
            }
            Ok(watcher::Event::InitDone) => {
                debug!(kind, objects = listed.len(), "listed");
                Event::Listed(std::mem::take(&mut listed))
            }
            Ok(watcher::Event::Apply(object)) => {
                let (name, object) = opened(&kind, object);
                Event::Applied(name, object)
            }
            Ok(watcher::Event::Delete(object)) => Event::Deleted(object.name_any()),
            Err(error) => {
                let now = Instant::now();
                if now.saturating_duration_since(last_failure) > STEADY {
                    pause = MIN_PAUSE;
                }
                warn!(kind, %error, "watch failed; what is known stays in force");
                tokio::time::sleep(pause.mul_f64(0.75 + rand::random::<f64>() / 2.0)).await;
                pause = (pause * 2).min(MAX_PAUSE);
                last_failure = Instant::now();
                continue;
            }
        };
        if events.send(change(event)).is_err() {
            return;
        }
    }
}

fn opened<K: Resource<DynamicType = ()>>(
    kind: &str,
    object: DeserializeGuard<K>,
) -> (String, Option<Box<K>>) {
    match object.0 {
        Ok(mut object) => {
            object.meta_mut().managed_fields = None;
            (object.name_any(), Some(Box::new(object)))
        }
        Err(invalid) => {
            let name = invalid.metadata.name.unwrap_or_default();
            warn!(
                kind,
                name,
                error = invalid.error,
                "object does not decode; its last good state stays in force"
            );
            (name, None)
        }
    }
}

async fn collect(
    mut inbox: mpsc::UnboundedReceiver<Change>,
    sender: tokio::sync::watch::Sender<Option<Arc<Config>>>,
    pod_uid: String,
    tokens: Arc<Notify>,
) {
    const BURST: usize = 1024;
    let mut objects = Objects::default();
    let mut listed = [false; 4];
    let mut changes = Vec::new();
    while inbox.recv_many(&mut changes, BURST).await > 0 {
        for change in changes.drain(..) {
            match change {
                Change::Pool(event) => listed[0] |= take_in(&mut objects.pools, event),
                Change::Provider(event) => listed[1] |= take_in(&mut objects.providers, event),
                Change::Slice(event) => listed[2] |= take_in(&mut objects.slices, event),
                Change::Gateway(event) => listed[3] |= take_in(&mut objects.gateways, event),
                Change::Issuer(issuer) => objects.issuer = Some(issuer),
            }
        }
        if listed.contains(&false) {
            continue;
        }
        let began = Instant::now();
        let config = translate::config(&objects, &pod_uid);
        if !config.pods.proven.is_empty() {
            tokens.notify_one();
        }
        sender.send_if_modified(|current| {
            let changed = current.as_deref() != Some(&config);
            if changed {
                if current.is_none() {
                    info!(
                        pools = config.pools.len(),
                        providers = config.providers.len(),
                        "first configuration"
                    );
                }
                *current = Some(Arc::new(config));
            }
            changed
        });
        if let Some(pause) = pause_after(began.elapsed()) {
            tokio::time::sleep(pause).await;
        }
    }
}

/// How long events gather after a configuration that took this long to make; not at all where it would be less than a timer's
/// millisecond.
fn pause_after(took: Duration) -> Option<Duration> {
    let pause = (took * 9).min(MAX_GATHERING);
    (pause >= Duration::from_millis(1)).then_some(pause)
}

/// True when the whole kind is known.
fn take_in<K>(known: &mut HashMap<String, K>, event: Event<K>) -> bool {
    match event {
        Event::Applied(name, Some(object)) => {
            known.insert(name, *object);
            false
        }
        Event::Applied(_, None) => false,
        Event::Deleted(name) => {
            known.remove(&name);
            false
        }
        Event::Listed(objects) => {
            let mut before = std::mem::take(known);
            *known = objects
                .into_iter()
                .filter_map(|(name, object)| {
                    let object = object.map(|object| *object).or_else(|| before.remove(&name))?;
                    Some((name, object))
                })
                .collect();
            true
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_gather_only_after_a_configuration_that_costs() {
        let millis = Duration::from_millis;
        assert_eq!(pause_after(Duration::from_micros(100)), None);
        assert_eq!(pause_after(millis(2)), Some(millis(18)));
        assert_eq!(pause_after(Duration::from_secs(1)), Some(MAX_GATHERING));
    }

    #[test]
    fn a_list_replaces_all_and_spares_what_does_not_decode() {
        let mut known: HashMap<String, i32> = [("a".to_owned(), 1), ("b".to_owned(), 2)].into();
        assert!(!take_in(&mut known, Event::Applied("b".into(), None)));
        assert_eq!(known["b"], 2);
        assert!(take_in(
            &mut known,
            Event::Listed(vec![("b".into(), None), ("c".into(), Some(Box::new(3)))])
        ));
        assert_eq!(known, [("b".to_owned(), 2), ("c".to_owned(), 3)].into());
        assert!(!take_in(&mut known, Event::Deleted("c".into())));
        assert_eq!(known.len(), 1);
    }
}
