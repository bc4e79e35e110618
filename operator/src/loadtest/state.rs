//! What a LoadTest does next, from what is there.
//!
//! ```text
//!             ┌─────────── Suspended ◄──┐
//!             ▼                         │ suspend
//!  (new) ─► Prepare ── target there ─► Job made ─► Watch ── Job ended ─► Harvest ─► Judge ─► Finished
//!             │ ▲                                    │                     ▲
//!             └─┘ waits, Stalled after 10 min        └─ suspend: Halt ─────┘
//! ```
//!
//! Nothing of this is remembered in memory: each visit finds its place from the LoadTest's status, its Job, the Job's
//! pods and the result ConfigMap, so an operator that is killed anywhere goes on from there. Three facts carry it:
//!
//! - *The Job was made* is `status.workload`, or a Job, or a result ConfigMap with results. From then on no second Job is
//!   ever made: a second run would be another measurement, with twice the load.
//! - *A worker's result is safe* once it is in the result ConfigMap, and only then its pod may go.
//! - *It is over* once `status.verdict` is set, and only then the Job, the plan and the coordinator's Service are deleted.
//!
//! No finalizer is needed. A finished pod stays until its Job goes, and who deletes the Job or the pods before the harvest
//! takes away coverage, which makes the verdict Invalid, never Passed. A finalizer on pods would only turn a lost
//! result into a pod that cannot be deleted while no operator runs.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::observe::{JobView, PodView};

/// How much longer than `startDeadlineSeconds` the workers get, because they count from their own start.
pub const START_SLACK: SignedDuration = SignedDuration::from_secs(30);
/// How long results of a Job that has ended may be missing: caches of Jobs and of pods are not equally new.
const HARVEST_PATIENCE: SignedDuration = SignedDuration::from_secs(10);
/// How long pods of a Job that has ended may still be on their way out.
const PODS_PATIENCE: SignedDuration = SignedDuration::from_secs(60);
/// How much longer than its own deadline a Job may take to say that it has ended (a node that is lost with its pods).
const JOB_PATIENCE: SignedDuration = SignedDuration::from_secs(180);
/// How soon to look again when only time can change the decision.
const LOOK: Duration = Duration::from_secs(2);

/// Exit code of a worker that never started: its Job makes another pod for it.
pub const EXIT_NOT_STARTED: i32 = 75;

/// What is there.
#[derive(Clone, Debug)]
pub struct Observed<'a> {
    /// `spec.suspend`.
    pub suspend: bool,
    /// Whether `status.verdict` is set.
    pub judged: bool,
    /// Whether a Job was ever made.
    pub started: bool,
    /// Whether the common start is known.
    pub start_known: bool,
    /// `spec.workers.count`.
    pub workers: u32,
    /// `spec.workers.startDeadlineSeconds`.
    pub start_deadline: SignedDuration,
    /// The Job, while there is one.
    pub job: Option<&'a JobView>,
    /// Its pods.
    pub pods: &'a [PodView],
    /// Workers whose results are safe.
    pub harvested: &'a BTreeSet<u32>,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Wait for `suspend: false`, for ever.
    Suspended,
    /// Find the target and start.
    Prepare,
    /// The Job runs: report.
    Watch,
    /// Stop the Job: the user asked for it.
    Halt,
    /// The Job has ended, its last results are on their way: look again after this pause.
    Harvest(Duration),
    /// Nothing more will come: merge, judge, report.
    Judge(Ending),
    /// Judged: clean up.
    Finished,
}

/// How the Job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// By itself, whatever came of it.
    Ended,
    /// By `suspend: true`.
    Stopped,
    /// Somebody deleted the Job.
    JobDeleted,
    /// Its workers did not come in time.
    NotStarted,
    /// It did not end when it had to.
    Overdue,
}

/// Decides.
pub fn decide(observed: &Observed<'_>, now: Timestamp) -> Step {
    let Observed {
        suspend,
        judged,
        started,
        job,
        pods,
        harvested,
        ..
    } = *observed;
    if judged {
        return Step::Finished;
    }
    if !started {
        return if suspend { Step::Suspended } else { Step::Prepare };
    }
    let on_their_way = pods
        .iter()
        .any(|pod| pod.is_running(now) && pod.index.is_none_or(|i| !harvested.contains(&i)));
    let when_quiet = |ending| {
        if on_their_way {
            Step::Harvest(LOOK)
        } else {
            Step::Judge(ending)
        }
    };
    let Some(job) = job.filter(|job| !job.deleting) else {
        return when_quiet(Ending::JobDeleted);
    };
    let missing = (0..observed.workers).any(|index| !harvested.contains(&index));
    if let Some(ended) = job.ended {
        let passed = now.duration_since(ended);
        return if (missing && passed < HARVEST_PATIENCE) || (on_their_way && passed < PODS_PATIENCE) {
            Step::Harvest(LOOK)
        } else {
            Step::Judge(Ending::Ended)
        };
    }
    if job.suspended {
        return when_quiet(Ending::Stopped);
    }
    if suspend {
        return Step::Halt;
    }
    let age = now.duration_since(job.created);
    if age > job.active_deadline + JOB_PATIENCE {
        return Step::Judge(Ending::Overdue);
    }
    // The Job has decided to fail and waits for pods that may never answer again.
    if job.ending {
        return when_quiet(Ending::Ended);
    }
    if age > observed.start_deadline + START_SLACK && harvested.is_empty() && never_started(observed, now) {
        return Step::Judge(Ending::NotStarted);
    }
    Step::Watch
}

/// Whether the workers have missed their start: worker 0, who leads, is not there; or some have given up waiting.
fn never_started(observed: &Observed<'_>, now: Timestamp) -> bool {
    let leader = |pod: &&PodView| {
        pod.index == Some(0) && (pod.is_up() || pod.ended.is_some()) && !pod.is_given_up(now)
    };
    let gave_up = |pod: &PodView| {
        pod.ended
            .as_ref()
            .is_some_and(|ended| ended.exit_code == EXIT_NOT_STARTED)
    };
    observed.pods.iter().find(leader).is_none()
        || (!observed.start_known && observed.pods.iter().any(gave_up))
}

/// When to look again at a Job that runs, for a deadline of ours.
pub fn next_deadline(observed: &Observed<'_>, now: Timestamp) -> Option<Duration> {
    let job = observed.job?;
    let start = job
        .created
        .checked_add(observed.start_deadline + START_SLACK)
        .ok();
    let end = job.created.checked_add(job.active_deadline + JOB_PATIENCE).ok();
    let next = start
        .into_iter()
        .chain(end)
        .filter(|deadline| *deadline > now)
        .min()?;
    Duration::try_from(next.duration_since(now))
        .ok()
        .map(|left| left + Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use super::super::observe::tests::{at, ended, job, pod};
    use super::*;

    struct Case {
        job: Option<JobView>,
        pods: Vec<PodView>,
        harvested: &'static [u32],
        suspend: bool,
        start_known: bool,
        now: i64,
    }

    fn case() -> Case {
        Case {
            job: Some(job()),
            pods: vec![pod(0), pod(1)],
            harvested: &[],
            suspend: false,
            start_known: true,
            now: 10,
        }
    }

    fn step(case: &Case) -> Step {
        let harvested = case.harvested.iter().copied().collect();
        let observed = Observed {
            suspend: case.suspend,
            judged: false,
            started: true,
            start_known: case.start_known,
            workers: 2,
            start_deadline: SignedDuration::from_secs(180),
            job: case.job.as_ref(),
            pods: &case.pods,
            harvested: &harvested,
        };
        decide(&observed, at(case.now))
    }

    #[test]
    fn before_the_start() {
        let harvested = BTreeSet::new();
        let observed = |suspend, judged| Observed {
            suspend,
            judged,
            started: false,
            start_known: false,
            workers: 1,
            start_deadline: SignedDuration::from_secs(180),
            job: None,
            pods: &[],
            harvested: &harvested,
        };
        assert_eq!(decide(&observed(false, false), at(0)), Step::Prepare);
        assert_eq!(decide(&observed(true, false), at(0)), Step::Suspended);
        assert_eq!(decide(&observed(true, true), at(0)), Step::Finished);
    }

    /// One row per place where a run can be found, also by an operator that has just been started.
    #[test]
    fn after_the_start() {
        let running = case;
        let deleted = JobView {
            deleting: true,
            ..job()
        };
        let complete = JobView {
            ended: Some(at(100)),
            ..job()
        };
        let halted = JobView {
            suspended: true,
            ..job()
        };
        let failing = JobView {
            ending: true,
            ..job()
        };
        let done = || vec![ended(0, 0), ended(1, 0)];
        let mut lost = pod(1);
        lost.deletion = Some(at(50));
        for (what, case, expected) in [
            ("running", running(), Step::Watch),
            (
                "suspend is asked",
                Case {
                    suspend: true,
                    ..running()
                },
                Step::Halt,
            ),
            (
                "halted, pods stop",
                Case {
                    job: Some(halted.clone()),
                    ..running()
                },
                Step::Harvest(LOOK),
            ),
            (
                "halted, pods have stopped",
                Case {
                    job: Some(halted.clone()),
                    pods: vec![],
                    ..running()
                },
                Step::Judge(Ending::Stopped),
            ),
            (
                "halted and released again stays stopped",
                Case {
                    job: Some(halted),
                    pods: done(),
                    suspend: false,
                    ..running()
                },
                Step::Judge(Ending::Stopped),
            ),
            (
                "suspend comes after the end",
                Case {
                    job: Some(complete.clone()),
                    pods: done(),
                    harvested: &[0, 1],
                    suspend: true,
                    now: 101,
                    ..running()
                },
                Step::Judge(Ending::Ended),
            ),
            (
                "complete, all safe",
                Case {
                    job: Some(complete.clone()),
                    pods: done(),
                    harvested: &[0, 1],
                    now: 101,
                    ..running()
                },
                Step::Judge(Ending::Ended),
            ),
            (
                "complete, the pods' cache is behind",
                Case {
                    job: Some(complete.clone()),
                    harvested: &[0],
                    now: 101,
                    ..running()
                },
                Step::Harvest(LOOK),
            ),
            (
                "complete, a result does not come",
                Case {
                    job: Some(complete.clone()),
                    pods: done(),
                    harvested: &[0],
                    now: 110,
                    ..running()
                },
                Step::Judge(Ending::Ended),
            ),
            (
                "complete, a pod does not end",
                Case {
                    job: Some(complete.clone()),
                    harvested: &[0],
                    now: 159,
                    ..running()
                },
                Step::Harvest(LOOK),
            ),
            (
                "complete, a pod never ends",
                Case {
                    job: Some(complete),
                    harvested: &[0],
                    now: 160,
                    ..running()
                },
                Step::Judge(Ending::Ended),
            ),
            (
                "failing, a node is lost with its pod",
                Case {
                    job: Some(failing.clone()),
                    pods: vec![ended(0, 0), lost.clone()],
                    harvested: &[0],
                    now: 81,
                    ..running()
                },
                Step::Judge(Ending::Ended),
            ),
            (
                "failing, a pod is on its way out",
                Case {
                    job: Some(failing),
                    pods: vec![ended(0, 0), lost],
                    harvested: &[0],
                    now: 60,
                    ..running()
                },
                Step::Harvest(LOOK),
            ),
            (
                "the Job is gone",
                Case {
                    job: None,
                    pods: vec![],
                    ..running()
                },
                Step::Judge(Ending::JobDeleted),
            ),
            (
                "the Job goes, pods stop",
                Case {
                    job: Some(deleted),
                    ..running()
                },
                Step::Harvest(LOOK),
            ),
            (
                "no pod ever",
                Case {
                    pods: vec![],
                    start_known: false,
                    now: 211,
                    ..running()
                },
                Step::Judge(Ending::NotStarted),
            ),
            (
                "no pod yet",
                Case {
                    pods: vec![],
                    start_known: false,
                    now: 209,
                    ..running()
                },
                Step::Watch,
            ),
            (
                "worker 0 cannot start",
                Case {
                    pods: vec![PodView { up: false, ..pod(0) }, pod(1)],
                    start_known: false,
                    now: 211,
                    ..running()
                },
                Step::Judge(Ending::NotStarted),
            ),
            (
                "workers have given up",
                Case {
                    pods: vec![ended(0, 75), pod(0), pod(1)],
                    start_known: false,
                    now: 211,
                    ..running()
                },
                Step::Judge(Ending::NotStarted),
            ),
            (
                "a long run whose progress cannot be read",
                Case {
                    start_known: false,
                    now: 400,
                    ..running()
                },
                Step::Watch,
            ),
            (
                "a replaced worker in a run",
                Case {
                    pods: vec![ended(1, 75), pod(0), pod(1)],
                    now: 400,
                    ..running()
                },
                Step::Watch,
            ),
            (
                "a Job that never ends",
                Case {
                    now: 600 + 181,
                    ..running()
                },
                Step::Judge(Ending::Overdue),
            ),
        ] {
            assert_eq!(step(&case), expected, "{what}");
        }
    }

    #[test]
    fn deadlines_bring_a_visit() {
        let (job, harvested) = (job(), BTreeSet::new());
        let observed = Observed {
            suspend: false,
            judged: false,
            started: true,
            start_known: false,
            workers: 2,
            start_deadline: SignedDuration::from_secs(180),
            job: Some(&job),
            pods: &[],
            harvested: &harvested,
        };
        assert_eq!(next_deadline(&observed, at(10)), Some(Duration::from_secs(201)));
        assert_eq!(next_deadline(&observed, at(300)), Some(Duration::from_secs(481)));
        assert_eq!(next_deadline(&observed, at(800)), None);
    }
}
