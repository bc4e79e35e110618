//! What a rung's tests say to a release.

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
fn it_is_told_until_when_tests_are_waited_for() {
    let at = |second| Timestamp::from_second(second).unwrap();
    let mut sitting = Sitting::new(&reached(0));
    let checks = [
        check("health", &[]),
        check("dns", &[]),
        check("agent", &["health", "dns"]),
    ];
    let mut deadline = |until: [Option<i64>; 2], passed: &str| {
        sitting.advance(&checks, |check, _| match check.name.as_str() {
            name if name == passed => Outcome::passed(1, ""),
            "health" => Outcome::running().by(until[0].map(at)),
            _ => Outcome::running().by(until[1].map(at)),
        });
        sitting
            .gate()
            .unwrap()
            .deadline
            .map(|deadline| deadline.as_second())
    };
    let agent = check("agent", &[]).longest_seconds();
    assert_eq!(deadline([Some(40), Some(50)], ""), Some(50 + agent));
    assert_eq!(deadline([Some(40), None], ""), None, "of dns it is not known");
    assert_eq!(deadline([Some(40), Some(50)], "dns"), Some(40 + agent));
    assert_eq!(deadline([None, Some(70)], "health"), Some(70));
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
