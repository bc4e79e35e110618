use super::*;
use crate::balance::Strategy as S;
use crate::balance::*;
use std::hint::black_box;
#[test]
fn timing() {
    for n in [3usize, 10, 100] {
        let mut pool = Pool::with_slots(&vec![8; n]);
        for r in &mut pool.0 {
            r.latency_nanos = Some(5_000_000);
        }
        for s in [
            S::RoundRobin,
            S::Weighted,
            S::LeastLoaded,
            S::Adaptive,
            S::ConsistentHash,
        ] {
            let b = Balancer::new(s, vec![8; n], 0);
            let mut best = f64::MAX;
            for _ in 0..30 {
                let t = std::time::Instant::now();
                for i in 0..5000u64 {
                    black_box(b.pick(
                        &pool,
                        Draw {
                            random: i.wrapping_mul(0x9e3779b97f4a7c15),
                            key: Some(i),
                            now_nanos: 1,
                        },
                    ));
                }
                best = best.min(t.elapsed().as_nanos() as f64 / 5000.0);
            }
            println!("TIME {n} {s:?} {best:.0} ns");
        }
    }
    let h = Health::default();
    let e = Ejector::default();
    let w = PeakEwma::default();
    let bu = RetryBudget::new(BudgetPolicy::default(), 0);
    let mut m = [f64::MAX; 4];
    for _ in 0..30 {
        let t = std::time::Instant::now();
        for i in 0..5000u64 {
            let tk = h.begin(false, i, e.policy()).unwrap();
            e.end(&h, tk, Outcome::Answered(200), None, i, Census::default);
        }
        m[0] = m[0].min(t.elapsed().as_nanos() as f64 / 5000.0);
        let t = std::time::Instant::now();
        for i in 0..5000u64 {
            w.observe(5_000_000 - i, i << 20);
        }
        m[1] = m[1].min(t.elapsed().as_nanos() as f64 / 5000.0);
        let t = std::time::Instant::now();
        for i in 0..5000u64 {
            black_box(w.estimate_nanos(i << 20, false));
        }
        m[2] = m[2].min(t.elapsed().as_nanos() as f64 / 5000.0);
        let t = std::time::Instant::now();
        for i in 0..5000u64 {
            bu.deposit(black_box(i));
        }
        m[3] = m[3].min(t.elapsed().as_nanos() as f64 / 5000.0);
    }
    println!(
        "TIME begin+end {:.1} observe {:.1} estimate {:.1} deposit {:.1}",
        m[0], m[1], m[2], m[3]
    );
}
