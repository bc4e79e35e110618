//! Child processes, and what they cost.

use anyhow::{Context as _, Result, anyhow, bail};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// A child process with all its descendants. It ends when this is dropped, or when the benchmark dies.
pub struct Child {
    process: std::process::Child,
    name: String,
    log: PathBuf,
}

/// What is started.
pub struct Start<'a> {
    /// For messages, and the name of the log file.
    pub name: &'a str,
    /// The program.
    pub program: &'a Path,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Added to an environment that is otherwise the benchmark's own.
    pub environment: Vec<(&'static str, String)>,
    /// The cores that it may use, as `taskset -c` takes them.
    pub cores: String,
    /// Where its output goes.
    pub folder: &'a Path,
}

impl Start<'_> {
    /// Starts it. To be called on the main thread: the child ends with the thread that started it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(self) -> Result<Child> {
        let log = self.folder.join(format!("{}.log", self.name));
        let output = File::create(&log).with_context(|| format!("failed to write {}", log.display()))?;
        // Both replace themselves by the program, so the child's id is the program's.
        let process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "taskset", "-c", &self.cores])
            .arg(self.program)
            .args(self.arguments)
            .envs(self.environment)
            .current_dir(self.folder)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("failed to start setpriv (of the package util-linux)")?;
        Ok(Child {
            process,
            name: self.name.to_owned(),
            log,
        })
    }
}

impl Child {
    /// Process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Still runs.
    ///
    /// # Errors
    /// When it does not, with the end of what it printed.
    pub fn check(&mut self) -> Result<()> {
        match self.process.try_wait()? {
            None => Ok(()),
            Some(status) => {
                let text = fs::read_to_string(&self.log).unwrap_or_default();
                let lines: Vec<&str> = text.lines().collect();
                let end = lines.get(lines.len().saturating_sub(8)..).unwrap_or_default();
                bail!("{} ended ({status}): {}", self.name, end.join("\n"))
            }
        }
    }

    /// CPU time since the start, of the process and its descendants, user and system.
    ///
    /// # Errors
    /// When it has gone.
    pub fn cpu(&self) -> Result<Duration> {
        let ticks = rustix::param::clock_ticks_per_second().max(1);
        let own = family(self.process.id())?;
        let used: u64 = own.iter().map(|process| process.ticks).sum();
        Ok(Duration::from_secs_f64(used as f64 / ticks as f64))
    }

    /// Resident memory of the process and its descendants, in bytes.
    ///
    /// # Errors
    /// When it has gone.
    pub fn memory(&self) -> Result<u64> {
        let mut total = 0;
        for process in family(self.process.id())? {
            let status = fs::read_to_string(format!("/proc/{}/status", process.id))
                .with_context(|| format!("{} has gone", self.name))?;
            let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
            let kibibytes: u64 = resident
                .and_then(|text| text.trim().strip_suffix(" kB"))
                .and_then(|text| text.trim().parse().ok())
                .ok_or_else(|| anyhow!("{} has no VmRSS", self.name))?;
            total += kibibytes * 1024;
        }
        Ok(total)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Descendants first: they would lose their parent, and with it the way to find them.
        let own = family(self.process.id()).unwrap_or_default();
        for process in own.iter().filter(|process| process.id != self.process.id()) {
            if let Some(id) = i32::try_from(process.id)
                .ok()
                .and_then(rustix::process::Pid::from_raw)
            {
                let _ = rustix::process::kill_process(id, rustix::process::Signal::KILL);
            }
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

struct Process {
    id: u32,
    parent: u32,
    ticks: u64,
}

/// The process `root` and its descendants.
fn family(root: u32) -> Result<Vec<Process>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(id) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if let Some(process) = fs::read_to_string(format!("/proc/{id}/stat"))
            .ok()
            .and_then(|text| parse_stat(id, &text))
        {
            all.insert(id, process);
        }
    }
    let is_inside = |mut id: u32| {
        // Parents have no cycles, but they change while they are read.
        for _ in 0..all.len() {
            if id == root {
                return true;
            }
            match all.get(&id) {
                Some(process) => id = process.parent,
                None => return false,
            }
        }
        false
    };
    let inside: Vec<u32> = all.keys().copied().filter(|id| is_inside(*id)).collect();
    let found: Vec<Process> = inside.into_iter().filter_map(|id| all.remove(&id)).collect();
    if found.is_empty() {
        bail!("the process {root} has gone");
    }
    Ok(found)
}

/// Fields 4 (parent), 14 (user time) and 15 (system time) of `/proc/<id>/stat`; the second may contain anything.
fn parse_stat(id: u32, text: &str) -> Option<Process> {
    let (_, after) = text.rsplit_once(')')?;
    let fields: Vec<&str> = after.split_ascii_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    Some(Process {
        id,
        parent: u32::try_from(number(1)?).ok()?,
        ticks: number(11)? + number(12)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_brackets_is_skipped() {
        let text = "7 (a ) b) S 3 7 7 0 -1 0 0 0 0 0 120 30 9 9 20 0 1 0 5 0 0";
        let process = parse_stat(7, text).expect("a process");
        assert_eq!((process.parent, process.ticks), (3, 150));
    }

    #[test]
    fn this_process_is_in_its_own_family() {
        let own = std::process::id();
        assert!(
            family(own)
                .expect("a family")
                .iter()
                .any(|process| process.id == own)
        );
    }
}
