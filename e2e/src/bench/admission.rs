//! What a quota costs a request: admission from the lease, and what is done when its answer begins and ends.
//!
//! In this process, with what the gateway itself runs: the lock, the look-ups of pool and model, the estimate, four limits
//! (requests, tokens, a day, concurrency), and the provider's rate-limit headers. No network and no allocator is involved: the
//! lease was granted before, as it is in steady state.

use anyhow::{Context as _, Result, bail};
use flotilla_gateway::egress::quota::store::Memory;
use flotilla_gateway::egress::quota::{Ask, Clock, Http, Pace, Quotas, Setup, Used};
use flotilla_gateway::peers::Peers;
use http::{HeaderMap, HeaderValue, StatusCode};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::report::Row;

/// Requests of a round.
const REQUESTS: usize = 200_000;
/// The goal for admission, at the 99th percentile.
const GOAL: Duration = Duration::from_micros(5);
const PROVIDER: &str = "main";

/// Runs `rounds` rounds; the best one counts, for all else that runs on the machine only adds.
///
/// # Errors
/// When no lease is granted.
pub fn run(rounds: usize) -> Result<Vec<Row>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let stop = tokio_util::sync::CancellationToken::new();
        let quotas = start(stop.clone())?;
        let mut best: Option<(Duration, Duration, Duration)> = None;
        for _ in 0..rounds {
            let round = round(&quotas).await?;
            if best.is_none_or(|best| round.1 < best.1) {
                best = Some(round);
            }
        }
        stop.cancel();
        let (median, p99, whole) = best.context("there is at least one round")?;
        Ok(vec![
            Row::new(
                "quota: admission on the lease path, p50 / p99",
                format!("{} / {} ns", median.as_nanos(), p99.as_nanos()),
                format!("p99 <= {} us", GOAL.as_micros()),
                p99 <= GOAL,
            ),
            Row::note(
                "quota: admission, headers and settling together, mean",
                format!("{} ns", whole.as_nanos()),
            ),
        ])
    })
}

fn start(stop: tokio_util::sync::CancellationToken) -> Result<Arc<Quotas>> {
    let peers = Arc::new(Peers::new(0));
    let quotas = Quotas::start(
        Setup {
            pod: "bench".to_owned(),
            instance: "1".to_owned(),
            within: Duration::from_secs(600),
            terms: Default::default(),
            pace: Pace::default(),
            store: Arc::new(Memory::default()),
            peers: peers.clone(),
            transport: Arc::new(Http::new(peers, IpAddr::V4(Ipv4Addr::LOCALHOST))),
            clock: Clock::system(),
        },
        stop,
    );
    let limits: Vec<flotilla_crds::quota::Quota> = serde_json::from_value(serde_json::json!([
        {"name": "rpm", "resource": "Requests", "limit": 1_000_000_000_000_u64, "windowSeconds": 60},
        {"name": "tpm", "resource": "Tokens", "limit": 1_000_000_000_000_u64, "window": "Minute"},
        {"name": "rpd", "resource": "Requests", "limit": 1_000_000_000_000_u64, "window": "Day"},
        {"name": "open", "resource": "Concurrency", "limit": 1_000_000},
    ]))?;
    quotas.set([(PROVIDER, limits.as_slice())].into_iter());
    Ok(quotas)
}

/// Median and 99th percentile of admission, and the mean of all that is done for a request.
async fn round(quotas: &Arc<Quotas>) -> Result<(Duration, Duration, Duration)> {
    let mut headers = HeaderMap::new();
    headers.insert(
        "x-ratelimit-limit-requests",
        HeaderValue::from_static("1000000000000"),
    );
    headers.insert(
        "x-ratelimit-remaining-requests",
        HeaderValue::from_static("999999999999"),
    );
    let mut admissions = Vec::with_capacity(REQUESTS);
    let mut whole = Duration::ZERO;
    for number in 0..2 * REQUESTS {
        if admissions.len() == REQUESTS {
            break;
        }
        if number % 1_000 == 0 {
            // The lease is renewed meanwhile.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let ask = Ask {
            pool: "support",
            model: Some("mini"),
            bytes: 1_024,
            max_tokens: Some(100),
            deadline: tokio::time::Instant::now() + Duration::from_secs(60),
        };
        let start = Instant::now();
        let Ok(Some(mut permit)) = quotas.reserve(PROVIDER, ask).await else {
            bail!("a quota of a million millions is used up");
        };
        let admitted = start.elapsed();
        let at_once = permit.waited().is_zero();
        permit.answered(StatusCode::OK, &headers);
        permit.settle(Used {
            input: Some(250),
            output: Some(80),
        });
        if at_once {
            admissions.push(admitted);
            whole += start.elapsed();
        }
    }
    if admissions.len() < REQUESTS {
        bail!("only {} of {REQUESTS} requests found a share", admissions.len());
    }
    admissions.sort_unstable();
    let at = |percent: usize| {
        admissions
            .get(REQUESTS * percent / 100)
            .copied()
            .unwrap_or_default()
    };
    Ok((at(50), at(99), whole / u32::try_from(REQUESTS)?))
}
