//! Logs: JSON for machines, text for a person at a terminal, on stderr in both cases.

use std::io::IsTerminal as _;

use tracing_subscriber::filter::{EnvFilter, ParseError};

use crate::args::{LogArgs, LogFormat};

/// Starts logging for the whole process; a second call does nothing. Panics go to the log as well: the runtime catches
/// those of a reconcile, and a bare backtrace on stderr would break a log of JSON lines.
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
    std::panic::set_hook(Box::new(|panic| {
        let location = panic.location().map(ToString::to_string);
        tracing::error!(location, panic = panic_text(panic.payload()), "panic");
    }));
    Ok(())
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}
