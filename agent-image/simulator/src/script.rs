//! Failures that a test asks for: the next requests are answered so, whatever their model's behaviour.

use std::collections::VecDeque;

use http::StatusCode;
use serde::{Deserialize, Serialize};

/// Steps that may wait.
const MAX_STEPS: usize = 10_000;

/// What happens to the next requests. `POST /admin/script` takes a list of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Step {
    /// The status they are answered with; 200 lets them pass.
    pub status: u16,
    /// How many requests.
    #[serde(default = "one")]
    pub count: u32,
    /// Only requests for this model; default any.
    #[serde(default)]
    pub model: Option<String>,
    /// `Retry-After`.
    #[serde(default)]
    pub retry_after_seconds: Option<u64>,
}

fn one() -> u32 {
    1
}

/// The steps that are left.
#[derive(Debug, Default)]
pub struct Script(VecDeque<Step>);

impl Script {
    /// Adds steps.
    ///
    /// # Errors
    /// What is impossible in them.
    pub fn extend(&mut self, steps: Vec<Step>) -> Result<(), String> {
        for step in &steps {
            let status = StatusCode::from_u16(step.status).ok();
            if !status.is_some_and(|status| status == StatusCode::OK || status.as_u16() >= 400) {
                return Err(format!("status {} is neither 200 nor an error", step.status));
            }
            if step.count == 0 {
                return Err("count is at least 1".to_owned());
            }
        }
        if self.0.len() + steps.len() > MAX_STEPS {
            return Err(format!("at most {MAX_STEPS} steps"));
        }
        self.0.extend(steps);
        Ok(())
    }

    /// The step for a request of `model`: the first that is about it. One whose count is over goes.
    pub fn next(&mut self, model: &str) -> Option<Step> {
        let place = self
            .0
            .iter()
            .position(|step| step.model.as_deref().is_none_or(|only| only == model))?;
        let step = self.0.get_mut(place)?;
        let taken = step.clone();
        step.count -= 1;
        if step.count == 0 {
            self.0.remove(place);
        }
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_come_in_order_and_by_model() {
        let mut script = Script::default();
        let steps = r#"[{"status": 503, "count": 2, "model": "a"}, {"status": 429, "retryAfterSeconds": 7}]"#;
        script
            .extend(serde_json::from_str(steps).expect("steps"))
            .expect("possible");
        let mut next = |model: &str| script.next(model).map(|step| step.status);
        assert_eq!(next("a"), Some(503));
        assert_eq!(next("b"), Some(429));
        assert_eq!((next("b"), next("a"), next("a")), (None, Some(503), None));
        for impossible in [
            r#"[{"status": 302}]"#,
            r#"[{"status": 99}]"#,
            r#"[{"status": 500, "count": 0}]"#,
        ] {
            assert!(
                Script::default()
                    .extend(serde_json::from_str(impossible).expect("steps"))
                    .is_err()
            );
        }
    }
}
