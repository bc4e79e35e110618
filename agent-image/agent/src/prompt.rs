//! What the agent is told to be, read from files once at the start: a revision's files never change.
//!
//! The prompt is checked before the agent says that it is ready, because a release with a broken prompt should stop at
//! readiness and not at the customers. The check refuses an empty prompt, a placeholder that nothing resolves
//! and a directive it does not know.
//!
//! **Placeholders.** `{{name}}` is replaced by the file `name.md`, `name.txt` or `name` of the behaviour folder. The
//! folder's other files are appended in the order of their names, each under its name as a heading.
//!
//! **Directives.** `<!-- flotilla: key=value key=value -->`, anywhere in the prompt or in a file of the folder; not sent
//! to the model. They make good and bad releases out of one image:
//!
//! | key | value | effect |
//! |---|---|---|
//! | `error-rate` | 0 to 1 | this share of the requests is answered with 500, evenly spread |
//! | `latency-ms` | 0 to 600000 | waits this long before each call of the model |
//! | `model` | a name | calls this model instead of the configured one |
//! | `not-ready` | one word | never ready, for this reason |

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::time::Duration;

/// More than this is no prompt but a mistake. In bytes, files included.
pub const MAX_PROMPT_BYTES: usize = 256 << 10;

/// Where the operator mounts the prompt when the pool says nothing else.
pub const DEFAULT_PROMPT_FILE: &str = "/etc/agent/prompt/prompt.md";

/// What the agent is when nothing is mounted at [`DEFAULT_PROMPT_FILE`].
const BUILT_IN_PROMPT: &str = "You are a customer service agent. Answer briefly, politely and truthfully. \
    Say what you will do and by when. Ask for an order number when you need one.";

/// A prompt that passed its check.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompt {
    /// The system message.
    pub text: String,
    /// What the directives say.
    pub directives: Directives,
}

/// The directives' values; the default is an agent that does nothing unusual.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Directives {
    /// Share of the requests that are answered with an error.
    pub error_rate: f64,
    /// Wait before each call of the model.
    pub latency: Duration,
    /// The model to call instead of the configured one.
    pub model: Option<String>,
    /// Why the agent never becomes ready.
    pub not_ready: Option<String>,
}

impl Directives {
    /// Whether the `n`-th request, from 0, gets an error: of any k requests in a row, `k · error_rate` do, give or
    /// take one.
    pub fn fails(&self, n: u64) -> bool {
        let failed_before = |count: u64| (count as f64 * self.error_rate + 1e-9).floor();
        failed_before(n + 1) > failed_before(n)
    }
}

/// Reads the prompt and the behaviour folder. Errors are sentences for the person who wrote the files.
///
/// A missing file is an error, except at the default place, where it means the built-in prompt. A missing folder is an
/// empty one.
pub fn load(prompt_file: &Path, behaviour_dir: &Path) -> Result<Prompt, Vec<String>> {
    let prompt = match std::fs::read_to_string(prompt_file) {
        Ok(prompt) => prompt,
        Err(error)
            if error.kind() == io::ErrorKind::NotFound && prompt_file == Path::new(DEFAULT_PROMPT_FILE) =>
        {
            BUILT_IN_PROMPT.to_owned()
        }
        Err(error) => {
            return Err(vec![format!(
                "the prompt {} cannot be read: {error}",
                prompt_file.display()
            )]);
        }
    };
    let files = read_folder(behaviour_dir).map_err(|error| {
        vec![format!(
            "the behaviour folder {} cannot be read: {error}",
            behaviour_dir.display()
        )]
    })?;
    check(&prompt, &files)
}

/// The folder's files by name. Names that begin with a dot are skipped: a ConfigMap's mount keeps its versions there.
fn read_folder(folder: &Path) -> io::Result<BTreeMap<String, String>> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        entries => entries?,
    };
    let mut files = BTreeMap::new();
    for entry in entries {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()).map(str::to_owned) else {
            continue;
        };
        if name.starts_with('.') || !path.is_file() {
            continue;
        }
        files.insert(name, std::fs::read_to_string(&path)?);
    }
    Ok(files)
}

/// Puts prompt and files (name → content) together and checks the result.
pub fn check(prompt: &str, files: &BTreeMap<String, String>) -> Result<Prompt, Vec<String>> {
    let mut problems = Vec::new();
    let mut used = BTreeSet::new();
    let mut text = resolve(prompt, files, &mut used, &mut problems);
    for (name, content) in files.iter().filter(|(name, _)| !used.contains(name.as_str())) {
        text.push_str(&format!("\n\n## {name}\n\n{}", content.trim()));
    }
    let mut directives = Directives::default();
    let text = take_directives(&text, &mut directives, &mut problems);
    let text = text.trim();
    if text.is_empty() {
        problems.push("the prompt is empty".to_owned());
    }
    if text.len() > MAX_PROMPT_BYTES {
        problems.push(format!(
            "the prompt has {} bytes, more than {MAX_PROMPT_BYTES}",
            text.len()
        ));
    }
    if let Some(reason) = &directives.not_ready {
        problems.push(format!("the prompt's directive says not-ready={reason}"));
    }
    if problems.is_empty() {
        Ok(Prompt {
            text: text.to_owned(),
            directives,
        })
    } else {
        Err(problems)
    }
}

fn resolve<'a>(
    prompt: &str,
    files: &'a BTreeMap<String, String>,
    used: &mut BTreeSet<&'a str>,
    problems: &mut Vec<String>,
) -> String {
    let mut text = String::with_capacity(prompt.len());
    let mut rest = prompt;
    while let Some((before, after)) = rest.split_once("{{") {
        text.push_str(before);
        let Some((name, after)) = after.split_once("}}") else {
            problems.push("the prompt has a placeholder '{{' that is not closed".to_owned());
            return text;
        };
        let name = name.trim();
        let candidates = [name.to_owned(), format!("{name}.md"), format!("{name}.txt")];
        match candidates
            .iter()
            .find_map(|candidate| files.get_key_value(candidate))
        {
            Some((file, content)) => {
                used.insert(file);
                text.push_str(content.trim());
            }
            None => problems.push(format!("the prompt has an unresolved placeholder {{{{{name}}}}}")),
        }
        rest = after;
    }
    text.push_str(rest);
    text
}

fn take_directives(text: &str, directives: &mut Directives, problems: &mut Vec<String>) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("<!--") {
        kept.push_str(before);
        let body = after.trim_start().strip_prefix("flotilla:");
        let Some((body, after_comment)) = body.and_then(|body| body.split_once("-->")) else {
            if body.is_some() {
                problems.push("the prompt has a directive '<!-- flotilla:' that is not closed".to_owned());
            }
            kept.push_str("<!--");
            rest = after;
            continue;
        };
        for word in body.split_whitespace() {
            if let Err(problem) = directive(word, directives) {
                problems.push(problem);
            }
        }
        rest = after_comment;
    }
    kept.push_str(rest);
    kept
}

fn directive(word: &str, directives: &mut Directives) -> Result<(), String> {
    let (key, value) = word
        .split_once('=')
        .ok_or_else(|| format!("the directive '{word}' is not key=value"))?;
    let wrong = |range: &str| format!("the directive {key} is {range}, not '{value}'");
    match key {
        "error-rate" => {
            let rate = value
                .parse::<f64>()
                .ok()
                .filter(|rate| (0.0..=1.0).contains(rate));
            directives.error_rate = rate.ok_or_else(|| wrong("a share from 0 to 1"))?;
        }
        "latency-ms" => {
            let milliseconds = value
                .parse::<u64>()
                .ok()
                .filter(|milliseconds| *milliseconds <= 600_000);
            let milliseconds =
                milliseconds.ok_or_else(|| wrong("a number of milliseconds from 0 to 600000"))?;
            directives.latency = Duration::from_millis(milliseconds);
        }
        "model" if !value.is_empty() => directives.model = Some(value.to_owned()),
        "not-ready" if !value.is_empty() => directives.not_ready = Some(value.to_owned()),
        "model" | "not-ready" => return Err(wrong("a word")),
        _ => return Err(format!("the directive '{key}' is unknown")),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(name, content)| ((*name).to_owned(), (*content).to_owned()))
            .collect()
    }

    #[test]
    fn good_prompts() {
        let tools = files(&[
            ("refunds.md", "Refund within 14 days.\n"),
            ("tone.txt", "Be kind."),
        ]);
        for (prompt, files, text) in [
            ("You help.\n", files(&[]), "You help."),
            (
                "You help. {{ refunds }} Bye.",
                tools.clone(),
                "You help. Refund within 14 days. Bye.\n\n## tone.txt\n\nBe kind.",
            ),
            ("{{refunds.md}}{{tone}}", tools, "Refund within 14 days.Be kind."),
            ("a <!-- a note --> b", files(&[]), "a <!-- a note --> b"),
        ] {
            assert_eq!(
                check(prompt, &files).map(|prompt| prompt.text),
                Ok(text.to_owned()),
                "{prompt}"
            );
        }
    }

    #[test]
    fn directives_are_read_and_not_sent() {
        let prompt =
            "<!-- flotilla: error-rate=0.2 latency-ms=500 -->\nYou help.<!--flotilla: model=sim-slow-->";
        let expected = Directives {
            error_rate: 0.2,
            latency: Duration::from_millis(500),
            model: Some("sim-slow".to_owned()),
            not_ready: None,
        };
        let checked = check(prompt, &files(&[])).expect("good");
        assert_eq!(
            (checked.text.as_str(), checked.directives),
            ("You help.", expected)
        );
    }

    #[test]
    fn bad_prompts_say_what_is_wrong() {
        for (prompt, problem) in [
            ("", "the prompt is empty"),
            (" \n<!-- flotilla: latency-ms=1 -->\n", "the prompt is empty"),
            (
                "You help {{customer_name}}.",
                "the prompt has an unresolved placeholder {{customer_name}}",
            ),
            (
                "You help {{customer",
                "the prompt has a placeholder '{{' that is not closed",
            ),
            (
                "x <!-- flotilla: eror-rate=1 -->",
                "the directive 'eror-rate' is unknown",
            ),
            (
                "x <!-- flotilla: error-rate=2 -->",
                "the directive error-rate is a share from 0 to 1, not '2'",
            ),
            (
                "x <!-- flotilla: latency-ms=-1 -->",
                "the directive latency-ms is a number of milliseconds from 0 to 600000, not '-1'",
            ),
            (
                "x <!-- flotilla: model= -->",
                "the directive model is a word, not ''",
            ),
            (
                "x <!-- flotilla: slow -->",
                "the directive 'slow' is not key=value",
            ),
            (
                "x <!-- flotilla: error-rate=1",
                "the prompt has a directive '<!-- flotilla:' that is not closed",
            ),
            (
                "x <!-- flotilla: not-ready=broken -->",
                "the prompt's directive says not-ready=broken",
            ),
        ] {
            assert_eq!(
                check(prompt, &files(&[])),
                Err(vec![problem.to_owned()]),
                "{prompt}"
            );
        }
        let huge = "x".repeat(MAX_PROMPT_BYTES + 1);
        assert!(check(&huge, &files(&[])).is_err());
        let included = files(&[("a.md", "{{b}}")]);
        assert!(
            check("{{a}}", &included).is_ok(),
            "included text is taken as it is"
        );
    }

    #[test]
    fn errors_are_spread_evenly() {
        for (rate, per_hundred) in [(0.0, 0), (0.2, 20), (1.0 / 3.0, 33), (1.0, 100)] {
            let directives = Directives {
                error_rate: rate,
                ..Directives::default()
            };
            assert_eq!(
                (0..100).filter(|n| directives.fails(*n)).count(),
                per_hundred,
                "{rate}"
            );
        }
        let every_fifth = Directives {
            error_rate: 0.2,
            ..Directives::default()
        };
        assert_eq!(
            (0..10)
                .map(|n| every_fifth.fails(n))
                .filter(|fails| *fails)
                .count(),
            2
        );
    }

    #[test]
    fn files_are_read_as_a_config_map_mounts_them() {
        let folder = std::env::temp_dir().join(format!("flotilla-agent-prompt-{}", std::process::id()));
        let tools = folder.join("tools");
        std::fs::create_dir_all(tools.join("..data")).expect("a folder");
        std::fs::write(folder.join("prompt.md"), "You help.").expect("written");
        std::fs::write(tools.join("tone.md"), "Be kind.").expect("written");
        let loaded = load(&folder.join("prompt.md"), &tools).map(|prompt| prompt.text);
        let missing = load(&folder.join("other.md"), &tools);
        let built_in = load(Path::new(DEFAULT_PROMPT_FILE), &folder.join("none")).map(|prompt| prompt.text);
        std::fs::remove_dir_all(&folder).expect("removed");
        assert_eq!(loaded, Ok("You help.\n\n## tone.md\n\nBe kind.".to_owned()));
        assert!(
            missing
                .expect_err("missing")
                .concat()
                .contains("other.md cannot be read")
        );
        assert_eq!(built_in, Ok(BUILT_IN_PROMPT.to_owned()));
    }
}
