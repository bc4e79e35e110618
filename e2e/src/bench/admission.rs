//! What quotas and budgets cost a request: admission from the lease, and what is done when its answer begins and ends.
//!
//! In this process, with what the gateway itself runs: [`HOLDERS`] gateways that share one allocator's leases, [`POOLS`] at
//! each, windows of requests, input, output and all tokens, a day, concurrency, a budget of the provider and one of the
//! model, and the provider's rate-limit headers. Leases are renewed between the calls; the calls themselves ask nobody. All
//! of them count, also those in which the machine did something else.

use anyhow::{Context as _, Result, bail};
use flotilla_core::price::TokenUsage;
use flotilla_core::price::ledger::Policy;
use flotilla_core::quota::Reply;
use flotilla_gateway::config::{Config, ProviderConfig};
use flotilla_gateway::egress::quota::store::Memory;
use flotilla_gateway::egress::quota::{
    Ask, Clock, Message, Pace, Quotas, SendError, Setup, Transport, Used, Word,
};
use flotilla_gateway::egress::spend::{Ended, Usage};
use flotilla_gateway::peers::Peers;
use futures::future::BoxFuture;
use http::{HeaderMap, HeaderValue, StatusCode};
use jiff::Timestamp;
use serde_json::json;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

use crate::report::Row;

/// Gateways.
const HOLDERS: usize = 8;
/// Each sends through every gateway.
const POOLS: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];
/// Admissions that are measured.
const REQUESTS: usize = 1_200_000;
/// Of these, between two pauses in which leases are renewed.
const BATCH: usize = 1_000;
/// The goal for admission, at the 99th percentile.
const GOAL: Duration = Duration::from_micros(5);
const PROVIDER: &str = "main";
/// It has a built-in price.
const MODEL: &str = "gpt-5-mini";

/// Measures [`REQUESTS`] admissions.
///
/// # Errors
/// When no lease is granted, or one is used up.
pub fn run() -> Result<Vec<Row>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let stop = CancellationToken::new();
        let (mut admissions, whole) = measure(&start(&stop)?).await?;
        stop.cancel();
        admissions.sort_unstable();
        let at = |percent: usize| {
            let found = admissions.get(admissions.len() * percent / 100);
            found.copied().unwrap_or(Duration::MAX)
        };
        let (median, p99) = (at(50), at(99));
        Ok(vec![
            Row::new(
                "admission on the lease path and by budget, p50 / p99",
                format!("{:.2} / {:.2} µs", micros(median), micros(p99)),
                format!("p99 ≤ {} µs", GOAL.as_micros()),
                p99 <= GOAL,
            ),
            Row::note(
                "  the same with headers and settling, mean",
                format!("{:.2} µs", micros(whole) / REQUESTS as f64),
            ),
        ])
    })
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// One gateway: its share of the quotas, and of the budgets.
struct Holder {
    quotas: Arc<Quotas>,
    usage: Usage,
    config: ProviderConfig,
}

/// Reaches the gateway that deals out, without a network.
struct Direct(Arc<OnceLock<Vec<Arc<Quotas>>>>);

impl Direct {
    fn to(&self, pod: &str) -> Result<&Quotas, SendError> {
        let found = pod
            .parse::<usize>()
            .ok()
            .and_then(|number| self.0.get()?.get(number));
        found
            .map(Arc::as_ref)
            .ok_or_else(|| SendError::Silent("not all have started".to_owned()))
    }
}

impl Transport for Direct {
    fn send<'a>(&'a self, pod: &'a str, message: Message) -> BoxFuture<'a, Result<Option<Reply>, SendError>> {
        Box::pin(async move {
            let answer = self.to(pod)?.answer(message).await;
            answer.ok_or_else(|| SendError::Unwilling("not elected".to_owned()))
        })
    }

    fn vouch<'a>(&'a self, pod: &'a str, word: Word) -> BoxFuture<'a, Result<(), SendError>> {
        Box::pin(async move {
            let agrees = self.to(pod)?.vouch(word);
            agrees
                .then_some(())
                .ok_or_else(|| SendError::Unwilling("no witness".to_owned()))
        })
    }
}

fn start(stop: &CancellationToken) -> Result<Vec<Holder>> {
    let limit = |name: &str, resource: &str, window: &str| json!({"name": name, "resource": resource, "limit": 1_000_000_000_000_u64, "window": window});
    let limits: Vec<flotilla_crds::quota::Quota> = serde_json::from_value(json!([
        limit("rpm", "Requests", "Minute"),
        limit("ipm", "InputTokens", "Minute"),
        limit("opm", "OutputTokens", "Minute"),
        limit("tpm", "Tokens", "Minute"),
        limit("rpd", "Requests", "Day"),
        {"name": "open", "resource": "Concurrency", "limit": 1_000_000},
    ]))?;
    let budget =
        serde_json::from_value(json!({"limit": "1000000000", "currency": "USD", "onExhausted": "Block"}))?;
    let budget = Policy::parse(&budget)?;
    let config = ProviderConfig {
        budget: Some(budget),
        model_budgets: [(MODEL.to_owned(), budget)].into(),
        ..ProviderConfig::default()
    };
    let peers = Arc::new(Peers::new(0));
    let here = IpAddr::V4(Ipv4Addr::LOCALHOST);
    peers.apply(&Config {
        gateway_pods: (0..HOLDERS).map(|number| (number.to_string(), here)).collect(),
        ..Config::default()
    });
    let (store, all) = (Arc::new(Memory::default()), Arc::new(OnceLock::new()));
    let holders: Vec<Holder> = (0..HOLDERS)
        .map(|number| {
            let setup = Setup {
                pod: number.to_string(),
                instance: "1".to_owned(),
                within: Duration::from_secs(600),
                terms: Default::default(),
                pace: Pace::default(),
                store: store.clone(),
                peers: peers.clone(),
                transport: Arc::new(Direct(all.clone())),
                clock: Clock::system(),
            };
            let quotas = Quotas::start(setup, stop.clone());
            quotas.set([(PROVIDER, limits.as_slice())].into_iter());
            Holder {
                quotas,
                usage: Usage::default(),
                config: config.clone(),
            }
        })
        .collect();
    let quotas = holders.iter().map(|holder| holder.quotas.clone()).collect();
    all.set(quotas).ok().context("it was set before")?;
    Ok(holders)
}

/// Each admission's time, and the sum of all that is done for these requests.
async fn measure(holders: &[Holder]) -> Result<(Vec<Duration>, Duration)> {
    let mut headers = HeaderMap::new();
    let limit = HeaderValue::from_static("1000000000000");
    headers.insert("x-ratelimit-limit-requests", limit);
    let left = HeaderValue::from_static("999999999999");
    headers.insert("x-ratelimit-remaining-requests", left);
    let mut admissions = Vec::with_capacity(REQUESTS);
    let mut whole = Duration::ZERO;
    // One that waits for a lease is no admission on the lease path: there are a few before the first lease.
    for (number, holder) in holders.iter().cycle().take(2 * REQUESTS).enumerate() {
        if admissions.len() == REQUESTS {
            return Ok((admissions, whole));
        }
        if number % BATCH == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // Another pool in each round of the gateways.
        let pool = POOLS
            .get(number / HOLDERS % POOLS.len())
            .copied()
            .unwrap_or_default();
        let ask = Ask {
            pool,
            model: Some(MODEL),
            bytes: 1_024,
            max_tokens: Some(100),
            deadline: tokio::time::Instant::now() + Duration::from_secs(60),
        };
        let start = Instant::now();
        let Ok(Some(mut permit)) = holder.quotas.reserve(PROVIDER, ask).await else {
            bail!("a quota of a million millions is used up");
        };
        let now = Timestamp::now();
        let reserved = holder
            .usage
            .reserve(&holder.config, "1", Some(MODEL), 1_024, Some(100), now);
        let admitted = start.elapsed();
        let Ok(reserved) = reserved else {
            bail!("a budget of a thousand millions is spent");
        };
        holder.usage.begin();
        let at_once = permit.waited().is_zero();
        permit.answered(StatusCode::OK, &headers);
        permit.settle(Used {
            input: Some(250),
            output: Some(80),
        });
        let ended = Ended {
            model: Some(MODEL),
            reported: Some(TokenUsage {
                input: 250,
                output: 80,
                ..TokenUsage::default()
            }),
            bytes: 1_024,
            reserved,
            ..Ended::default()
        };
        let cost = holder.usage.end(&holder.config, &ended, Timestamp::now());
        cost.context("the model has no price, so no budget was asked")?;
        if at_once {
            admissions.push(admitted);
            whole += start.elapsed();
        }
    }
    bail!("only {} of {REQUESTS} requests found a share", admissions.len())
}
