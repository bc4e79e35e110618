//! Calls of models on `/metrics`, under the names that OpenTelemetry's conventions for generative AI have in Prometheus.
//!
//! The conventions name a client's view and a server's. A gateway has only one clock for both, so what the two call the time
//! to the first chunk and the time to the first token is one measurement under both names.

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use crate::egress::Egress;
use crate::egress::genai::{DURATION, FIRST, Histogram, NEXT, Names, Series, TOKENS};

/// The counts by provider, model and operation.
type All = BTreeMap<String, BTreeMap<String, BTreeMap<Names, Series>>>;

pub(super) fn encode(encoder: &mut DescriptorEncoder<'_>, egress: &Egress) -> fmt::Result {
    let all: All = egress
        .providers()
        .iter()
        .map(|(name, provider)| (name.clone(), provider.genai.read()))
        .collect();
    durations(encoder, &all)?;
    tokens(encoder, &all)?;
    for (name, help) in [
        (
            "gen_ai_client_operation_time_to_first_chunk_seconds",
            "Time from a call to the first bytes of its answer; streams only.",
        ),
        (
            "gen_ai_server_time_to_first_token_seconds",
            "Time from a call to the first bytes of its answer; streams only.",
        ),
    ] {
        simple(encoder, &all, (name, help), &FIRST, |series| &series.first_chunk)?;
    }
    simple(
        encoder,
        &all,
        (
            "gen_ai_client_operation_time_per_output_chunk_seconds",
            "Time from one chunk of a stream to the next.",
        ),
        &NEXT,
        |series| &series.next_chunk,
    )?;
    simple(
        encoder,
        &all,
        (
            "gen_ai_server_time_per_output_token_seconds",
            "Time for each output token of a stream after the first, averaged over the stream.",
        ),
        &NEXT,
        |series| &series.per_token,
    )
}

fn each(all: &All) -> impl Iterator<Item = ([(&str, &str); 4], &Series)> {
    all.iter().flat_map(|(provider, models)| {
        models.iter().flat_map(move |(model, operations)| {
            operations.iter().map(move |(names, series)| {
                let labels = [
                    ("provider", provider.as_str()),
                    ("gen_ai_operation_name", names.operation),
                    ("gen_ai_provider_name", names.provider),
                    ("gen_ai_request_model", model.as_str()),
                ];
                (labels, series)
            })
        })
    })
}

fn buckets<const N: usize>(bounds: &[f64; N], histogram: &Histogram<N>) -> Vec<(f64, u64)> {
    let above = [(f64::MAX, histogram.above)];
    bounds
        .iter()
        .copied()
        .zip(histogram.counts)
        .chain(above)
        .collect()
}

fn simple<const N: usize>(
    encoder: &mut DescriptorEncoder<'_>,
    all: &All,
    (name, help): (&str, &str),
    bounds: &[f64; N],
    of: impl Fn(&Series) -> &Histogram<N>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
    for (labels, series) in each(all) {
        let histogram = of(series);
        family.encode_family(&labels)?.encode_histogram::<NoLabelSet>(
            histogram.sum,
            histogram.count(),
            &buckets(bounds, histogram),
            None,
        )?;
    }
    Ok(())
}

fn durations(encoder: &mut DescriptorEncoder<'_>, all: &All) -> fmt::Result {
    let mut family = encoder.encode_descriptor(
        "gen_ai_client_operation_duration_seconds",
        "Length of calls of models, to the last byte of the answer; error_type is a status, or how the call failed without one.",
        None,
        MetricType::Histogram,
    )?;
    for ([provider, operation, name, model], series) in each(all) {
        for (error, histogram) in &series.duration {
            let error = error.map(|error| error.to_string()).unwrap_or_default();
            let labels = [provider, operation, name, model, ("error_type", &error)];
            let buckets = buckets(&DURATION, histogram);
            let (sum, count) = (histogram.sum, histogram.count());
            family
                .encode_family(&labels)?
                .encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }
    }
    Ok(())
}

fn tokens(encoder: &mut DescriptorEncoder<'_>, all: &All) -> fmt::Result {
    let mut family = encoder.encode_descriptor(
        "gen_ai_client_token_usage",
        "Tokens of a call as the provider reported them.",
        None,
        MetricType::Histogram,
    )?;
    for ([provider, operation, name, model], series) in each(all) {
        for (kind, histogram) in [("input", &series.input_tokens), ("output", &series.output_tokens)] {
            let labels = [provider, operation, name, model, ("gen_ai_token_type", kind)];
            let buckets = buckets(&TOKENS, histogram);
            let (sum, count) = (histogram.sum, histogram.count());
            family
                .encode_family(&labels)?
                .encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }
    }
    Ok(())
}
