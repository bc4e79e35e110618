//! How runs are set up.

use jiff::tz::TimeZone;

use super::{Fault, MS};
use crate::load::random::Stream;
use crate::quota::window::CalendarUnit;
use crate::quota::*;

pub(super) struct Dice {
    stream: Stream,
    drawn: u64,
}

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            stream: Stream::new(seed, 0x51),
            drawn: 0,
        }
    }
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.drawn += 1;
        self.stream.below(self.drawn, bound)
    }
    pub(super) fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to - from + 1)
    }
    pub(super) fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }
    pub(super) fn exponential(&mut self, mean: u64) -> u64 {
        self.drawn += 1;
        (self.stream.exponential(self.drawn) * mean as f64) as u64
    }
}

/// The allocator's process ends, again and again: in turns its container, which comes back in the same pod, and the pod with its
/// address.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kills {
    /// Between two.
    pub(super) every: u64,
    /// Until it, or another in its place, is there again.
    pub(super) back_after: u64,
    /// Until another one is elected where the machine says that nobody listens.
    pub(super) elected_after: u64,
    /// The same where packets are swallowed.
    pub(super) missed_after: u64,
}

/// How a run is set up.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) seed: u64,
    pub(super) slots: usize,
    pub(super) limits: Vec<Limit>,
    pub(super) terms: Terms,
    /// Nothing goes wrong.
    pub(super) calm: bool,
    pub(super) length: u64,
    /// From here on nothing goes wrong any more.
    pub(super) calm_from: u64,
    /// The mean time between two requests, per slot.
    pub(super) gaps: Vec<u64>,
    /// Headers come within this, mostly; at the most within the limits' `within`.
    pub(super) latency: u64,
    /// Up to this long after the headers the answer ends.
    pub(super) body: u64,
    /// Estimates may be too small.
    pub(super) rough: bool,
    /// The true time at which our midnight is; runs begin at 0.
    pub(super) midnight: u64,
    /// The provider's midnight is later by this many milliseconds.
    pub(super) provider_late_ms: i64,
    pub(super) kills: Option<Kills>,
    /// So many of a hundred messages are late, by so much in the mean.
    pub(super) late: (u64, u64),
    /// At least and at most so many things go wrong.
    pub(super) troubles: (u64, u64),
    /// So many times besides two slots cannot speak for a while.
    pub(super) partitions: u64,
    pub(super) fault: Option<Fault>,
}

/// The time in which all slots have had a turn in both of their lines, where requests are as large as they can be. What may be open
/// at once goes from one to the next with a lease.
fn turns(limit: &Limit, slots: u64, within: u64, lease: u64) -> u64 {
    let largest = match limit.resource {
        Resource::Requests | Resource::Concurrency => 1,
        Resource::InputTokens => 120,
        Resource::OutputTokens => 200,
        Resource::Tokens => 320,
        Resource::NanoDollars => 2_160,
    };
    let window = match limit.window {
        Window::Rolling(window) => window,
        Window::None => lease,
        Window::Calendar(_) => 0,
    };
    (2 * slots).div_ceil((limit.limit / largest).max(1)) * (window + within)
}

/// A run in which anything may go wrong.
pub(super) fn rough_plan(seed: u64, fault: Option<Fault>) -> Plan {
    let mut dice = Dice::new(seed ^ 0xf1_07);
    let slots = dice.between(1, 5) as usize;
    let within = dice.between(200, 1_500) * MS;
    let with_floor = dice.percent(20);
    let limit = |dice: &mut Dice, name: &str, resource, window, units| {
        let mut limit = Limit::new(name, resource, window, units);
        limit.within = within;
        if with_floor {
            limit.floor = units / dice.between(10, 30);
        }
        limit
    };
    let mut limits = vec![];
    let window = Window::Rolling(dice.between(500, 3_000) * MS);
    let units = dice.between(1, 120);
    limits.push(limit(&mut dice, "requests", Resource::Requests, window, units));
    if dice.percent(50) {
        let window = Window::Rolling(dice.between(500, 3_000) * MS);
        let units = dice.between(400, 8_000);
        let mut tokens = limit(&mut dice, "tokens", Resource::Tokens, window, units);
        if dice.percent(50) {
            tokens.models = vec!["a".to_owned()];
        }
        limits.push(tokens);
    }
    if dice.percent(30) {
        let window = Window::Rolling(dice.between(500, 2_000) * MS);
        let units = dice.between(300, 4_000);
        let mut output = limit(&mut dice, "output", Resource::OutputTokens, window, units);
        output.counted = Counted::ByEnd;
        limits.push(output);
    }
    if dice.percent(30) {
        let units = dice.between(1, 20);
        limits.push(limit(
            &mut dice,
            "open",
            Resource::Concurrency,
            Window::None,
            units,
        ));
    }
    let day = || Window::Calendar(Calendar::new(CalendarUnit::Day, TimeZone::UTC));
    if dice.percent(40) {
        let units = dice.between(20, 600);
        limits.push(limit(&mut dice, "day", Resource::Requests, day(), units));
    }
    if dice.percent(20) {
        let units = dice.between(20_000, 400_000);
        limits.push(limit(&mut dice, "budget", Resource::NanoDollars, day(), units));
    }
    let length = dice.between(6, 14) * SECOND;
    let skewed = dice.percent(50);
    let gap = dice.between(5, 100) * MS;
    let lease = dice.between(300, 2_000) * MS;
    let windows = limits.iter().map(|limit| match limit.window {
        Window::Rolling(window) => window,
        _ => 0,
    });
    // Until what was recorded of those that are gone is over, a turn for everybody, and a little.
    let turns = limits
        .iter()
        .map(|limit| turns(limit, slots as u64, within, lease));
    let calm = 2 * lease + within + windows.max().unwrap_or(0) + turns.max().unwrap_or(0) + 2 * SECOND;
    Plan {
        seed,
        slots,
        limits,
        terms: Terms {
            lease,
            shortest_lease: lease / dice.between(1, 6),
            report_every: dice.between(50, 250) * MS,
            drift_ppm: 4_000,
            calendar_margin_ms: 2_500,
        },
        calm: false,
        length: length + calm,
        calm_from: length,
        gaps: (0..slots)
            .map(|slot| if skewed { gap * (1 + 10 * slot as u64) } else { gap })
            .collect(),
        latency: dice.between(1, 60) * MS,
        body: dice.between(0, 300) * MS,
        rough: dice.percent(30),
        midnight: if dice.percent(70) {
            3 * SECOND + dice.below(length)
        } else {
            1_000 * SECOND
        },
        provider_late_ms: dice.below(301) as i64 - 150,
        kills: None,
        late: (10, 300 * MS),
        troubles: (1, 8),
        partitions: 0,
        fault,
    }
}

/// The same with few processes that often cannot speak with each other, late messages, and providers that count soon: nothing but
/// the protocol is between a mistake and a limit.
pub(super) fn harsh_plan(seed: u64, fault: Option<Fault>) -> Plan {
    let mut plan = rough_plan(seed, fault);
    plan.slots = plan.slots.clamp(2, 3);
    plan.gaps.resize(plan.slots, 20 * MS);
    plan.late = (50, 900 * MS);
    plan.troubles = (0, 4);
    plan.partitions = 16;
    // Who reports seldom takes a late answer: it is still the one to its newest report.
    plan.terms.report_every = 4 * SECOND;
    plan.terms.lease = 1_500 * MS;
    plan.terms.shortest_lease = 1_500 * MS;
    plan.calm_from += 6 * SECOND;
    plan.length += 10 * SECOND;
    for limit in &mut plan.limits {
        limit.within = 200 * MS;
    }
    plan
}
