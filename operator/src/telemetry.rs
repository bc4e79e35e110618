//! Logs: JSON for machines, text for a person at a terminal, on stderr in both cases.

use std::io::IsTerminal as _;

use tracing_subscriber::filter::{EnvFilter, ParseError};

use crate::args::{LogArgs, LogFormat};

/// Starts logging for the whole process; a second call does nothing.
///
/// # Errors
/// When the filter does not parse.
pub fn init(args: &LogArgs) -> Result<(), ParseError> {
    let filter = EnvFilter::try_new(&args.log_level)?;
    let terminal = std::io::stderr().is_terminal();
    let format = args.log_format.unwrap_or(if terminal {
        LogFormat::Text
    } else {
        LogFormat::Json
    });
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false);
    // An error means that a subscriber is set already, by a test that calls this twice.
    let _ = match format {
        LogFormat::Text => builder.with_ansi(terminal).try_init(),
        LogFormat::Json => builder
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .try_init(),
    };
    Ok(())
}
