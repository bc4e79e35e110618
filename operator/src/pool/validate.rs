//! What the spec asks for, once everything it refers to is there and makes sense. Pure.

use flotilla_core::revision::{Content, name};
use flotilla_crds::release_test::SmokeTest;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use kube::ResourceExt as _;

use super::build::overlay;
use super::dereference::Observed;
use super::sources::MAX_BYTES;

/// Why the spec cannot be followed now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// One PascalCase word: the reason of `Ready`.
    pub word: &'static str,
    /// A sentence that says what to do.
    pub sentence: String,
    /// Something is missing that may come by itself, as opposed to something only the author can mend.
    pub may_mend: bool,
}

impl Problem {
    /// Something that only the author of the spec can mend.
    pub fn invalid(word: &'static str, sentence: impl Into<String>) -> Self {
        Self {
            word,
            sentence: sentence.into(),
            may_mend: false,
        }
    }

    /// Something that may come by itself.
    pub fn waiting(word: &'static str, sentence: impl Into<String>) -> Self {
        Self {
            word,
            sentence: sentence.into(),
            may_mend: true,
        }
    }
}

/// Reason of a missing reference.
pub const WAITING_FOR_REFERENCE: &str = "WaitingForReference";
/// Reason of a source that is there and cannot be read.
pub const SOURCES_UNREADABLE: &str = "SourcesUnreadable";
/// Reason of pods of which the API server does not say whether it would accept them.
pub const PODS_UNCHECKED: &str = "PodsUnchecked";
/// Reason of an overlay that makes no pod.
pub const INVALID_POD_TEMPLATE: &str = "InvalidPodTemplate";

/// Reason of smoke tests that wait for each other.
pub const INVALID_SMOKE_TESTS: &str = "InvalidSmokeTests";

/// The revision that the spec asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// Its name: that of the recorded revision with the same content, else a new one.
    pub revision: String,
    /// Its content.
    pub content: Content,
    /// Whether it was named by `pinnedRevision`: then it needs no rest.
    pub is_pinned: bool,
}

/// The revision the spec asks for.
///
/// # Errors
/// Why there is none.
pub fn validate(observed: &Observed) -> Result<Wanted, Problem> {
    if let Some(pinned) = observed.pool.spec.pinned_revision() {
        return pinned_revision(observed, pinned);
    }
    smoke_tests_in_order(&observed.pool.spec.rollout.smoke_tests)?;
    let agent = &observed.pool.spec.agent;
    overlay_of(agent.pod_template.as_ref())?;
    let mut missing = observed.sources.missing.clone();
    missing.extend(missing_models(observed));
    if !missing.is_empty() {
        return Err(Problem::waiting(WAITING_FOR_REFERENCE, missing.join("; ")));
    }
    if !observed.sources.unread.is_empty() {
        let sentence = format!(
            "{}; what serves goes on, and nothing new is released until it can be read",
            observed.sources.unread.join("; ")
        );
        return Err(Problem::waiting(SOURCES_UNREADABLE, sentence));
    }
    if observed.sources.bytes > MAX_BYTES {
        let sentence = format!(
            "the prompt and files have {} bytes together, {MAX_BYTES} are allowed; put large files into the image",
            observed.sources.bytes
        );
        return Err(Problem::invalid("SourcesTooLarge", sentence));
    }
    let content = Content {
        agent: agent.clone(),
        sources: observed.sources.hashes.clone(),
    };
    let recorded = observed.revisions.iter().map(|known| &known.record);
    let same = recorded.clone().find(|record| {
        record
            .content
            .as_ref()
            .is_some_and(|known| known.is_same(&content))
    });
    let revision = match same {
        Some(record) => record.revision.clone(),
        None => name(&observed.name(), &content, |name| observed.record(name).is_some()),
    };
    Ok(Wanted {
        revision,
        content,
        is_pinned: false,
    })
}

/// Tests that wait for each other would wait for ever; the API server only sees that they are in the list.
fn smoke_tests_in_order(tests: &[SmokeTest]) -> Result<(), Problem> {
    for (index, test) in tests.iter().enumerate() {
        let is_above = |name: &&String| tests.iter().take(index).any(|above| above.name == **name);
        if let Some(below) = test.depends_on.iter().find(|name| !is_above(name)) {
            let sentence = format!(
                "spec.rollout.smokeTests: {} depends on {below}, which must be further up in the list; move it there",
                test.name
            );
            return Err(Problem::invalid(INVALID_SMOKE_TESTS, sentence));
        }
    }
    Ok(())
}

/// The overlay of an agent, empty when it has none.
///
/// # Errors
/// The sentence of [`overlay::decode`].
pub fn overlay_of(pod_template: Option<&serde_json::Value>) -> Result<PodTemplateSpec, Problem> {
    let decoded = pod_template.map(overlay::decode).transpose();
    Ok(decoded
        .map_err(|sentence| Problem::invalid(INVALID_POD_TEMPLATE, sentence))?
        .unwrap_or_default())
}

fn pinned_revision(observed: &Observed, pinned: &str) -> Result<Wanted, Problem> {
    let content = observed.record(pinned).and_then(|record| record.content.clone());
    content
        .map(|content| Wanted {
            revision: pinned.to_owned(),
            content,
            is_pinned: true,
        })
        .ok_or_else(|| {
            let known: Vec<_> = observed
                .revisions
                .iter()
                .filter(|known| known.record.content.is_some())
                .map(|known| known.record.revision.as_str())
                .collect();
            let known = if known.is_empty() {
                "none yet".to_owned()
            } else {
                known.join(", ")
            };
            Problem::invalid(
                "UnknownRevision",
                format!("spec.rollout.pinnedRevision: {pinned} is not in the history; name one of: {known}"),
            )
        })
}

/// A sentence for each model, or fallback of one, whose provider is missing, does not offer it, or speaks another protocol
/// than the one it stands in for.
fn missing_models(observed: &Observed) -> impl Iterator<Item = String> {
    let models = observed.pool.spec.agent.models.iter();
    models.flat_map(move |entry| {
        let own = observed.providers.get(&entry.provider_ref.name);
        let own = own.map(|provider| provider.spec.type_);
        entry.choices().filter_map(move |(name, model)| {
            let Some(provider) = observed.providers.get(name) else {
                return Some(format!("ModelProvider {name} does not exist; create it"));
            };
            let type_ = provider.spec.type_;
            if let Some(own) = own.filter(|own| *own != type_) {
                return Some(format!(
                    "the fallback {name} of model entry {} is of type {type_:?}, its own provider {} of type {own:?}; name a \
                     fallback that speaks the same protocol",
                    entry.name, entry.provider_ref.name
                ));
            }
            let offered = &provider.spec.models;
            let is_offered = offered.is_empty() || offered.iter().any(|offer| offer.name == model);
            (!is_offered).then(|| {
                let offers: Vec<_> = offered.iter().map(|offer| offer.name.as_str()).collect();
                format!(
                    "ModelProvider {} does not offer model {model}; add it to its spec.models or name one of: {}",
                    provider.name_any(),
                    offers.join(", ")
                )
            })
        })
    })
}
