//! One worker's life: validate, resolve, warm up, meet the others, send, report.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use flotilla_core::load::plan::{LoadPlan, PlanErrors, TargetUrl};
use flotilla_core::load::schedule::Schedule;
use flotilla_core::load::wire::WorkerResult;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::barrier::Signal;
use crate::coordinator::{Coordinator, Ready, bind};
use crate::exchange::Client;
use crate::follower::{BarrierError, CommonStart, Follower};
use crate::pool::Pool;
use crate::protocol::{BuildError, RequestBuilder};
use crate::recorder::{Identity, Recorder};
use crate::worker::{Ended, Worker};

/// Between two snapshots.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
/// How long worker 0 waits for the others' last snapshots; the results do not depend on them.
const LINGER: Duration = Duration::from_secs(5);
/// How long the target's name may be unknown, because a Service may be a second older than its DNS record.
const RESOLVE_PATIENCE: Duration = Duration::from_secs(10);

/// What to run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The plan.
    pub plan: LoadPlan,
    /// Which worker this is, from 0.
    pub index: u32,
    /// Where worker 0 listens.
    pub listen: SocketAddr,
    /// Where the others find worker 0, as `host:port`.
    pub coordinator: Option<String>,
    /// The least time between the decision to start and the start.
    pub start_lead: Duration,
    /// A file for one line per request.
    pub samples: Option<PathBuf>,
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The plan is not usable.
    #[error("the plan is not valid: {0}")]
    Plan(#[from] PlanErrors),
    /// The settings are not usable.
    #[error("{0}")]
    Settings(String),
    /// The plan cannot be turned into requests.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The target has no address.
    #[error("failed to resolve the target {host:?}: {source}; check the Service's name and namespace")]
    Resolve {
        /// The target's host.
        host: String,
        /// Why.
        source: io::Error,
    },
    /// There was no common start.
    #[error(transparent)]
    Barrier(#[from] BarrierError),
    /// The system refused something.
    #[error("failed to {action}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

impl RunError {
    /// The exit code, which tells the Job what to do (loadtest.md 5.7): 64 and 65 are the same in every pod and stop
    /// the Job, 75 is before the start and lets the pod be replaced.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Plan(_) | Self::Settings(_) | Self::Build(_) | Self::Barrier(BarrierError::Refused) => 64,
            Self::Resolve { .. } => 65,
            Self::Barrier(_) | Self::System { .. } => 75,
        }
    }
}

fn system(action: &'static str) -> impl FnOnce(io::Error) -> RunError {
    move |source| RunError::System { action, source }
}

/// Runs one worker to its end, or until `stop`; a stop after the common start still gives a (partial) result.
///
/// # Errors
/// If the worker never started, see [`RunError`].
pub async fn run(settings: Settings, stop: CancellationToken) -> Result<WorkerResult, RunError> {
    let Settings {
        plan,
        index,
        listen,
        coordinator,
        start_lead,
        samples,
    } = settings;
    let schedule = Arc::new(Schedule::new(&plan)?);
    let workers = plan.workers.count;
    if index >= workers {
        return Err(RunError::Settings(format!(
            "index {index} is not below workers.count {workers}"
        )));
    }
    let identity = Identity {
        index,
        workers,
        attempt: milliseconds_since_1970(),
        workload: plan.workload_id(),
    };
    let post = match (index, coordinator) {
        (0, _) => Post::coordinate(&plan, listen, start_lead).await?,
        (_, Some(address)) => Post::Follow(Follower::new(&address)),
        (_, None) => {
            let message =
                "a worker other than 0 needs the coordinator's address; set --coordinator".to_owned();
            return Err(RunError::Settings(message));
        }
    };
    let client = tokio::select! {
        client = connect(&plan) => client?,
        () = stop.cancelled() => return Err(BarrierError::Stopped.into()),
    };
    let samples = match samples {
        Some(path) => {
            let file = std::fs::File::create(path).map_err(system("create the file for samples"))?;
            Some(Box::new(file) as Box<dyn Write + Send>)
        }
        None => None,
    };
    let recorder = Recorder::new(identity, &schedule.planned_of(index), samples)
        .map_err(system("write to the file for samples"))?;
    let worker = Worker {
        index,
        schedule,
        client,
        recorder: Arc::new(recorder),
    };
    worker.warm_up(&stop).await;
    let (mut post, start) = post.wait_for_start(&plan, &identity, &stop).await?;
    // A worker that hears of the start after it sends what is due from then on.
    let joined = Instant::now().max(start.at);
    let skew = start.uncertainty + wait_until(start.at, &stop).await?;
    worker.recorder.started_with_skew(skew);
    tracing::info!(
        index,
        planned = worker.schedule.planned_of(index).iter().sum::<u64>(),
        ?skew,
        "started"
    );

    // A task of its own, because sending progress must never hold up a start.
    let mut running = AbortOnDropHandle::new(tokio::spawn({
        let (worker, stop) = (worker.clone(), stop.clone());
        async move { worker.run(start.at, joined, &stop).await }
    }));
    let ended = loop {
        tokio::select! {
            ended = &mut running => break ended.map_err(io::Error::other).flatten().map_err(system("run the schedule"))?,
            () = tokio::time::sleep(PROGRESS_INTERVAL) => post.push(&worker.recorder, false).await,
        }
    };
    let result = worker.recorder.result(ended == Ended::Interrupted);
    tokio::select! {
        () = post.push(&worker.recorder, true) => {}
        () = stop.cancelled() => {}
    }
    post.linger(&stop).await;
    Ok(result)
}

fn milliseconds_since_1970() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

async fn connect(plan: &LoadPlan) -> Result<Arc<Client>, RunError> {
    let url = TargetUrl::parse(&plan.target.url).map_err(RunError::Settings)?;
    let builder = RequestBuilder::new(plan, &url.authority)?;
    let give_up = Instant::now() + RESOLVE_PATIENCE;
    loop {
        match Pool::new(&url.host, url.port).await {
            Ok(pool) => return Ok(Client::new(plan, builder, pool)),
            Err(source) if Instant::now() >= give_up => {
                return Err(RunError::Resolve {
                    host: url.host,
                    source,
                });
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(500)).await,
        }
    }
}

/// Waits for the common start and says how far this worker was from it. One that hears of it afterwards has no skew,
/// but missing coverage.
async fn wait_until(at: Instant, stop: &CancellationToken) -> Result<Duration, RunError> {
    if Instant::now() >= at {
        return Ok(Duration::ZERO);
    }
    let mut pacer = crate::pacer::Pacer::new().map_err(system("create a timer"))?;
    tokio::select! {
        waited = pacer.sleep_until(at) => waited.map_err(system("set a timer"))?,
        () = stop.cancelled() => return Err(BarrierError::Stopped.into()),
    }
    Ok(at.elapsed())
}

/// A worker's place among the others.
enum Post {
    Coordinate {
        coordinator: Arc<Coordinator>,
        _server: Option<AbortOnDropHandle<()>>,
    },
    Follow(Follower),
}

impl Post {
    async fn coordinate(plan: &LoadPlan, listen: SocketAddr, lead: Duration) -> Result<Self, RunError> {
        let alone = plan.workers.count == 1;
        // Nobody else has to hear of the start; the rest is for the first starts to be in time.
        let coordinator = Coordinator::new(
            plan,
            if alone {
                lead.min(Duration::from_millis(50))
            } else {
                lead
            },
        );
        let serve = |listener: TcpListener| {
            AbortOnDropHandle::new(tokio::spawn(Arc::clone(&coordinator).serve(listener)))
        };
        let server = match bind(listen).await {
            Ok(listener) => Some(serve(listener)),
            Err(error) if alone => {
                tracing::warn!(%listen, %error, "failed to listen; there will be no live progress");
                None
            }
            Err(source) => {
                return Err(RunError::System {
                    action: "listen for the other workers",
                    source,
                });
            }
        };
        Ok(Self::Coordinate {
            coordinator,
            _server: server,
        })
    }

    async fn wait_for_start(
        mut self,
        plan: &LoadPlan,
        identity: &Identity,
        stop: &CancellationToken,
    ) -> Result<(Self, CommonStart), RunError> {
        let start = match &mut self {
            Self::Coordinate { coordinator, .. } => local_start(coordinator, identity, stop).await?,
            Self::Follow(follower) => {
                let patience = Duration::from_secs(plan.workers.start_deadline_seconds.into());
                follower.wait_for_start(identity, patience, stop).await?
            }
        };
        Ok((self, start))
    }

    async fn push(&mut self, recorder: &Recorder, finished: bool) {
        let progress = recorder.progress(finished);
        match self {
            Self::Coordinate { coordinator, .. } => {
                coordinator.accept(progress);
                let progress = coordinator.progress();
                tracing::debug!(
                    done = progress.done,
                    planned = progress.planned,
                    rate = progress.per_second,
                    "progress"
                );
            }
            Self::Follow(follower) => follower.push(&progress).await,
        }
    }

    /// Worker 0 answers until the others have said their last, so that the last progress is the whole one.
    async fn linger(&self, stop: &CancellationToken) {
        let Self::Coordinate { coordinator, .. } = self else {
            return;
        };
        let give_up = Instant::now() + LINGER;
        while !coordinator.all_finished() && Instant::now() < give_up && !stop.is_cancelled() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

async fn local_start(
    coordinator: &Coordinator,
    identity: &Identity,
    stop: &CancellationToken,
) -> Result<CommonStart, BarrierError> {
    let Identity {
        index,
        workers,
        attempt: _,
        workload,
    } = *identity;
    let ready = Ready {
        index,
        workers,
        workload,
        round_trip_nanoseconds: 0,
    };
    loop {
        match coordinator.ready(&ready) {
            Signal::Start { at_nanoseconds } => {
                let at = coordinator.instant(at_nanoseconds);
                return Ok(CommonStart {
                    at,
                    uncertainty: Duration::ZERO,
                });
            }
            Signal::Abandoned => {
                // Let the others hear of it, or they would wait for their own deadline.
                tokio::time::sleep(Duration::from_secs(1)).await;
                return Err(BarrierError::Abandoned);
            }
            Signal::Refused => return Err(BarrierError::Refused),
            Signal::Waiting => {}
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(50)) => {}
            () = stop.cancelled() => return Err(BarrierError::Stopped),
        }
    }
}
