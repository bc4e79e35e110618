//! `/metrics`, for Prometheus.
//!
//! Nothing is counted twice: values are read at the time of the scrape from what `/stats` and the request path keep anyway.
//! So a request pays nothing for them, and the series of an object that is gone are gone.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::config::watch::Freshness;
use crate::drain::Drain;
use crate::egress::Egress;
use crate::egress::quota::WAIT_BUCKETS;
use crate::ingress::Ingress;
use crate::ingress::durations::Durations;
use crate::ingress::pool::Pool;
use crate::ingress::revision::Revision;
use crate::observe::Observe;
use crate::session;

mod genai;
mod resilience;

/// Media type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All metrics.
pub struct Metrics(Registry);

/// Where values come from.
pub struct Sources {
    /// Pools and revisions.
    pub ingress: Arc<Ingress>,
    /// Providers.
    pub egress: Arc<Egress>,
    /// Connections and requests.
    pub drain: Arc<Drain>,
    /// Ages of the watches.
    pub freshness: Arc<Freshness>,
    /// The access log.
    pub observe: Observe,
}

impl Metrics {
    /// Metrics that read `sources` when they are scraped.
    pub fn new(sources: Sources) -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Scrape(sources)));
        Self(registry)
    }

    /// Everything, as OpenMetrics text.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing into a String does not fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.0);
        text
    }
}

struct Scrape(Sources);

impl fmt::Debug for Scrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scrape")
    }
}

/// Names and values of labels.
pub(crate) type Labels<'a, const N: usize> = [(&'a str, &'a str); N];

pub(crate) fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// One family under construction.
pub(crate) struct Family<'a>(MetricEncoder<'a>);

impl Family<'_> {
    pub(crate) fn counter<const N: usize>(&mut self, labels: Labels<'_, N>, value: u64) -> fmt::Result {
        self.0
            .encode_family(&labels)?
            .encode_counter::<NoLabelSet, u64, u64>(&value, None)
    }

    pub(crate) fn gauge<const N: usize>(&mut self, labels: Labels<'_, N>, value: i64) -> fmt::Result {
        self.0.encode_family(&labels)?.encode_gauge(&value)
    }

    fn histogram<const N: usize>(&mut self, labels: Labels<'_, N>, durations: &Durations) -> fmt::Result {
        let buckets = durations.buckets();
        let count = buckets.iter().map(|(_, count)| count).sum();
        self.0.encode_family(&labels)?.encode_histogram::<NoLabelSet>(
            durations.sum_seconds(),
            count,
            &buckets,
            None,
        )
    }
}

pub(crate) fn family<'a>(
    encoder: &'a mut DescriptorEncoder<'_>,
    name: &'a str,
    help: &'a str,
    kind: MetricType,
) -> Result<Family<'a>, fmt::Error> {
    Ok(Family(encoder.encode_descriptor(name, help, None, kind)?))
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let pools = self.0.ingress.pools();
        let mut pools: Vec<&Arc<Pool>> = pools.by_name.values().collect();
        pools.sort_by_key(|pool| pool.name().to_owned());
        let revisions: Vec<(&str, Arc<Revision>)> = pools
            .iter()
            .flat_map(|pool| {
                pool.revisions()
                    .into_iter()
                    .map(|revision| (pool.name(), revision))
            })
            .collect();
        process(&mut encoder, &self.0)?;
        of_pools(&mut encoder, &pools)?;
        session::metrics::encode(&mut encoder, self.0.ingress.sessions(), &pools)?;
        of_revisions(&mut encoder, &revisions)?;
        of_providers(&mut encoder, &self.0.egress)?;
        crate::egress::export::encode(&mut encoder, &self.0.egress)?;
        genai::encode(&mut encoder, &self.0.egress)
    }
}

fn process(encoder: &mut DescriptorEncoder<'_>, sources: &Sources) -> fmt::Result {
    let labels = [("version", env!("CARGO_PKG_VERSION"))];
    family(
        encoder,
        "flotilla_build_info",
        "Version of the running gateway.",
        MetricType::Gauge,
    )?
    .gauge(labels, 1)?;
    let connections = gauge(sources.drain.connections() as u64);
    family(
        encoder,
        "flotilla_gateway_connections",
        "Open connections of clients and agents.",
        MetricType::Gauge,
    )?
    .0
    .encode_gauge(&connections)?;
    if let Some(log) = &sources.observe.access_log {
        let help = "Lines of the access log that were dropped because the writer did not keep up.";
        let name = "flotilla_gateway_access_log_dropped";
        family(encoder, name, help, MetricType::Counter)?
            .0
            .encode_counter::<NoLabelSet, u64, u64>(&log.dropped(), None)?;
    }
    let help = "Seconds since the API server last answered for a kind; a watch is renewed every 25 s.";
    let mut ages = family(
        encoder,
        "flotilla_gateway_watch_age_seconds",
        help,
        MetricType::Gauge,
    )?;
    for (kind, age) in sources.freshness.ages() {
        ages.gauge([("kind", kind)], gauge(age.as_secs()))?;
    }
    Ok(())
}

fn of_pools(encoder: &mut DescriptorEncoder<'_>, pools: &[&Arc<Pool>]) -> fmt::Result {
    resilience::of_pools(encoder, pools)?;
    let help = "Requests that went to another revision than the weights named, because that one had no endpoint here.";
    let mut diverted = family(encoder, "flotilla_gateway_diverted", help, MetricType::Counter)?;
    for pool in pools {
        diverted.counter([("pool", pool.name())], pool.counts.diverted.load(Relaxed))?;
    }
    let help = "Requests of testers (rollout.preview), which count for no revision.";
    let mut previews = family(
        encoder,
        "flotilla_gateway_preview_requests",
        help,
        MetricType::Counter,
    )?;
    for pool in pools {
        previews.counter([("pool", pool.name())], pool.counts.previews.load(Relaxed))?;
    }
    let help = "Requests of conversations that went by weight, because their revision is not in the weights known here.";
    let mut sessionless = family(encoder, "flotilla_gateway_sessionless", help, MetricType::Counter)?;
    for pool in pools {
        sessionless.counter([("pool", pool.name())], pool.counts.sessionless.load(Relaxed))?;
    }
    let help = "trafficGeneration of the weights in force.";
    let mut generation = family(
        encoder,
        "flotilla_gateway_traffic_generation",
        help,
        MetricType::Gauge,
    )?;
    for pool in pools {
        generation.gauge([("pool", pool.name())], pool.traffic().generation)?;
    }
    Ok(())
}

fn of_revisions(encoder: &mut DescriptorEncoder<'_>, revisions: &[(&str, Arc<Revision>)]) -> fmt::Result {
    const CLASSES: [(usize, &str); 4] = [(2, "2xx"), (3, "3xx"), (4, "4xx"), (5, "5xx")];
    let help = "Requests that a revision was given, by class of status, or by how they ended without a whole response.";
    let mut requests = family(encoder, "flotilla_gateway_requests", help, MetricType::Counter)?;
    for (pool, revision) in revisions {
        let totals = &revision.totals;
        let classes = CLASSES
            .iter()
            .filter_map(|(class, code)| Some((*code, totals.status.get(*class)?)));
        let others = [
            ("broken", &totals.broken),
            ("timeout", &totals.timed_out),
            ("cancelled", &totals.cancelled),
        ];
        for (code, count) in classes.chain(others) {
            requests.counter(
                [("pool", pool), ("revision", &revision.name), ("code", code)],
                count.load(Relaxed),
            )?;
        }
    }
    let help =
        "Time from arrival to the last byte of the response; without requests that the client gave up.";
    let mut durations = family(
        encoder,
        "flotilla_gateway_request_duration_seconds",
        help,
        MetricType::Histogram,
    )?;
    for (pool, revision) in revisions {
        let labels = [("pool", *pool), ("revision", &revision.name)];
        durations.histogram(labels, &revision.totals.duration)?;
    }
    let help = "Requests in flight at replicas.";
    let mut in_flight = family(encoder, "flotilla_gateway_in_flight", help, MetricType::Gauge)?;
    for (pool, revision) in revisions {
        let count = revision.in_flight().values().sum();
        in_flight.gauge([("pool", pool), ("revision", &revision.name)], gauge(count))?;
    }
    let help = "Endpoints that take new requests.";
    let mut endpoints = family(encoder, "flotilla_gateway_endpoints", help, MetricType::Gauge)?;
    for (pool, revision) in revisions {
        let count = revision.addresses().len() as u64;
        endpoints.gauge([("pool", pool), ("revision", &revision.name)], gauge(count))?;
    }
    resilience::of_revisions(encoder, revisions)
}

fn of_providers(encoder: &mut DescriptorEncoder<'_>, egress: &Egress) -> fmt::Result {
    let providers = egress.providers();
    let mut providers: Vec<_> = providers
        .iter()
        .map(|(name, provider)| (name.as_str(), provider.usage.models(), provider.usage.in_flight()))
        .collect();
    providers.sort_by_key(|(name, ..)| *name);
    let help = "Requests sent to a provider that have ended; failed: without a response or with a status of 400 and above.";
    let mut requests = family(
        encoder,
        "flotilla_gateway_egress_requests",
        help,
        MetricType::Counter,
    )?;
    for (provider, models, _) in &providers {
        for (model, used) in models {
            for (result, count) in [("ok", used.requests - used.failed), ("failed", used.failed)] {
                requests.counter(
                    [("provider", provider), ("model", model), ("result", result)],
                    count,
                )?;
            }
        }
    }
    let help = "Tokens as the provider reported them.";
    let mut tokens = family(
        encoder,
        "flotilla_gateway_egress_tokens",
        help,
        MetricType::Counter,
    )?;
    for (provider, models, _) in &providers {
        for (model, used) in models {
            for (direction, count) in [("input", used.input_tokens), ("output", used.output_tokens)] {
                tokens.counter(
                    [("provider", provider), ("model", model), ("direction", direction)],
                    count,
                )?;
            }
        }
    }
    of_quotas(
        encoder,
        egress,
        &providers.iter().map(|(name, ..)| *name).collect::<Vec<_>>(),
    )?;
    let help = "Requests in flight at providers.";
    let mut in_flight = family(
        encoder,
        "flotilla_gateway_egress_in_flight",
        help,
        MetricType::Gauge,
    )?;
    for (provider, _, count) in &providers {
        in_flight.gauge([("provider", provider)], gauge(*count))?;
    }
    Ok(())
}

fn of_quotas(encoder: &mut DescriptorEncoder<'_>, egress: &Egress, providers: &[&str]) -> fmt::Result {
    let quotas: Vec<_> = providers
        .iter()
        .map(|provider| (*provider, egress.quotas().stats(provider).0))
        .filter(|(_, quotas)| !quotas.is_empty())
        .collect();
    let help = "Units of a quota in use through this gateway: reserved, or still counting in the window.";
    let mut held = family(encoder, "flotilla_gateway_quota_held", help, MetricType::Gauge)?;
    for (provider, quotas) in &quotas {
        for quota in quotas {
            held.gauge(
                [("provider", provider), ("quota", &quota.name)],
                gauge(quota.held),
            )?;
        }
    }
    let help = "Units of a quota that this gateway may use while its lease lasts.";
    let mut share = family(encoder, "flotilla_gateway_quota_share", help, MetricType::Gauge)?;
    for (provider, quotas) in &quotas {
        for quota in quotas {
            share.gauge(
                [("provider", provider), ("quota", &quota.name)],
                gauge(quota.share),
            )?;
        }
    }
    let help = "Units of a quota in use by all gateways together; from the one that deals it out.";
    let mut used = family(encoder, "flotilla_gateway_quota_used", help, MetricType::Gauge)?;
    for (provider, quotas) in &quotas {
        for (name, total) in quotas
            .iter()
            .filter_map(|quota| Some((&quota.name, quota.total?)))
        {
            used.gauge([("provider", provider), ("quota", name)], gauge(total.used))?;
        }
    }
    let help = "Units of a quota that there are now, by its limit, its slope and the provider's headers; from the gateway that \
                deals it out.";
    let mut limit = family(encoder, "flotilla_gateway_quota_limit", help, MetricType::Gauge)?;
    for (provider, quotas) in &quotas {
        for (name, total) in quotas
            .iter()
            .filter_map(|quota| Some((&quota.name, quota.total?)))
        {
            limit.gauge([("provider", provider), ("quota", name)], gauge(total.limit))?;
        }
    }
    let help = "Requests that a quota made wait.";
    let mut throttled = family(
        encoder,
        "flotilla_gateway_quota_throttled",
        help,
        MetricType::Counter,
    )?;
    for (provider, quotas) in &quotas {
        for quota in quotas {
            throttled.counter([("provider", provider), ("quota", &quota.name)], quota.throttled)?;
        }
    }
    let pools: Vec<_> = quotas
        .iter()
        .map(|(provider, _)| (*provider, egress.quotas().pools(provider)))
        .collect();
    let help = "Requests that asked for a quota, by what became of them.";
    let mut asked = family(
        encoder,
        "flotilla_gateway_quota_requests",
        help,
        MetricType::Counter,
    )?;
    for (provider, pools) in &pools {
        for (pool, counts) in pools {
            for (result, count) in [
                ("admitted", counts.admitted),
                ("waited", counts.waited),
                ("refused", counts.refused),
                ("passed_over", counts.passed_over),
            ] {
                asked.counter(
                    [("provider", provider), ("pool", pool), ("result", result)],
                    count,
                )?;
            }
        }
    }
    let help = "Requests that wait for a quota.";
    let mut waiting = family(encoder, "flotilla_gateway_quota_waiting", help, MetricType::Gauge)?;
    for (provider, pools) in &pools {
        for (pool, counts) in pools {
            waiting.gauge([("provider", provider), ("pool", pool)], gauge(counts.waiting))?;
        }
    }
    let help =
        "Time that requests waited for a quota before they were sent; without those that did not wait.";
    let mut waits = family(
        encoder,
        "flotilla_gateway_quota_wait_seconds",
        help,
        MetricType::Histogram,
    )?;
    for (provider, pools) in &pools {
        for (pool, counts) in pools {
            let bounds = WAIT_BUCKETS.iter().copied().chain([f64::MAX]);
            let buckets: Vec<(f64, u64)> = bounds.zip(counts.buckets).collect();
            let labels: Labels<'_, 2> = [("provider", provider), ("pool", pool)];
            waits.0.encode_family(&labels)?.encode_histogram::<NoLabelSet>(
                counts.wait.as_secs_f64(),
                counts.waited,
                &buckets,
                None,
            )?;
        }
    }
    Ok(())
}
