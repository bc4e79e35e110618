//! What a provider's state is, from what the gateways of its namespace report.

use flotilla_core::stats::Credential;
use flotilla_crds::ModelProviderSpec;

use crate::gateway::Problem;

/// Reason of a wait for something that a person has to make.
pub const WAITING_FOR_REFERENCE: &str = "WaitingForReference";

/// The kind of state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It can be used.
    Ready,
    /// It will be ready by itself once something has come.
    Waiting,
    /// Only another spec helps.
    Invalid,
}

/// A state with its words for the conditions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assessment {
    /// The kind of state.
    pub state: State,
    /// One PascalCase word, shown as STATE.
    pub reason: &'static str,
    /// One sentence.
    pub message: String,
}

impl Assessment {
    /// A state with its words.
    pub fn new(state: State, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            state,
            reason,
            message: message.into(),
        }
    }
}

/// What one gateway reports of the provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Generation of the spec in force there.
    pub generation: i64,
    /// Whether the key is there.
    pub credential: Credential,
}

/// The gateways of the namespace.
#[derive(Clone, Debug, Default)]
pub struct Gateways {
    /// Whether there is a pool, and so will be a gateway.
    pub wanted: bool,
    /// One entry per gateway that reports and is not on its way out; `None` when it does not know the provider.
    pub seen: Vec<Option<Seen>>,
    /// Whether the Deployment's newest template is in force in every pod: only then a missing key is the Secret's fault.
    pub settled: bool,
    /// What is wrong with the gateway itself.
    pub problem: Option<Problem>,
}

/// Judges a provider whose spec is possible; `generation` is that of its spec.
pub fn assess(spec: &ModelProviderSpec, generation: i64, gateways: &Gateways) -> Assessment {
    let waiting = |reason, message: String| Assessment::new(State::Waiting, reason, message);
    if !gateways.wanted {
        let unchecked = if spec.auth.api_key.is_some() {
            "; its key is checked once there is one"
        } else {
            ""
        };
        return Assessment::new(
            State::Ready,
            "Unused",
            format!("no AgentPool in this namespace needs a gateway yet{unchecked}"),
        );
    }
    if gateways.seen.is_empty() {
        return waiting(
            "WaitingForGateway",
            match &gateways.problem {
                Some(problem) => problem.message.clone(),
                None => "the gateway of this namespace is not up yet".to_owned(),
            },
        );
    }
    let total = gateways.seen.len();
    let current = gateways
        .seen
        .iter()
        .flatten()
        .filter(|seen| seen.generation >= generation)
        .count();
    if current < total {
        return waiting(
            "Applying",
            format!("{current} of {total} gateways have taken over this version of the spec"),
        );
    }
    let missing = gateways
        .seen
        .iter()
        .flatten()
        .filter(|seen| seen.credential == Credential::Missing)
        .count();
    if missing > 0 {
        let Some(key) = &spec.auth.api_key else {
            return waiting(
                "Applying",
                format!("{missing} of {total} gateways still look for a key"),
            );
        };
        if !gateways.settled {
            let why = gateways
                .problem
                .as_ref()
                .map(|problem| format!(": {}", problem.message))
                .unwrap_or_default();
            return waiting(
                "Applying",
                format!("the gateways are being replaced so that they mount the key{why}"),
            );
        }
        let (secret, key) = (&key.secret_key_ref.name, &key.secret_key_ref.key);
        return waiting(
            WAITING_FOR_REFERENCE,
            format!(
                "{missing} of {total} gateways find no key: Secret {secret} with key {key} is missing or empty, or was \
                 made within the last minute; create it with: kubectl create secret generic {secret} --from-literal={key}=…"
            ),
        );
    }
    let gateways = if total == 1 {
        "1 gateway uses it".to_owned()
    } else {
        format!("{total} gateways use it")
    };
    Assessment::new(State::Ready, "Ready", gateways)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(with_key: bool) -> ModelProviderSpec {
        let auth = match with_key {
            true => json!({"type": "APIKey", "apiKey": {"secretKeyRef": {"name": "vault", "key": "token"}}}),
            false => json!({}),
        };
        serde_json::from_value(json!({"endpoint": "https://api.example.com/v1", "auth": auth})).unwrap()
    }

    fn seen(generation: i64, credential: Credential) -> Option<Seen> {
        Some(Seen {
            generation,
            credential,
        })
    }

    #[test]
    fn states() {
        use Credential::{Missing, NotNeeded, Present};
        let gateways = |seen: Vec<Option<Seen>>, settled| Gateways {
            wanted: true,
            seen,
            settled,
            problem: None,
        };
        for (what, with_key, gateways, expected) in [
            ("no pool", true, Gateways::default(), (State::Ready, "Unused")),
            (
                "no gateway",
                false,
                gateways(vec![], false),
                (State::Waiting, "WaitingForGateway"),
            ),
            (
                "not told yet",
                false,
                gateways(vec![None], true),
                (State::Waiting, "Applying"),
            ),
            (
                "old spec",
                false,
                gateways(vec![seen(1, NotNeeded), seen(2, NotNeeded)], true),
                (State::Waiting, "Applying"),
            ),
            (
                "no key needed",
                false,
                gateways(vec![seen(2, NotNeeded)], false),
                (State::Ready, "Ready"),
            ),
            (
                "key there",
                true,
                gateways(vec![seen(2, Present), seen(2, Present)], false),
                (State::Ready, "Ready"),
            ),
            (
                "not mounted yet",
                true,
                gateways(vec![seen(2, Missing)], false),
                (State::Waiting, "Applying"),
            ),
            (
                "no Secret",
                true,
                gateways(vec![seen(2, Missing)], true),
                (State::Waiting, "WaitingForReference"),
            ),
            (
                "in one only",
                true,
                gateways(vec![seen(2, Present), seen(2, Missing)], true),
                (State::Waiting, "WaitingForReference"),
            ),
        ] {
            let assessment = assess(&spec(with_key), 2, &gateways);
            assert_eq!((assessment.state, assessment.reason), expected, "{what}");
        }
    }

    #[test]
    fn the_sentence_names_the_secret_and_the_key_and_what_to_do() {
        let gateways = Gateways {
            wanted: true,
            seen: vec![seen(2, Credential::Missing)],
            settled: true,
            problem: None,
        };
        let message = assess(&spec(true), 2, &gateways).message;
        assert!(message.contains("Secret vault with key token"), "{message}");
        assert!(
            message.contains("kubectl create secret generic vault --from-literal=token="),
            "{message}"
        );
    }

    #[test]
    fn a_gateway_in_trouble_says_why() {
        let problem = Some(Problem {
            reason: "ImagePull",
            message: "gateway pod g: image x: not found".into(),
        });
        let gateways = Gateways {
            wanted: true,
            problem,
            ..Gateways::default()
        };
        assert_eq!(
            assess(&spec(false), 1, &gateways).message,
            "gateway pod g: image x: not found"
        );
    }
}
