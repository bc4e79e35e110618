//! Logs: text on a terminal, one JSON object a line elsewhere.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Starts logging to standard error. `filter` is in `tracing`'s directive syntax (`info`, `flotilla_agent=debug`);
/// one that cannot be parsed is replaced by `info`, and said so.
///
/// A second call in the same process changes nothing, so tests may call it too.
pub fn init_logging(filter: &str) {
    let parsed = EnvFilter::try_new(filter);
    let problem = parsed.as_ref().err().map(ToString::to_string);
    let filter = parsed.unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let started = if std::io::stderr().is_terminal() {
        builder.try_init().is_ok()
    } else {
        builder
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .try_init()
            .is_ok()
    };
    if let (true, Some(problem)) = (started, problem) {
        tracing::warn!(%problem, "the log filter could not be parsed, logging at level info");
    }
}

/// Logs `error` with everything that caused it.
pub fn log_error(error: &(dyn std::error::Error + 'static), message: &str) {
    let mut chain = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        chain.push_str(": ");
        chain.push_str(&cause.to_string());
        source = cause.source();
    }
    tracing::error!(error = %chain, "{message}");
}
