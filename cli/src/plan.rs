//! What a release of a pool would do: the same plan that the operator follows ([`flotilla_core::release`]), as text or JSON.

use comfy_table::{Table, presets};
use flotilla_core::evidence::{Arm, Traffic, eta};
use flotilla_core::release;
use flotilla_crds::AgentPool;
use flotilla_crds::agent_pool::{PlannedStep, RolloutType};
use serde::Serialize;

/// Requests per second that are shown where the present traffic is not known.
const EXAMPLES: [f64; 3] = [1.0, 10.0, 100.0];
/// So many of the examples' requests fail, in percent.
pub const EXAMPLE_FAILED_PERCENT: f64 = 0.5;
/// Of so many.
const EXAMPLE_REQUESTS: u64 = 100_000;

/// What is known of a pool's present traffic.
#[derive(Clone, Debug, PartialEq)]
pub enum Known {
    /// What the gateways have counted, or somebody has told.
    Counted(Traffic),
    /// Why it is not known, in a sentence.
    Unknown(String),
}

/// The plans of a pool's next release.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Name of the pool.
    pub pool: String,
    /// `spec.rollout.type`.
    #[serde(rename = "type")]
    pub type_: RolloutType,
    /// Replicas wanted.
    pub replicas: i32,
    /// Why there are examples instead of one plan at the present traffic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unknown: Option<String>,
    /// One plan, or one for each example of traffic.
    pub plans: Vec<Planned>,
}

/// The plan at one traffic.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Planned {
    /// The traffic; absent where the plan does not depend on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_per_second: Option<f64>,
    /// How many of the stable revision's requests fail, in percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed_percent: Option<f64>,
    /// The steps, all the traffic last.
    pub steps: Vec<PlannedStep>,
    /// Why it starts where it starts, where steps are left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<String>,
    /// What it comes to.
    pub message: String,
}

/// Traffic as somebody tells it.
pub fn told(requests_per_second: f64, failed_percent: f64) -> Traffic {
    Traffic {
        requests_per_second,
        stable: Arm {
            requests: EXAMPLE_REQUESTS,
            events: (EXAMPLE_REQUESTS as f64 * failed_percent / 100.0).round() as u64,
        },
    }
}

/// Whether a pool's plan depends on its traffic.
pub fn depends_on_traffic(pool: &AgentPool) -> bool {
    pool.spec.rollout.canary().is_some() && pool.spec.traffic.is_counted()
}

/// The plans of the next release of `pool`; `serves` is false for one that has no revision yet.
pub fn report(pool: &AgentPool, serves: bool, known: Known) -> Report {
    let spec = &pool.spec;
    let planned = |traffic: Option<Traffic>| {
        let (steps, message) = release::plan(spec, traffic);
        let failed = |arm: Arm| 100.0 * arm.events as f64 / arm.requests.max(1) as f64;
        Planned {
            requests_per_second: traffic.map(|traffic| traffic.requests_per_second),
            failed_percent: traffic.map(|traffic| failed(traffic.stable)),
            steps,
            start: release::left_out(spec, traffic).map(|(_, why)| why),
            message,
        }
    };
    let example =
        |requests_per_second: &f64| planned(Some(told(*requests_per_second, EXAMPLE_FAILED_PERCENT)));
    let (unknown, plans) = match known {
        _ if !serves => {
            let first = Planned {
                message: release::first(spec),
                requests_per_second: None,
                failed_percent: None,
                steps: Vec::new(),
                start: None,
            };
            (None, vec![first])
        }
        _ if !depends_on_traffic(pool) => (None, vec![planned(None)]),
        Known::Counted(traffic) => (None, vec![planned(Some(traffic))]),
        Known::Unknown(why) => (Some(why), EXAMPLES.iter().map(example).collect()),
    };
    Report {
        pool: pool.metadata.name.clone().unwrap_or_default(),
        type_: spec.rollout.type_,
        replicas: spec.effective_replicas(),
        unknown,
        plans,
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            pool,
            type_,
            replicas,
            unknown,
            plans,
        } = self;
        writeln!(f, "AgentPool {pool}: {type_:?}, {replicas} replicas")?;
        if let Some(why) = unknown {
            let failed = plans.iter().find_map(|plan| plan.failed_percent);
            writeln!(
                f,
                "the present traffic is not known: {why}; these are examples for a pool of which {} % of the requests fail",
                failed.unwrap_or_default()
            )?;
        }
        let is_one = plans.len() == 1;
        if let Some(Planned {
            requests_per_second: Some(rate),
            failed_percent: Some(failed),
            ..
        }) = plans.first().filter(|_| is_one)
        {
            writeln!(f, "{rate:.2} requests per second, of which {failed:.2} % fail")?;
        }
        if plans.iter().any(|plan| !plan.steps.is_empty()) {
            writeln!(f, "\n{}\n", table(plans))?;
        }
        for plan in plans {
            let at = match plan.requests_per_second.filter(|_| !is_one) {
                Some(rate) => format!("at {rate} requests/s: "),
                None => String::new(),
            };
            if let Some(start) = plan.start.as_ref().filter(|_| is_one) {
                writeln!(f, "{start}")?;
            }
            writeln!(f, "{at}{}", plan.message)?;
        }
        Ok(())
    }
}

/// A row for each step that is in any of the plans.
fn table(plans: &[Planned]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    let mut header: Vec<String> = ["STEP", "TRUE WEIGHT", "NEW PODS", "OLD PODS"]
        .map(str::to_owned)
        .into();
    header.extend(plans.iter().map(
        |plan| match plan.requests_per_second.filter(|_| plans.len() > 1) {
            Some(rate) => format!("AT {rate}/S"),
            None => "EXPECTED".to_owned(),
        },
    ));
    header.push("THEN".to_owned());
    table.set_header(header);
    let mut steps: Vec<&PlannedStep> = plans.iter().flat_map(|plan| &plan.steps).collect();
    steps.sort_by_key(|step| step.weight);
    steps.dedup_by_key(|step| step.weight);
    for step in steps {
        let mut row = vec![
            format!("{} %", step.weight),
            format!("{} %", step.true_weight_percent),
            step.candidate_replicas.to_string(),
            step.stable_replicas.to_string(),
        ];
        row.extend(plans.iter().map(|plan| {
            let mut own = plan.steps.iter().filter(|own| own.weight == step.weight);
            own.next().map_or("left out".to_owned(), takes)
        }));
        row.push(match (&step.approval, step.weight) {
            (Some(_), _) => "a person agrees".to_owned(),
            (None, 100) => String::new(),
            (None, _) => "goes on by itself".to_owned(),
        });
        table.add_row(row);
    }
    table
}

fn takes(step: &PlannedStep) -> String {
    match (step.weight, step.expected_seconds) {
        (0, _) => "until the pods are there".to_owned(),
        (100, Some(0) | None) => String::new(),
        (100, Some(seconds)) => format!("bakes {}", eta::duration(seconds)),
        (_, Some(seconds)) => eta::duration(seconds),
        (_, None) => "none in sight".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pool(spec: Value) -> AgentPool {
        let mut spec = spec;
        spec["agent"] = json!({"image": "agent:1"});
        serde_json::from_value(json!({
            "apiVersion": "flotilla.dev/v1alpha1", "kind": "AgentPool", "metadata": {"name": "support"}, "spec": spec,
        }))
        .unwrap()
    }

    fn counted(requests_per_second: f64) -> Known {
        let stable = Arm {
            requests: 1_000,
            events: 5,
        };
        Known::Counted(Traffic {
            requests_per_second,
            stable,
        })
    }

    fn shown(spec: Value, known: Known) -> String {
        let text = report(&pool(spec), true, known).to_string();
        let lines: Vec<String> = text
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .filter(|line| !line.is_empty())
            .collect();
        lines.join("\n")
    }

    #[test]
    fn a_canary_at_its_present_traffic() {
        let steps = json!([{"weight": 10}, {"weight": 50, "approval": "Manual"}]);
        let spec = json!({"replicas": 10, "rollout": {"type": "Canary", "canary": {"steps": steps, "bakeSeconds": 900}}});
        let text = shown(spec, counted(100.0));
        for line in [
            "AgentPool support: Canary, 10 replicas",
            "100.00 requests per second, of which 0.50 % fail",
            "STEP TRUE WEIGHT NEW PODS OLD PODS EXPECTED THEN",
            "100 % 100.0 % 10 0 bakes 15 min",
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line}\n{text}");
        }
        assert!(
            text.contains("\n50 % 50.0 % 5 ") && text.contains("a person agrees"),
            "{text}"
        );
        assert!(
            text.ends_with("and once for a person; up to 20 replicas at once"),
            "{text}"
        );
    }

    #[test]
    fn unknown_traffic_is_said_and_three_examples_are_shown() {
        let spec = json!({"replicas": 4, "rollout": {"type": "Canary"}});
        let text = shown(spec.clone(), Known::Unknown("nobody was asked".into()));
        assert!(
            text.contains("is not known: nobody was asked; these are examples for a pool of which 0.5 %"),
            "{text}"
        );
        assert!(
            text.contains("STEP TRUE WEIGHT NEW PODS OLD PODS AT 1/S AT 10/S AT 100/S THEN"),
            "{text}"
        );
        assert!(text.contains("\n1 % 1.0 % 2 4 left out"), "{text}");
        assert!(
            text.contains("\nat 100 requests/s: all the traffic after about"),
            "{text}"
        );
        let known = serde_json::to_value(report(&pool(spec), true, counted(100.0))).unwrap();
        assert_eq!(known["plans"][0]["failedPercent"], 0.5);
        assert!(known["unknown"].is_null() && known["plans"][0]["steps"][0]["expectedSeconds"].is_i64());
        assert_eq!(told(3.0, 2.5).stable.events, 2_500);
    }

    #[test]
    fn what_does_not_depend_on_traffic_needs_none() {
        let unknown = || Known::Unknown("nobody was asked".into());
        for (spec, parts) in [
            (
                json!({"replicas": 4}),
                ["RollingUpdate, 4 replicas", "replaced in batches of 1"],
            ),
            (
                json!({"replicas": 4, "rollout": {"type": "BlueGreen"}}),
                ["\n0 % 0.0 % 4 4 until the pods are there", "the swap waits"],
            ),
            (
                json!({"replicas": 4, "traffic": {"type": "ReplicaRatio"}, "rollout": {"type": "Canary", "canary": {
                    "candidateMinReplicas": 1, "steps": [{"weight": 1, "minDurationSeconds": 90}],
                }}}),
                ["\n1 % 20.0 % 1 4 2 min", "all the traffic after about 2 min"],
            ),
        ] {
            let text = shown(spec, unknown());
            assert!(!text.contains("not known"), "{text}");
            for part in parts {
                assert!(text.contains(part), "{part}\n{text}");
            }
        }
        let first = report(&pool(json!({"rollout": {"type": "Canary"}})), false, unknown());
        assert!(first.to_string().contains("the first revision"), "{first}");
    }
}
