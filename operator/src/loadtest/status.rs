//! What a LoadTest's status says at each place of its life.

use flotilla_core::load::wire::{Progress, RunState};
use flotilla_crds::common::condition;
use flotilla_crds::load_test::{OnInconclusive, ProgressStatus, Verdict, WorkersStatus};
use flotilla_crds::{LoadTest, LoadTestStatus};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::report::count;
use crate::runtime::Conditions;
use crate::waiting::{self, Wait};

/// What `Ready`, `Reconciling` and `Stalled` are to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Say {
    /// Which of the conditions is True.
    pub mood: Mood,
    /// One PascalCase word, shown as STATE.
    pub reason: String,
    /// One sentence.
    pub message: String,
}

/// The kind of state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// Nothing is to be done until the user says so.
    Idle,
    /// Waits for somebody else; Stalled after a while.
    Waiting,
    /// Works.
    Working,
    /// Done.
    Done,
    /// Ended before anything was measured; only a new LoadTest helps.
    Failed,
}

impl Say {
    /// What to say.
    pub fn new(mood: Mood, reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            mood,
            reason: reason.into(),
            message: message.into(),
        }
    }
}

/// The status before the verdict: what was observed last, and what is to be said now.
pub fn unfinished(test: &LoadTest, say: &Say, now: Timestamp) -> LoadTestStatus {
    let before = test.status.clone().unwrap_or_default();
    let mut conditions = Conditions::new(&before.conditions, test.metadata.generation, now);
    set_mood(&mut conditions, say, waiting::judge(&before.conditions, now));
    conditions.set(condition::COMPLETE, false, &say.reason, "");
    conditions.set(condition::SUCCEEDED, None, &say.reason, "there is no verdict yet");
    LoadTestStatus {
        conditions: conditions.into_vec(),
        observed_generation: test.metadata.generation.unwrap_or_default(),
        ..before
    }
}

/// The status with the verdict. `reason` and `message` are the verdict's own.
pub fn finished(
    test: &LoadTest,
    say: &Say,
    verdict: Verdict,
    (reason, message): (&str, &str),
    now: Timestamp,
) -> LoadTestStatus {
    let before = test.status.clone().unwrap_or_default();
    let succeeded = match verdict {
        Verdict::Passed => true,
        Verdict::Inconclusive => test.spec.on_inconclusive == OnInconclusive::Pass,
        Verdict::Failed | Verdict::Invalid => false,
    };
    let mut conditions = Conditions::new(&before.conditions, test.metadata.generation, now);
    set_mood(&mut conditions, say, Wait::TooLong);
    conditions.set(
        condition::COMPLETE,
        true,
        reason,
        format!("the verdict is {verdict:?}"),
    );
    conditions.set(condition::SUCCEEDED, succeeded, reason, message);
    LoadTestStatus {
        conditions: conditions.into_vec(),
        observed_generation: test.metadata.generation.unwrap_or_default(),
        verdict: Some(verdict),
        completion_time: Some(Time(now)),
        ..before
    }
}

/// The status of a finished test whose spec was touched afterwards (`suspend`, the TTL): it speaks of that spec too.
pub fn still_finished(test: &LoadTest) -> LoadTestStatus {
    let mut status = test.status.clone().unwrap_or_default();
    status.observed_generation = test.metadata.generation.unwrap_or_default();
    for condition in &mut status.conditions {
        condition.observed_generation = test.metadata.generation;
    }
    status
}

fn set_mood(conditions: &mut Conditions, say: &Say, wait: Wait) {
    let Say {
        mood,
        reason,
        message,
    } = say;
    let (ready, reconciling, stalled) = match (mood, wait) {
        (Mood::Done, _) => (true, false, false),
        (Mood::Idle, _) => (false, false, false),
        (Mood::Working, _) | (Mood::Waiting, Wait::Until(_)) => (false, true, false),
        (Mood::Failed, _) | (Mood::Waiting, Wait::TooLong) => (false, false, true),
    };
    conditions.set(condition::READY, ready, reason, message);
    conditions.set(
        condition::RECONCILING,
        reconciling,
        reason,
        if reconciling { message } else { "" },
    );
    conditions.set(
        condition::STALLED,
        stalled,
        reason,
        if stalled { message } else { "" },
    );
}

/// How a run that goes on is called, from what its pods and worker 0 say. `trouble` is why workers are missing.
pub fn running(
    up: i32,
    desired: i32,
    progress: Option<&Progress>,
    start_known: bool,
    trouble: Option<&str>,
) -> Say {
    let working = |reason, message: String| Say::new(Mood::Working, reason, message);
    match progress.map(|progress| progress.state) {
        Some(RunState::Finished) => working(
            "Harvesting",
            "the schedule is over; the workers leave their results".into(),
        ),
        Some(RunState::Running) => working("Running", format!("{up} of {desired} workers send requests")),
        None if start_known || up >= desired => working(
            "Running",
            format!("{up} of {desired} workers run; worker 0 has not told its progress yet"),
        ),
        Some(RunState::Waiting) if up >= desired => working(
            "Running",
            format!("all {desired} workers are up and wait for their common start"),
        ),
        Some(RunState::Waiting) | None => {
            let why = trouble.map(|trouble| format!(": {trouble}")).unwrap_or_default();
            working("Pending", format!("{up} of {desired} workers are up{why}"))
        }
    }
}

/// Takes what worker 0 says into a status.
pub fn with_progress(mut status: LoadTestStatus, progress: &Progress) -> LoadTestStatus {
    if status.start_time.is_none() {
        let start = progress
            .start_time
            .as_deref()
            .and_then(|time| time.parse::<Timestamp>().ok());
        status.start_time = start.map(Time);
    }
    if progress.state == RunState::Waiting {
        return status;
    }
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    status.progress = Some(ProgressStatus {
        stage: text(&progress.stage),
        percent: i32::try_from(progress.percent.min(100)).unwrap_or(100),
        planned: count(progress.planned),
        started: count(progress.started),
        done: count(progress.done),
        failed: count(progress.failed),
        in_flight: count(progress.in_flight),
        per_second: text(&progress.per_second),
    });
    status
}

/// `status.workers` while the Job runs.
pub fn workers(desired: i32, up: i32, harvested: usize) -> WorkersStatus {
    WorkersStatus {
        desired,
        ready: up,
        succeeded: i32::try_from(harvested).unwrap_or(i32::MAX),
        start_skew_milliseconds: None,
        coverage_percent: None,
    }
}

#[cfg(test)]
mod tests {
    use flotilla_crds::common::{find, is_true};

    use super::super::build::tests::load_test;
    use super::super::observe::tests::at;
    use super::*;

    fn true_ones(status: &LoadTestStatus) -> Vec<&str> {
        let conditions = status
            .conditions
            .iter()
            .filter(|condition| condition.status == "True");
        conditions.map(|condition| condition.type_.as_str()).collect()
    }

    #[test]
    fn a_wait_stalls_and_is_over_when_work_begins() {
        let mut test = load_test();
        let wait = Say::new(
            Mood::Waiting,
            "WaitingForReference",
            "AgentPool support does not exist",
        );
        let work = Say::new(Mood::Working, "Pending", "0 of 2 workers are up");
        for (say, now, expected) in [
            (&wait, 0, vec!["Reconciling"]),
            (&wait, 599, vec!["Reconciling"]),
            (&wait, 600, vec!["Stalled"]),
            (&wait, 9000, vec!["Stalled"]),
            (&work, 9001, vec!["Reconciling"]),
        ] {
            let status = unfinished(&test, say, at(now));
            assert_eq!(true_ones(&status), expected, "second {now}");
            assert_eq!(
                status.conditions.len(),
                5,
                "every condition is there from the first visit"
            );
            test.status = Some(status);
        }
    }

    #[test]
    fn verdicts() {
        let mut inconclusive_passes = load_test();
        inconclusive_passes.spec.on_inconclusive = OnInconclusive::Pass;
        let done = Say::new(Mood::Done, "Complete", "p95: 3 of 300 over 4000 ms");
        for (test, verdict, expected) in [
            (
                load_test(),
                Verdict::Passed,
                vec!["Ready", "Complete", "Succeeded"],
            ),
            (load_test(), Verdict::Failed, vec!["Ready", "Complete"]),
            (load_test(), Verdict::Inconclusive, vec!["Ready", "Complete"]),
            (
                inconclusive_passes,
                Verdict::Inconclusive,
                vec!["Ready", "Complete", "Succeeded"],
            ),
            (load_test(), Verdict::Invalid, vec!["Ready", "Complete"]),
        ] {
            let status = finished(&test, &done, verdict, ("ThresholdsMet", "why"), at(5));
            assert_eq!(true_ones(&status), expected, "{verdict:?}");
            assert_eq!(status.completion_time.unwrap().0, at(5));
        }
        let failed = Say::new(Mood::Failed, "InvalidSpec", "…");
        let status = finished(
            &load_test(),
            &failed,
            Verdict::Invalid,
            ("InvalidSpec", "…"),
            at(5),
        );
        assert_eq!(true_ones(&status), ["Stalled", "Complete"]);
    }

    #[test]
    fn a_touched_spec_does_not_reopen_a_finished_test() {
        let mut test = load_test();
        let done = Say::new(Mood::Done, "Complete", "");
        test.status = Some(finished(
            &test,
            &done,
            Verdict::Passed,
            ("ThresholdsMet", ""),
            at(5),
        ));
        test.metadata.generation = Some(2);
        let status = still_finished(&test);
        assert!(is_true(&status.conditions, "Ready"));
        assert_eq!(
            (
                status.observed_generation,
                find(&status.conditions, "Ready").unwrap().observed_generation
            ),
            (2, Some(2))
        );
    }

    #[test]
    fn running_has_words() {
        let progress = |state| Progress {
            state,
            ..Progress::default()
        };
        let (waiting, runs, over) = (
            progress(RunState::Waiting),
            progress(RunState::Running),
            progress(RunState::Finished),
        );
        for (up, progress, start_known, expected) in [
            (0, None, false, "Pending"),
            (2, None, false, "Running"),
            (1, None, true, "Running"),
            (1, Some(&waiting), false, "Pending"),
            (2, Some(&waiting), false, "Running"),
            (2, Some(&runs), true, "Running"),
            (0, Some(&over), true, "Harvesting"),
        ] {
            assert_eq!(running(up, 2, progress, start_known, None).reason, expected);
        }
        let say = running(0, 2, None, false, Some("exceeded quota: none"));
        assert_eq!(say.message, "0 of 2 workers are up: exceeded quota: none");
    }

    #[test]
    fn progress_sets_the_start_once() {
        let progress = Progress {
            state: RunState::Running,
            start_time: Some("2026-11-21T10:00:00Z".into()),
            stage: "steady".into(),
            percent: 10,
            done: 30,
            ..Progress::default()
        };
        let status = with_progress(LoadTestStatus::default(), &progress);
        let start = status.start_time.clone();
        assert!(start.is_some());
        let shown = status.progress.clone().unwrap();
        assert_eq!(
            (shown.percent, shown.done, shown.stage.as_deref()),
            (10, 30, Some("steady"))
        );
        let later = Progress {
            start_time: Some("2026-11-21T11:00:00Z".into()),
            ..progress
        };
        assert_eq!(with_progress(status, &later).start_time, start);
        let waiting = with_progress(LoadTestStatus::default(), &Progress::default());
        assert_eq!((waiting.start_time, waiting.progress), (None, None));
    }
}
