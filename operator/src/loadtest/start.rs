//! Before the start: the target, the prompts, the plan, the objects.

use std::collections::BTreeSet;
use std::time::Duration;

use flotilla_core::load::plan::LoadPlan;
use flotilla_crds::load_test::{LoadProtocol, Verdict};
use flotilla_crds::{LoadTest, LoadTestStatus};
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use kube::ResourceExt as _;

use super::build::{self, config_map};
use super::plan::{self, PlanError, Prompts};
use super::status::{self, Mood, Say};
use super::target::{self, NotYet, Target};
use super::{LoadTestReconciler, SOON, Scene};
use crate::runtime::{Action, Error, Key, Next, Note, StatusWrite, Visit};

/// How soon a test that waits for something not watched (a Service of somebody else) looks again.
const WAIT_PAUSE: Duration = Duration::from_secs(10);

impl LoadTestReconciler {
    pub(super) async fn prepare(&self, test: &LoadTest, scene: &Scene, visit: &Visit) -> Result<Next, Error> {
        let target = match self.target(test, visit).await? {
            Ok(target) => target,
            Err(wait) => return self.wait(test, wait, visit).await,
        };
        let prompts = self.prompts(test, visit).await?;
        let plan = match plan::build(&test.name_any(), &test.spec, &target, &prompts) {
            Ok(plan) => plan,
            Err(PlanError::NotYet(wait)) => return self.wait(test, wait, visit).await,
            Err(PlanError::Impossible(sentence)) => return self.refuse(test, &sentence, visit).await,
        };
        let plan_map = match config_map::plan(test, &plan) {
            Ok(plan_map) => plan_map,
            Err(sentence) => return self.refuse(test, &sentence, visit).await,
        };
        let workload = plan.workload_hash();

        // Left by an operator that was killed between two writes, before a prompt was changed.
        let leftovers: Vec<Action> = [&scene.record, &scene.plan]
            .into_iter()
            .flatten()
            .filter(|map| map.annotations().get(build::WORKLOAD) != Some(&workload))
            .map(|map| Action::delete(&**map))
            .collect();
        if !leftovers.is_empty() {
            visit.execute(leftovers).await?;
            return Ok(Next::after(SOON));
        }

        let job = build::job::build(test, &plan, &self.settings.image);
        visit
            .execute(vec![
                // First, so that a name that is taken stops the test and not its end.
                Action::create(&config_map::result(test, &workload)),
                Action::create(&plan_map),
                Action::create(&build::service::build(test, &workload)),
                Action::create(&job),
                Action::event(Note::normal("Started", started_note(&plan))),
            ])
            .await?;
        let desired = test.spec.workers.count;
        let say = status::running(0, desired, None, false, None);
        let status = LoadTestStatus {
            workload: Some(workload),
            workers: Some(status::workers(desired, 0, 0)),
            ..status::unfinished(test, &say, visit.now())
        };
        visit.write_status(test, &status, StatusWrite::default()).await?;
        Ok(Next::on_change())
    }

    async fn target(&self, test: &LoadTest, visit: &Visit) -> Result<Result<Target, NotYet>, Error> {
        let namespace = &visit.key().namespace;
        let (target, protocol) = (&test.spec.target, test.spec.protocol);
        if let Some(reference) = &target.pool_ref {
            let pool = self.caches.pools.get(&Key::new(namespace, &reference.name));
            return Ok(target::of_pool(&reference.name, pool.as_deref(), protocol));
        }
        let spoken = protocol.unwrap_or(LoadProtocol::HTTP);
        if let Some(reference) = &target.service_ref {
            // Services of others are not watched.
            let service = visit
                .read::<Service>(&Key::new(namespace, &reference.name))
                .await?;
            return Ok(target::of_service(reference, namespace, service.as_ref(), spoken));
        }
        let url = target.url.clone().unwrap_or_default();
        Ok(Ok(Target {
            url,
            protocol: target::protocol_of(spoken),
        }))
    }

    /// The texts of prompts that ConfigMaps hold; what is not there is left out.
    async fn prompts(&self, test: &LoadTest, visit: &Visit) -> Result<Prompts, Error> {
        let namespace = &visit.key().namespace;
        let mut prompts = Prompts::new();
        let names: BTreeSet<&str> = plan::references(&test.spec)
            .map(|reference| reference.name.as_str())
            .collect();
        for name in names {
            let key = Key::new(namespace, name);
            if self.caches.config_maps.get(&key).is_none() {
                continue;
            }
            let data = visit
                .read::<ConfigMap>(&key)
                .await?
                .and_then(|map| map.data)
                .unwrap_or_default();
            prompts.extend(data.into_iter().map(|(key, text)| ((name.to_owned(), key), text)));
        }
        Ok(prompts)
    }

    async fn wait(&self, test: &LoadTest, wait: NotYet, visit: &Visit) -> Result<Next, Error> {
        self.say(test, &Say::new(Mood::Waiting, wait.reason, wait.message), visit)
            .await?;
        // Pools and ConfigMaps are watched; other Services are not, and neither is the clock that makes it Stalled.
        Ok(Next::after(WAIT_PAUSE))
    }

    /// The test can never run: it cannot be changed.
    async fn refuse(&self, test: &LoadTest, sentence: &str, visit: &Visit) -> Result<Next, Error> {
        let message = format!("{sentence}; a LoadTest cannot be changed, so create a new one");
        let say = Say::new(Mood::Failed, "InvalidSpec", &message);
        let status = status::finished(
            test,
            &say,
            Verdict::Invalid,
            ("InvalidSpec", &message),
            visit.now(),
        );
        visit.write_status(test, &status, StatusWrite::urgent()).await?;
        visit.note(Note::warning("InvalidSpec", message));
        Ok(Next::on_change())
    }
}

fn started_note(plan: &LoadPlan) -> String {
    let count = plan.workers.count;
    let workers = if count == 1 {
        "1 worker".to_owned()
    } else {
        format!("{count} workers")
    };
    format!(
        "{workers} will send {} requests in {} s to {}",
        plan.requests(),
        plan.seconds(),
        plan.target.url
    )
}
