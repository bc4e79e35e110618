//! Immutable copies of what a revision was made from.
//!
//! Pods mount the copy, never the source: a rollback restores the bytes, and an edit of the source cannot change pods
//! that run. The name is the content's hash, so making one again is harmless.

use std::collections::BTreeMap;

use flotilla_crds::{AgentPool, names};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::ConfigMap;

use super::child_meta;

/// Name of the snapshot of a source with this hash.
pub fn name(pool: &str, source: &str, hash: &str) -> String {
    format!("{pool}-{source}-{hash}")
}

/// The snapshot of `files`. Text stays text, so that `kubectl get` shows it.
pub fn build(pool: &AgentPool, source: &str, hash: &str, files: &BTreeMap<String, Vec<u8>>) -> ConfigMap {
    let pool_name = pool.metadata.name.clone().unwrap_or_default();
    let mut metadata = child_meta(pool, name(&pool_name, source, hash), None);
    metadata
        .labels
        .get_or_insert_default()
        .insert(names::CONTENT_HASH.into(), hash.into());
    let (mut data, mut binary_data) = (BTreeMap::new(), BTreeMap::new());
    for (file, bytes) in files {
        match std::str::from_utf8(bytes) {
            Ok(text) => drop(data.insert(file.clone(), text.to_owned())),
            Err(_) => drop(binary_data.insert(file.clone(), ByteString(bytes.clone()))),
        }
    }
    ConfigMap {
        metadata,
        data: Some(data),
        binary_data: (!binary_data.is_empty()).then_some(binary_data),
        immutable: Some(true),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::pool;
    use super::*;
    use serde_json::json;

    #[test]
    fn bytes_survive_as_text_or_binary() {
        let files = BTreeMap::from([
            ("a.md".to_owned(), b"hello".to_vec()),
            ("b.bin".to_owned(), vec![0xff, 0]),
        ]);
        let snapshot = build(&pool(json!({})), "prompt", "abc", &files);
        assert_eq!(snapshot.metadata.name.as_deref(), Some("support-prompt-abc"));
        assert_eq!(snapshot.immutable, Some(true));
        assert_eq!(snapshot.data.unwrap()["a.md"], "hello");
        assert_eq!(snapshot.binary_data.unwrap()["b.bin"].0, [0xff, 0]);
    }
}
