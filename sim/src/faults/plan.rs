//! Fault plans as data. Their `Display` is one line that [`Plan::parse`] reads: what a failing run prints.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

/// One thing that goes wrong. Writes are counted over all lives of the client, without events, leases and dry runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The process dies before its n-th write is carried out.
    CrashBefore(u64),
    /// The process dies after its n-th write was carried out, before it learns so.
    CrashAfter(u64),
    /// The n-th write is carried out and its answer is lost with the connection.
    Lost(u64),
    /// From the n-th write on, this many writes are refused with this code (409, 429, 500, 503, 504).
    Refused {
        /// First write.
        at: u64,
        /// How many.
        count: u64,
        /// HTTP status.
        code: u16,
    },
    /// Each write is refused with this code in this many of a hundred cases, by lot.
    Flaky {
        /// Of a hundred.
        percent: u8,
        /// HTTP status.
        code: u16,
    },
    /// The n-th write is never answered; carried out or not.
    Hang {
        /// Which write.
        at: u64,
        /// Whether it is carried out.
        applied: bool,
    },
    /// Nothing is heard and nothing answered for a while; watches fall silent.
    BlackHole {
        /// Milliseconds from the beginning.
        from: u64,
        /// How long, in milliseconds.
        length: u64,
    },
    /// Events of a kind (its plural) arrive this many milliseconds late: others overtake them.
    Late {
        /// Plural.
        plural: String,
        /// Milliseconds.
        by: u64,
    },
    /// Each n-th event, over all watches, is replaced by 410 and the end of its watch.
    Gone(u64),
    /// Each n-th event, over all watches, comes twice.
    Twice(u64),
    /// Each n-th event, over all watches, breaks its watch's connection instead of arriving.
    Broken(u64),
    /// For ten seconds after each start, lists show the state of this many versions ago.
    Stale(u64),
}

/// What goes wrong in one run, and the seed of all that is drawn by lot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// What goes wrong.
    pub faults: Vec<Fault>,
}

impl Plan {
    /// Nothing goes wrong.
    pub fn none(seed: u64) -> Self {
        Self {
            seed,
            faults: Vec::new(),
        }
    }

    /// One thing goes wrong.
    pub fn one(seed: u64, fault: Fault) -> Self {
        Self {
            seed,
            faults: vec![fault],
        }
    }

    /// A few things, by lot, among a workload's `writes`.
    pub fn random(seed: u64, writes: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed ^ 0x5eed);
        let kinds = [
            "replicasets",
            "pods",
            "agentpools",
            "services",
            "configmaps",
            "jobs",
            "deployments",
        ];
        let count = random.random_range(1..=3);
        let faults = (0..count)
            .map(|_| {
                let at = random.random_range(0..writes.max(1));
                match random.random_range(0..12) {
                    0 => Fault::CrashBefore(at),
                    1 => Fault::CrashAfter(at),
                    2 => Fault::Lost(at),
                    3 => Fault::Refused {
                        at,
                        count: random.random_range(1..=4),
                        code: [409, 429, 500, 503, 504][random.random_range(0..5)],
                    },
                    4 => Fault::Flaky {
                        percent: 20,
                        code: [409, 500][random.random_range(0..2)],
                    },
                    5 => Fault::Hang {
                        at,
                        applied: random.random_bool(0.5),
                    },
                    6 => Fault::BlackHole {
                        from: random.random_range(0..30_000),
                        length: random.random_range(1_000..40_000),
                    },
                    7 => Fault::Late {
                        plural: kinds[random.random_range(0..kinds.len())].to_owned(),
                        by: random.random_range(100..10_000),
                    },
                    8 => Fault::Gone(random.random_range(5..60)),
                    9 => Fault::Twice(random.random_range(2..20)),
                    10 => Fault::Broken(random.random_range(5..60)),
                    _ => Fault::Stale(random.random_range(1..30)),
                }
            })
            .collect();
        Self { seed, faults }
    }

    /// Reads what `Display` wrote.
    ///
    /// # Errors
    /// A sentence about what is not understood.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut words = text.split_whitespace();
        let seed = words.next().ok_or("a plan begins with its seed")?;
        let seed = seed
            .parse()
            .map_err(|_| format!("{seed:?} is no seed; write a number"))?;
        let faults = words.map(str::parse).collect::<Result<_, _>>()?;
        Ok(Self { seed, faults })
    }

    pub(crate) fn late(&self, plural: &str) -> Duration {
        let late = self.faults.iter().filter_map(|fault| match fault {
            Fault::Late { plural: kind, by } if kind == plural => Some(*by),
            _ => None,
        });
        Duration::from_millis(late.max().unwrap_or_default())
    }

    pub(crate) fn stale(&self) -> Option<u64> {
        self.faults.iter().find_map(|fault| match fault {
            Fault::Stale(versions) => Some(*versions),
            _ => None,
        })
    }

    /// When the hole that `at` falls into ends.
    pub(super) fn hole(&self, at: Duration) -> Option<Duration> {
        self.faults.iter().find_map(|fault| match fault {
            Fault::BlackHole { from, length } => {
                let (from, end) = (Duration::from_millis(*from), Duration::from_millis(from + length));
                (from <= at && at < end).then_some(end)
            }
            _ => None,
        })
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.seed)?;
        self.faults.iter().try_for_each(|fault| write!(f, " {fault}"))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CrashBefore(at) => write!(f, "crash-before:{at}"),
            Self::CrashAfter(at) => write!(f, "crash-after:{at}"),
            Self::Lost(at) => write!(f, "lost:{at}"),
            Self::Refused { at, count, code } => write!(f, "refused:{at}:{count}:{code}"),
            Self::Flaky { percent, code } => write!(f, "flaky:{percent}:{code}"),
            Self::Hang { at, applied } => write!(f, "hang:{at}:{}", u8::from(*applied)),
            Self::BlackHole { from, length } => write!(f, "black-hole:{from}:{length}"),
            Self::Late { plural, by } => write!(f, "late:{plural}:{by}"),
            Self::Gone(each) => write!(f, "gone:{each}"),
            Self::Twice(each) => write!(f, "twice:{each}"),
            Self::Broken(each) => write!(f, "broken:{each}"),
            Self::Stale(versions) => write!(f, "stale:{versions}"),
        }
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split(':').collect();
        let bad = || format!("{text:?} is no fault");
        let number = |index: usize| -> Result<u64, String> {
            parts
                .get(index)
                .and_then(|part| part.parse().ok())
                .ok_or_else(bad)
        };
        let code = |index: usize| number(index).and_then(|code| u16::try_from(code).map_err(|_| bad()));
        match parts.first().copied().unwrap_or_default() {
            "crash-before" => Ok(Self::CrashBefore(number(1)?)),
            "crash-after" => Ok(Self::CrashAfter(number(1)?)),
            "lost" => Ok(Self::Lost(number(1)?)),
            "refused" => Ok(Self::Refused {
                at: number(1)?,
                count: number(2)?,
                code: code(3)?,
            }),
            "flaky" => Ok(Self::Flaky {
                percent: u8::try_from(number(1)?).map_err(|_| bad())?,
                code: code(2)?,
            }),
            "hang" => Ok(Self::Hang {
                at: number(1)?,
                applied: number(2)? == 1,
            }),
            "black-hole" => Ok(Self::BlackHole {
                from: number(1)?,
                length: number(2)?,
            }),
            "late" => Ok(Self::Late {
                plural: parts.get(1).ok_or_else(bad)?.to_string(),
                by: number(2)?,
            }),
            "gone" => Ok(Self::Gone(number(1)?)),
            "twice" => Ok(Self::Twice(number(1)?)),
            "broken" => Ok(Self::Broken(number(1)?)),
            "stale" => Ok(Self::Stale(number(1)?)),
            _ => Err(bad()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_are_read_as_they_are_written() {
        for seed in 0..500 {
            let plan = Plan::random(seed, 40);
            assert_eq!(Plan::parse(&plan.to_string()), Ok(plan));
        }
        assert!(Plan::parse("7 crash:x").is_err());
    }
}
