//! What has come of the tests of one rung, and what follows for the release. Pure.

use std::collections::BTreeMap;

use flotilla_core::rollout::{Gate, Opinion, Reached, Reason};
use flotilla_crds::AgentPoolStatus;
use flotilla_crds::release_test::TestStatus;
use jiff::{SignedDuration, Timestamp};

use super::list::{Check, Test};
use crate::runtime::conditions::truncate;

/// Reason of a gate while tests are under way.
pub const TESTING: &str = "Testing";
/// Reason of a gate when a test came to no verdict.
pub const TEST_UNDECIDED: &str = "TestUndecided";
/// Longest message in status, by its schema.
const MAX_MESSAGE: usize = 1024;

/// Where a test stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// For tests that it depends on, or for something that is missing.
    #[default]
    Waiting,
    /// It is under way.
    Running,
    /// It is passed.
    Passed,
    /// It has failed, in every attempt.
    Failed,
    /// It came to no verdict: a person decides.
    Undecided,
}

impl State {
    /// The word in status.
    pub fn word(self) -> &'static str {
        match self {
            Self::Waiting => "Waiting",
            Self::Running => "Running",
            Self::Passed => "Passed",
            Self::Failed => "Failed",
            Self::Undecided => "Undecided",
        }
    }

    fn from_word(word: &str) -> Self {
        [Self::Running, Self::Passed, Self::Failed, Self::Undecided]
            .into_iter()
            .find(|state| state.word() == word)
            .unwrap_or_default()
    }

    /// Whether it has ended.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Passed | Self::Failed | Self::Undecided)
    }
}

/// What has come of one test.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Where it stands.
    pub state: State,
    /// Attempts so far.
    pub attempts: i32,
    /// One sentence.
    pub message: String,
    /// By when it has ended; none if that is not known, and once it has.
    pub until: Option<Timestamp>,
}

impl Outcome {
    /// It waits, for a reason.
    pub fn waiting(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            ..Self::default()
        }
    }

    /// It is under way.
    pub fn running() -> Self {
        Self {
            state: State::Running,
            ..Self::default()
        }
    }

    /// It is passed.
    pub fn passed(attempts: i32, message: impl Into<String>) -> Self {
        Self::ended(State::Passed, attempts, message)
    }

    /// It has failed.
    pub fn failed(attempts: i32, message: impl Into<String>) -> Self {
        Self::ended(State::Failed, attempts, message)
    }

    /// It came to no verdict.
    pub fn undecided(attempts: i32, message: impl Into<String>) -> Self {
        Self::ended(State::Undecided, attempts, message)
    }

    fn ended(state: State, attempts: i32, message: impl Into<String>) -> Self {
        Self {
            state,
            attempts,
            message: message.into(),
            until: None,
        }
    }

    /// The same, known to have ended by `until` unless it has already.
    pub fn by(self, until: Option<Timestamp>) -> Self {
        let until = until.filter(|_| !self.state.is_final());
        Self { until, ..self }
    }
}

/// The tests of one candidate at one rung.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sitting {
    /// Whose.
    pub revision: String,
    /// In which attempt to release it.
    pub attempt: i32,
    /// The rung's weight.
    pub weight: i32,
    /// The tests as of the last look, in the order of the spec; empty before the first.
    pub checks: Vec<Check>,
    outcomes: BTreeMap<String, Outcome>,
}

impl Sitting {
    /// Nothing is known yet.
    pub fn new(reached: &Reached) -> Self {
        Self {
            revision: reached.revision.clone(),
            attempt: reached.attempt,
            weight: reached.weight,
            ..Self::default()
        }
    }

    /// What a new operator can know from status.
    pub fn recovered(reached: &Reached, status: &AgentPoolStatus) -> Option<Self> {
        let tests = &status.rollout.as_ref()?.tests;
        let outcomes = tests.iter().map(|test| {
            let outcome = Outcome {
                state: State::from_word(&test.result),
                attempts: test.attempts,
                message: test.message.clone(),
                until: None,
            };
            (test.name.clone(), outcome)
        });
        (!tests.is_empty()).then(|| Self {
            outcomes: outcomes.collect(),
            ..Self::new(reached)
        })
    }

    /// Whether it is about this rung of this release.
    pub fn is_of(&self, reached: &Reached) -> bool {
        (&self.revision, self.attempt, self.weight) == (&reached.revision, reached.attempt, reached.weight)
    }

    /// What has come of one test.
    pub fn outcome(&self, name: &str) -> Outcome {
        self.outcomes.get(name).cloned().unwrap_or_default()
    }

    /// Takes in what has happened: `hold` says what has come of a test that may run, given what was known. A test that has
    /// ended is not asked for again, unless it was changed since.
    pub fn advance(&mut self, checks: &[Check], mut hold: impl FnMut(&Check, &Outcome) -> Outcome) {
        let is_changed = |check: &Check| {
            let known = self.checks.iter().find(|known| known.name == check.name);
            known.is_some_and(|known| known != check)
        };
        let changed: Vec<&str> = checks
            .iter()
            .filter(|check| is_changed(check))
            .map(|check| check.name.as_str())
            .collect();
        let is_there = |name: &str| checks.iter().any(|check| check.name == name);
        self.outcomes
            .retain(|name, _| is_there(name) && !changed.contains(&name.as_str()));
        self.checks = checks.to_vec();
        for check in checks {
            let before = self.outcome(&check.name);
            if before.state.is_final() {
                continue;
            }
            let mut needed = check.depends_on.iter();
            let missing = needed.find(|name| is_there(name) && self.outcome(name).state != State::Passed);
            let outcome = match missing {
                Some(missing) => {
                    Outcome::waiting(format!("{missing} has to pass first")).by(self.after(check))
                }
                None => hold(check, &before),
            };
            self.outcomes.insert(check.name.clone(), outcome);
        }
    }

    /// By when a test has ended that waits for others.
    fn after(&self, check: &Check) -> Option<Timestamp> {
        let needed = check.depends_on.iter().map(|name| self.outcome(name));
        let open: Option<Vec<Timestamp>> = needed
            .filter(|outcome| !outcome.state.is_final())
            .map(|outcome| outcome.until)
            .collect();
        let longest = SignedDuration::from_secs(check.longest_seconds());
        open?.into_iter().max()?.checked_add(longest).ok()
    }

    /// By when every test has ended; none if that is not known of one.
    fn deadline(&self) -> Option<Timestamp> {
        let outcomes = self.checks.iter().map(|check| self.outcome(&check.name));
        let open: Option<Vec<Timestamp>> = outcomes
            .filter(|outcome| !outcome.state.is_final())
            .map(|outcome| outcome.until)
            .collect();
        open?.into_iter().max()
    }

    /// Whether every test is passed.
    pub fn is_passed(&self) -> bool {
        let mut checks = self.checks.iter();
        !self.checks.is_empty() && checks.all(|check| self.outcome(&check.name).state == State::Passed)
    }

    /// What it says to the release; none once every test is passed.
    pub fn gate(&self) -> Option<Gate> {
        let first = |state: State| {
            let mut checks = self.checks.iter();
            checks.find(|check| self.outcome(&check.name).state == state)
        };
        let mut deadline = None;
        let (opinion, word, message) = if let Some(check) = first(State::Failed) {
            let word = match check.test {
                Test::LoadTest(_) => "LoadTestFailed",
                Test::Probe(_) | Test::Job(_) => "SmokeTestFailed",
            };
            let message = format!("{}: {}", check.name, self.outcome(&check.name).message);
            (Opinion::RollBack, word, message)
        } else if let Some(check) = first(State::Undecided) {
            let message = format!(
                "{}: {}; create a RolloutAction of type SkipStep or Abort",
                check.name,
                self.outcome(&check.name).message
            );
            (Opinion::Hold, TEST_UNDECIDED, message)
        } else if self.is_passed() {
            return None;
        } else {
            deadline = self.deadline();
            (Opinion::Continue, TESTING, self.waits_for())
        };
        Some(Gate {
            weight: self.weight,
            opinion,
            reason: Reason::new(word, message),
            deadline,
            by_test: true,
        })
    }

    fn waits_for(&self) -> String {
        let passed = |check: &&Check| self.outcome(&check.name).state == State::Passed;
        let count = self.checks.iter().filter(passed).count();
        let open: Vec<String> = self
            .checks
            .iter()
            .filter(|check| !passed(check))
            .map(|check| {
                let outcome = self.outcome(&check.name);
                match outcome.message.as_str() {
                    "" => check.name.clone(),
                    message => format!("{} ({message})", check.name),
                }
            })
            .collect();
        format!(
            "{count} of {} tests are passed; open: {}",
            self.checks.len(),
            open.join(", ")
        )
    }

    /// For status.
    pub fn status(&self) -> Vec<TestStatus> {
        let tests = self.checks.iter().map(|check| {
            let Outcome {
                state,
                attempts,
                message,
                until: _,
            } = self.outcome(&check.name);
            TestStatus {
                name: check.name.clone(),
                result: state.word().to_owned(),
                attempts,
                message: truncate(&message, MAX_MESSAGE).to_owned(),
            }
        });
        tests.collect()
    }
}

/// What the release hears about its rung: from the evidence and from the tests. Harm that is shown leads back whatever the
/// tests say, and nothing goes on before they are passed.
pub fn combine(sitting: Option<&Sitting>, evidence: Option<Gate>, reached: Option<&Reached>) -> Option<Gate> {
    let Some((sitting, reached)) = sitting
        .zip(reached)
        .filter(|(sitting, reached)| sitting.is_of(reached))
    else {
        return evidence;
    };
    let Some(gate) = sitting.gate() else {
        let weighs_nothing = reached.weight <= 0 || reached.weight >= 100;
        return evidence.or_else(|| {
            weighs_nothing.then(|| Gate {
                weight: reached.weight,
                opinion: Opinion::Advance,
                reason: Reason::new("TestsPassed", "every test is passed"),
                deadline: None,
                by_test: false,
            })
        });
    };
    let is_harm = |gate: &Gate| gate.opinion == Opinion::RollBack;
    match evidence {
        Some(evidence) if is_harm(&evidence) && !is_harm(&gate) => Some(evidence),
        _ => Some(gate),
    }
}

#[cfg(test)]
mod tests;
