//! The path by which agents reach a model, with what may take its place.
//!
//! `/providers/<provider>` is enough for a model without fallbacks. With them the path names the model and its fallbacks
//! in order: `/providers/main/for/gpt-5-mini/else/backup/gpt-5-nano`. `/v1/…` follows. So a revision's fallbacks are in
//! the environment of its own pods, which nobody changes, and a gateway needs to look nothing up: not for an old
//! revision, not while the operator is away, not for a pod that it has never heard of.
//!
//! Models are percent-encoded: `meta-llama/Llama-4` is one segment.

use std::borrow::Cow;
use std::fmt::Write as _;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::agent_pool::Model;

/// Fallbacks in one path; further ones are no route.
pub const MAX_FALLBACKS: usize = 4;
const PROVIDERS: &str = "/providers/";
const FOR: &str = "for";
const ELSE: &str = "else";
/// All that RFC 3986 section 2.3 does not leave as it is.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// A path taken apart. Parsing allocates nothing; the chain is decoded when it is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route<'a> {
    /// The provider asked first.
    pub provider: &'a str,
    /// What follows `/v1`, with its slash.
    pub rest: &'a str,
    chain: &'a str,
}

/// What a path says of fallbacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain<'a> {
    /// The model that they are for.
    pub model: Cow<'a, str>,
    /// Providers and models, in order; at least one.
    pub fallbacks: Vec<(&'a str, Cow<'a, str>)>,
}

impl<'a> Route<'a> {
    /// Takes a path apart; `None` where it is no route.
    pub fn parse(path: &'a str) -> Option<Self> {
        let after = path.strip_prefix(PROVIDERS)?;
        let (provider, after) = split(after)?;
        let mut at = after;
        if let Some((FOR, then)) = split(at) {
            (_, at) = split(then)?;
            let mut fallbacks = 0;
            while let Some((ELSE, then)) = split(at) {
                let (_, then) = split(then)?;
                (_, at) = split(then)?;
                fallbacks += 1;
            }
            if fallbacks == 0 || fallbacks > MAX_FALLBACKS {
                return None;
            }
        }
        let rest = at.strip_prefix("v1")?;
        let chain = after.strip_suffix(at)?;
        (rest.is_empty() || rest.starts_with('/')).then_some(Self {
            provider,
            rest,
            chain,
        })
    }

    /// The fallbacks, if the path names some and all are readable.
    pub fn chain(&self) -> Option<Chain<'a>> {
        let mut parts = self.chain.split('/');
        let decode = |segment: &'a str| percent_decode_str(segment).decode_utf8().ok();
        if parts.next() != Some(FOR) {
            return None;
        }
        let model = decode(parts.next()?)?;
        let mut fallbacks = Vec::new();
        while let Some(ELSE) = parts.next() {
            fallbacks.push((parts.next()?, decode(parts.next()?)?));
        }
        Some(Chain { model, fallbacks })
    }
}

/// The first segment, and what follows its slash.
fn split(path: &str) -> Option<(&str, &str)> {
    path.split_once('/').filter(|(segment, _)| !segment.is_empty())
}

/// The path for an entry of `agent.models`, ending in `/v1`.
pub fn path_of(model: &Model) -> String {
    let mut path = format!("{PROVIDERS}{}", model.provider_ref.name);
    if !model.fallbacks.is_empty() {
        let segment = |text| utf8_percent_encode(text, SEGMENT);
        // Writing into a String does not fail.
        let _ = write!(path, "/{FOR}/{}", segment(&model.model));
        for other in &model.fallbacks {
            let _ = write!(
                path,
                "/{ELSE}/{}/{}",
                other.provider_ref.name,
                segment(&other.model)
            );
        }
    }
    path + "/v1"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(text: &str) -> Model {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_path_says_what_the_entry_says() {
        let plain = model(r#"{"name": "default", "providerRef": {"name": "main"}, "model": "gpt-5-mini"}"#);
        assert_eq!(path_of(&plain), "/providers/main/v1");
        let entry = model(
            r#"{"name": "default", "providerRef": {"name": "main"}, "model": "meta/Llama 4%", "fallbacks": [
                {"providerRef": {"name": "else"}, "model": "v1"}, {"providerRef": {"name": "b"}, "model": "ü:1"}]}"#,
        );
        let path = path_of(&entry) + "/chat/completions";
        assert_eq!(
            path,
            "/providers/main/for/meta%2FLlama%204%25/else/else/v1/else/b/%C3%BC%3A1/v1/chat/completions"
        );
        let route = Route::parse(&path).unwrap();
        assert_eq!((route.provider, route.rest), ("main", "/chat/completions"));
        let chain = route.chain().unwrap();
        assert_eq!(chain.model, "meta/Llama 4%");
        assert_eq!(chain.fallbacks, [("else", "v1".into()), ("b", "ü:1".into())]);
    }

    #[test]
    fn paths() {
        for (path, expected) in [
            (
                "/providers/main/v1/chat/completions",
                Some(("main", "/chat/completions")),
            ),
            ("/providers/main/v1", Some(("main", ""))),
            ("/providers/main/v1/", Some(("main", "/"))),
            ("/providers/main/for/m/else/b/n/v1", Some(("main", ""))),
            ("/providers/main/v12/x", None),
            ("/providers//v1/x", None),
            ("/providers/main", None),
            ("/providers/main/for/m/v1/x", None),
            ("/providers/main/for/m/else/b/v1", None),
            ("/providers/main/else/b/n/v1/x", None),
            ("/v1/x", None),
        ] {
            assert_eq!(
                Route::parse(path).map(|route| (route.provider, route.rest)),
                expected,
                "{path}"
            );
        }
        let long = format!("/providers/a/for/m{}/v1/x", "/else/b/n".repeat(MAX_FALLBACKS + 1));
        assert_eq!(Route::parse(&long), None);
        let broken = Route::parse("/providers/a/for/%ff/else/b/n/v1").unwrap();
        assert_eq!(broken.chain(), None);
        assert_eq!(Route::parse("/providers/a/v1").unwrap().chain(), None);
    }
}
