//! Leadership on a `coordination.k8s.io/v1` Lease, fenced by the local monotonic clock.
//!
//! Three things that the published crates do not do together. Every write of the Lease carries the resourceVersion it
//! was decided on, so two candidates cannot both win. Nobody trusts another machine's clock: a holder is judged dead
//! when *we* have not seen its record change for the duration it promised. And the holder fences itself: its claim
//! ends a lease's length after the last renewal was *sent*, on the monotonic clock, and [`Leadership::permit`] refuses
//! any write that could still be under way then, network or no network. A standby starts counting only when it has
//! seen the renewal, which is later, so the two never overlap.
//!
//! | number | value | why |
//! |---|---|---|
//! | lease | 15 s | outlives an API server's restart of 10 s |
//! | renewal | every 3 s | two may fail before writes stop (15 s − 5 s of call timeout = 10 s) |
//! | standby's look | every 1.5 s, and exactly at the expiry | takeover after a SIGKILL ≤ 1.5 + 15 s + one call < 17 s |
//!
//! The identity is the pod's name: a restarted container takes its own lease up at once.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::errors::Error;
use super::informer::Chain;
use super::time::Clock;
use crate::metrics::Metrics;

/// How long a claim lasts after its last renewal.
pub const LEASE_DURATION: Duration = Duration::from_secs(15);
/// Pause between renewals.
const RENEW_INTERVAL: Duration = Duration::from_secs(3);
/// Pause between a standby's looks at the Lease.
const LOOK_INTERVAL: Duration = Duration::from_millis(1500);
/// Pause after a failed request.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// How long giving the lease up may take at shutdown.
const VACATE_LIMIT: Duration = Duration::from_secs(2);

/// Who leads until when, as this replica knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The holder's identity.
    pub holder: String,
    /// When the claim ends unless renewed, on this machine's monotonic clock.
    pub expiry: Instant,
}

/// What to do about the Lease now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// There is none: create it.
    Create,
    /// It is ours: renew it.
    Renew,
    /// It is free or its holder is dead: take it.
    Take,
    /// Somebody else holds it: look again after this pause.
    Wait(Duration),
}

/// A Lease, and since when this replica has seen its record unchanged.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The object as last read or written.
    pub lease: Lease,
    /// When this very record (holder, renewal, transitions) was first seen.
    pub since: Instant,
}

impl Observed {
    fn spec(&self) -> LeaseSpec {
        self.lease.spec.clone().unwrap_or_default()
    }

    /// The same Lease read again: the clock starts anew only if the record changed.
    fn followed_by(previous: Option<&Self>, lease: Lease, now: Instant) -> Self {
        let since = previous
            .filter(|seen| seen.lease.spec == lease.spec)
            .map_or(now, |seen| seen.since);
        Self { lease, since }
    }
}

/// Decides what the candidate `me` does at `now`. Pure; only local instants are compared.
pub fn decide(observed: Option<&Observed>, me: &str, now: Instant) -> Decision {
    let Some(observed) = observed else {
        return Decision::Create;
    };
    let spec = observed.spec();
    match spec.holder_identity.as_deref() {
        None | Some("") => Decision::Take,
        Some(holder) if holder == me => Decision::Renew,
        Some(_) => {
            let promised = spec
                .lease_duration_seconds
                .and_then(|seconds| u64::try_from(seconds).ok());
            let expiry = observed.since + promised.map_or(LEASE_DURATION, Duration::from_secs);
            match expiry.checked_duration_since(now) {
                None | Some(Duration::ZERO) => Decision::Take,
                Some(left) => Decision::Wait(left.min(LOOK_INTERVAL)),
            }
        }
    }
}

/// A handle on this replica's leadership. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Leadership {
    me: Arc<str>,
    claim: watch::Receiver<Option<Claim>>,
}

impl Leadership {
    /// A replica that always leads: a single process, or a test.
    pub fn always() -> Self {
        let expiry = Instant::now() + Duration::from_secs(100 * 365 * 24 * 3600);
        let (sender, claim) = watch::channel(Some(Claim {
            holder: "sole".into(),
            expiry,
        }));
        // The receiver keeps showing the last value after the sender is gone.
        drop(sender);
        Self {
            me: "sole".into(),
            claim,
        }
    }

    /// A replica that never leads, for tests of what must not happen then.
    #[cfg(test)]
    pub(crate) fn never() -> Self {
        let (_, claim) = watch::channel(None);
        Self {
            me: "standby".into(),
            claim,
        }
    }

    /// The current claim, ours or another's.
    pub fn claim(&self) -> Option<Claim> {
        self.claim.borrow().clone()
    }

    /// Our identity.
    pub fn identity(&self) -> &str {
        &self.me
    }

    /// Whether this replica leads at this moment.
    pub fn is_leader(&self) -> bool {
        self.permit(Duration::ZERO).is_ok()
    }

    /// Asked right before a write that may take up to `call`: succeeds only if our claim outlives it.
    ///
    /// # Errors
    /// [`Error::NotLeader`].
    pub fn permit(&self, call: Duration) -> Result<(), Error> {
        let end = Instant::now() + call;
        let claim = self.claim.borrow();
        match &*claim {
            Some(claim) if *claim.holder == *self.me && claim.expiry > end => Ok(()),
            _ => Err(Error::NotLeader),
        }
    }

    /// Waits until this replica leads.
    pub async fn acquired(&self) {
        let mut claim = self.claim.clone();
        while !self.is_leader() {
            if claim.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until this replica does not lead, also when its claim merely runs out.
    pub async fn lost(&self) {
        let mut changes = self.claim.clone();
        loop {
            let claim = changes.borrow_and_update().clone();
            let Some(claim) =
                claim.filter(|claim| *claim.holder == *self.me && claim.expiry > Instant::now())
            else {
                return;
            };
            tokio::select! {
                () = tokio::time::sleep_until(claim.expiry) => {}
                changed = changes.changed() => {
                    if changed.is_err() {
                        tokio::time::sleep_until(claim.expiry).await;
                    }
                }
            }
        }
    }
}

/// Takes part in the election.
pub struct Elector {
    api: Api<Lease>,
    namespace: String,
    name: String,
    me: Arc<str>,
    clock: Clock,
    metrics: Metrics,
    observed: Option<Observed>,
    claim: watch::Sender<Option<Claim>>,
}

impl Elector {
    /// A candidate `me` for the Lease `namespace/name`. `client` must not retry by itself
    /// (see [`Clients::lease`](super::client::Clients)).
    pub fn new(
        client: Client,
        namespace: &str,
        name: &str,
        me: &str,
        clock: Clock,
        metrics: Metrics,
    ) -> (Self, Leadership) {
        let (sender, receiver) = watch::channel(None);
        let me: Arc<str> = me.into();
        metrics.set_leader(name, false);
        let elector = Self {
            api: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            me: Arc::clone(&me),
            clock,
            metrics,
            observed: None,
            claim: sender,
        };
        (elector, Leadership { me, claim: receiver })
    }

    /// Runs until `stop`, then gives the lease up so that a standby takes over at once.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut last_error = String::new();
        loop {
            let pause = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                step = self.step() => match step {
                    Ok(pause) => {
                        last_error.clear();
                        pause
                    }
                    Err(error) => {
                        self.observe_expiry();
                        let text = Chain(&error).to_string();
                        if text != last_error {
                            warn!(lease = self.name, error = text, "failed to reach the lease");
                            last_error = text;
                        }
                        RETRY_INTERVAL
                    }
                },
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = tokio::time::sleep(pause) => {}
            }
        }
        if tokio::time::timeout(VACATE_LIMIT, self.vacate()).await.is_err() {
            warn!(
                lease = self.name,
                "failed to give the lease up in time; it expires by itself"
            );
        }
    }

    /// One look, one decision, at most one write; gives the pause until the next.
    async fn step(&mut self) -> Result<Duration, Error> {
        // A holder writes on the version it wrote last; everybody else looks first.
        let holds = self
            .observed
            .as_ref()
            .is_some_and(|seen| seen.spec().holder_identity.as_deref() == Some(&*self.me));
        if !holds {
            let read = self.api.get_opt(&self.name).await;
            let lease = read.map_err(|error| Error::from_kube("read the lease", error))?;
            self.observed =
                lease.map(|lease| Observed::followed_by(self.observed.as_ref(), lease, Instant::now()));
            self.publish_other();
        }
        match decide(self.observed.as_ref(), &self.me, Instant::now()) {
            Decision::Wait(pause) => return Ok(pause),
            decision => self.write(decision).await?,
        }
        Ok(RENEW_INTERVAL)
    }

    async fn write(&mut self, decision: Decision) -> Result<(), Error> {
        let lease = self.desired(decision);
        let sent = Instant::now();
        let params = PostParams {
            field_manager: Some("flotilla/lease".into()),
            ..PostParams::default()
        };
        let answer = match decision {
            Decision::Create => self.api.create(&params, &lease).await,
            _ => self.api.replace(&self.name, &params, &lease).await,
        };
        match answer {
            Ok(lease) => {
                if decision != Decision::Renew || self.claim.borrow().is_none() {
                    info!(lease = self.name, identity = &*self.me, "leading");
                }
                self.observed = Some(Observed { lease, since: sent });
                self.publish(Some(Claim {
                    holder: self.me.to_string(),
                    expiry: sent + LEASE_DURATION,
                }));
                Ok(())
            }
            Err(error) => {
                let error = match Error::from_kube("write the lease", error) {
                    // Lost a race for the creation: the same thing as a conflict.
                    Error::Refused {
                        action,
                        code: 409 | 404,
                        ..
                    } => Error::Conflict { action },
                    error => error,
                };
                if matches!(error, Error::Conflict { .. }) {
                    // Somebody else wrote it. What we hold is out of date: look before the next write.
                    self.observed = self.observed.take().map(|mut seen| {
                        seen.lease.spec.get_or_insert_default().holder_identity = Some("unknown".into());
                        seen
                    });
                    self.publish(None);
                }
                Err(error)
            }
        }
    }

    /// The Lease as `decision` writes it, on the version observed.
    fn desired(&self, decision: Decision) -> Lease {
        let seen = self.observed.as_ref();
        let before = seen.map(Observed::spec).unwrap_or_default();
        let now = MicroTime(self.clock.now());
        let taken = decision != Decision::Renew;
        let transitions = before.lease_transitions.unwrap_or_default();
        let changes_hands = before
            .holder_identity
            .as_deref()
            .is_some_and(|holder| holder != &*self.me);
        Lease {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                namespace: Some(self.namespace.clone()),
                ..seen.map(|seen| seen.lease.metadata.clone()).unwrap_or_default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.me.to_string()),
                lease_duration_seconds: i32::try_from(LEASE_DURATION.as_secs()).ok(),
                acquire_time: if taken {
                    Some(now.clone())
                } else {
                    before.acquire_time.clone()
                },
                renew_time: Some(now),
                lease_transitions: Some(transitions.saturating_add(i32::from(taken && changes_hands))),
                ..before
            }),
        }
    }

    /// Gives the lease up: no claim from now on, and an empty holder for the others.
    async fn vacate(&mut self) {
        let held = self
            .claim
            .borrow()
            .as_ref()
            .is_some_and(|claim| *claim.holder == *self.me);
        self.publish(None);
        let Some(seen) = self.observed.clone().filter(|_| held) else {
            return;
        };
        let mut lease = seen.lease;
        let spec = lease.spec.get_or_insert_default();
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        spec.renew_time = Some(MicroTime(self.clock.now()));
        match self.api.replace(&self.name, &PostParams::default(), &lease).await {
            Ok(_) => info!(lease = self.name, "lease given up"),
            Err(error) => warn!(lease = self.name, error = %Chain(&error), "failed to give the lease up"),
        }
    }

    fn publish(&self, claim: Option<Claim>) {
        let leads = claim.as_ref().is_some_and(|claim| *claim.holder == *self.me);
        self.metrics.set_leader(&self.name, leads);
        self.claim.send_replace(claim);
    }

    /// Publishes another holder's claim, when it changed.
    fn publish_other(&self) {
        let claim = self.observed.as_ref().and_then(|seen| {
            let holder = seen
                .spec()
                .holder_identity
                .filter(|holder| !holder.is_empty() && **holder != *self.me)?;
            Some(Claim {
                holder,
                expiry: seen.since + LEASE_DURATION,
            })
        });
        if *self.claim.borrow() != claim {
            self.publish(claim);
        }
    }

    /// Shows an expired claim in the metric; the fence itself needs no help.
    fn observe_expiry(&self) {
        if self
            .claim
            .borrow()
            .as_ref()
            .is_some_and(|claim| claim.expiry <= Instant::now())
        {
            self.publish(None);
        }
    }
}

#[cfg(test)]
mod tests;
