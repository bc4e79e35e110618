//! What users write into fields that are text to the API server.

use flotilla_core::load::decimal::Decimal;
use flotilla_core::price::{Currency, Money, Price, TokenUsage, lookup};
use flotilla_operator::pool::build::overlay;
use jiff::civil::Date;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use serde_json::Value;

use super::texts;
use crate::{Target, magnitude, outcome};

pub(super) const TARGETS: &[Target] = &[
    Target {
        name: "decimal",
        about: "rates, percentages, prices and budgets",
        corpus: || {
            texts(&[
                "25",
                "0.5",
                "0.25",
                "1000000000000",
                "0.000001",
                "500.00",
                "USD",
                "1.2.3",
                "-1",
                "+1",
                "1e3",
            ])
        },
        words: &[
            ".",
            "0",
            "999999999999",
            "000000",
            "-",
            "+",
            "e",
            "_",
            ",",
            " ",
            "\u{663}",
        ],
        execute: decimal,
    },
    Target {
        name: "model-name",
        about: "a model's name, for its built-in price",
        corpus: || {
            texts(&[
                "gpt-5-mini",
                "gpt-5-mini-2026-08-07",
                "claude-sonnet-4-5-20250929",
                "openai/gpt-5",
                "gemini-3-flash",
                "GPT-4o",
                "ft:gpt-4o-mini:org::id",
                "eu.anthropic.claude-sonnet-4-5-v1:0",
            ])
        },
        words: &[
            "gpt-",
            "claude-",
            "-mini",
            "-latest",
            "-2026-08-07",
            "-20250929",
            "/",
            ":",
            "@",
            ".",
            "\u{e9}",
            "-",
        ],
        execute: model_name,
    },
    Target {
        name: "pod-template",
        about: "spec.agent.podTemplate",
        corpus: || {
            texts(&[
                r#"{"metadata":{"labels":{"team":"a"}},"spec":{"nodeSelector":{"disk":"ssd"},"tolerations":[{"key":"gpu","operator":"Exists"}],"containers":[{"name":"agent","env":[{"name":"A","value":"b"}],"volumeMounts":[{"name":"cache","mountPath":"/cache"}]},{"name":"sidecar","image":"s:1","ports":[{"containerPort":9000}]}],"volumes":[{"name":"cache","emptyDir":{"sizeLimit":"1Gi"}}]}}"#,
                r#"{"spec":{"affinity":{"podAntiAffinity":{"preferredDuringSchedulingIgnoredDuringExecution":[{"weight":1,"podAffinityTerm":{"topologyKey":"zone"}}]}},"terminationGracePeriodSeconds":30,"initContainers":[{"name":"i","image":"x","resources":{"limits":{"cpu":"500m","memory":1073741824}}}]}}"#,
                r#"{"spec":{"containers":[{"name":"agent","livenessProbe":{"httpGet":{"port":"http"}},"lifecycle":{"preStop":{"sleep":{"seconds":5}}}}],"topologySpreadConstraints":[{"maxSkew":1,"topologyKey":"z","whenUnsatisfiable":"DoNotSchedule"}]}}"#,
            ])
        },
        words: &[
            "spec",
            "containers",
            "name",
            "agent",
            "volumes",
            "env",
            "image",
            "metadata",
            "labels",
            "ports",
            "containerPort",
            "resources",
            "limits",
            "imagePullSecrets",
            "securityContext",
            "emptyDir",
            "secret",
            "hostPath",
            "nodeSelector",
            "affinity",
            "null",
            "creationTimestamp",
        ],
        execute: pod_template,
    },
];

fn decimal(input: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(input);
    let number = text.parse::<Decimal>();
    if let Ok(number) = &number {
        assert_eq!(number.to_string().parse(), Ok(*number), "it does not survive");
        let _ = (number.to_f64(), format!("{number:.2}"));
    }
    let money = text.parse::<Money>();
    if let Ok(money) = &money {
        assert_eq!(
            money.to_string().parse().as_ref(),
            Ok(money),
            "it does not survive"
        );
        let _ = money.rounded();
    }
    let price = Price::parse("USD", &text, "2.00");
    if let Ok(price) = &price {
        let most = TokenUsage::from_disjoint(u64::MAX, u64::MAX, 1, u64::MAX);
        let _ = price.cost(&most).to_string();
    }
    outcome([
        number.map_or(0, |number| {
            1 + magnitude(u64::try_from(number.millionths()).unwrap_or(u64::MAX))
        }),
        u64::from(money.is_ok()),
        u64::from(price.is_ok()),
        u64::from(text.parse::<Currency>().is_ok()),
    ])
}

fn model_name(input: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(input);
    let mut found = 0;
    for date in [Date::constant(2026, 11, 21), Date::MIN, Date::MAX] {
        if let Some(listed) = lookup(&text, date) {
            assert!(!listed.model.is_empty());
            found += 1 + magnitude(listed.model.len() as u64);
        }
    }
    found
}

fn pod_template(input: &[u8]) -> u64 {
    let Ok(value) = serde_json::from_slice::<Value>(input) else {
        return 0;
    };
    let Ok(given) = overlay::decode(&value) else {
        return 1;
    };
    let ours: PodTemplateSpec = serde_json::from_value(serde_json::json!({
        "metadata": {"labels": {"flotilla.dev/pool": "p"}},
        "spec": {"containers": [{"name": "agent", "image": "a:1", "ports": [{"containerPort": 8080}], "env": [{"name": "PORT", "value": "8080"}]}]}
    }))
    .expect("a pod template");
    let merged = overlay::merge(ours, given);
    let written = serde_json::to_value(&merged).expect("a pod template is JSON");
    let containers = merged.spec.as_ref().map_or(0, |spec| spec.containers.len());
    // The operator selects by its own labels; whatever was merged, what it makes must stay readable.
    assert_eq!(
        serde_json::from_value::<PodTemplateSpec>(written).ok().as_ref(),
        Some(&merged)
    );
    outcome([
        2,
        magnitude(containers as u64),
        u64::from(merged.metadata.is_some()),
    ])
}
