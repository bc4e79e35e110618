//! The table of what the API server refuses, without the API server. `e2e/tests/together/admission.rs` has the real one.

use kubectl_flotilla::check::{Outcome, change};
use serde_json::{Value, json};

fn table() -> Value {
    serde_saphyr::from_str(include_str!("../../crds/tests/cel_cases.yaml")).expect("the table is YAML")
}

#[test]
fn every_case_is_refused_or_accepted_as_the_table_says() {
    let table = table();
    let cases = table["cases"].as_array().unwrap();
    assert!(cases.len() > 80, "the table has {} cases", cases.len());
    let mut wrong = Vec::new();
    for case in cases {
        let base = &table["bases"][case["base"].as_str().unwrap()];
        let patched = |patch: &Value| {
            let mut object = base.clone();
            json_patch::merge(&mut object, patch);
            object
        };
        let old = case.get("old").map(patched);
        let Outcome::Checked(problems) = change(old.as_ref(), &patched(&case["set"])) else {
            panic!("{}: passed over", case["name"]);
        };
        let good = match case["says"].as_str() {
            Some(says) => problems.iter().any(|problem| problem.contains(says)),
            None => problems.is_empty(),
        };
        if !good {
            wrong.push(format!(
                "{}: expected {}, got {problems:?}",
                case["name"], case["says"]
            ));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn the_examples_are_valid() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mut checked = 0;
    for entry in [folder.clone(), folder.join("demo")]
        .iter()
        .flat_map(|f| std::fs::read_dir(f).unwrap())
    {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let documents: Vec<Value> =
            serde_saphyr::from_multiple(&std::fs::read_to_string(&path).unwrap()).unwrap();
        for document in documents {
            match change(None, &document) {
                Outcome::Checked(problems) => {
                    assert!(problems.is_empty(), "{}: {problems:?}", path.display())
                }
                Outcome::Foreign => continue,
            }
            checked += 1;
        }
    }
    assert!(checked >= 5, "only {checked} objects were checked");
}

#[test]
fn files_are_read_and_problems_are_the_exit_code() {
    use clap::Parser;
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let run = |file: &std::path::Path| {
        let cli = kubectl_flotilla::args::Cli::try_parse_from([
            "kubectl-flotilla",
            "validate",
            "-f",
            file.to_str().unwrap(),
        ]);
        let mut out = Vec::new();
        let code = kubectl_flotilla::args::run(cli.unwrap(), &mut out);
        (code, String::from_utf8(out).unwrap())
    };
    let (code, out) = run(&root.join("examples/pool-small.yaml"));
    assert!(
        code == std::process::ExitCode::SUCCESS && out.ends_with("AgentPool support: valid\n"),
        "{out}"
    );
    let (code, out) = run(&root.join("examples/no-such.yaml"));
    assert!(
        code == std::process::ExitCode::from(2) && out.contains("failed to read"),
        "{out}"
    );
    let bad = std::env::temp_dir().join(format!("kubectl-flotilla-{}.yaml", std::process::id()));
    let object = json!({"apiVersion": "flotilla.dev/v1alpha1", "kind": "ModelProvider", "metadata": {"name": "m"}, "spec": {"endpoint": "e"}});
    std::fs::write(&bad, object.to_string()).unwrap();
    let (code, out) = run(&bad);
    std::fs::remove_file(&bad).unwrap();
    assert!(
        code == std::process::ExitCode::from(1) && out.contains("endpoint must be an http or https address"),
        "{out}"
    );
}
