//! Running the machine's programs and waiting, without a shell.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Folders looked through after `PATH`: a user's `PATH` often lacks the administrator's.
const MORE_FOLDERS: [&str; 6] = [
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
];

/// The search path for our own look-ups and for every component.
pub fn search_path() -> String {
    let mut path = std::env::var("PATH").unwrap_or_default();
    for folder in MORE_FOLDERS {
        if !path.split(':').any(|have| have == folder) {
            if !path.is_empty() {
                path.push(':');
            }
            path.push_str(folder);
        }
    }
    path
}

/// The first executable file called `program` on the search path.
pub fn find(program: &str) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    search_path()
        .split(':')
        .map(|folder| Path::new(folder).join(program))
        .find(|file| {
            file.metadata()
                .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        })
}

/// Runs a program to its end and gives its standard output.
///
/// # Errors
/// When it cannot be started or fails; the message holds the command and what it wrote to standard error.
pub fn run(program: impl AsRef<Path>, arguments: &[&str]) -> Result<String> {
    run_with_input(program, arguments, None)
}

/// As [`run`], with text for its standard input.
///
/// # Errors
/// As [`run`].
pub fn run_with_input(program: impl AsRef<Path>, arguments: &[&str], input: Option<&str>) -> Result<String> {
    let program = program.as_ref();
    let output = output(program, arguments, input)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!(
            "`{} {}` failed ({}): {}",
            program.display(),
            arguments.join(" "),
            output.status,
            said.trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn output(program: &Path, arguments: &[&str], input: Option<&str>) -> Result<Output> {
    let started = || format!("failed to run `{}`", program.display());
    let mut child = Command::new(program)
        .args(arguments)
        .env("PATH", search_path())
        .env("LC_ALL", "C")
        .stdin(if input.is_some() {
            Stdio::piped()
        } else {
            Stdio::null()
        })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(started)?;
    if let (Some(text), Some(mut stdin)) = (input, child.stdin.take()) {
        // A program that ends without reading its input says why on standard error, which is reported below.
        let _ = stdin.write_all(text.as_bytes());
    }
    child.wait_with_output().with_context(started)
}

/// Sleeps. This program has no async runtime whose worker a sleep could block.
#[allow(clippy::disallowed_methods)]
pub fn pause(duration: Duration) {
    std::thread::sleep(duration);
}

/// The last `count` lines of a file, or nothing when it cannot be read.
pub fn tail(file: &Path, count: usize) -> Vec<String> {
    use std::io::{Read, Seek, SeekFrom};
    /// Enough for any `count` used here; a component's log may be hundreds of megabytes.
    const WINDOW: u64 = 256 * 1024;
    let read = || -> std::io::Result<Vec<u8>> {
        let mut handle = std::fs::File::open(file)?;
        let length = handle.metadata()?.len();
        handle.seek(SeekFrom::Start(length.saturating_sub(WINDOW)))?;
        let mut bytes = Vec::new();
        handle.take(WINDOW).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines
        .iter()
        .skip(lines.len().saturating_sub(count))
        .map(|line| (*line).to_owned())
        .collect()
}

/// Writes a file that is either whole or absent, with the given permission bits.
///
/// # Errors
/// When the folder cannot be written.
pub fn write_atomically(file: &Path, content: &[u8], mode: u32) -> Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let failed = || format!("failed to write {}", file.display());
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder).with_context(failed)?;
    }
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(format!(".tmp-{}", std::process::id()));
    let temporary = file.with_file_name(name);
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(mode);
    options
        .open(&temporary)
        .and_then(|mut handle| handle.write_all(content))
        .with_context(failed)?;
    std::fs::rename(&temporary, file).with_context(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_the_last_lines() {
        let file = std::env::temp_dir().join(format!("flotilla-tail-{}", std::process::id()));
        std::fs::write(&file, "one\ntwo\nthree\n").unwrap();
        assert_eq!(tail(&file, 2), ["two", "three"]);
        assert_eq!(tail(&file, 9).len(), 3);
        std::fs::remove_file(&file).unwrap();
        assert!(tail(&file, 2).is_empty());
    }

    #[test]
    fn a_failed_command_says_what_it_said() {
        let error = run("ls", &["/nowhere-at-all"]).unwrap_err().to_string();
        assert!(error.contains("/nowhere-at-all"), "{error}");
        assert!(error.contains("No such file"), "{error}");
    }
}
