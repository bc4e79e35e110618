//! After the end: the verdict, then the cleaning up, then the TTL.

use std::time::Duration;

use flotilla_crds::common::LocalRef;
use flotilla_crds::load_test::Verdict;
use flotilla_crds::{LoadTest, LoadTestStatus};
use jiff::SignedDuration;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt as _;

use super::build::{self, config_map};
use super::report::{self, Evidence};
use super::state::Ending;
use super::status::{self, Mood, Say};
use super::{LoadTestReconciler, SOON, Scene, target};
use crate::runtime::{Action, Error, Key, Next, Note, StatusWrite, Visit, uid_of};

impl LoadTestReconciler {
    pub(super) async fn judge(
        &self,
        test: &LoadTest,
        scene: &Scene,
        workload: &str,
        ending: Ending,
        visit: &Visit,
    ) -> Result<Next, Error> {
        let Key { namespace, name } = visit.key();
        // Right after a change of the leader this replica's cache may not have the Job yet.
        if ending == Ending::JobDeleted && scene.job.is_none() {
            let live = visit
                .read::<Job>(&Key::new(namespace, build::job_name(name)))
                .await?;
            if live.is_some_and(|job| {
                job.owner_references()
                    .iter()
                    .any(|owner| owner.uid == uid_of(test))
            }) {
                return Ok(Next::after(Duration::from_secs(1)));
            }
        }
        let Some(record) = &scene.record else {
            visit
                .execute(vec![Action::create(&config_map::result(test, workload))])
                .await?;
            return Ok(Next::after(SOON));
        };
        let stored = visit
            .read::<ConfigMap>(&Key::new(namespace, build::result_name(name)))
            .await?;
        let mut messages = stored.as_ref().map(config_map::messages).unwrap_or_default();
        messages.extend(scene.fresh.clone());
        let price = test.spec.target.pool_ref.as_ref().and_then(|reference| {
            let pool = self.caches.pools.get(&Key::new(namespace, &reference.name))?;
            target::price(&pool, &self.caches.providers.in_namespace(namespace), visit.now())
        });
        let refused = self
            .refusals
            .lock()
            .get(visit.key())
            .and_then(|(_, answer)| answer.clone());
        let report = report::report(&Evidence {
            spec: &test.spec,
            workload,
            messages: &messages,
            ending,
            job: scene.job_view.as_ref(),
            pods: &scene.pods,
            refused: refused.as_ref(),
            price: price.as_ref(),
        });
        if !config_map::is_judged(&record.metadata) {
            let patch = config_map::judged_patch(
                &format!("{:?}", report.verdict()),
                &report.result(&test.spec, workload),
            );
            visit
                .execute(vec![Action::patch_exactly(&**record, patch)])
                .await?;
        }

        let (reason, message) = (
            report.judgement.reason.as_str(),
            report.judgement.message.as_str(),
        );
        let say = match ending {
            Ending::NotStarted => Say::new(Mood::Failed, reason, message),
            Ending::Stopped => Say::new(Mood::Done, "Stopped", message),
            Ending::Ended | Ending::JobDeleted | Ending::Overdue => Say::new(Mood::Done, "Complete", message),
        };
        let verdict = report.verdict();
        let status = LoadTestStatus {
            workload: Some(workload.to_owned()),
            workers: Some(report.workers(&test.spec)),
            progress: Some(report.progress(&test.spec)),
            summary: report.summary(),
            thresholds: report.thresholds(),
            result_ref: Some(LocalRef {
                name: build::result_name(name),
            }),
            ..status::finished(test, &say, verdict, (reason, message), visit.now())
        };
        visit.write_status(test, &status, StatusWrite::urgent()).await?;
        let note = format!("{verdict:?}: {message}");
        visit.note(match verdict {
            Verdict::Passed => Note::normal("Completed", note),
            Verdict::Failed | Verdict::Inconclusive | Verdict::Invalid => Note::warning("Completed", note),
        });
        Ok(Next::on_change())
    }

    pub(super) async fn clean_up(
        &self,
        test: &LoadTest,
        scene: &Scene,
        visit: &Visit,
    ) -> Result<Next, Error> {
        self.refusals.lock().remove(visit.key());
        let job = scene.job.iter().map(|job| Action::delete(&**job));
        let plan = scene.plan.iter().map(|plan| Action::delete(&**plan));
        let coordinator = scene.coordinator.iter().map(|service| Action::delete(&**service));
        visit
            .execute(job.chain(plan).chain(coordinator).collect())
            .await?;

        visit
            .write_status(test, &status::still_finished(test), StatusWrite::default())
            .await?;
        let completed = test
            .status
            .as_ref()
            .and_then(|status| status.completion_time.as_ref());
        let (Some(seconds), Some(completed)) = (test.spec.ttl_seconds_after_finished, completed) else {
            return Ok(Next::on_change());
        };
        let age = visit.now().duration_since(completed.0);
        match Duration::try_from(SignedDuration::from_secs(seconds.into()) - age) {
            Ok(left) if !left.is_zero() => Ok(Next::after(left)),
            _ => {
                visit.execute(vec![Action::delete(test)]).await?;
                Ok(Next::on_change())
            }
        }
    }
}
