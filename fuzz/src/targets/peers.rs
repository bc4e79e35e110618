//! What gateways say to each other and to the operator.

use std::collections::BTreeSet;

use flotilla_core::histogram::{Histogram, Precision};
use flotilla_core::session::wire::{Envelope, Floor, MAX_RECORDS, Message, Record, VERSION};
use flotilla_core::session::{Keyer, MemberId, Route, Settings, Shard, Share, Timing};
use flotilla_core::stats::{ModelUse, PoolStats, ProviderStats, RevisionStats, Stats, WindowStats};
use flotilla_core::usage::{InstanceUse, accumulate};
use jiff::Timestamp;

use super::{bare, packed, refused};
use crate::{Target, magnitude, outcome};

pub(super) const TARGETS: &[Target] = &[
    Target {
        name: "session-wire",
        about: "messages between gateways about sessions",
        corpus: envelopes,
        words: &[
            "version",
            "pool",
            "shard",
            "from",
            "to",
            "view",
            "sequence",
            "leaving",
            "message",
            "type",
            "ask",
            "answer",
            "query",
            "known",
            "entries",
            "ack",
            "record",
            "records",
            "floors",
            "floor",
            "revision",
            "replica",
            "epoch",
            "number",
            "age",
            "root",
            "key",
            "nonce",
            "held",
            "copied",
            "done",
            "batch",
            "better",
            "stable",
            "10.0.0.1:8080",
            "[::1]:1",
            "AAAAAAAAAAAAAAAAAAAAAA",
        ],
        execute: session_wire,
    },
    Target {
        name: "stats",
        about: "a gateway's report",
        corpus: || vec![serde_json::to_vec(&report()).unwrap_or_default()],
        words: &[
            "version",
            "instance",
            "pod",
            "pools",
            "providers",
            "revisions",
            "windows",
            "latency",
            "firstByte",
            "inFlight",
            "endpoints",
            "weight",
            "trafficGeneration",
            "models",
            "requests",
            "failed",
            "inputTokens",
            "credential",
            "Present",
            "start",
            "epoch",
            "gone",
        ],
        execute: stats,
    },
    Target {
        name: "histogram",
        about: "latencies as text, in reports and results",
        corpus: histograms,
        words: &["AA", "gA", "////", "=", "\0", "\u{1}", "\u{80}"],
        execute: histogram,
    },
];

const ME: &str = "me";
const OTHER: &str = "other";

fn envelopes() -> Vec<Vec<u8>> {
    let keyer = Keyer::new("uid");
    let Some(key) = (0..).find_map(|n| keyer.context(&format!("c{n}")).filter(|key| key.shard() == 3)) else {
        return Vec::new();
    };
    let record = Record {
        key,
        root: None,
        revision: "stable".into(),
        replica: "10.0.0.1:8080".parse().ok(),
        epoch: 31,
        number: 1,
        age: 1200,
    };
    let floors = vec![Floor {
        revision: "candidate".into(),
        floor: 7,
    }];
    let messages = [
        Message::Ask {
            nonce: 1,
            record: record.clone(),
            held: true,
            floors: floors.clone(),
        },
        Message::Answer {
            nonce: 1,
            record: record.clone(),
            copied: true,
            floors: vec![],
        },
        Message::Query { nonce: 2, key },
        Message::Known {
            nonce: 2,
            key,
            record: Some(record.clone()),
            floors: floors.clone(),
        },
        Message::Entries {
            batch: 9,
            records: vec![record.clone(); 3],
            done: true,
            floors,
        },
        Message::Ack {
            batch: 9,
            better: vec![record],
        },
    ];
    messages
        .into_iter()
        .filter_map(|message| {
            let envelope = Envelope {
                version: VERSION,
                pool: keyer.pool(),
                shard: 3,
                from: MemberId::of(OTHER),
                to: MemberId::of(ME),
                view: 1,
                sequence: 4,
                leaving: false,
                message,
            };
            serde_json::to_vec(&envelope).ok()
        })
        .collect()
}

/// A shard that has a route, knows one other gateway, and has one conversation open.
fn shard(keyer: &Keyer) -> Shard {
    let mut shard = Shard::new(Settings {
        pool: keyer.pool(),
        shard: 3,
        me: MemberId::of(ME),
        max_entries: 64,
        idle: 60_000,
        seed: 1,
        timing: Timing::default(),
    });
    let share = |revision: &str, weight| Share {
        revision: revision.into(),
        weight,
        keeps: true,
        since: 5,
    };
    let route = Route {
        generation: 31,
        shares: vec![share("stable", 90), share("candidate", 10)],
    };
    let mut out = Vec::new();
    shard.set_route(0, &route, &mut out);
    shard.set_members(0, [MemberId::of(ME), MemberId::of(OTHER)], &mut out);
    shard
}

fn session_wire(input: &[u8]) -> u64 {
    let Ok(envelope) = serde_json::from_slice::<Envelope>(input) else {
        return 0;
    };
    let again = serde_json::to_vec(&envelope).expect("an envelope is JSON");
    assert_eq!(
        serde_json::from_slice::<Envelope>(&again).ok().as_ref(),
        Some(&envelope),
        "it does not survive"
    );
    let keyer = Keyer::new("uid");
    let mut shard = shard(&keyer);
    let mut out = Vec::new();
    if let Some(key) = keyer.context("c") {
        shard.open(1, 1, key, &mut out);
    }
    let kind = match &envelope.message {
        Message::Ask { .. } => 1,
        Message::Answer { .. } => 2,
        Message::Query { .. } => 3,
        Message::Known { .. } => 4,
        Message::Entries { .. } => 5,
        Message::Ack { .. } => 6,
        Message::Unknown => 7,
    };
    let before = out.len();
    for now in [2, 3, 700, 70_000] {
        shard.handle(now, envelope.clone(), &mut out);
        shard.tick(now, &mut out);
    }
    assert!(shard.len() <= 65, "{} entries", shard.len());
    for output in &out {
        if let flotilla_core::session::Output::Send(envelope) = output
            && let Message::Entries { records, .. } = &envelope.message
        {
            assert!(records.len() <= MAX_RECORDS);
        }
    }
    outcome([
        kind,
        magnitude((out.len() - before) as u64),
        magnitude(shard.len() as u64),
    ])
}

#[allow(clippy::needless_update, reason = "fields of reports are only ever added")]
fn report() -> Stats {
    let latency: Histogram = [120, 900, 15_000].into_iter().collect();
    let window = WindowStats {
        start: 1_795_276_800,
        epoch: 31,
        started: 4,
        ended: 3,
        failed: 1,
        cancelled: 0,
        latency: latency.clone(),
        first_byte: latency,
    };
    let revision = RevisionStats {
        weight: 90,
        endpoints: vec!["10.0.0.1:8080".into()],
        in_flight: 1,
        in_flight_by_address: [("10.0.0.1:8080".to_owned(), 1)].into(),
        windows: vec![window],
        ..RevisionStats::default()
    };
    let pool = PoolStats {
        traffic_generation: 31,
        port: Some(20417),
        queued: 2,
        refused: 1,
        revisions: [("support-6f9c4d".to_owned(), revision)].into(),
        ..PoolStats::default()
    };
    let used = ModelUse {
        requests: 7,
        failed: 1,
        input_tokens: 500,
        output_tokens: 90,
    };
    let provider = ProviderStats {
        generation: 2,
        models: [("gpt-5-mini".to_owned(), used)].into(),
        ..ProviderStats::default()
    };
    Stats {
        version: flotilla_core::stats::VERSION,
        instance: "3f".into(),
        pod: "flotilla-gateway-0".into(),
        time_milliseconds: 1_795_276_800_123,
        draining: false,
        pools: [("support".to_owned(), pool)].into(),
        providers: [("main".to_owned(), provider)].into(),
        ..Stats::default()
    }
}

fn stats(input: &[u8]) -> u64 {
    let Ok(stats) = serde_json::from_slice::<Stats>(input) else {
        return 0;
    };
    let again = serde_json::to_vec(&stats).expect("a report is JSON");
    assert_eq!(
        serde_json::from_slice::<Stats>(&again).ok().as_ref(),
        Some(&stats),
        "it does not survive"
    );
    let mut windows = 0;
    let mut merged = Histogram::new();
    for revision in stats.pools.values().flat_map(|pool| pool.revisions.values()) {
        for window in &revision.windows {
            windows += 1;
            merged.merge(&window.latency);
            merged.merge(&window.first_byte);
        }
    }
    let reports: Vec<InstanceUse> = stats
        .providers
        .values()
        .map(|provider| InstanceUse {
            instance: stats.instance.clone(),
            pod: stats.pod.clone(),
            models: provider.models.clone(),
            spend: provider.spend.clone(),
            model_spend: provider.model_spend.clone(),
            unpriced: provider.unpriced,
        })
        .collect();
    let pods = BTreeSet::from(["flotilla-gateway-0".to_owned()]);
    let first = accumulate(None, &reports, &pods, Timestamp::UNIX_EPOCH);
    let second = accumulate(first.as_ref(), &reports, &pods, Timestamp::UNIX_EPOCH);
    // Then its pod goes.
    let third = accumulate(second.as_ref(), &[], &BTreeSet::new(), Timestamp::UNIX_EPOCH);
    if let (Some(second), Some(third)) = (&second, &third) {
        assert!(third.requests >= second.requests, "usage went down");
    }
    outcome([
        1,
        stats.pools.len() as u64,
        magnitude(windows),
        magnitude(merged.count()),
        stats.providers.len() as u64,
        magnitude(third.map_or(0, |usage| usage.requests.unsigned_abs())),
    ])
}

fn histograms() -> Vec<Vec<u8>> {
    let small: Histogram = [0, 1, 2, 3, 1_000_000].into_iter().collect();
    let wide: Histogram = (0..400u64).map(|n| n * n * 37).collect();
    let huge: Histogram = [u64::MAX, u64::MAX - 1, 0].into_iter().collect();
    let empty = Histogram::new();
    let mut inputs: Vec<Vec<u8>> = [&small, &wide, &huge, &empty]
        .iter()
        .map(|histogram| histogram.to_text().into_bytes())
        .collect();
    for histogram in [&small, &wide, &huge, &empty] {
        for precision in (0..3).filter_map(Precision::from_halvings) {
            inputs.push(bare(&histogram.coarsened(precision).to_text()));
        }
    }
    inputs
}

fn histogram(input: &[u8]) -> u64 {
    let read = match Histogram::from_text(&packed(input)) {
        Ok(read) => read,
        Err(error) => return refused(error),
    };
    assert_eq!(
        Histogram::from_text(&read.to_text()).as_ref(),
        Ok(&read),
        "it does not survive"
    );
    for q in [0.0, 0.001, 0.5, 0.99, 1.0] {
        if let Some(value) = read.quantile(q) {
            assert!(value.is_finite() && value >= 0.0, "quantile {q} is {value}");
        }
        let _ = read.quantile_milliseconds(q);
    }
    assert_eq!(read.quantile(0.5).is_some(), !read.is_empty());
    assert!(read.count_above(0) <= read.count() && read.count_above(u64::MAX) <= read.count());
    let mut merged = read.clone();
    merged.merge(&read);
    merged.merge(&[5, 70_000].into_iter().collect());
    let _ = (read.mean(), merged.buckets().count(), merged.to_text());
    outcome([
        u64::from(read.precision().halvings()),
        magnitude(read.count()),
        magnitude(read.min().unwrap_or(0)),
        magnitude(read.max().unwrap_or(0)),
        magnitude(read.buckets().count() as u64),
    ])
}
