//! `make acceptance`: the full figures that the issues name, written to `docs/measurements.md`.

mod page;

use crate::namespace::{cleared, in_namespace};
use crate::report::Row;
use crate::scenario::{judged, load_test, pool, release, releases, rest, scale, survive, turmoil};
use crate::{Cluster, operator};
use anyhow::{Context, Result};
use clap::Parser;
use flotilla_crds::load_test::Verdict;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Runs the full figures and prints a line a row: name, measured, goal, ok or short.
#[derive(Debug, Parser)]
#[command(name = "flotilla-acceptance")]
pub struct Args {
    /// Write the rows into this Markdown file as well.
    #[arg(long)]
    write: Option<PathBuf>,
    /// Only these parts, separated by commas.
    #[arg(long, value_delimiter = ',', value_parser = PARTS)]
    only: Vec<String>,
    /// Divide the sizes by this, to try the run itself.
    #[arg(long, default_value_t = 1)]
    divide: u64,
}

/// The parts, in the order in which they run.
const PARTS: [&str; 13] = [
    "pool",
    "rest",
    "release",
    "load",
    "generator",
    "kills",
    "away",
    "takeover",
    "scale",
    "scenarios",
    "judged",
    "turmoil",
    "fuzz",
];

async fn measure(part: &str, cluster: &Cluster, divide: u64) -> Result<Vec<Row>> {
    match part {
        "pool" => bring_up(cluster).await,
        "rest" => at_rest(cluster, 60).await,
        "release" => rolling(cluster, 100_000 / divide).await,
        "load" => load(cluster).await,
        "generator" => generator().await,
        "kills" => kills(cluster, u32::try_from(50 / divide)?).await,
        "away" => away(cluster).await,
        "takeover" => takeover(cluster).await,
        "scale" => many(cluster, usize::try_from(1000 / divide)?).await,
        "scenarios" => scenarios(cluster).await,
        "judged" => judged(cluster, divide).await,
        "turmoil" => turmoil(cluster, 1_000_000 / divide).await,
        "fuzz" => fuzz(1_000_000 / divide).await,
        other => anyhow::bail!("{other} is no part"),
    }
}

/// Runs the parts that `args` names, one after the other, so that none disturbs another's figure.
///
/// # Errors
/// When the cluster or the machine cannot be used. A scenario that fails is a row that is short.
pub async fn run(args: Args) -> Result<Vec<Row>> {
    let cluster = Cluster::connect().await?;
    // What is measured was built before; the page itself changes with each part.
    let commit = output("git", &["describe", "--always", "--dirty"]).await;
    let mut all = Vec::new();
    let wanted = |part: &&str| args.only.is_empty() || args.only.iter().any(|only| only == part);
    for part in PARTS.into_iter().filter(wanted) {
        let measured = measure(part, &cluster, args.divide).await;
        let rows = measured.unwrap_or_else(|e| {
            let why = format!("{e:#}").replace('\n', " ");
            vec![Row::new(part, why, "the scenario ends well", false)]
        });
        for row in &rows {
            println!("{row}");
        }
        if let Some(path) = &args.write {
            write(path, &commit, part, rows.clone())?;
        }
        all.extend(rows);
    }
    Ok(all)
}

/// Renews a part's section of the page. Written after each part: a run that is ended loses only what it was at.
fn write(path: &Path, commit: &str, part: &str, rows: Vec<Row>) -> Result<()> {
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = memory
        .split_whitespace()
        .nth(1)
        .and_then(|kib| kib.parse::<f64>().ok());
    let gib = kib.unwrap_or(0.0) / 1024.0 / 1024.0;
    let made = page::Made {
        day: jiff::Zoned::now().strftime("%Y-%m-%d").to_string(),
        commit: commit.to_owned(),
        machine: format!("{cores} cores, {gib:.0} GiB"),
    };
    let old = std::fs::read_to_string(path).unwrap_or_default();
    let new = page::renew(&old, &PARTS, &made, &[(part, rows)]);
    std::fs::write(path, new).with_context(|| format!("failed to write {}", path.display()))
}

async fn output(program: &str, arguments: &[&str]) -> String {
    let output = tokio::process::Command::new(program)
        .args(arguments)
        .output()
        .await;
    output.map_or_else(
        |_| "unknown".into(),
        |o| String::from_utf8_lossy(&o.stdout).trim().to_owned(),
    )
}

/// Every parser of foreign input, by the program that `make acceptance` builds in the profile `fuzz`.
async fn fuzz(executions: u64) -> Result<Vec<Row>> {
    let own = std::env::current_exe()?;
    let target = own
        .ancestors()
        .nth(2)
        .context("this program is in no target folder")?;
    let program = target.join("fuzz/flotilla-fuzz");
    let executions_each = executions.to_string();
    let output = tokio::process::Command::new(&program)
        .args(["--executions", &executions_each])
        .output()
        .await
        .with_context(|| format!("failed to start {}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let good = text.lines().filter(|line| line.ends_with(", ok")).count();
    let bad: Vec<&str> = text
        .lines()
        .filter(|line| line.ends_with(", FAILED"))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    Ok(vec![Row::new(
        "parsers of foreign input, mutated real input",
        format!(
            "{good} targets × {executions} executions, failed: [{}]",
            bad.join(", ")
        ),
        "≥ 1,000,000 executions each, no panic",
        output.status.success() && bad.is_empty() && good > 0 && executions >= 1_000_000,
    )])
}

async fn bring_up(cluster: &Cluster) -> Result<Vec<Row>> {
    let up = in_namespace(cluster, "up", pool::bring_up).await?;
    let kinds: Vec<String> = up
        .by_kind
        .iter()
        .map(|(kind, n)| format!("{n} × {kind}"))
        .collect();
    Ok(vec![
        Row::new(
            "kubectl apply of a short pool → Ready",
            format!("{:.1} s", up.seconds),
            "≤ 20 s",
            up.seconds <= 20.0,
        ),
        Row::new(
            format!(
                "operator's writes from apply to Ready, K = {} objects",
                up.objects
            ),
            format!("{}", up.writes),
            format!("≤ K + 4 = {}", up.objects + 4),
            up.writes > 0 && up.writes <= up.objects + 4,
        ),
        Row::note("these writes", kinds.join(", ")),
    ])
}

async fn at_rest(cluster: &Cluster, seconds: u64) -> Result<Vec<Row>> {
    let requests = in_namespace(cluster, "rest", move |n| rest::requests_at_rest(n, seconds)).await?;
    let seen = if requests.is_empty() {
        "0".into()
    } else {
        format!("{}: {}", requests.len(), requests.join(", "))
    };
    Ok(vec![Row::new(
        format!("operator's requests at rest in {seconds} s (watches and lease apart)"),
        seen,
        "0",
        requests.is_empty(),
    )])
}

async fn rolling(cluster: &Cluster, requests: u64) -> Result<Vec<Row>> {
    let sizes = release::Sizes {
        requests,
        per_second: 500,
        releases: 4,
    };
    let outcome = in_namespace(cluster, "release", move |n| release::rolling_under_load(n, sizes)).await?;
    Ok(vec![
        Row::new(
            "failed of all requests through 4 releases, operator killed, gateway deleted",
            format!(
                "{} of {}{}",
                outcome.failed(),
                outcome.requests,
                outcome
                    .failures
                    .iter()
                    .map(|(failure, count)| format!("; {count} × {failure}"))
                    .collect::<String>()
            ),
            "0",
            outcome.failed() == 0 && outcome.requests >= requests,
        ),
        Row::note(
            "of these sent more than 100 ms late by the client",
            outcome.late.to_string(),
        ),
    ])
}

/// Why it failed, if it did.
async fn one_scenario(cluster: Cluster, (name, scenario): releases::Scenario) -> Option<String> {
    let purpose: String = name.replace('_', "-").chars().take(30).collect();
    let result = in_namespace(&cluster, purpose.trim_end_matches('-'), scenario).await;
    result.err().map(|error| format!("{name}: {error:#}"))
}

/// Every scenario of a release, a few at a time.
async fn scenarios(cluster: &Cluster) -> Result<Vec<Row>> {
    const AT_ONCE: usize = 4;
    let mut waiting = releases::all().map(|scenario| one_scenario(cluster.clone(), scenario));
    let mut running: FuturesUnordered<_> = waiting.by_ref().take(AT_ONCE).collect();
    let mut results = Vec::new();
    while let Some(result) = running.next().await {
        results.push(result);
        running.extend(waiting.next());
    }
    let failed: Vec<String> = results.iter().flatten().cloned().collect();
    let good = results.len() - failed.len();
    let mut slowest: f64 = 0.0;
    for _ in 0..3 {
        let seconds = in_namespace(cluster, "crash", releases::lifecycle::seconds_to_lose_the_traffic);
        slowest = slowest.max(seconds.await?);
    }
    let crash = Row::new(
        "a candidate crashes at 50 %: its weight is 0 (slowest of 3)",
        format!("{slowest:.1} s"),
        "≤ 10 s",
        slowest <= 10.0,
    );
    Ok(vec![
        crash,
        Row::new(
            "scenarios of releases with real pods and traffic",
            format!(
                "{good} of {}{}",
                results.len(),
                failed
                    .iter()
                    .map(|why| format!("; {}", why.replace('\n', " ")))
                    .collect::<String>()
            ),
            "all of ≥ 30",
            failed.is_empty() && good >= 30,
        ),
    ])
}

/// 20 bad candidates and 40 good ones, in ten pools at once.
async fn judged(cluster: &Cluster, divide: u64) -> Result<Vec<Row>> {
    const ROUNDS: [f64; 6] = [10.0, 1.0, 1.0, 1.0, 1.0, 10.0];
    let pools = usize::try_from(10 / divide.min(10))?.max(1);
    // The storm breaker lets ten releases be led back in ten minutes.
    let apart = Duration::from_secs(630);
    let fleet = in_namespace(cluster, "judged", move |n| {
        judged::fleet(n, pools, &ROUNDS, apart)
    })
    .await?;
    let (bad, good): (Vec<_>, Vec<_>) = fleet.releases.iter().partition(|one| one.times_as_bad > 1.0);
    let stopped = bad
        .iter()
        .filter(|one| one.rejected.is_some() && one.heaviest < 10)
        .count();
    let led_back: Vec<_> = good.iter().filter_map(|one| one.rejected.as_deref()).collect();
    let median = |of: &[&judged::Judged]| {
        let mut seconds: Vec<u64> = of.iter().map(|one| one.seconds).collect();
        seconds.sort_unstable();
        seconds.get(seconds.len() / 2).copied().unwrap_or_default()
    };
    let failures: u64 = fleet.failed_by_us.iter().map(|(_, count)| count).sum();
    let kinds: String = fleet
        .failed_by_us
        .iter()
        .map(|(kind, count)| format!("; {count} × {kind}"))
        .collect();
    Ok(vec![
        Row::new(
            "releases with 10 × the errors, stopped before 10 % weight",
            format!("{stopped} of {}, median {} s", bad.len(), median(&bad)),
            "all",
            stopped == bad.len() && !bad.is_empty(),
        ),
        Row::new(
            "releases as good as stable (2 % errors), led back",
            format!(
                "{} of {}, median {} s to the promotion{}",
                led_back.len(),
                good.len(),
                median(&good),
                led_back.iter().map(|why| format!("; {why}")).collect::<String>()
            ),
            "≤ 1 of 40",
            led_back.len() <= 1 && !good.is_empty(),
        ),
        Row::new(
            "requests that failed by us meanwhile",
            format!("{failures} of {}{kinds}", fleet.requests),
            "0",
            failures == 0 && fleet.requests > 0,
        ),
    ])
}

async fn turmoil(cluster: &Cluster, requests: u64) -> Result<Vec<Row>> {
    let done = in_namespace(cluster, "turmoil", move |n| turmoil::under_load(n, requests, 800)).await?;
    let kinds: String = done
        .traffic
        .failures
        .iter()
        .map(|(kind, count)| format!("; {count} × {kind}"))
        .collect();
    Ok(vec![Row::new(
        format!(
            "failed requests through {} releases: promoted, aborted, superseded, rolled back",
            done.releases
        ),
        format!("{} of {}{kinds}", done.traffic.failed(), done.traffic.requests),
        "0",
        done.traffic.failed() == 0 && done.traffic.requests >= requests && done.releases >= 4,
    )])
}

fn verdict(verdict: Option<Verdict>) -> String {
    verdict.map_or_else(|| "none".to_owned(), |verdict| format!("{verdict:?}"))
}

async fn load(cluster: &Cluster) -> Result<Vec<Row>> {
    let done = in_namespace(cluster, "load", |n| load_test::run(n, 50, 60, 4)).await?;
    let status = done.status.unwrap_or_default();
    let latency = status.summary.and_then(|s| s.latency).unwrap_or_default();
    let killed = in_namespace(cluster, "killed", load_test::with_killed_worker)
        .await?
        .status
        .unwrap_or_default();
    Ok(vec![
        Row::new(
            "verdict of a load test with 4 workers, 3000 requests",
            verdict(status.verdict),
            "Passed",
            status.verdict == Some(Verdict::Passed),
        ),
        Row::note(
            "its p50 / p95 / p99",
            format!(
                "{} / {} / {} ms",
                latency.p50_milliseconds, latency.p95_milliseconds, latency.p99_milliseconds
            ),
        ),
        Row::new(
            "verdict when a worker is killed",
            verdict(killed.verdict),
            "Invalid",
            killed.verdict == Some(Verdict::Invalid),
        ),
    ])
}

/// The load generator against targets on the loopback, as its own tests measure it.
async fn generator() -> Result<Vec<Row>> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let test =
        "test --locked --profile image -p flotilla-loadgen --test schedule -- --nocapture --test-threads=1";
    let output = tokio::process::Command::new(cargo)
        .args(test.split(' '))
        .env("FLOTILLA_FULL", "1")
        .output()
        .await
        .context("failed to run the load generator's tests")?;
    let (text, passed) = (String::from_utf8_lossy(&output.stdout), output.status.success());
    let line = |name: &str| {
        let found = text.lines().find_map(|line| line.split_once(name));
        found.map_or_else(
            || "no figure".to_owned(),
            |(_, figures)| figures.trim().to_owned(),
        )
    };
    Ok(vec![
        Row::new(
            "load generator, target stalled 1 s in every 10 s, 1,000/s for 30 s",
            line("stalled target:"),
            "p95 within 5 % of 500 ms, p99 within 5 % of 900 ms",
            passed,
        ),
        Row::new(
            "load generator, percentiles merged from workers",
            line("merged percentiles:"),
            "within 1 % of all samples",
            passed,
        ),
    ])
}

async fn kills(cluster: &Cluster, kills: u32) -> Result<Vec<Row>> {
    let done = in_namespace(cluster, "kills", move |n| survive::kills(n, kills)).await?;
    let status = done.status.unwrap_or_default();
    let good = status.verdict == Some(Verdict::Passed);
    Ok(vec![Row::new(
        format!("operator killed {kills} times during releases and a load test"),
        verdict(status.verdict),
        "Passed, converged",
        good,
    )])
}

async fn away(cluster: &Cluster) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for seconds in [10, 60] {
        let after = in_namespace(cluster, "away", move |n| survive::api_server_away(n, seconds)).await?;
        rows.push(Row::new(
            format!("API server away for {seconds} s in a release: Ready after its return"),
            format!("{after:.1} s"),
            "≤ 120 s",
            after <= 120.0,
        ));
    }
    Ok(rows)
}

async fn takeover(cluster: &Cluster) -> Result<Vec<Row>> {
    let mut worst: f64 = 0.0;
    for _ in 0..5 {
        worst = worst.max(survive::takeover(cluster).await?);
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    Ok(vec![Row::new(
        "second replica leads after SIGKILL (worst of 5)",
        format!("{worst:.1} s"),
        "≤ 17 s",
        worst <= 17.0,
    )])
}

async fn many(cluster: &Cluster, count: usize) -> Result<Vec<Row>> {
    cluster.tool(&["up", "--kwok", "8"]).await?;
    // A fresh process, so that its memory is that of these pools alone.
    for pod in operator::pods(cluster).await? {
        operator::kill(&pod).await?;
    }
    tokio::time::sleep(Duration::from_secs(20)).await;
    let native = in_namespace(cluster, "native", move |n| scale::deployments(n, count)).await?;
    // Their deletion takes as long as their creation.
    cleared(cluster, Duration::from_secs(600)).await?;
    let ours = in_namespace(cluster, "many", move |n| scale::pools(n, count)).await?;
    Ok(vec![
        Row::new(
            format!("memory of the operator with {count} pools"),
            format!("{:.0} MiB", ours.memory_mib),
            "≤ 60 MiB",
            ours.memory_mib <= 60.0,
        ),
        Row::note(
            "memory of the standby",
            ours.standby_mib.map_or("-".into(), |m| format!("{m:.0} MiB")),
        ),
        Row::note(
            "memory of kube-controller-manager (all its controllers)",
            format!("{:.0} MiB", native.memory_mib),
        ),
        Row::note(
            format!("{count} AgentPools created at once → all Ready"),
            format!("{:.0} s", ours.seconds),
        ),
        Row::note(
            format!(
                "{count} Deployments, each with two Services and a budget, created at once → all Available"
            ),
            format!("{:.0} s", native.seconds),
        ),
        Row::note(
            "operator's writes per AgentPool",
            format!("{:.1}", ours.writes_per_object),
        ),
        Row::note(
            "controllers' writes per Deployment (pods apart)",
            format!("{:.1}", native.writes_per_object),
        ),
    ])
}
