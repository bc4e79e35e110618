//! The files that are generated from the types, committed, and checked.

use crate::{reference, yaml};

/// Says where a generated file comes from, in its first line.
const ORIGIN: &str = "Generated from crds/src by `make crds`. Do not edit.";

/// Every generated file: its path from the root of the repository, and its content.
pub fn generated() -> Vec<(String, String)> {
    let mut files = Vec::new();
    for (plural, definition) in yaml::all() {
        files.push((
            format!("crds/yaml/{plural}.yaml"),
            format!("# {ORIGIN}\n{}", yaml::to_yaml(&definition)),
        ));
        files.push((
            format!("charts/flotilla/templates/crds/{plural}.yaml"),
            format!("{{{{- /* {ORIGIN} */}}}}\n{}", yaml::to_template(&definition)),
        ));
        files.push((
            format!("docs/src/reference/{plural}.md"),
            format!("<!-- {ORIGIN} -->\n\n{}", reference::page(&definition)),
        ));
    }
    files
}
