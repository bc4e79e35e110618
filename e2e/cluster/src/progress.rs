//! Lines that say what happens, each with the seconds since the start.

use std::io::Write;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How often a long step reports that it is alive.
const HEARTBEAT: Duration = Duration::from_secs(20);

/// Writes progress lines to standard output. Cheap to copy; all copies share the start.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    start: Instant,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            start: Instant::now(),
        }
    }
}

impl Progress {
    /// One line. A closed standard output is no reason to stop half-way.
    pub fn say(&self, text: impl std::fmt::Display) {
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "[{:6.1} s] {text}", self.start.elapsed().as_secs_f64());
        let _ = out.flush();
    }

    /// Time since the start.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Runs a long step with a line when it starts, one every 20 s while it lasts, and one when it is done.
    ///
    /// # Errors
    /// Those of the step.
    pub fn long<T>(&self, what: &str, step: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        self.say(format_args!("{what} ..."));
        let begun = Instant::now();
        let (done, waiting) = mpsc::channel::<()>();
        let result = std::thread::scope(|scope| {
            scope.spawn(move || {
                while let Err(mpsc::RecvTimeoutError::Timeout) = waiting.recv_timeout(HEARTBEAT) {
                    self.say(format_args!("{what} ... {} s", begun.elapsed().as_secs()));
                }
            });
            let result = step();
            drop(done);
            result
        });
        if result.is_ok() {
            self.say(format_args!(
                "{what}: done in {:.1} s",
                begun.elapsed().as_secs_f64()
            ));
        }
        result
    }
}
