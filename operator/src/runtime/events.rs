//! Kubernetes Events, best effort.
//!
//! kube's `Recorder` sends the *first* note again for every event of the same reason within six minutes, so "step 10 %"
//! and "step 25 %" would both read "step 10 %". This publisher tells events apart by their note as well. A note goes
//! into a bounded channel and never makes a reconcile wait; a worker of its own sends one at a time, at most
//! [`BURST`] at once and one a second after that; the same note on the same object within [`REPEAT`] is not sent again
//! at all, and what does not fit is counted and dropped.

use std::collections::HashMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::core::ApiResource;
use kube::{Api, Client, Resource};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::client::CALL_TIMEOUT;
use super::conditions::truncate;
use super::informer::Chain;
use super::lease::Leadership;
use super::time::Clock;
use crate::metrics::{EventOutcome, Metrics};

/// Longest note the API accepts, in bytes.
const MAX_NOTE: usize = 1024;
/// Notes that may wait for the worker.
const QUEUE: usize = 256;
/// Events that may be sent at once.
const BURST: u32 = 25;
/// One more event may be sent each time this has passed.
const REFILL: Duration = Duration::from_secs(1);
/// How long the same note on the same object is not repeated.
const REPEAT: Duration = Duration::from_secs(600);

/// Whether an event is news or trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// Something went its way.
    Normal,
    /// Something needs a person's eye.
    Warning,
}

/// What an event says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// News or trouble.
    pub kind: EventKind,
    /// Stable PascalCase word.
    pub reason: &'static str,
    /// What was being done, PascalCase.
    pub action: &'static str,
    /// One sentence; cut to 1 KiB on a character boundary.
    pub message: String,
}

impl Note {
    /// Something went its way.
    pub fn normal(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            kind: EventKind::Normal,
            reason,
            action: "Reconcile",
            message: message.into(),
        }
    }

    /// Something needs a person's eye.
    pub fn warning(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            kind: EventKind::Warning,
            ..Self::normal(reason, message)
        }
    }
}

/// The object an event is about.
#[derive(Clone, Debug, PartialEq)]
pub struct Regarding(ObjectReference);

impl Regarding {
    /// A reference to an object from the API server.
    pub fn of<K: Resource<DynamicType = ()>>(object: &K) -> Self {
        Self::from_parts(&ApiResource::erase::<K>(&()), object.meta())
    }

    /// A reference from a kind and metadata.
    pub fn from_parts(resource: &ApiResource, metadata: &ObjectMeta) -> Self {
        Self(ObjectReference {
            api_version: Some(resource.api_version.clone()),
            kind: Some(resource.kind.clone()),
            namespace: metadata.namespace.clone(),
            name: metadata.name.clone(),
            uid: metadata.uid.clone(),
            resource_version: metadata.resource_version.clone(),
            ..ObjectReference::default()
        })
    }
}

/// Hands notes to the worker. Cheap to clone.
#[derive(Clone)]
pub struct EventPublisher {
    sender: mpsc::Sender<(Regarding, Note)>,
    metrics: Metrics,
}

impl EventPublisher {
    /// The handle and the worker behind it.
    pub fn new(
        client: Client,
        leadership: Leadership,
        clock: Clock,
        metrics: Metrics,
    ) -> (Self, EventWorker) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let worker = EventWorker {
            receiver,
            client,
            instance: leadership.identity().to_owned(),
            leadership,
            clock,
            metrics: metrics.clone(),
            budget: Budget {
                tokens: BURST,
                filled: Instant::now(),
            },
            sent: HashMap::new(),
            count: 0,
        };
        (Self { sender, metrics }, worker)
    }

    /// Takes a note; never waits, never fails.
    pub fn publish(&self, regarding: Regarding, note: Note) {
        if self.sender.try_send((regarding, note)).is_err() {
            self.metrics.event(EventOutcome::Dropped);
        }
    }
}

struct Budget {
    tokens: u32,
    filled: Instant,
}

impl Budget {
    fn take(&mut self, now: Instant) -> bool {
        let periods = now.duration_since(self.filled).as_secs() / REFILL.as_secs();
        self.tokens = self
            .tokens
            .saturating_add(u32::try_from(periods).unwrap_or(u32::MAX))
            .min(BURST);
        self.filled += REFILL * u32::try_from(periods).unwrap_or(u32::MAX);
        let granted = self.tokens > 0;
        self.tokens = self.tokens.saturating_sub(1);
        granted
    }
}

/// Sends events one at a time.
pub struct EventWorker {
    receiver: mpsc::Receiver<(Regarding, Note)>,
    client: Client,
    leadership: Leadership,
    instance: String,
    clock: Clock,
    metrics: Metrics,
    budget: Budget,
    /// What was sent when: object UID, reason, note.
    sent: HashMap<(Option<String>, &'static str, String), Instant>,
    count: u64,
}

impl EventWorker {
    /// Runs until `stop`; what waits then is dropped.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let received = tokio::select! {
                () = stop.cancelled() => return,
                received = self.receiver.recv() => received,
            };
            let Some((regarding, note)) = received else { return };
            let outcome = self.handle(regarding, note).await;
            self.metrics.event(outcome);
        }
    }

    async fn handle(&mut self, regarding: Regarding, mut note: Note) -> EventOutcome {
        note.message = truncate(&note.message, MAX_NOTE).to_owned();
        let now = Instant::now();
        self.sent.retain(|_, at| now.duration_since(*at) < REPEAT);
        let identity = (regarding.0.uid.clone(), note.reason, note.message.clone());
        if self.sent.contains_key(&identity) {
            return EventOutcome::Repeated;
        }
        if self.leadership.permit(CALL_TIMEOUT).is_err() || !self.budget.take(now) {
            return EventOutcome::Dropped;
        }
        // Remembered before the answer: an event is not worth a second try.
        self.sent.insert(identity, now);
        match self.send(regarding.0, note).await {
            Ok(()) => EventOutcome::Sent,
            Err(error) => {
                debug!(error = %Chain(&error), "failed to send an event");
                EventOutcome::Dropped
            }
        }
    }

    async fn send(&mut self, regarding: ObjectReference, note: Note) -> kube::Result<()> {
        let now = self.clock.now();
        self.count = self.count.wrapping_add(1);
        // Events of cluster-scoped objects live in `default`.
        let namespace = regarding.namespace.clone().unwrap_or_else(|| "default".into());
        let object = truncate(regarding.name.as_deref().unwrap_or("object"), 200);
        let nanos = now.as_nanosecond() as u64;
        let event = Event {
            metadata: ObjectMeta {
                name: Some(format!("{object}.{:x}", nanos.wrapping_add(self.count))),
                namespace: Some(namespace.clone()),
                ..ObjectMeta::default()
            },
            type_: Some(match note.kind {
                EventKind::Normal => "Normal".into(),
                EventKind::Warning => "Warning".into(),
            }),
            reason: Some(note.reason.into()),
            action: Some(note.action.into()),
            note: Some(note.message),
            event_time: Some(MicroTime(now)),
            regarding: Some(regarding),
            reporting_controller: Some("flotilla.dev/operator".into()),
            reporting_instance: Some(truncate(&self.instance, 128).to_owned()),
            ..Event::default()
        };
        Api::<Event>::namespaced(self.client.clone(), &namespace)
            .create(&PostParams::default(), &event)
            .await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
