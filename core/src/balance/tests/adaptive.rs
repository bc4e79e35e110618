//! Strategies against replicas that answer after some time, in simulated time.

use std::cell::Cell;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use crate::balance::{Adaptive, Balancer, Candidates, Draw, PeakEwma, Pick, Strategy, hash_bytes};
use crate::load::random::Stream;

const SECOND: u64 = 1_000_000_000;
const MILLI: f64 = 1e6;

struct Server {
    in_flight: Cell<u32>,
    latency: PeakEwma,
    born: u64,
    is_ejected: Cell<bool>,
}

struct Cluster {
    servers: Vec<Server>,
    now: Cell<u64>,
    slots: u32,
}

impl Candidates for Cluster {
    fn count(&self) -> usize {
        self.servers.len()
    }
    fn in_flight(&self, index: usize) -> u32 {
        self.servers[index].in_flight.get()
    }
    fn slots(&self, _: usize) -> u32 {
        self.slots
    }
    fn hash_id(&self, index: usize) -> u64 {
        hash_bytes(&[index as u8])
    }
    /// A server that is not born yet.
    fn is_cordoned(&self, index: usize) -> bool {
        self.servers[index].born > self.now.get()
    }
    fn is_ejected(&self, index: usize) -> bool {
        self.servers[index].is_ejected.get()
    }
    fn latency_nanos(&self, index: usize) -> Option<u64> {
        let server = &self.servers[index];
        server
            .latency
            .estimate_nanos(self.now.get(), server.in_flight.get() > 0)
    }
    fn age_nanos(&self, index: usize) -> u64 {
        self.now.get() - self.servers[index].born
    }
}

impl Cluster {
    fn new(servers: usize) -> Self {
        Self {
            servers: (0..servers)
                .map(|_| Server {
                    in_flight: Cell::new(0),
                    latency: PeakEwma::default(),
                    born: 0,
                    is_ejected: Cell::new(false),
                })
                .collect(),
            now: Cell::new(0),
            slots: 20,
        }
    }

    /// Poisson arrivals of `rate` a second until `seconds`; `mean(server, start)` is the mean of its exponential
    /// service time in nanoseconds. Returns the starts: time, server and latency.
    fn run(
        &self,
        strategy: Strategy,
        rate: f64,
        seconds: u64,
        mean: impl Fn(usize, u64) -> f64,
    ) -> Vec<(u64, usize, f64)> {
        let balancer = Balancer::new(strategy, (0..self.count()).map(|_| self.slots), 0);
        let (arrivals, services, randoms) = (Stream::new(1, 1), Stream::new(1, 2), Stream::new(1, 3));
        let mut ends: BinaryHeap<Reverse<(u64, u64, usize)>> = BinaryHeap::new();
        let (mut starts, mut arrival) = (Vec::new(), 0u64);
        for n in 0.. {
            arrival += (arrivals.exponential(n) * 1e9 / rate) as u64;
            if arrival >= seconds * SECOND {
                return starts;
            }
            while let Some(Reverse((end, start, index))) =
                ends.peek().copied().filter(|end| end.0.0 <= arrival)
            {
                ends.pop();
                let server: &Server = &self.servers[index];
                server.in_flight.set(server.in_flight.get() - 1);
                server.latency.observe(end - start, end);
            }
            self.now.set(arrival);
            let draw = Draw {
                random: randoms.at(n),
                key: None,
                now_nanos: arrival,
            };
            let Pick::Replica(index) = balancer.pick(self, draw) else {
                continue;
            };
            let server = &self.servers[index];
            if let Some(typical) = balancer.typical_nanos() {
                server.latency.seed(typical, arrival);
            }
            server.in_flight.set(server.in_flight.get() + 1);
            let service = services.exponential(n) * mean(index, arrival);
            ends.push(Reverse((arrival + service as u64, arrival, index)));
            starts.push((arrival, index, service));
        }
        starts
    }
}

fn share(starts: &[(u64, usize, f64)], index: usize, from: u64, to: u64) -> f64 {
    let of = |start: &&(u64, usize, f64)| (from * SECOND..to * SECOND).contains(&start.0);
    let all = starts.iter().filter(of).count();
    starts.iter().filter(of).filter(|start| start.1 == index).count() as f64 / all as f64
}

fn mean_latency(starts: &[(u64, usize, f64)], from: u64, to: u64) -> f64 {
    let of: Vec<f64> = starts
        .iter()
        .filter(|start| (from * SECOND..to * SECOND).contains(&start.0))
        .map(|start| start.2)
        .collect();
    of.iter().sum::<f64>() / of.len() as f64 / MILLI
}

/// One of ten servers is ten times as slow from 60 s to 120 s.
#[test]
fn load_leaves_a_slow_replica_and_returns() {
    let slow = |index: usize, now: u64| {
        let is_slow = index == 3 && (60 * SECOND..120 * SECOND).contains(&now);
        if is_slow { 500.0 * MILLI } else { 50.0 * MILLI }
    };
    let starts = Cluster::new(10).run(Strategy::Adaptive, 400.0, 200, slow);
    let shares = [(10, 60), (65, 120), (150, 200)].map(|(from, to)| share(&starts, 3, from, to));
    println!("shares before, during, after: {shares:?}");
    assert!((0.08..0.12).contains(&shares[0]), "{shares:?}");
    assert!(shares[1] < 0.025, "{shares:?}");
    assert!(shares[2] > 0.08, "{shares:?}");
    // It is still tried, or nobody would know when it is well again.
    assert!(shares[1] > 0.0, "{shares:?}");

    let latency = mean_latency(&starts, 65, 120);
    let others = [Strategy::RoundRobin, Strategy::LeastLoaded].map(|strategy| {
        let starts = Cluster::new(10).run(strategy, 400.0, 120, slow);
        mean_latency(&starts, 65, 120)
    });
    println!("mean latency during: {latency} ms, RoundRobin and LeastLoaded {others:?}");
    assert!(
        others.iter().all(|other| latency < 0.9 * other),
        "{latency} {others:?}"
    );
}

/// The eleventh server comes after 30 s.
#[test]
fn a_new_replica_starts_with_little_and_warms_up() {
    let mut cluster = Cluster::new(11);
    cluster.servers[10].born = 30 * SECOND;
    let starts = cluster.run(Strategy::Adaptive, 400.0, 90, |_, _| 50.0 * MILLI);
    let shares = [(30, 32), (36, 40), (50, 90)].map(|(from, to)| share(&starts, 10, from, to) * 11.0);
    println!("shares of an even part: {shares:?}");
    assert!((0.02..0.3).contains(&shares[0]), "{shares:?}");
    assert!((0.5..1.0).contains(&shares[1]), "{shares:?}");
    assert!((0.85..1.15).contains(&shares[2]), "{shares:?}");
    assert_eq!(share(&starts, 10, 0, 30), 0.0);
}

#[test]
fn an_unmeasured_replica_counts_as_a_typical_one() {
    let adaptive = Adaptive::new(Duration::ZERO);
    let cluster = Cluster::new(4);
    assert_eq!(adaptive.typical_nanos(), None);
    for (server, latency) in cluster.servers.iter().zip([10, 30, 90]) {
        server.latency.observe(latency * 1_000_000, 0);
        server.in_flight.set(1);
    }
    cluster.servers[3].in_flight.set(1);
    let mut counts = [0; 4];
    let stream = Stream::new(4, 4);
    for n in 0..12_000 {
        counts[adaptive.pick(&cluster, stream.at(n), 0).index().unwrap()] += 1;
    }
    let typical = adaptive.typical_nanos().unwrap();
    assert!((29_900_000..30_100_000).contains(&typical), "{typical}");
    // It wins against the slow one, loses against the quick one, and is even with the middle one: half of the pairs.
    assert!(counts[0] > 5_800 && counts[2] == 0, "{counts:?}");
    assert!((2_500..3_500).contains(&counts[3]), "{counts:?}");
    // An ejected one gets nothing, however quick.
    cluster.servers[0].is_ejected.set(true);
    for n in 0..1000 {
        assert_ne!(
            adaptive.pick(&cluster, stream.at(n), 0),
            Pick::Replica(0),
            "draw {n}"
        );
    }
}
