//! While the Job runs: what its pods and worker 0 say, and why pods are missing.

use std::time::Duration;

use flotilla_crds::LoadTest;
use jiff::SignedDuration;

use super::observe::PodView;
use super::{LoadTestReconciler, Scene, build, status};
use crate::runtime::visit::DryRun;
use crate::runtime::{Error, StatusWrite, Visit};
use crate::waiting::Trouble;

/// How long a Job may be without pods before the API server is asked whether it would accept one.
const PODLESS: SignedDuration = SignedDuration::from_secs(3);
/// How long the API server's answer to that is good.
const REFUSAL_PAUSE: Duration = Duration::from_secs(15);
/// Shortest time between two writes of progress.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);

impl LoadTestReconciler {
    pub(super) async fn watch(
        &self,
        test: &LoadTest,
        scene: &Scene,
        workload: &str,
        visit: &Visit,
    ) -> Result<Option<Duration>, Error> {
        let leader = scene.pods.iter().find(|pod| pod.index == Some(0) && pod.is_up());
        self.board
            .follow(visit.key(), leader.and_then(|pod| pod.address.as_deref()));
        let progress = self.board.newest(visit.key());
        let (refused, pause) = self.refusal(test, scene, visit).await?;

        let desired = test.spec.workers.count;
        let up = i32::try_from(scene.pods.iter().filter(|pod| pod.is_up()).count()).unwrap_or(i32::MAX);
        let trouble = scene
            .pods
            .iter()
            .find_map(|pod| pod.trouble.as_ref())
            .or(refused.as_ref());
        let complaint = scene.pods.iter().find_map(PodView::complaint);
        let trouble = trouble.map(|trouble| trouble.message.clone()).or(complaint);
        let start_known = test
            .status
            .as_ref()
            .is_some_and(|status| status.start_time.is_some());
        let say = status::running(up, desired, progress.as_ref(), start_known, trouble.as_deref());

        let mut status = status::unfinished(test, &say, visit.now());
        status.workload = Some(workload.to_owned());
        status.workers = Some(status::workers(desired, up, scene.harvested.len()));
        if let Some(progress) = &progress {
            status = status::with_progress(status, progress);
        }
        let how = StatusWrite {
            lazy: &["/progress"],
            lazy_every: PROGRESS_EVERY,
            ..StatusWrite::default()
        };
        visit.write_status(test, &status, how).await?;
        Ok(pause)
    }

    /// Why the Job has no pods, and when to ask again. A quota or a policy that refuses pods shows nowhere but in
    /// events, so the API server is asked whether it would take one.
    async fn refusal(
        &self,
        test: &LoadTest,
        scene: &Scene,
        visit: &Visit,
    ) -> Result<(Option<Trouble>, Option<Duration>), Error> {
        let (Some(job), Some(view)) = (&scene.job, &scene.job_view) else {
            return Ok((None, None));
        };
        if !scene.pods.is_empty() || !scene.harvested.is_empty() {
            self.refusals.lock().remove(visit.key());
            return Ok((None, None));
        }
        let (now, key) = (visit.now(), visit.key());
        if now.duration_since(view.created) < PODLESS {
            return Ok((None, Some(Duration::from_secs(3))));
        }
        let remembered = self.refusals.lock().get(key).cloned();
        if let Some((asked, answer)) = remembered
            && now.duration_since(asked)
                < SignedDuration::try_from(REFUSAL_PAUSE).unwrap_or(SignedDuration::MAX)
        {
            return Ok((answer, Some(REFUSAL_PAUSE)));
        }
        let Some(template) = job.spec.as_ref().map(|spec| spec.template.clone()) else {
            return Ok((None, None));
        };
        let answer = match visit.dry_run(&build::job::worker_pod(test, template)).await? {
            DryRun::Accepted => None,
            DryRun::Rejected { message, .. } => {
                let reason = if message.contains("exceeded quota") {
                    "QuotaExceeded"
                } else {
                    "PodsRefused"
                };
                Some(Trouble {
                    reason,
                    message: format!("worker pods are refused: {message}"),
                })
            }
        };
        self.refusals.lock().insert(key.clone(), (now, answer.clone()));
        Ok((answer, Some(REFUSAL_PAUSE)))
    }
}
