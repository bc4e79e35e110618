//! The binary as a Job runs it: exit codes, termination messages, signals, a worker that is killed.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod common;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use common::{Target, constant_rate, free_address, plan};
use flotilla_core::load::plan::LoadPlan;
use flotilla_core::load::result::RunResult;
use flotilla_core::load::verdict::{Thresholds, Validity, Verdict, judge};
use flotilla_core::load::wire::{MAX_MESSAGE_BYTES, Progress, RunState, WorkerResult};

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("flotilla-loadgen-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Pod {
    child: Child,
    message: PathBuf,
}

impl Pod {
    fn start(folder: &Folder, plan: &Path, index: u32, coordinator: SocketAddr) -> Self {
        let message = folder.file(&format!("message-{index}"), "");
        let child = Command::new(env!("CARGO_BIN_EXE_flotilla-loadgen"))
            .args([
                "--plan".as_ref(),
                plan.as_os_str(),
                "--termination-log".as_ref(),
                message.as_os_str(),
            ])
            .args([
                "--listen",
                &coordinator.to_string(),
                "--start-lead-milliseconds",
                "700",
            ])
            .env("JOB_COMPLETION_INDEX", index.to_string())
            .env("FLOTILLA_COORDINATOR", coordinator.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, message }
    }

    fn signal(&self, signal: &str) {
        let status = Command::new("kill")
            .args([signal, &self.child.id().to_string()])
            .status()
            .unwrap();
        assert!(status.success());
    }

    /// The exit status and the termination message.
    fn wait(mut self) -> (ExitStatus, String) {
        let status = self.child.wait().unwrap();
        (status, std::fs::read_to_string(&self.message).unwrap())
    }
}

fn write_plan(folder: &Folder, plan: &LoadPlan) -> PathBuf {
    folder.file("plan.json", &serde_json::to_string(plan).unwrap())
}

/// Waits until the target has had `count` requests.
fn wait_for(target: &Target, count: usize) {
    let give_up = Instant::now() + Duration::from_secs(30);
    while target.received().len() < count {
        assert!(
            Instant::now() < give_up,
            "the target has had {} requests",
            target.received().len()
        );
        #[allow(clippy::disallowed_methods, reason = "a test's own thread")]
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn judged(plan: &LoadPlan, messages: &[String]) -> (RunResult, Verdict) {
    let results: Vec<WorkerResult> = messages
        .iter()
        .filter_map(|message| WorkerResult::from_message(message).ok())
        .collect();
    let run = RunResult::merge(plan.workers.count, plan.requests(), plan.workload_id(), &results);
    let lax = Thresholds {
        failed_percent: Some("100".to_owned()),
        ..Thresholds::default()
    };
    let validity = Validity {
        min_coverage_percent: plan.workers.min_coverage_percent,
        stopped: false,
    };
    let verdict = judge(&run, &lax, &validity).verdict;
    (run, verdict)
}

/// A killed worker leaves no message: less coverage, and an Invalid run even where any failure would be allowed.
#[test]
fn a_killed_worker_makes_the_run_invalid() {
    let (target, folder) = (Target::echo(), Folder::new("killed"));
    let plan = plan(
        &target,
        2,
        serde_json::json!([constant_rate("100", 3, "Uniform")]),
    );
    let (path, coordinator) = (write_plan(&folder, &plan), free_address());
    let (survivor, victim) = (
        Pod::start(&folder, &path, 0, coordinator),
        Pod::start(&folder, &path, 1, coordinator),
    );
    wait_for(&target, 60);
    victim.signal("-KILL");
    let (killed, nothing) = victim.wait();
    let (status, message) = survivor.wait();
    assert!(!killed.success() && nothing.is_empty());
    assert!(status.success() && message.len() <= MAX_MESSAGE_BYTES);
    let (run, verdict) = judged(&plan, &[message, nothing]);
    assert_eq!((verdict, run.reported), (Verdict::Invalid, 1));
    assert_eq!(run.coverage_percent().to_string(), "50");
}

/// SIGTERM after the start leaves a partial result within 5 s and exit code 76; before it, 75 and no result.
#[test]
fn a_terminated_worker_leaves_what_it_has() {
    let (target, folder) = (Target::echo(), Folder::new("terminated"));
    let one = plan(
        &target,
        1,
        serde_json::json!([constant_rate("100", 60, "Poisson")]),
    );
    let path = write_plan(&folder, &one);
    let pod = Pod::start(&folder, &path, 0, free_address());
    wait_for(&target, 30);
    let asked = Instant::now();
    pod.signal("-TERM");
    let (status, message) = pod.wait();
    assert!(asked.elapsed() < Duration::from_secs(5));
    assert_eq!(status.code(), Some(76));
    let result = WorkerResult::from_message(&message).unwrap();
    assert!(result.interrupted && result.stages[0].done >= 30);
    assert_eq!(judged(&one, &[message]).1, Verdict::Invalid);

    let two = plan(
        &target,
        2,
        serde_json::json!([constant_rate("100", 60, "Poisson")]),
    );
    let path = write_plan(&folder, &two);
    let coordinator = free_address();
    let pod = Pod::start(&folder, &path, 0, coordinator);
    let give_up = Instant::now() + Duration::from_secs(30);
    while std::net::TcpStream::connect(coordinator).is_err() {
        assert!(Instant::now() < give_up);
    }
    pod.signal("-TERM");
    let (status, message) = pod.wait();
    assert_eq!(status.code(), Some(75));
    assert_eq!(message, "stopped before the start");
}

/// Whoever misses the deadline is gone without, if the others can reach the coverage; else nobody starts.
#[test]
fn too_few_workers_give_up_at_the_deadline() {
    let (target, folder) = (Target::echo(), Folder::new("deadline"));
    let mut plan = plan(&target, 2, serde_json::json!([constant_rate("20", 1, "Uniform")]));
    plan.workers.start_deadline_seconds = 1;
    let path = write_plan(&folder, &plan);
    let (status, message) = Pod::start(&folder, &path, 0, free_address()).wait();
    assert_eq!(
        (status.code(), message.as_str()),
        (Some(75), "too few workers came before the start deadline")
    );
    assert!(target.received().is_empty());

    plan.workers.min_coverage_percent = 50;
    let path = write_plan(&folder, &plan);
    let (status, message) = Pod::start(&folder, &path, 0, free_address()).wait();
    assert!(status.success());
    assert_eq!(judged(&plan, &[message]).0.coverage_percent().to_string(), "50");
}

/// A worker that comes after the start sends what is still due, and what it missed is missing coverage.
#[test]
fn a_late_worker_joins_at_the_present_position() {
    let (target, folder) = (Target::echo(), Folder::new("late"));
    let mut plan = plan(
        &target,
        2,
        serde_json::json!([constant_rate("100", 6, "Uniform")]),
    );
    plan.workers.start_deadline_seconds = 1;
    plan.workers.min_coverage_percent = 50;
    let (path, coordinator) = (write_plan(&folder, &plan), free_address());
    let first = Pod::start(&folder, &path, 0, coordinator);
    wait_for(&target, 50);
    let late = Pod::start(&folder, &path, 1, coordinator);
    let ((_, first), (status, late)) = (first.wait(), late.wait());
    assert!(status.success());
    let missed = WorkerResult::from_message(&late).unwrap();
    assert!(
        missed.stages[0].started > 0 && missed.stages[0].started + 40 < missed.stages[0].planned,
        "{:?}",
        missed.stages
    );
    let (run, verdict) = judged(&plan, &[first, late]);
    assert_eq!(run.reported, 2);
    assert!(
        verdict == Verdict::Passed || verdict == Verdict::Invalid,
        "{verdict:?}"
    );
    let offsets = target.received();
    let mut indices: Vec<&str> = offsets.iter().map(|received| received.index.as_str()).collect();
    indices.sort_unstable();
    assert!(
        indices.windows(2).all(|pair| pair[0] != pair[1]),
        "a request was sent twice"
    );
}

#[test]
fn the_operator_reads_merged_progress() {
    let (target, folder) = (Target::echo(), Folder::new("progress"));
    let plan = plan(
        &target,
        2,
        serde_json::json!([constant_rate("100", 4, "Uniform")]),
    );
    let (path, coordinator) = (write_plan(&folder, &plan), free_address());
    let pods = [
        Pod::start(&folder, &path, 0, coordinator),
        Pod::start(&folder, &path, 1, coordinator),
    ];
    wait_for(&target, 250);
    let progress = get_progress(coordinator);
    assert_eq!(
        (progress.state, progress.workers_desired, progress.workers_ready),
        (RunState::Running, 2, 2)
    );
    assert_eq!((progress.planned, progress.stage.as_str()), (400, "steady"));
    assert!(
        progress.done > 50 && progress.done < 400 && progress.start_time.is_some(),
        "{progress:?}"
    );
    let messages: Vec<String> = pods.map(|pod| pod.wait().1).to_vec();
    let run = judged(&plan, &messages).0;
    assert_eq!((run.reported, run.totals().done), (2, 400));
    assert!(
        run.start_skew_microseconds < 100_000,
        "{} us",
        run.start_skew_microseconds
    );
}

fn get_progress(coordinator: SocketAddr) -> Progress {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(coordinator).unwrap();
    stream
        .write_all(b"GET /progress HTTP/1.1\r\nhost: c\r\nconnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
}

#[test]
fn bad_input_has_an_exit_code_and_a_sentence() {
    let (target, folder) = (Target::echo(), Folder::new("input"));
    let coordinator = free_address();
    let (status, message) = Pod::start(&folder, Path::new("/no/plan.json"), 0, coordinator).wait();
    assert_eq!(status.code(), Some(65));
    assert!(message.starts_with("failed to read the plan"), "{message}");

    let broken = folder.file("broken.json", "{\"name\": 1}");
    let (status, message) = Pod::start(&folder, &broken, 0, coordinator).wait();
    assert_eq!(status.code(), Some(64));
    assert!(message.starts_with("failed to decode the plan"), "{message}");

    let mut plan = plan(&target, 1, serde_json::json!([constant_rate("0", 1, "Uniform")]));
    plan.scenarios[0].prompt = "{{nothing}}".to_owned();
    let (status, message) = Pod::start(&folder, &write_plan(&folder, &plan), 0, coordinator).wait();
    assert_eq!(status.code(), Some(64));
    assert!(
        message.contains("known are: order") && message.contains("write a rate"),
        "{message}"
    );

    let (status, _) = Pod::start(&folder, &write_plan(&folder, &plan), 5, coordinator).wait();
    assert_eq!(status.code(), Some(64));
}
