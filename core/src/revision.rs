//! What makes two specs of an agent the same revision.
//!
//! A revision is `spec.agent` together with the bytes it refers to. It is *matched* by value: the stored copy and the
//! spec are both read into today's types, so both get today's defaults, and then compared. It is only *named* by a
//! hash. Were it matched by hash, a Flotilla that adds a field with a default would release every pool of the cluster
//! on the day of its own upgrade.

use std::collections::BTreeMap;

use flotilla_crds::agent_pool::Agent;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// Hexadecimal digits of a hash in a name. 32 bits: two of 50 revisions meet once in three million pools, and then
/// [`name`] takes the next salt.
const NAME_DIGITS: usize = 8;

/// What a ControllerRevision keeps: everything needed to run the revision again, and to recognise it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Content {
    /// `spec.agent` as it was.
    pub agent: Agent,
    /// Hash of the bytes of each source (`prompt`, or the name of an entry of `files`), see [`hash_source`].
    #[serde(default)]
    pub sources: BTreeMap<String, String>,
}

impl Content {
    /// The content as canonical JSON, the input of the hash.
    pub fn canonical(&self) -> String {
        canonical(&serde_json::to_value(self).unwrap_or_default())
    }

    /// Whether this is the same revision as `other`, whatever order or absent nulls they were written with.
    pub fn is_same(&self, other: &Self) -> bool {
        self == other || self.canonical() == other.canonical()
    }
}

/// JSON with sorted keys, without white space and without members that are null (the API server drops them or not,
/// depending on the client).
pub fn canonical(value: &Value) -> String {
    let mut out = String::new();
    write_canonical(value, &mut out);
    out
}

fn write_canonical(value: &Value, out: &mut String) {
    match value {
        Value::Object(fields) => {
            let sorted: BTreeMap<_, _> = fields.iter().filter(|(_, value)| !value.is_null()).collect();
            out.push('{');
            for (position, (key, value)) in sorted.into_iter().enumerate() {
                if position > 0 {
                    out.push(',');
                }
                out.push_str(&Value::String(key.clone()).to_string());
                out.push(':');
                write_canonical(value, out);
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for (position, item) in items.iter().enumerate() {
                if position > 0 {
                    out.push(',');
                }
                write_canonical(item, out);
            }
            out.push(']');
        }
        scalar => out.push_str(&scalar.to_string()),
    }
}

/// Hash of a source's files by name, as 10 hexadecimal digits. Names and lengths are part of it, so that moving bytes
/// from one file to the next is a change.
pub fn hash_source<'a>(files: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> String {
    let sorted: BTreeMap<&str, &[u8]> = files.into_iter().collect();
    let mut hasher = Sha256::new();
    for (name, bytes) in sorted {
        for part in [name.as_bytes(), bytes] {
            hasher.update((part.len() as u64).to_be_bytes());
            hasher.update(part);
        }
    }
    hex(&hasher.finalize(), 10)
}

/// Name of the revision with this content: `<pool>-<hash>`. `is_taken` says whether a name belongs to a *different*
/// content already; then the next salt is tried.
pub fn name(pool: &str, content: &Content, is_taken: impl Fn(&str) -> bool) -> String {
    let canonical = content.canonical();
    let mut salt = 0_u32;
    loop {
        let mut hasher = Sha256::new();
        hasher.update(&canonical);
        if salt > 0 {
            hasher.update(salt.to_be_bytes());
        }
        let name = format!("{pool}-{}", hex(&hasher.finalize(), NAME_DIGITS));
        if !is_taken(&name) || salt == u32::MAX {
            return name;
        }
        salt += 1;
    }
}

/// A number that is the same on every machine and in every version: the start of a probe, never a secret.
pub fn spread(text: &str) -> u64 {
    Sha256::digest(text)
        .iter()
        .take(8)
        .fold(0, |number, byte| (number << 8) | u64::from(*byte))
}

fn hex(bytes: &[u8], digits: usize) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .take(digits)
        .map(hex_digit)
        .collect()
}

fn hex_digit(nibble: u8) -> char {
    char::from_digit(u32::from(nibble), 16).unwrap_or('0')
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn agent(extra: Value) -> Agent {
        let mut value = json!({"image": "agent:1"});
        for (key, field) in extra.as_object().cloned().unwrap_or_default() {
            value[key] = field;
        }
        serde_json::from_value(value).unwrap()
    }

    fn content(extra: Value) -> Content {
        Content {
            agent: agent(extra),
            sources: BTreeMap::from([("prompt".into(), "aa".into())]),
        }
    }

    #[test]
    fn canonical_json_has_one_spelling() {
        for (value, expected) in [
            (
                json!({"b": 1, "a": {"d": null, "c": [1, {"z": 0, "y": "\""}]}}),
                r#"{"a":{"c":[1,{"y":"\"","z":0}]},"b":1}"#,
            ),
            (json!([null, true, 1.5]), "[null,true,1.5]"),
            (json!({}), "{}"),
        ] {
            assert_eq!(canonical(&value), expected);
        }
    }

    #[test]
    fn a_written_default_is_no_new_revision() {
        assert!(content(json!({})).is_same(&content(
            json!({"port": 8080, "protocol": "HTTP", "concurrency": 8})
        )));
        assert!(
            content(json!({"podTemplate": {"spec": {"a": 1, "b": null}}}))
                .is_same(&content(json!({"podTemplate": {"spec": {"a": 1}}})))
        );
    }

    #[test]
    fn every_part_of_the_content_counts() {
        let base = content(json!({}));
        for changed in [
            json!({"image": "agent:2"}),
            json!({"port": 8081}),
            json!({"args": ["-v"]}),
        ] {
            assert!(!base.is_same(&content(changed.clone())), "{changed}");
        }
        let mut other_bytes = base.clone();
        other_bytes.sources.insert("prompt".into(), "bb".into());
        assert!(!base.is_same(&other_bytes));
    }

    #[test]
    fn fallbacks_are_part_of_it_and_none_are_as_before_there_were_any() {
        let model = |fallbacks: Value| {
            let mut model = json!({"name": "default", "providerRef": {"name": "main"}, "model": "m"});
            if !fallbacks.is_null() {
                model["fallbacks"] = fallbacks;
            }
            content(json!({"models": [model]}))
        };
        let plain = model(Value::Null);
        // What a ControllerRevision of an earlier Flotilla holds, and the name it has.
        assert!(!plain.canonical().contains("fallbacks"), "{}", plain.canonical());
        assert!(plain.is_same(&model(json!([]))));
        assert_eq!(
            name("support", &plain, |_| false),
            name("support", &model(json!([])), |_| false)
        );
        let one = json!({"providerRef": {"name": "b"}, "model": "m"});
        let two = json!({"providerRef": {"name": "main"}, "model": "n"});
        let both = model(json!([one, two]));
        assert!(!plain.is_same(&model(json!([one]))) && !both.is_same(&model(json!([two, one]))));
    }

    #[test]
    fn a_taken_name_gives_way_to_the_next_salt() {
        let first = name("support", &content(json!({})), |_| false);
        let second = name("support", &content(json!({})), |taken| taken == first);
        assert_ne!(first, second);
        assert_eq!((first.len(), second.len()), (16, 16));
        assert!(first.starts_with("support-"));
    }

    #[test]
    fn a_source_is_its_names_and_bytes() {
        let hash = |files: &[(&'static str, &'static [u8])]| hash_source(files.iter().copied());
        assert_eq!(
            hash(&[("a", b"1"), ("b", b"2")]),
            hash(&[("b", b"2"), ("a", b"1")])
        );
        assert_ne!(hash(&[("a", b"12")]), hash(&[("a", b"1"), ("2", b"")]));
        assert_ne!(hash(&[("a", b"1")]), hash(&[("b", b"1")]));
        assert_eq!(hash(&[]).len(), 10);
    }
}
