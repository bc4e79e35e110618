//! The book: every page is reachable, every link leads somewhere, and the words it explains exist in the code.

use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn files(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            files(&path, extension, found)?;
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
    Ok(())
}

/// The targets of `[text](target)` that are files.
fn links(text: &str) -> Vec<&str> {
    text.split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
        .filter_map(|target| target.split('#').next())
        .filter(|target| !target.is_empty() && !target.contains("://"))
        .collect()
}

#[test]
fn links_lead_to_files_and_pages_are_in_the_summary() -> Result<()> {
    let source = root().join("docs/src");
    let mut pages = Vec::new();
    files(&source, "md", &mut pages)?;
    ensure!(pages.len() > 10, "only {} pages", pages.len());
    let summary = std::fs::read_to_string(source.join("SUMMARY.md"))?;
    let listed: BTreeSet<PathBuf> = links(&summary)
        .into_iter()
        .map(|link| source.join(link))
        .collect();
    let top = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"].map(|name| root().join(name));
    for page in pages.iter().chain(&top) {
        let text = std::fs::read_to_string(page).with_context(|| page.display().to_string())?;
        let folder = page.parent().context("a page is in a folder")?;
        for link in links(&text) {
            ensure!(
                folder.join(link).exists(),
                "{}: {link} leads nowhere",
                page.display()
            );
        }
        let in_book = page.starts_with(&source) && !page.ends_with("SUMMARY.md");
        ensure!(
            !in_book || listed.contains(page),
            "{} is not in SUMMARY.md",
            page.display()
        );
    }
    Ok(())
}

/// First cells of the tables of a page, where they are code.
fn terms(page: &str) -> Vec<String> {
    page.lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .filter_map(|line| line.split(" | ").next())
        .flat_map(|cell| cell.split(", ").map(|term| term.trim_matches('`').to_owned()))
        .collect()
}

fn code(folders: &[&str]) -> Result<String> {
    let mut sources = Vec::new();
    for folder in folders {
        files(&root().join(folder), "rs", &mut sources)?;
    }
    sources
        .iter()
        .map(|path| std::fs::read_to_string(path).with_context(|| path.display().to_string()))
        .collect()
}

#[test]
fn words_that_are_explained_are_in_the_code() -> Result<()> {
    for (page, folders) in [
        ("concepts/gateway.md", &["gateway/src"][..]),
        (
            "operations/conditions.md",
            &["operator/src", "core/src", "crds/src"],
        ),
    ] {
        let text = std::fs::read_to_string(root().join("docs/src").join(page))?;
        let code = code(folders)?;
        let terms = terms(&text);
        ensure!(terms.len() > 10, "{page}: only {} terms: {terms:?}", terms.len());
        for term in terms {
            ensure!(
                code.contains(&format!("\"{term}\"")),
                "{page} explains {term}, which is not in {folders:?}"
            );
        }
    }
    Ok(())
}

/// Names of metrics are put together from a prefix, a name and a unit in the operator, and written whole in the gateway.
#[test]
fn metrics_that_are_explained_are_in_the_code() -> Result<()> {
    const PREFIXES: [&str; 5] = [
        "controller_runtime_",
        "workqueue_",
        "rest_client_",
        "flotilla_",
        "",
    ];
    let text = std::fs::read_to_string(root().join("docs/src/operations/metrics.md"))?;
    let code = code(&["operator/src", "gateway/src"])?;
    let terms = terms(&text);
    ensure!(terms.len() > 25, "only {} metrics", terms.len());
    for term in terms {
        let stem = term.trim_end_matches("_total");
        let found = PREFIXES
            .iter()
            .filter_map(|prefix| stem.strip_prefix(prefix))
            .any(|name| {
                let bare = name.trim_end_matches("_seconds");
                code.contains(&format!("\"{name}\"")) || code.contains(&format!("\"{bare}\""))
            });
        ensure!(found, "{term} is not in the code");
    }
    Ok(())
}
