//! From the workers' messages to the verdict, the summary and the result ConfigMap.

use std::collections::BTreeMap;

use flotilla_core::load::result::{LatencySummary, Price, RunResult};
use flotilla_core::load::verdict::{Judgement, Validity, Verdict, judge};
use flotilla_core::load::wire::WorkerResult;
use flotilla_crds::LoadTestSpec;
use flotilla_crds::load_test as api;
use serde_json::{Value, json};

use super::observe::{JobView, PodView};
use super::plan;
use super::state::Ending;
use crate::waiting::Trouble;

/// Complaints of pods that are put into a message; the rest is counted.
const MAX_COMPLAINTS: usize = 3;

/// A run, judged.
#[derive(Clone, Debug)]
pub struct Report {
    /// The merged result.
    pub run: RunResult,
    /// The verdict.
    pub judgement: Judgement,
    /// What the tokens cost is in it, where it is known.
    pub summary: flotilla_core::load::result::Summary,
}

/// What is known of a run that has ended.
pub struct Evidence<'a> {
    /// The test.
    pub spec: &'a LoadTestSpec,
    /// Hash of the plan's workload.
    pub workload: &'a str,
    /// Each worker's message.
    pub messages: &'a BTreeMap<u32, String>,
    /// How it ended.
    pub ending: Ending,
    /// The Job, if it is still there.
    pub job: Option<&'a JobView>,
    /// Its pods.
    pub pods: &'a [PodView],
    /// Why the API server refuses worker pods, if it does.
    pub refused: Option<&'a Trouble>,
    /// Price of the target's tokens.
    pub price: Option<&'a Price>,
}

/// Merges and judges.
pub fn report(evidence: &Evidence<'_>) -> Report {
    let Evidence {
        spec,
        workload,
        messages,
        ending,
        price,
        ..
    } = evidence;
    let workers = u32::try_from(spec.workers.count).unwrap_or_default();
    // A message that cannot be read is a result that is missing.
    let results: Vec<WorkerResult> = messages
        .values()
        .filter_map(|message| WorkerResult::from_message(message).ok())
        .collect();
    let run = RunResult::merge(workers, plan::planned(spec), workload_id(workload), &results);
    let validity = Validity {
        min_coverage_percent: u32::try_from(spec.workers.min_coverage_percent).unwrap_or(100),
        stopped: *ending == Ending::Stopped,
    };
    let mut judgement = judge(&run, &plan::thresholds(spec), &validity);
    // Whoever ended it: with every worker's result there is nothing to complain about.
    let is_whole = run.reported == workers && run.interrupted == 0;
    if !is_whole || judgement.verdict == Verdict::Invalid {
        explain(&mut judgement, evidence, is_whole);
    }
    let summary = run.summary(*price);
    Report {
        run,
        judgement,
        summary,
    }
}

/// Says why results are missing; an ending that is itself the reason takes the verdict's reason.
fn explain(judgement: &mut Judgement, evidence: &Evidence<'_>, is_whole: bool) {
    let invalid = |judgement: &mut Judgement, reason: &str, message: String| {
        judgement.verdict = Verdict::Invalid;
        reason.clone_into(&mut judgement.reason);
        judgement.message = message;
    };
    match evidence.ending {
        Ending::NotStarted => {
            let trouble = evidence
                .refused
                .or_else(|| evidence.pods.iter().find_map(|pod| pod.trouble.as_ref()));
            let deadline = evidence.spec.workers.start_deadline_seconds;
            let late = format!("the workers did not start within {deadline} s");
            let message = match (trouble, complaints(evidence.pods)) {
                (Some(trouble), _) => format!("{late}: {}", trouble.message),
                (None, Some(complaints)) => format!("{late}: {complaints}"),
                (None, None) => {
                    format!("{late}: no pod was made or scheduled; look at the events of the Job")
                }
            };
            let reason = trouble.map_or("WorkersNotStarted", |trouble| trouble.reason);
            invalid(
                judgement,
                reason,
                format!("{message}; mend it and create a new LoadTest"),
            );
        }
        Ending::JobDeleted if !is_whole => {
            let message = "the Job was deleted by somebody before all workers had left their results; create a new LoadTest";
            invalid(judgement, "JobDeleted", message.to_owned());
        }
        Ending::Overdue if !is_whole => {
            let message =
                "the Job did not end in time, most likely because a node was lost; create a new LoadTest";
            invalid(judgement, "Overdue", message.to_owned());
        }
        Ending::Ended | Ending::Stopped | Ending::JobDeleted | Ending::Overdue => {}
    }
    let failure = evidence.job.and_then(|job| job.failure.clone());
    let why: Vec<String> = complaints(evidence.pods)
        .into_iter()
        .chain(failure.map(|failure| format!("Job {failure}")))
        .collect();
    let already_said = evidence.ending == Ending::NotStarted || judgement.verdict != Verdict::Invalid;
    if !already_said && !why.is_empty() {
        judgement.message = format!("{} ({})", judgement.message, why.join("; "));
    }
}

fn complaints(pods: &[PodView]) -> Option<String> {
    let all: Vec<String> = pods.iter().filter_map(PodView::complaint).collect();
    let (first, rest) = all.split_at(all.len().min(MAX_COMPLAINTS));
    let more = if rest.is_empty() {
        String::new()
    } else {
        format!(" and {} more", rest.len())
    };
    (!first.is_empty()).then(|| format!("{}{more}", first.join("; ")))
}

/// The number that workers put into their messages; see `LoadPlan::workload_id`.
fn workload_id(workload: &str) -> u64 {
    let hex = workload.strip_prefix("sha256:").and_then(|hex| hex.get(..16));
    hex.and_then(|hex| u64::from_str_radix(hex, 16).ok())
        .unwrap_or_default()
}

impl Report {
    /// The verdict in the API's words.
    pub fn verdict(&self) -> api::Verdict {
        verdict_of(self.judgement.verdict)
    }

    /// `status.workers` at the end.
    pub fn workers(&self, spec: &LoadTestSpec) -> api::WorkersStatus {
        let run = &self.run;
        api::WorkersStatus {
            desired: spec.workers.count,
            ready: 0,
            succeeded: i32::try_from(run.reported.saturating_sub(run.interrupted)).unwrap_or(i32::MAX),
            start_skew_milliseconds: (run.reported > 0)
                .then(|| count(run.start_skew_microseconds.div_ceil(1000))),
            coverage_percent: Some(format!("{:.2}", run.coverage_percent())),
        }
    }

    /// `status.progress` at the end.
    pub fn progress(&self, spec: &LoadTestSpec) -> api::ProgressStatus {
        let totals = self.run.totals();
        let seconds = plan::seconds(spec).max(1);
        let tenths = u128::from(totals.started) * 10 / u128::from(seconds);
        api::ProgressStatus {
            stage: None,
            percent: percent(totals.done, self.run.planned),
            planned: count(self.run.planned),
            started: count(totals.started),
            done: count(totals.done),
            failed: count(totals.failed),
            in_flight: 0,
            per_second: Some(format!("{}.{}", tenths / 10, tenths % 10)),
        }
    }

    /// `status.summary`; `None` when nothing was measured.
    pub fn summary(&self) -> Option<api::Summary> {
        let summary = &self.summary;
        (self.run.reported > 0).then(|| api::Summary {
            requests: api::RequestCounts {
                total: count(summary.requests.total),
                succeeded: count(summary.requests.succeeded),
                failed: count(summary.requests.failed),
            },
            errors: summary
                .errors
                .iter()
                .map(|error| api::ErrorCount {
                    category: error.category.as_str().to_owned(),
                    count: count(error.count),
                })
                .collect(),
            latency: summary.latency.as_ref().map(latency_of),
            service_time: summary.service_time.as_ref().map(latency_of),
            first_token: summary.first_token.as_ref().map(latency_of),
            inter_token_gap: summary.inter_token_gap.as_ref().map(latency_of),
            tokens: summary.tokens.as_ref().map(|tokens| api::TokenCounts {
                input: count(tokens.input),
                output: count(tokens.output),
            }),
            cost: summary.cost.as_ref().map(|cost| api::Cost {
                total: cost.total.clone(),
                currency: cost.currency.clone(),
            }),
        })
    }

    /// `status.thresholds`.
    pub fn thresholds(&self) -> Vec<api::ThresholdStatus> {
        let results = self.judgement.thresholds.iter();
        results
            .map(|result| api::ThresholdStatus {
                name: result.name.clone(),
                verdict: verdict_of(result.verdict),
                observed: result.observed.clone(),
                limit: result.limit.clone(),
                misses: count(result.misses),
                samples: count(result.samples),
                message: crate::runtime::conditions::truncate(&result.message, 1024).to_owned(),
            })
            .collect()
    }

    /// What the result ConfigMap keeps: two of these can be compared.
    pub fn result(&self, spec: &LoadTestSpec, workload: &str) -> Value {
        let Report {
            run,
            judgement,
            summary,
        } = self;
        let stages: Vec<Value> = spec
            .stages
            .iter()
            .zip(run.stages.iter())
            .map(|(stage, counts)| {
                json!({
                    "name": stage.name,
                    "planned": counts.planned,
                    "started": counts.started,
                    "done": counts.done,
                    "failed": counts.failed,
                })
            })
            .collect();
        let series = &run.series;
        json!({
            "version": 1,
            "workload": workload,
            "verdict": judgement.verdict,
            "reason": judgement.reason,
            "message": judgement.message,
            "thresholds": judgement.thresholds,
            "workers": {"desired": run.workers, "reported": run.reported, "interrupted": run.interrupted},
            "planned": run.planned,
            "stages": stages,
            "summary": summary,
            "histograms": {
                "latency": series.latency,
                "firstToken": series.first_token,
                "serviceTime": series.service,
                "interTokenGap": series.inter_token_gap,
                "lateness": series.lateness,
                "queueDelay": series.queue_delay,
            },
        })
    }
}

fn verdict_of(verdict: Verdict) -> api::Verdict {
    match verdict {
        Verdict::Passed => api::Verdict::Passed,
        Verdict::Inconclusive => api::Verdict::Inconclusive,
        Verdict::Failed => api::Verdict::Failed,
        Verdict::Invalid => api::Verdict::Invalid,
    }
}

fn latency_of(summary: &LatencySummary) -> api::LatencySummary {
    let LatencySummary {
        p50_milliseconds,
        p90_milliseconds,
        p95_milliseconds,
        p99_milliseconds,
        max_milliseconds,
    } = *summary;
    api::LatencySummary {
        p50_milliseconds,
        p90_milliseconds,
        p95_milliseconds,
        p99_milliseconds,
        max_milliseconds,
    }
}

/// Whole percent, rounded down, so that 100 means all.
pub fn percent(part: u64, whole: u64) -> i32 {
    let percent = u128::from(part.min(whole)) * 100 / u128::from(whole.max(1));
    i32::try_from(percent).unwrap_or(100)
}

/// A count in the API's numbers.
pub fn count(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use flotilla_core::load::result::{Series, StageCounts, Tokens};

    use super::super::build::tests::load_test;
    use super::super::observe::tests::{ended, job, pod};
    use super::*;

    const WORKLOAD: &str = "sha256:0000000000000007ffffffffffffffff";

    /// The message of a worker that did its half of the 300 requests in 1 s each.
    fn message(index: u32, done: u64) -> String {
        WorkerResult {
            index,
            workers: 2,
            attempt: 1,
            workload: 7,
            start_skew_microseconds: 1500,
            stages: vec![StageCounts {
                planned: 150,
                started: done,
                done,
                failed: 0,
            }],
            tokens: Tokens {
                input: 1_000_000,
                output: 500_000,
                reported: done,
            },
            series: Series {
                latency: (0..done).map(|_| 1_000_000).collect(),
                lateness: (0..done).map(|_| 10).collect(),
                ..Series::default()
            },
            ..WorkerResult::default()
        }
        .to_message()
    }

    fn judged(
        messages: &[(u32, String)],
        ending: Ending,
        pods: &[PodView],
        refused: Option<&Trouble>,
    ) -> Report {
        let test = load_test();
        let job = JobView {
            failure: Some("BackoffLimitExceeded: too many".into()),
            ..job()
        };
        report(&Evidence {
            spec: &test.spec,
            workload: WORKLOAD,
            messages: &messages.iter().cloned().collect(),
            ending,
            job: Some(&job),
            pods,
            refused,
            price: Price::parse("USD", "0.25", "2.00").ok().as_ref(),
        })
    }

    #[test]
    fn a_whole_run_is_judged_whoever_ended_it() {
        let whole = [(0, message(0, 150)), (1, message(1, 150))];
        for ending in [Ending::Ended, Ending::JobDeleted, Ending::Overdue] {
            let report = judged(&whole, ending, &[], None);
            assert_eq!(
                (report.judgement.verdict, report.judgement.reason.as_str()),
                (Verdict::Passed, "ThresholdsMet")
            );
        }
        let report = judged(&whole, Ending::Ended, &[], None);
        let test = load_test();
        let (workers, progress) = (report.workers(&test.spec), report.progress(&test.spec));
        assert_eq!(
            (
                workers.succeeded,
                workers.coverage_percent.as_deref(),
                workers.start_skew_milliseconds
            ),
            (2, Some("100.00"), Some(2))
        );
        assert_eq!(
            (progress.percent, progress.done, progress.per_second.as_deref()),
            (100, 300, Some("5.0"))
        );
        let summary = report.summary().unwrap();
        assert_eq!(summary.latency.unwrap().p95_milliseconds, 1000);
        assert_eq!(
            summary.tokens.unwrap(),
            api::TokenCounts {
                input: 2_000_000,
                output: 1_000_000
            }
        );
        assert_eq!(
            summary.cost.unwrap(),
            api::Cost {
                total: "2.50".into(),
                currency: "USD".into()
            }
        );
        assert_eq!(report.thresholds()[0].name, "p95");
        let result = report.result(&test.spec, WORKLOAD);
        assert_eq!(
            (&result["stages"][0]["name"], &result["verdict"]),
            (&json!("steady"), &json!("Passed"))
        );
        assert!(result["histograms"]["latency"].is_string() || result["histograms"]["latency"].is_object());
    }

    #[test]
    fn nothing_that_is_missing_ever_passes() {
        let one = [(0, message(0, 150))];
        let broken = [(0, message(0, 150)), (1, "lt1:broken".to_owned())];
        for (what, messages, ending, pods, reason, part) in [
            (
                "a worker is lost",
                &one[..],
                Ending::Ended,
                vec![ended(1, 137)],
                "CoverageTooLow",
                "worker 1 ended with exit code 137",
            ),
            (
                "a message is broken",
                &broken[..],
                Ending::Ended,
                vec![],
                "CoverageTooLow",
                "BackoffLimitExceeded",
            ),
            (
                "stopped",
                &one[..],
                Ending::Stopped,
                vec![],
                "Stopped",
                "stopped before its end",
            ),
            (
                "the Job was deleted",
                &one[..],
                Ending::JobDeleted,
                vec![],
                "JobDeleted",
                "deleted by somebody",
            ),
            (
                "a node was lost",
                &one[..],
                Ending::Overdue,
                vec![],
                "Overdue",
                "node was lost",
            ),
            (
                "nobody came",
                &[][..],
                Ending::NotStarted,
                vec![],
                "WorkersNotStarted",
                "did not start within 180 s",
            ),
            (
                "some gave up",
                &[][..],
                Ending::NotStarted,
                vec![ended(1, 75)],
                "WorkersNotStarted",
                "exit code 75",
            ),
            (
                "nothing at all",
                &[][..],
                Ending::Ended,
                vec![],
                "CoverageTooLow",
                "0 of 300",
            ),
        ] {
            let report = judged(messages, ending, &pods, None);
            assert_eq!(
                (report.judgement.verdict, report.judgement.reason.as_str()),
                (Verdict::Invalid, reason),
                "{what}"
            );
            assert!(
                report.judgement.message.contains(part),
                "{what}: {}",
                report.judgement.message
            );
        }
    }

    #[test]
    fn the_nearest_cause_names_the_reason() {
        let quota = Trouble {
            reason: "QuotaExceeded",
            message: "exceeded quota: none".into(),
        };
        let image = Trouble {
            reason: "ImagePull",
            message: "image x: not found".into(),
        };
        let stuck = PodView {
            up: false,
            trouble: Some(image),
            ..pod(0)
        };
        let report = judged(&[], Ending::NotStarted, &[stuck], None);
        assert_eq!(report.judgement.reason, "ImagePull");
        let report = judged(&[], Ending::NotStarted, &[], Some(&quota));
        assert_eq!(report.judgement.reason, "QuotaExceeded");
        assert!(
            report.judgement.message.contains("exceeded quota: none; mend it"),
            "{}",
            report.judgement.message
        );
        assert!(report.summary().is_none());
    }

    #[test]
    fn many_complaints_are_counted() {
        let pods: Vec<PodView> = (0..5).map(|index| ended(index, 64)).collect();
        assert!(complaints(&pods).unwrap().ends_with("and 2 more"));
        assert_eq!(complaints(&[pod(0)]), None);
    }

    #[test]
    fn percent_is_rounded_down_and_bounded() {
        assert_eq!((percent(0, 0), percent(999, 1000), percent(5, 4)), (0, 99, 100));
    }
}
