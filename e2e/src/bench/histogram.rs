//! The histogram that everything is reported with, against HDR's.

use super::ROUNDS;
use super::stats::median;
use crate::report::Row;
use anyhow::{Result, anyhow};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flotilla_core::histogram::{AtomicHistogram, Histogram};
use hdrhistogram::Histogram as Hdr;
use hdrhistogram::serialization::{Serializer, V2DeflateSerializer};
use std::hint::black_box;
use std::time::Instant;

/// Latencies in microseconds as agents have them: log-normal, median 2 s, σ 0.6, from a fixed seed.
fn samples(count: usize) -> Vec<u64> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut uniform = move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    };
    (0..count)
        .map(|_| {
            let (u, v) = (uniform().max(f64::MIN_POSITIVE), uniform());
            let normal = (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos();
            (2.0e6 * (0.6 * normal).exp()) as u64
        })
        .collect()
}

pub(super) fn run() -> Result<Vec<Row>> {
    let values = samples(100_000);
    let new_hdr =
        || Hdr::<u64>::new_with_bounds(1, 3_600_000_000, 2).map_err(|e| anyhow!("hdrhistogram: {e}"));
    let (mut ours, mut atomic, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours.push(nanoseconds(&values, |values| {
            let mut histogram = Histogram::new();
            values.iter().for_each(|v| histogram.record(*v));
            black_box(histogram.count());
        }));
        let shared = AtomicHistogram::new();
        atomic.push(nanoseconds(&values, |values| {
            values.iter().for_each(|v| shared.record(black_box(*v)))
        }));
        let mut hdr = new_hdr()?;
        theirs.push(nanoseconds(&values, |values| {
            values.iter().for_each(|v| hdr.saturating_record(*v));
            black_box(hdr.len());
        }));
    }
    let (ours, atomic, theirs) = (median(ours), median(atomic), median(theirs));
    let text = values.iter().copied().collect::<Histogram>().to_text().len();
    let mut hdr = new_hdr()?;
    values.iter().for_each(|v| hdr.saturating_record(*v));
    let mut bytes = Vec::new();
    V2DeflateSerializer::new()
        .serialize(&hdr, &mut bytes)
        .map_err(|e| anyhow!("hdrhistogram: {e}"))?;
    let hdr_text = STANDARD.encode(&bytes).len();
    let ratio = |a: f64, b: f64| format!("{:.2} ×", a / b);
    Ok(vec![
        Row::new(
            "histogram on the wire, 100k samples at 1 %, against HDR",
            ratio(text as f64, hdr_text as f64),
            "≤ 0.60 ×",
            text as f64 <= 0.6 * hdr_text as f64,
        ),
        Row::note("  in bytes of text", format!("{text} / {hdr_text}")),
        Row::note(
            "histogram, record by one owner, against HDR",
            format!("{} ({ours:.1} / {theirs:.1} ns)", ratio(ours, theirs)),
        ),
        Row::note(
            "histogram, record shared and lock-free, against HDR",
            format!("{} ({atomic:.1} ns)", ratio(atomic, theirs)),
        ),
    ])
}

fn nanoseconds(values: &[u64], work: impl FnOnce(&[u64])) -> f64 {
    let start = Instant::now();
    work(values);
    start.elapsed().as_nanos() as f64 / values.len() as f64
}
