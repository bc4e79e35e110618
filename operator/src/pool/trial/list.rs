//! Which tests a rung has, by the spec. Pure.

use flotilla_crds::AgentPoolSpec;
use flotilla_crds::release_test::{AgentTest, DnsTest, HttpTest, JobTest, SmokeTest, SmokeTestType, TcpTest};
use serde::Serialize;

use super::{child, runner};

/// Name of a step's load test.
pub const STEP_LOAD_TEST: &str = "step-load-test";

/// One test.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Check {
    /// Its name, unique at its rung.
    pub name: String,
    /// What it does.
    pub test: Test,
    /// Seconds that one attempt may take.
    pub seconds: i64,
    /// Attempts at most.
    pub attempts: i32,
    /// Names of tests that must have passed before.
    pub depends_on: Vec<String>,
}

impl Check {
    /// Seconds from its begin until it has ended, if every attempt takes as long as it may.
    pub fn longest_seconds(&self) -> i64 {
        let attempts = i64::from(self.attempts);
        match &self.test {
            Test::Probe(_) => runner::longest(self.seconds, self.attempts),
            Test::Job(_) => (self.seconds + child::START_SECONDS) * attempts,
            Test::LoadTest(_) => self.seconds * attempts,
        }
    }
}

/// What a test does.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum Test {
    /// Something the operator asks itself.
    Probe(Probe),
    /// A command in a pod.
    Job(JobTest),
    /// A load test made from the one of this name.
    LoadTest(String),
}

/// Something the operator asks itself.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum Probe {
    /// A request to the candidate.
    Http(HttpTest),
    /// A prompt to the candidate.
    Agent(AgentTest),
    /// A connection.
    Tcp(TcpTest),
    /// A name.
    Dns(DnsTest),
}

impl Test {
    /// The word for metrics.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Probe(Probe::Http(_)) => "HTTP",
            Self::Probe(Probe::Agent(_)) => "Agent",
            Self::Probe(Probe::Tcp(_)) => "TCP",
            Self::Probe(Probe::Dns(_)) => "DNS",
            Self::Job(_) => "Job",
            Self::LoadTest(_) => "LoadTest",
        }
    }
}

/// The tests of the rung of this weight, in the order of the spec.
pub fn checks(spec: &AgentPoolSpec, weight: i32) -> Vec<Check> {
    let smoke = |is_wanted: fn(&SmokeTest) -> bool| {
        let tests = spec.rollout.smoke_tests.iter();
        tests
            .filter(move |test| is_wanted(test))
            .filter_map(check)
            .collect()
    };
    match weight {
        ..=0 => smoke(SmokeTest::runs_before),
        100.. => smoke(SmokeTest::runs_after),
        _ => {
            let canary = spec.rollout.canary().unwrap_or_default();
            let mut steps = canary.steps.into_iter().filter(|step| step.weight == weight);
            let load_test = steps.next().and_then(|step| step.load_test);
            let check = load_test.map(|test| Check {
                name: STEP_LOAD_TEST.to_owned(),
                test: Test::LoadTest(test.template_ref.name),
                seconds: test.timeout_seconds.into(),
                attempts: test.attempts,
                depends_on: Vec::new(),
            });
            check.into_iter().collect()
        }
    }
}

/// A smoke test as a check; none where the member that its type needs is missing, which the schema does not let through.
fn check(test: &SmokeTest) -> Option<Check> {
    let what = match test.type_ {
        SmokeTestType::HTTP => Test::Probe(Probe::Http(test.http.clone().unwrap_or_default())),
        SmokeTestType::Agent => Test::Probe(Probe::Agent(test.agent.clone()?)),
        SmokeTestType::TCP => Test::Probe(Probe::Tcp(test.tcp.clone().unwrap_or_default())),
        SmokeTestType::DNS => Test::Probe(Probe::Dns(test.dns.clone()?)),
        SmokeTestType::Job => Test::Job(test.job.clone()?),
        SmokeTestType::LoadTest => Test::LoadTest(test.load_test.as_ref()?.template_ref.name.clone()),
    };
    Some(Check {
        name: test.name.clone(),
        test: what,
        seconds: test.seconds().into(),
        attempts: test.attempts,
        depends_on: test.depends_on.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::build::fixtures::pool;
    use serde_json::json;

    #[test]
    fn each_rung_has_its_own_tests_with_the_defaults_of_their_type() {
        let spec = pool(json!({"rollout": {
            "type": "Canary",
            "canary": {"steps": [{"weight": 10, "loadTest": {"templateRef": {"name": "load"}}}, {"weight": 50}]},
            "smokeTests": [
                {"name": "health", "type": "HTTP"},
                {"name": "agent", "type": "Agent", "agent": {"prompt": "ping"}, "when": "BeforeAndAfter", "dependsOn": ["health"]},
                {"name": "database", "type": "Job", "job": {"command": ["true"]}, "when": "AfterPromotion", "attempts": 1},
            ],
        }}))
        .spec;
        let names = |weight| -> Vec<(String, i64, i32)> {
            let checks = checks(&spec, weight);
            checks
                .into_iter()
                .map(|check| (check.name, check.seconds, check.attempts))
                .collect()
        };
        let named = |name: &str, seconds, attempts| (name.to_owned(), seconds, attempts);
        assert_eq!(names(0), [named("health", 10, 3), named("agent", 60, 3)]);
        assert_eq!(names(10), [named(STEP_LOAD_TEST, 3600, 2)]);
        assert_eq!(names(50), []);
        assert_eq!(names(100), [named("agent", 60, 3), named("database", 600, 1)]);
        let plain = pool(json!({"rollout": {"type": "Canary"}})).spec;
        assert!(checks(&plain, 0).is_empty());
    }
}
