//! A sample of each target, so that one that breaks is noticed by `make test`. The figure, a million executions each, is
//! `make fuzz`, or `FLOTILLA_FULL=1`.

use flotilla_fuzz::engine::{Plan, run};
use flotilla_fuzz::{regressions, targets};

const SAMPLE: u64 = 5_000;
const FULL: u64 = 1_000_000;

#[test]
fn no_target_fails() {
    let full = std::env::var_os("FLOTILLA_FULL").is_some();
    let plan = Plan {
        executions: if full { FULL } else { SAMPLE },
        seed: 1,
        threads: 2,
    };
    let mut wrong = Vec::new();
    for target in targets::all() {
        let known = regressions(target.name).expect("fuzz/regressions can be read");
        let report = run(&target, &known, plan);
        assert_eq!(report.executions, plan.executions, "{} ended early", target.name);
        // An engine that makes nothing of its corpus would pass for ever.
        assert!(
            report.outcomes >= 3,
            "{}: only {} outcomes",
            target.name,
            report.outcomes
        );
        wrong.extend(report.failures.values().map(|failure| {
            format!(
                "{}: {} at {}: {}",
                target.name,
                failure.message,
                failure.place,
                failure.input.escape_ascii()
            )
        }));
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn every_folder_of_regressions_has_its_target() {
    let names: Vec<&str> = targets::all().iter().map(|target| target.name).collect();
    for folder in std::fs::read_dir(flotilla_fuzz::regressions_folder())
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = folder.file_name().to_string_lossy().into_owned();
        assert!(
            names.contains(&name.as_str()),
            "fuzz/regressions/{name} is no target's"
        );
    }
}
