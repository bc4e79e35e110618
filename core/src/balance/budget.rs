//! How many requests may be tried again.
//!
//! Retries help against a failure of one replica and hurt when all are failing: each adds load to what is overloaded
//! already. A limit per request does not help, since every request uses it. So retries are paid from a bucket of tokens
//! into which each *request* puts a part of one (Finagle's `RetryBudget`), with a trickle for pools with little
//! traffic. In any time `t` with `n` requests there are at most `burst + n·percent/100 + t·min_per_second` retries.
//!
//! Finagle lets deposits expire; here the bucket is bounded instead, which gives the same protection against a storm
//! fed by an hour of savings, is one number, and makes the bound above exact. Balance (in thousandths of a token) and
//! time of the last refill (in milliseconds) are the halves of one atomic word. While the bucket is full, which is
//! where it is without failures, a request costs one load.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// One token.
const TOKEN: u64 = 1000;
/// How far, in milliseconds, one thread's clock reading may be behind another's: an hour, longer than any thread is
/// kept from running. Beyond that it would look like the wrap of the clock after 49 days, which fills the bucket.
const SKEW: u32 = 3_600_000;

/// How fast the budget fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BudgetPolicy {
    /// Retries for a hundred requests, at most 1000.
    pub percent: u32,
    /// Retries a second without any request, at most 1,000,000.
    pub min_per_second: u32,
    /// Retries saved at most, 1 to 1,000,000.
    pub burst: u32,
}

impl Default for BudgetPolicy {
    /// 20 % of the requests and 10 a second, 100 saved at most.
    fn default() -> Self {
        Self {
            percent: 20,
            min_per_second: 10,
            burst: 100,
        }
    }
}

/// A bucket of retries, full at first.
#[derive(Debug)]
pub struct RetryBudget {
    word: AtomicU64,
    /// Thousandths of a token for one request.
    deposit: u64,
    /// Thousandths of a token for one millisecond.
    refill: u64,
    capacity: u64,
}

impl RetryBudget {
    /// A full bucket. What is out of a field's range counts as the nearest that is in it.
    pub fn new(policy: BudgetPolicy, now_nanos: u64) -> Self {
        let capacity = u64::from(policy.burst.clamp(1, 1_000_000)) * TOKEN;
        Self {
            word: AtomicU64::new(pack(capacity, millis(now_nanos))),
            deposit: u64::from(policy.percent.min(1000)) * TOKEN / 100,
            refill: u64::from(policy.min_per_second.min(1_000_000)) * TOKEN / 1000,
            capacity,
        }
    }

    /// A request has come (not a retry).
    pub fn deposit(&self, now_nanos: u64) {
        self.update(|word| {
            if word >> 32 >= self.capacity {
                return None;
            }
            let (balance, stamp) = self.refilled(word, now_nanos);
            Some(pack((balance + self.deposit).min(self.capacity), stamp))
        });
    }

    /// Pays for one retry; false if the budget does not allow it.
    pub fn withdraw(&self, now_nanos: u64) -> bool {
        self.update(|word| {
            let (balance, stamp) = self.refilled(word, now_nanos);
            Some(pack(balance.checked_sub(TOKEN)?, stamp))
        })
    }

    /// Whole retries that are left.
    pub fn balance(&self, now_nanos: u64) -> u64 {
        self.refilled(self.word.load(Relaxed), now_nanos).0 / TOKEN
    }

    /// The balance and its time, at `now_nanos`.
    fn refilled(&self, word: u64, now_nanos: u64) -> (u64, u32) {
        let (balance, stamp) = (word >> 32, word as u32);
        let now = millis(now_nanos);
        let elapsed = now.wrapping_sub(stamp);
        if elapsed > u32::MAX - SKEW {
            return (balance, stamp);
        }
        let refill = u64::from(elapsed) * self.refill;
        ((balance + refill).min(self.capacity), now)
    }

    /// Replaces the word, unless `next` has nothing to change; says whether it did.
    fn update(&self, next: impl FnMut(u64) -> Option<u64>) -> bool {
        self.word.fetch_update(Relaxed, Relaxed, next).is_ok()
    }
}

fn pack(balance: u64, stamp: u32) -> u64 {
    balance << 32 | u64::from(stamp)
}

fn millis(now_nanos: u64) -> u32 {
    (now_nanos / 1_000_000) as u32
}
