//! A latency that rises at once and falls slowly, in one atomic word.
//!
//! A replica that has become slow must be noticed with its first slow answer, and one quick answer (a cached one, a
//! refusal) does not prove that it is well again. So (Finagle's and Linkerd's "peak EWMA"), with the estimate `e`, a
//! sample `x`, the time `Δ` since the last sample, and the decay time `τ`:
//!
//! ```text
//!   e ← x                                  if x > e
//!   e ← e·w + x·(1 - w),  w = exp(-Δ/τ)    otherwise
//! ```
//!
//! Weights follow from time, not from the number of samples: how fast it forgets does not depend on the traffic.
//!
//! # While nothing is measured
//!
//! A replica that is avoided gives no samples, and would be avoided for ever. So an estimate that is *read* after `Δ`
//! of idleness is `e·exp(-Δ/τ)`: in the end it is cheap enough to be tried. This must not happen while an answer is
//! outstanding, because a replica that hangs would look better every second; then the reader asks for the estimate as
//! it stands.
//!
//! # One word
//!
//! The estimate is an `f32` in the upper half, the time of the last sample in units of 2²⁰ ns (1.05 ms) in the lower
//! half. Two words could be seen from two different updates. Samples that come within one unit of another can raise the
//! estimate but not lower it, and after 52 days without a sample time starts from the beginning; both are harmless.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// log₂ of a unit of time in nanoseconds.
const UNIT: u32 = 20;
/// How far, in units, one thread's clock reading may be behind another's: 73 min, longer than any thread is kept from
/// running. Beyond that it would look like the wrap of the clock after 52 days.
const SKEW: u32 = 1 << 22;

/// A peak-sensitive, exponentially weighted moving average of latencies. Update and read never block.
#[derive(Debug)]
pub struct PeakEwma {
    word: AtomicU64,
    /// Decay time in units.
    tau: f64,
}

#[derive(Clone, Copy)]
struct State {
    /// In nanoseconds, at least 1; 0 while there has been no sample.
    estimate: f32,
    stamp: u32,
}

impl State {
    fn unpack(word: u64) -> Self {
        Self {
            estimate: f32::from_bits((word >> 32) as u32),
            stamp: word as u32,
        }
    }

    fn pack(self) -> u64 {
        u64::from(self.estimate.to_bits()) << 32 | u64::from(self.stamp)
    }

    /// Units since the stamp; 0 when `now` was read before it.
    fn elapsed(self, now: u32) -> u32 {
        let elapsed = now.wrapping_sub(self.stamp);
        if elapsed > u32::MAX - SKEW { 0 } else { elapsed }
    }
}

impl Default for PeakEwma {
    /// Decays by `1/e` in 10 s, as in Finagle and Linkerd.
    fn default() -> Self {
        Self::new(Duration::from_secs(10))
    }
}

impl PeakEwma {
    /// Without a sample; decays by `1/e` in `tau` (at least 1 ms).
    pub fn new(tau: Duration) -> Self {
        Self {
            word: AtomicU64::new(0),
            tau: tau.max(Duration::from_millis(1)).as_secs_f64() * 1e9 / f64::from(1u32 << UNIT),
        }
    }

    /// Starts from `nanos` unless there has been a sample: a new replica from what is typical of its pool.
    pub fn seed(&self, nanos: u64, now_nanos: u64) {
        let start = State {
            estimate: nanos.max(1) as f32,
            stamp: units(now_nanos),
        };
        // Whoever was first has measured or seeded it.
        let _ = self.word.compare_exchange(0, start.pack(), Relaxed, Relaxed);
    }

    /// Adds a sample that is known at `now_nanos`. One compare-exchange, repeated only if another thread was first.
    pub fn observe(&self, sample_nanos: u64, now_nanos: u64) {
        let sample = sample_nanos.max(1) as f32;
        let now = units(now_nanos);
        self.update(|state| {
            if state.estimate <= 0.0 {
                return Some(State {
                    estimate: sample,
                    stamp: now,
                });
            }
            let elapsed = state.elapsed(now);
            let estimate = if sample > state.estimate {
                sample
            } else {
                let gain = -(-f64::from(elapsed) / self.tau).exp_m1();
                (f64::from(state.estimate) + f64::from(sample - state.estimate) * gain) as f32
            };
            Some(State {
                estimate,
                stamp: state.stamp.wrapping_add(elapsed),
            })
        });
    }

    /// Takes note that an answer would have taken longer than `elapsed_nanos`: the client gave up. That can only raise
    /// the estimate.
    pub fn observe_at_least(&self, elapsed_nanos: u64, now_nanos: u64) {
        let bound = elapsed_nanos.max(1) as f32;
        let now = units(now_nanos);
        self.update(|state| {
            let raised = State {
                estimate: bound,
                stamp: now,
            };
            (state.estimate > 0.0 && bound > state.estimate).then_some(raised)
        });
    }

    /// The estimate at `now_nanos`; none before the first sample. `awaiting`: an answer is outstanding, so that silence
    /// is no good news.
    pub fn estimate_nanos(&self, now_nanos: u64, awaiting: bool) -> Option<u64> {
        let state = State::unpack(self.word.load(Relaxed));
        if state.estimate <= 0.0 {
            return None;
        }
        let weight = if awaiting {
            1.0
        } else {
            (-f64::from(state.elapsed(units(now_nanos))) / self.tau).exp()
        };
        Some((f64::from(state.estimate) * weight) as u64)
    }

    fn update(&self, next: impl Fn(State) -> Option<State>) {
        // An error says that there is nothing to change.
        let _ = self.word.fetch_update(Relaxed, Relaxed, |word| {
            next(State::unpack(word)).map(State::pack)
        });
    }
}

fn units(nanos: u64) -> u32 {
    (nanos >> UNIT) as u32
}
