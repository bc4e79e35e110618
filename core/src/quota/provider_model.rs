//! An independent provider: what it counted, and by how much any way of counting exceeds a limit.

/// Units counted, each at an instant of the provider's clock.
#[derive(Default)]
pub(super) struct Counted(Vec<(u64, u64)>);

impl Counted {
    pub(super) fn add(&mut self, at: u64, units: u64) {
        self.0.push((at, units));
    }

    pub(super) fn sort(&mut self) {
        self.0.sort_unstable();
    }

    /// Units counted in `from..to`.
    pub(super) fn between(&self, from: u64, to: u64) -> u64 {
        self.0
            .iter()
            .filter(|(at, _)| (from..to).contains(at))
            .map(|(_, units)| units)
            .sum()
    }

    /// The most units in any interval `(t - window, t]`, less `limit`.
    pub(super) fn over_sliding(&self, window: u64, limit: u64) -> u64 {
        let (mut first, mut sum, mut worst) = (0, 0, 0);
        for (at, units) in &self.0 {
            sum += units;
            while self.0[first].0 + window <= *at {
                sum -= self.0[first].1;
                first += 1;
            }
            worst = worst.max(sum);
        }
        worst.saturating_sub(limit)
    }

    /// The most units in any window `[phase + k · window, …)`, less `limit`.
    pub(super) fn over_fixed(&self, window: u64, phase: u64, limit: u64) -> u64 {
        let (mut number, mut sum, mut worst) = (u64::MAX, 0, 0);
        for (at, units) in &self.0 {
            let here = (at + window - phase % window) / window;
            if here != number {
                (number, sum) = (here, 0);
            }
            sum += units;
            worst = worst.max(sum);
        }
        worst.saturating_sub(limit)
    }

    /// The most units that a bucket of `limit` lacks that fills within `window` and is full at first.
    pub(super) fn over_bucket(&self, window: u64, limit: u64) -> u64 {
        let full = i128::from(limit) * i128::from(window);
        let (mut level, mut last, mut worst) = (full, 0u64, 0i128);
        for (at, units) in &self.0 {
            level = (level + i128::from(at - last) * i128::from(limit)).min(full);
            level -= i128::from(*units) * i128::from(window);
            last = *at;
            worst = worst.min(level);
        }
        // A tick of the clock may be lost to rounding.
        ((-worst - i128::from(limit)).max(0) as u64).div_ceil(window.max(1))
    }
}

/// The most intervals that overlap, less `limit`.
pub(super) fn over_concurrency(intervals: &[(u64, u64)], limit: u64) -> u64 {
    let mut edges: Vec<(u64, i64)> = intervals
        .iter()
        .flat_map(|(from, to)| [(*from, 1), (*to, -1)])
        .collect();
    // At the same instant the end comes first.
    edges.sort_unstable();
    let (mut now, mut worst) = (0i64, 0i64);
    for (_, change) in edges {
        now += change;
        worst = worst.max(now);
    }
    (worst as u64).saturating_sub(limit)
}

#[test]
fn ways_of_counting_differ() {
    let mut counted = Counted::default();
    for at in [90, 95, 99, 100, 101, 102, 190, 195] {
        counted.add(at, 1);
    }
    counted.sort();
    assert_eq!(counted.over_fixed(100, 0, 3), 2, "[100, 200) has 5");
    assert_eq!(counted.over_fixed(100, 50, 3), 3, "[50, 150) has 6");
    assert_eq!(counted.over_sliding(100, 3), 3, "(2, 102] has 6");
    assert_eq!(counted.over_bucket(100, 3), 3);
    assert_eq!(over_concurrency(&[(0, 5), (5, 9), (6, 8), (7, 10)], 2), 1);
}
