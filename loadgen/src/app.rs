//! The binary around [`run`]: flags, logs, signals, the termination message, the exit code.

use std::io::{self, IsTerminal};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use flotilla_core::load::plan::LoadPlan;
use flotilla_core::load::result::RunResult;
use flotilla_core::load::wire::MAX_MESSAGE_BYTES;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::args::{Args, Output};
use crate::report;
use crate::run::{RunError, Settings, run};

/// Stopped after the start; the result is partial.
const INTERRUPTED: u8 = 76;

/// Runs the worker that `args` describe, on a runtime of one thread.
pub fn main(args: Args) -> ExitCode {
    if let Err(error) = init_logging(&args.log) {
        eprintln!("--log {:?}: {error}", args.log);
        return ExitCode::from(64);
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "failed to start the runtime");
            return ExitCode::from(75);
        }
    };
    match runtime.block_on(Box::pin(work(&args))) {
        Ok(code) => code,
        Err((code, sentence)) => {
            tracing::error!(exit_code = code, "{sentence}");
            leave_message(&args.termination_log, &sentence);
            ExitCode::from(code)
        }
    }
}

fn init_logging(filter: &str) -> Result<(), tracing_subscriber::filter::ParseError> {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(filter)?)
        .with_writer(io::stderr);
    if io::stderr().is_terminal() {
        builder.init();
    } else {
        builder.json().init();
    }
    Ok(())
}

async fn work(args: &Args) -> Result<ExitCode, (u8, String)> {
    let plan = read_plan(&args.plan)?;
    let stop = stop_on_signals().map_err(|error| (75, format!("failed to watch for signals: {error}")))?;
    let settings = Settings {
        plan: plan.clone(),
        index: args.index,
        listen: args.listen,
        coordinator: args.coordinator.clone(),
        start_lead: Duration::from_millis(args.start_lead_milliseconds),
        samples: args.samples.clone(),
    };
    let result = run(settings, stop)
        .await
        .map_err(|error: RunError| (error.exit_code(), error.to_string()))?;
    leave_message(&args.termination_log, &result.to_message());
    let interrupted = result.interrupted;
    // Of one worker of several this shows its share, and the coverage says so.
    let merged = RunResult::merge(plan.workers.count, plan.requests(), plan.workload_id(), &[result]);
    let terminal = io::stdout().is_terminal();
    match args
        .output
        .unwrap_or(if terminal { Output::Text } else { Output::Json })
    {
        Output::Text => println!("{}", report::text(&plan, &merged)),
        Output::Json => println!("{}", report::json(&plan, &merged)),
        Output::None => {}
    }
    Ok(if interrupted {
        ExitCode::from(INTERRUPTED)
    } else {
        ExitCode::SUCCESS
    })
}

fn read_plan(path: &Path) -> Result<LoadPlan, (u8, String)> {
    let text = std::fs::read(path)
        .map_err(|error| (65, format!("failed to read the plan {}: {error}", path.display())))?;
    serde_json::from_slice(&text).map_err(|error| {
        (
            64,
            format!("failed to decode the plan {}: {error}", path.display()),
        )
    })
}

/// A token that SIGTERM (from kubelet) and SIGINT (from a keyboard) cancel.
fn stop_on_signals() -> io::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let token = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        token.cancel();
    });
    Ok(stop)
}

/// Writes `message` to the file that kubelet made for it. Elsewhere there is none, and nothing is written.
fn leave_message(path: &Path, message: &str) {
    if !path.exists() {
        return;
    }
    let cut = message
        .char_indices()
        .map(|(at, c)| at + c.len_utf8())
        .take_while(|end| *end <= MAX_MESSAGE_BYTES)
        .last();
    if let Err(error) = std::fs::write(path, &message[..cut.unwrap_or(0)]) {
        tracing::error!(path = %path.display(), %error, "failed to leave the termination message");
    }
}
