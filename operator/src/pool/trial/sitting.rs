//! What has come of the tests of one rung, and what follows for the release. Pure.

use std::collections::BTreeMap;

use flotilla_core::rollout::{Gate, Opinion, Reached, Reason};
use flotilla_crds::AgentPoolStatus;
use flotilla_crds::release_test::TestStatus;

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
        }
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
                Some(missing) => Outcome::waiting(format!("{missing} has to pass first")),
                None => hold(check, &before),
            };
            self.outcomes.insert(check.name.clone(), outcome);
        }
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
            (Opinion::Continue, TESTING, self.waits_for())
        };
        Some(Gate {
            weight: self.weight,
            opinion,
            reason: Reason::new(word, message),
            deadline: None,
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
mod tests {
    use super::super::list::Probe;
    use super::*;
    use flotilla_crds::release_test::HttpTest;
    use jiff::Timestamp;

    fn reached(weight: i32) -> Reached {
        Reached {
            revision: "support-2".into(),
            attempt: 1,
            weight,
            since: Timestamp::UNIX_EPOCH,
        }
    }

    fn check(name: &str, depends_on: &[&str]) -> Check {
        Check {
            name: name.into(),
            test: Test::Probe(Probe::Http(HttpTest::default())),
            seconds: 10,
            attempts: 3,
            depends_on: depends_on.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    fn sitting(states: &[(&str, State)]) -> Sitting {
        let mut sitting = Sitting::new(&reached(0));
        let checks: Vec<Check> = states.iter().map(|(name, _)| check(name, &[])).collect();
        sitting.advance(&checks, |check, _| {
            let (_, state) = states.iter().find(|(name, _)| *name == check.name).unwrap();
            Outcome::ended(*state, 1, "said so")
        });
        sitting
    }

    #[test]
    fn a_test_starts_when_what_it_depends_on_is_passed_and_is_not_repeated() {
        let checks = [
            check("health", &[]),
            check("dns", &[]),
            check("agent", &["health"]),
        ];
        let mut sitting = Sitting::new(&reached(0));
        let mut held = Vec::new();
        sitting.advance(&checks, |check, _| {
            held.push(check.name.clone());
            match check.name.as_str() {
                "health" => Outcome::running(),
                _ => Outcome::passed(1, ""),
            }
        });
        assert_eq!(held, ["health", "dns"]);
        assert_eq!(sitting.outcome("agent").message, "health has to pass first");
        held.clear();
        sitting.advance(&checks, |check, _| {
            held.push(check.name.clone());
            Outcome::passed(1, "")
        });
        assert_eq!(held, ["health", "agent"]);
        assert!(sitting.is_passed() && sitting.gate().is_none());
        // One that is edited is held again, one that is gone is forgotten.
        let edited = [Check {
            seconds: 5,
            ..check("health", &[])
        }];
        held.clear();
        sitting.advance(&edited, |check, _| {
            held.push(check.name.clone());
            Outcome::running()
        });
        assert_eq!(
            (held, sitting.outcome("dns")),
            (vec!["health".to_owned()], Outcome::default())
        );
    }

    #[test]
    fn the_gravest_outcome_speaks() {
        use State::{Failed, Passed, Running, Undecided, Waiting};
        for (states, opinion, word, part) in [
            (
                vec![("a", Passed), ("b", Running)],
                Opinion::Continue,
                TESTING,
                "1 of 2 tests are passed; open: b (said so)",
            ),
            (
                vec![("a", Undecided), ("b", Running)],
                Opinion::Hold,
                TEST_UNDECIDED,
                "a: said so; create a RolloutAction",
            ),
            (
                vec![("a", Undecided), ("b", Failed), ("c", Waiting)],
                Opinion::RollBack,
                "SmokeTestFailed",
                "b: said so",
            ),
        ] {
            let gate = sitting(&states).gate().unwrap();
            assert_eq!(
                (gate.opinion, gate.reason.word.as_str(), gate.by_test),
                (opinion, word, true)
            );
            assert!(gate.reason.message.starts_with(part), "{}", gate.reason.message);
        }
        assert_eq!(sitting(&[("a", Passed)]).gate(), None);
    }

    #[test]
    fn evidence_and_tests_are_heard_together() {
        let heard = |opinion| Gate {
            weight: 10,
            opinion,
            reason: Reason::new("AnalysisFailed", "errors"),
            deadline: None,
            by_test: false,
        };
        let at = |weight, state| Sitting {
            weight,
            ..sitting(&[("a", state)])
        };
        let opinion = |weight, state, evidence: Option<Opinion>| {
            let sitting = at(weight, state);
            combine(Some(&sitting), evidence.map(heard), Some(&reached(weight))).map(|gate| gate.opinion)
        };
        use Opinion::{Advance, Continue, RollBack};
        assert_eq!(opinion(10, State::Running, Some(Advance)), Some(Continue));
        assert_eq!(opinion(10, State::Running, Some(RollBack)), Some(RollBack));
        assert_eq!(opinion(10, State::Failed, Some(Advance)), Some(RollBack));
        assert_eq!(opinion(10, State::Passed, Some(Continue)), Some(Continue));
        assert_eq!(opinion(10, State::Passed, None), None);
        assert_eq!(opinion(0, State::Passed, None), Some(Advance));
        // Of another rung it says nothing.
        let other = at(0, State::Failed);
        assert_eq!(combine(Some(&other), None, Some(&reached(10))), None);
    }

    #[test]
    fn what_has_ended_survives_a_restart_in_status() {
        let before = sitting(&[("a", State::Passed), ("b", State::Running)]);
        let status = AgentPoolStatus {
            rollout: Some(flotilla_crds::agent_pool::RolloutStatus {
                tests: before.status(),
                ..Default::default()
            }),
            ..AgentPoolStatus::default()
        };
        let mut after = Sitting::recovered(&reached(0), &status).unwrap();
        let mut held = Vec::new();
        after.advance(&before.checks, |check, _| {
            held.push(check.name.clone());
            Outcome::running()
        });
        assert_eq!(held, ["b"]);
        assert_eq!(Sitting::recovered(&reached(0), &AgentPoolStatus::default()), None);
    }
}
