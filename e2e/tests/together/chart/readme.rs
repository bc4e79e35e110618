//! The chart's README lists every value.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

use super::root;

const TABLE_START: &str = "<!-- values: generated from values.yaml by `FLOTILLA_UPDATE=1 cargo test -p flotilla-e2e --test together chart::readme` -->\n";
const TABLE_END: &str = "<!-- end of values -->";

/// The comments `# -- …` of the values, by the path of the value below them.
fn comments(values: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut path: Vec<(usize, String)> = Vec::new();
    let mut comment: Option<String> = None;
    for line in values.lines() {
        let text = line.trim_start();
        let indent = line.len() - text.len();
        if let Some(first) = text.strip_prefix("# -- ") {
            comment = Some(first.to_owned());
        } else if let Some(more) = text.strip_prefix("# ") {
            comment = comment.map(|comment| format!("{comment} {more}"));
        } else if let Some((key, _)) = text.split_once(':') {
            path.retain(|(depth, _)| *depth < indent);
            path.push((indent, key.to_owned()));
            if let Some(comment) = comment.take() {
                let names: Vec<&str> = path.iter().map(|(_, name)| name.as_str()).collect();
                found.insert(names.join("."), comment);
            }
        }
    }
    found
}

/// Rows of the table: every documented value; a leaf without a comment is an error.
fn rows(
    at: &str,
    values: &Map<String, Value>,
    comments: &BTreeMap<String, String>,
    rows: &mut String,
) -> Result<()> {
    for (name, value) in values {
        let path = if at.is_empty() {
            name.clone()
        } else {
            format!("{at}.{name}")
        };
        match (comments.get(&path), value) {
            (Some(comment), value) => rows.push_str(&format!(
                "| `{path}` | `{value}` | {} |\n",
                comment.replace('|', "\\|")
            )),
            (None, Value::Object(inner)) if !inner.is_empty() => self::rows(&path, inner, comments, rows)?,
            (None, _) => bail!("values.yaml: {path} has no comment `# -- …`"),
        }
    }
    Ok(())
}

#[test]
fn lists_every_value() -> Result<()> {
    let text = std::fs::read_to_string(root().join("charts/flotilla/values.yaml"))?;
    let values: Value = serde_saphyr::from_str(&text)?;
    let mut table = "| value | default | |\n|---|---|---|\n".to_owned();
    rows(
        "",
        values.as_object().context("values are a map")?,
        &comments(&text),
        &mut table,
    )?;
    let path = root().join("charts/flotilla/README.md");
    let readme = std::fs::read_to_string(&path)?;
    let (before, rest) = readme
        .split_once(TABLE_START)
        .context("README.md has lost the mark before the table")?;
    let (_, after) = rest
        .split_once(TABLE_END)
        .context("README.md has lost the mark after the table")?;
    let fresh = format!("{before}{TABLE_START}\n{table}\n{TABLE_END}{after}");
    if std::env::var_os("FLOTILLA_UPDATE").is_some() {
        std::fs::write(&path, fresh)?;
    } else {
        ensure!(
            readme == fresh,
            "charts/flotilla/README.md is stale; run `FLOTILLA_UPDATE=1 cargo test -p flotilla-e2e --test together chart::readme`"
        );
    }
    Ok(())
}
