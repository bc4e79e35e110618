//! What a plan must be for a worker to run it, in sentences.

use std::collections::BTreeSet;
use std::fmt;

use super::{Arrivals, ConstantRate, LoadPlan, MAX_REQUESTS, Requests, Stage, TargetUrl, is_plain};
use crate::load::decimal::Decimal;
use crate::load::template::Template;

/// Everything that is wrong with a plan, each with the field and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct PlanErrors(Vec<String>);

impl fmt::Display for PlanErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

impl PlanErrors {
    /// One sentence per error.
    pub fn sentences(&self) -> &[String] {
        &self.0
    }
}

impl LoadPlan {
    /// Checks everything that a worker relies on.
    ///
    /// # Errors
    /// Every problem found, each with its field and what to write instead.
    pub fn validate(&self) -> Result<(), PlanErrors> {
        let mut check = Check::default();
        let Self {
            name: _,
            seed: _,
            workers,
            target,
            requests,
            scenarios,
            warmup,
            stages,
        } = self;
        check.range("workers.count", workers.count, 1, 1000);
        check.range("workers.minCoveragePercent", workers.min_coverage_percent, 1, 100);
        check.range(
            "workers.startDeadlineSeconds",
            workers.start_deadline_seconds,
            1,
            3600,
        );
        if let Err(sentence) = TargetUrl::parse(&target.url) {
            check.add(format!("target.{sentence}"));
        }
        check.requests(requests);
        check.range("warmup.requests", warmup.requests, 0, 100_000);
        check.range("scenarios: their number", scenarios.len() as u64, 1, 100);
        check.unique(
            "scenarios",
            scenarios.iter().map(|scenario| scenario.name.as_str()),
        );
        for scenario in scenarios {
            let at = format!("scenarios[{}]", scenario.name);
            check.range(&format!("{at}.weight"), scenario.weight, 1, 1000);
            check.range(
                &format!("{at}.prompt: its length"),
                scenario.prompt.len() as u64,
                1,
                1 << 20,
            );
            if let Err(sentence) = Template::parse(&scenario.prompt) {
                check.add(format!("{at}.prompt: {sentence}"));
            }
        }
        check.range("stages: their number", stages.len() as u64, 1, 32);
        check.unique("stages", stages.iter().map(|stage| stage.name.as_str()));
        for stage in stages {
            check.stage(stage, workers.count);
        }
        if self.requests() > MAX_REQUESTS {
            check.add(format!(
                "stages: {} requests are too many; lower perSecond, seconds or requests to at most {MAX_REQUESTS} in all",
                self.requests()
            ));
        }
        check.finish()
    }
}

#[derive(Default)]
struct Check(Vec<String>);

impl Check {
    fn add(&mut self, sentence: String) {
        self.0.push(sentence);
    }

    fn range(&mut self, field: &str, value: impl Into<u64>, low: u64, high: u64) {
        let value = value.into();
        if !(low..=high).contains(&value) {
            self.add(format!("{field} is {value}; write a number from {low} to {high}"));
        }
    }

    fn unique<'a>(&mut self, field: &str, names: impl Iterator<Item = &'a str>) {
        let mut seen = BTreeSet::new();
        for name in names {
            if name.is_empty() {
                self.add(format!("{field}: a name is empty; name each of them"));
            } else if !seen.insert(name) {
                self.add(format!(
                    "{field}: the name {name:?} occurs twice; names must differ"
                ));
            }
        }
    }

    fn requests(&mut self, requests: &Requests) {
        let Requests {
            timeout_milliseconds,
            max_attempts,
            stream: _,
            model,
            method: _,
            path,
            content_type,
        } = requests;
        self.range(
            "requests.timeoutMilliseconds",
            *timeout_milliseconds,
            1,
            3_600_000,
        );
        self.range("requests.maxAttempts", *max_attempts, 1, 10);
        if model.is_empty() {
            self.add("requests.model is empty; name the model, or leave it out for \"default\"".to_owned());
        }
        if let Some(path) = path
            && (!path.starts_with('/') || !is_plain(path))
        {
            self.add(format!(
                "requests.path {path:?} is not usable; write one that starts with \"/\", with %XX for characters that no path may have"
            ));
        }
        if content_type.is_empty()
            || !content_type
                .bytes()
                .all(|byte| byte == b' ' || byte.is_ascii_graphic())
        {
            self.add(format!(
                "requests.contentType {content_type:?} is not usable; write one such as \"application/json\""
            ));
        }
    }

    fn stage(&mut self, stage: &Stage, workers: u32) {
        let at = format!("stages[{}]", stage.name);
        match &stage.arrivals {
            Arrivals::Batch { batch } => {
                self.range(&format!("{at}.batch.size"), batch.size, 1, 100_000);
                self.range(&format!("{at}.batch.delaySeconds"), batch.delay_seconds, 0, 3600);
                self.range(&format!("{at}.batch.requests"), batch.requests, 1, MAX_REQUESTS);
            }
            Arrivals::ConstantRate { constant_rate } => {
                let ConstantRate {
                    per_second,
                    seconds,
                    arrival: _,
                    max_in_flight,
                } = constant_rate;
                match per_second.parse::<Decimal>() {
                    Ok(rate) if (1_000..=100_000_000_000).contains(&rate.millionths()) => {}
                    Ok(_) => self.add(format!(
                        "{at}.constantRate.perSecond is {per_second:?}; write a rate from \"0.001\" to \"100000\""
                    )),
                    Err(error) => self.add(format!("{at}.constantRate.perSecond: {error}")),
                }
                self.range(&format!("{at}.constantRate.seconds"), *seconds, 1, 604_800);
                self.range(
                    &format!("{at}.constantRate.maxInFlight"),
                    *max_in_flight,
                    1,
                    1_000_000,
                );
                if *max_in_flight < workers {
                    self.add(format!(
                        "{at}.constantRate.maxInFlight is {max_in_flight}, less than one per worker; write at least \
                         {workers}, or fewer workers"
                    ));
                }
            }
        }
    }

    fn finish(self) -> Result<(), PlanErrors> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(PlanErrors(self.0))
        }
    }
}
