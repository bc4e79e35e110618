//! Choices, the network, what shards and routes are made of, and the report.

use super::super::*;
use crate::load::random::Stream;

/// A source of choices.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Dice(Stream, u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(Stream::new(seed, 77), 0)
    }

    pub fn bits(&mut self) -> u64 {
        self.1 += 1;
        self.0.at(self.1)
    }

    /// `from` to `to`, both possible.
    pub fn between(&mut self, from: u64, to: u64) -> u64 {
        self.1 += 1;
        from + self.0.below(self.1, to - from + 1)
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.between(0, 99) < percent
    }
}

#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Network {
    pub loss_percent: u64,
    pub double_percent: u64,
    pub max_delay: u64,
}

pub(in super::super) const CALM: Network = Network {
    loss_percent: 0,
    double_percent: 0,
    max_delay: 2,
};

/// What happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Report {
    pub turns: u64,
    pub switched: u64,
    /// Of those whose homes died at once, or that were let go without a copy.
    pub switched_excused: u64,
    /// Those.
    pub excused: u64,
    pub led_away: u64,
    pub served_dead: u64,
    pub unrouted: u64,
    pub unprotected: u64,
    pub undrained: u64,
    pub messages: u64,
    pub retried: u64,
    pub unfinished: u64,
    pub on_candidate: u64,
    pub slowest_assignment: u64,
    pub slowest_release: u64,
    pub largest_table: usize,
}

pub(in super::super) fn settings(name: &str, max_entries: usize) -> Settings {
    Settings {
        pool: 1,
        shard: 0,
        me: MemberId::of(name),
        max_entries,
        idle: 1_800_000,
        seed: 9,
        timing: Timing::default(),
    }
}

pub(in super::super) fn route(generation: i64, shares: &[(&str, u32, bool, i64)]) -> Route {
    let share = |(revision, weight, keeps, since): &(&str, u32, bool, i64)| Share {
        revision: (*revision).into(),
        weight: *weight,
        keeps: *keeps,
        since: *since,
    };
    Route {
        generation,
        shares: shares.iter().map(share).collect(),
    }
}
