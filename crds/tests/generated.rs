//! The generated files in the repository are those of today's types.

use std::path::Path;

#[test]
fn generated_files_are_up_to_date() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let stale: Vec<String> = flotilla_crds::files::generated()
        .into_iter()
        .filter(|(path, content)| std::fs::read_to_string(root.join(path)).ok().as_ref() != Some(content))
        .map(|(path, _)| path)
        .collect();
    assert!(stale.is_empty(), "stale: {}; run `make crds`", stale.join(", "));
}

#[test]
fn what_is_printed_is_what_is_committed() {
    let documents: Vec<serde_json::Value> =
        serde_saphyr::from_multiple(&flotilla_crds::yaml::all_yaml()).unwrap();
    let definitions: Vec<serde_json::Value> =
        flotilla_crds::yaml::all().into_iter().map(|(_, d)| d).collect();
    assert_eq!(
        documents, definitions,
        "the YAML must read back as the definitions"
    );
}
