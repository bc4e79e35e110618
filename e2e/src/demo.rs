//! The demo: what a user would type, and what the objects' status says while it happens.
//!
//! Nothing here knows more than `kubectl get` does: every line is read from status, so a demo that looks good is one
//! that a user can repeat.

use crate::{Cluster, wait};
use anyhow::{Context, Result, ensure};
use flotilla_crds::common::{condition, find, is_true};
use flotilla_crds::load_test::{LoadTestStatus, Verdict};
use flotilla_crds::{AgentPool, AgentPoolStatus, LoadTest, ModelProvider};
use indicatif::{ProgressBar, ProgressStyle};
use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use kube::api::DeleteParams;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const NAMESPACE: &str = "flotilla-demo";
const LOOK: Duration = Duration::from_millis(250);
const LIMIT: Duration = Duration::from_secs(120);

struct Demo {
    cluster: Cluster,
    examples: PathBuf,
    start: Instant,
    pools: Api<AgentPool>,
    tests: Api<LoadTest>,
}

/// Runs the demo on the cluster of `FLOTILLA_KUBECONFIG`, with the manifests of `examples/demo`.
///
/// # Errors
/// When anything does not end as the demo promises: the demo is a test as well.
pub async fn run() -> Result<()> {
    let cluster = Cluster::connect().await?;
    let demo = Demo {
        examples: Path::new("examples/demo")
            .canonicalize()
            .context("run the demo from the root of the clone")?,
        start: Instant::now(),
        pools: Api::namespaced(cluster.client.clone(), NAMESPACE),
        tests: Api::namespaced(cluster.client.clone(), NAMESPACE),
        cluster,
    };
    demo.fresh_namespace().await?;
    demo.pool_comes_up().await?;
    let test = demo.release_under_load().await?;
    show_result(&test);
    demo.bad_release().await?;
    demo.usage().await?;
    demo.what_next();
    let verdict = test.verdict;
    let failed = test.summary.map_or(-1, |s| s.requests.failed);
    ensure!(
        verdict == Some(Verdict::Passed) && failed == 0,
        "the load test ended with {verdict:?} and {failed} failed requests"
    );
    Ok(())
}

impl Demo {
    fn say(&self, text: &str) {
        println!(
            "\x1b[2m{:6.1} s\x1b[0m  {text}",
            self.start.elapsed().as_secs_f64()
        );
    }

    fn title(&self, text: &str) {
        println!("\n\x1b[1m{text}\x1b[0m");
    }

    async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.cluster
            .kubectl(&[&["-n", NAMESPACE], arguments].concat())
            .await
    }

    async fn apply(&self, file: &str) -> Result<()> {
        println!("\x1b[36m$ kubectl -n {NAMESPACE} apply -f examples/demo/{file}\x1b[0m");
        let text = self
            .kubectl(&["apply", "-f", &self.examples.join(file).to_string_lossy()])
            .await?;
        for line in text.lines() {
            self.say(line);
        }
        Ok(())
    }

    async fn fresh_namespace(&self) -> Result<()> {
        let api: Api<Namespace> = Api::all(self.cluster.client.clone());
        if api.get_opt(NAMESPACE).await?.is_some() {
            self.say("removing the namespace of an earlier demo");
            api.delete(NAMESPACE, &DeleteParams::default()).await?;
            wait::until("the old namespace to be gone", LIMIT, || async {
                match api.get_opt(NAMESPACE).await {
                    Ok(None) => Ok(()),
                    other => Err(other.map(|_| "still there")),
                }
            })
            .await?;
        }
        self.cluster.kubectl(&["create", "namespace", NAMESPACE]).await?;
        let enforce = "pod-security.kubernetes.io/enforce=restricted";
        self.cluster
            .kubectl(&["label", "namespace", NAMESPACE, enforce])
            .await
            .map(drop)
    }

    async fn pool_comes_up(&self) -> Result<()> {
        self.title("1. A pool of three agents, behind a gateway");
        self.apply("1-provider.yaml").await?;
        self.apply("2-pool.yaml").await?;
        self.follow_pool(|status| is_true(&status.conditions, condition::READY))
            .await?;
        println!("{}", self.kubectl(&["get", "agentpools"]).await?.trim_end());
        Ok(())
    }

    /// Prints every change of a pool's state until `done`.
    async fn follow_pool(&self, done: impl Fn(&AgentPoolStatus) -> bool) -> Result<AgentPoolStatus> {
        let (begin, mut last) = (Instant::now(), String::new());
        loop {
            ensure!(
                begin.elapsed() < LIMIT,
                "the pool did not get there within {} s; last: {last}",
                LIMIT.as_secs()
            );
            let object = self.pools.get("support").await?;
            let current = object.metadata.generation;
            let status = object.status.unwrap_or_default();
            let line = describe(&status);
            if line != last && status.observed_generation >= 0 {
                self.say(&line);
                last = line;
            }
            if Some(status.observed_generation) == current && done(&status) {
                return Ok(status);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn release_under_load(&self) -> Result<LoadTestStatus> {
        self.title("2. 600 customer-service requests at 10/s, and a new prompt released under that load");
        self.apply("3-load-test.yaml").await?;
        let bar = ProgressBar::new(600).with_style(
            ProgressStyle::with_template("          {bar:40.green} {pos}/{len} requests  {msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        let (begin, mut released, mut last) = (Instant::now(), false, String::new());
        loop {
            ensure!(begin.elapsed() < 2 * LIMIT, "the load test did not end");
            let test = self.tests.get("customers").await?.status.unwrap_or_default();
            let progress = test.progress.clone().unwrap_or_default();
            bar.set_position(progress.done.unsigned_abs());
            bar.set_message(format!("{} failed", progress.failed));
            let pool = self.pools.get("support").await?.status.unwrap_or_default();
            let line = match progress.stage.as_deref() {
                Some(_) => format!(
                    "{:>3} of {} done, {} failed; pool: {}",
                    progress.done,
                    progress.planned,
                    progress.failed,
                    describe(&pool)
                ),
                None => format!(
                    "load test: {}",
                    find(&test.conditions, condition::READY).map_or("Pending", |c| c.reason.as_str())
                ),
            };
            if line != last {
                bar.suspend(|| self.say(&line));
                last = line;
            }
            if !released && progress.done >= 50 {
                released = true;
                bar.suspend(|| {
                    println!(
                        "          the prompt gets better: a new revision, batch by batch, traffic following"
                    )
                });
                self.apply("4-better-prompt.yaml").await?;
            }
            if is_true(&test.conditions, condition::COMPLETE) {
                bar.finish_and_clear();
                ensure!(released, "the load test ended before the release began");
                self.follow_pool(|status| is_true(&status.conditions, condition::READY))
                    .await?;
                return Ok(test);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn bad_release(&self) -> Result<()> {
        self.title("3. A broken prompt: the agent refuses it, the release is stopped, the good revision goes on serving");
        self.apply("5-broken-prompt.yaml").await?;
        let status = self
            .follow_pool(|status| is_true(&status.conditions, condition::STALLED))
            .await?;
        println!("{}", self.kubectl(&["get", "agentpools"]).await?.trim_end());
        if let Some(stalled) = find(&status.conditions, condition::STALLED) {
            println!(
                "\x1b[33m{}: {}\x1b[0m",
                stalled.reason,
                stalled.message.replace("; ", ";\n  ")
            );
        }
        ensure!(
            is_true(&status.conditions, condition::AVAILABLE),
            "the pool is not Available: {:?}",
            status.conditions
        );
        Ok(())
    }

    async fn usage(&self) -> Result<()> {
        self.title("4. What the provider was asked for");
        let api: Api<ModelProvider> = Api::namespaced(self.cluster.client.clone(), NAMESPACE);
        wait::until("the provider's usage", LIMIT, || async {
            let usage = api
                .get("main")
                .await
                .ok()
                .and_then(|p| p.status)
                .and_then(|s| s.usage);
            usage
                .filter(|u| u.requests >= 600)
                .map(drop)
                .ok_or("fewer than 600 requests counted")
        })
        .await?;
        println!("{}", self.kubectl(&["get", "modelproviders"]).await?.trim_end());
        Ok(())
    }

    fn what_next(&self) {
        let kubeconfig = self.cluster.kubeconfig.display();
        println!(
            "\n\x1b[1mDone in {:.0} s. The cluster stays up. Try next:\x1b[0m\n\n  \
             export KUBECONFIG={kubeconfig} PATH={}/bin:$PATH",
            self.start.elapsed().as_secs_f64(),
            self.cluster.state.display(),
        );
        for (command, purpose) in [
            ("get flotilla", "everything of ours"),
            ("describe agentpool support", "conditions and events"),
            ("get loadtest customers -o yaml", "the verdict and its evidence"),
            ("apply -f examples/demo/2-pool.yaml", "back to the first prompt"),
            ("scale agentpool support --replicas=5", "or let an HPA do it"),
            ("explain agentpool.spec.rollout", "every field is documented"),
        ] {
            println!(
                "  {:<64} # {purpose}",
                format!("kubectl -n {NAMESPACE} {command}")
            );
        }
        println!("  {:<64} # leaves nothing behind\n", "make cluster-down");
    }
}

fn describe(status: &AgentPoolStatus) -> String {
    let state = find(&status.conditions, condition::READY).map_or("Pending", |c| c.reason.as_str());
    let mut text = format!("{state}, {} ready", status.ready.as_deref().unwrap_or("0"));
    if let Some(stable) = &status.stable {
        text += &format!(", {} serves", stable.revision);
    }
    if let Some(candidate) = &status.candidate {
        text += &format!(
            ", {} gets {} % with {} ready",
            candidate.revision, candidate.weight, candidate.ready_replicas
        );
    }
    text
}

fn show_result(status: &LoadTestStatus) {
    let verdict = status.verdict.map_or("none".into(), |v| format!("{v:?}"));
    println!("\n\x1b[1;32mverdict: {verdict}\x1b[0m");
    let summary = status.summary.clone().unwrap_or_default();
    println!(
        "  requests   {} sent, {} failed",
        summary.requests.total, summary.requests.failed
    );
    if let Some(latency) = summary.latency {
        println!(
            "  latency    p50 {} ms   p95 {} ms   p99 {} ms",
            latency.p50_milliseconds, latency.p95_milliseconds, latency.p99_milliseconds
        );
    }
    if let Some(tokens) = summary.tokens {
        println!("  tokens     {} in, {} out", tokens.input, tokens.output);
    }
    if let Some(cost) = summary.cost {
        println!("  cost       {} {}", cost.total, cost.currency);
    }
    for threshold in &status.thresholds {
        println!(
            "  {:<10} {:?}: {} against {}",
            threshold.name, threshold.verdict, threshold.observed, threshold.limit
        );
    }
}
