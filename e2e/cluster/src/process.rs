//! Which processes are ours, starting them, and ending them without ever hitting a stranger.
//!
//! `/proc` is the truth. A pid may be reused between looking and killing, so a process is pinned by a pidfd first,
//! looked at again, and signalled through the pidfd.

use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::binaries::Programs;
use crate::component::Component;
use crate::settings::Settings;
use crate::shell;

/// Helpers that our components start and that outlive them. They too name our folders.
const HELPERS: [&str; 4] = ["containerd-shim-runc-v2", "containerd-shim", "runc", "ctr"];

/// A running process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its pid.
    pub pid: i32,
    /// Its command line.
    pub arguments: Vec<String>,
}

/// Splits the content of `/proc/<pid>/cmdline`. A zombie has none.
fn command_line(bytes: &[u8]) -> Vec<String> {
    let text = bytes.strip_suffix(&[0]).unwrap_or(bytes);
    if text.is_empty() {
        return Vec::new();
    }
    text.split(|byte| *byte == 0)
        .map(|part| String::from_utf8_lossy(part).into_owned())
        .collect()
}

fn read(pid: i32) -> Option<Process> {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let arguments = command_line(&bytes);
    (!arguments.is_empty()).then_some(Process { pid, arguments })
}

/// Every process of the machine that has a command line.
pub fn all() -> Vec<Process> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| read(entry.file_name().to_str()?.parse().ok()?))
        .collect()
}

/// Our components that run, with their processes.
pub fn components(settings: &Settings) -> Vec<(Component, Process)> {
    let ours = |process: Process| Some((Component::of(&process.arguments, settings)?, process));
    all().into_iter().filter_map(ours).collect()
}

/// The process of one component, if it runs.
pub fn find(component: Component, settings: &Settings) -> Option<Process> {
    components(settings)
        .into_iter()
        .find(|(found, _)| *found == component)
        .map(|(_, process)| process)
}

/// Everything that must be gone when the cluster is: components, container shims, and tools at work in our folders.
pub fn everything_of_ours(settings: &Settings) -> Vec<Process> {
    all()
        .into_iter()
        .filter(|process| is_ours(&process.arguments, settings))
        .collect()
}

fn is_ours(arguments: &[String], settings: &Settings) -> bool {
    if Component::of(arguments, settings).is_some() {
        return true;
    }
    let Some((program, rest)) = arguments.split_first() else {
        return false;
    };
    let name = Path::new(program)
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let becoming = rest.first().is_some_and(|first| first == "become");
    (becoming || HELPERS.contains(&name)) && rest.iter().any(|argument| settings.owns_path_in(argument))
}

impl Process {
    /// Whether the pid still is this process. A zombie is not alive.
    pub fn is_alive(&self) -> bool {
        read(self.pid).is_some_and(|now| now.arguments == self.arguments)
    }

    /// Takes hold of the process, if the pid still is this process.
    pub fn pin(&self) -> Option<Pinned> {
        Pinned::when(self.pid, || self.is_alive())
    }
}

/// A process that is held by a pidfd: whatever becomes of the pid, signals reach this process or none.
#[derive(Debug)]
pub struct Pinned {
    /// The pid it had.
    pub pid: i32,
    pidfd: OwnedFd,
}

impl Pinned {
    /// Takes hold of a pid, if `is_right` says so once it is held.
    pub fn when(pid: i32, is_right: impl FnOnce() -> bool) -> Option<Self> {
        let pidfd = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
        is_right().then_some(Self { pid, pidfd })
    }

    /// Sends a signal. The process may end in this moment, which is what is wanted.
    pub fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.pidfd, signal);
    }

    /// Waits until the process and all its threads have ended; false when they have not after `limit`.
    ///
    /// Looking into `/proc` would not do: an ending process loses its command line before it closes its sockets.
    pub fn wait_gone(&self, limit: Duration) -> bool {
        let timeout = Timespec::try_from(limit).ok();
        let mut events = [PollFd::new(&self.pidfd, PollFlags::IN)];
        // An interrupted wait counts as not gone: the caller goes on to the next step, which is harsher.
        poll(&mut events, timeout.as_ref()).is_ok_and(|ready| ready > 0)
    }
}

/// Ends one component: SIGTERM, then SIGKILL after `grace`; a grace of zero is SIGKILL at once. Gives the pid it had.
///
/// # Errors
/// When the process is still there 10 s after SIGKILL.
pub fn stop(component: Component, settings: &Settings, grace: Duration) -> Result<Option<i32>> {
    let Some(process) = find(component, settings).and_then(|process| process.pin()) else {
        return Ok(None);
    };
    if !grace.is_zero() {
        process.signal(Signal::TERM);
    }
    if grace.is_zero() || !process.wait_gone(grace) {
        process.signal(Signal::KILL);
        if !process.wait_gone(Duration::from_secs(10)) {
            bail!(
                "{component} (pid {}) does not end, even by SIGKILL: it hangs in the kernel",
                process.pid
            );
        }
    }
    let _ = std::fs::remove_file(component.pid_file(settings));
    Ok(Some(process.pid))
}

/// A component just started by this process.
#[derive(Debug)]
pub struct Started {
    /// Which one.
    pub component: Component,
    child: Child,
}

impl Started {
    /// Whether it has ended already, and how.
    pub fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.child.try_wait().ok().flatten()
    }
}

/// Starts a component in a session of its own, with its output appended to its log.
///
/// `setsid` must run between fork and exec, where Rust without `unsafe` cannot run code of ours. So the child is this
/// program once more ([`become_component`]), which leaves the session and becomes the component; the pid stays.
///
/// # Errors
/// When the log cannot be opened or the process not be started.
pub fn start(component: Component, settings: &Settings, programs: &Programs) -> Result<Started> {
    let log = component.log(settings);
    let failed = || format!("failed to start {component}");
    wait_for_predecessor(&component.pid_file(settings));
    std::fs::create_dir_all(settings.logs()).with_context(failed)?;
    std::fs::create_dir_all(settings.pids()).with_context(failed)?;
    let output: File = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&log)
        .with_context(|| format!("failed to open {}", log.display()))?;
    // The path in /proc stays good when this program is rebuilt while it runs.
    let mut command = Command::new("/proc/self/exe");
    command
        .arg("become")
        .arg(component.pid_file(settings))
        .args(component.command(settings, programs));
    // Nothing of the caller's environment: a proxy variable would send the cluster's own traffic elsewhere.
    command
        .env_clear()
        .env("PATH", shell::search_path())
        .env("HOME", "/root")
        // Memory is cheaper here than processor time.
        .env("GOGC", "200")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(output.try_clone().with_context(failed)?)
        .stderr(output);
    Ok(Started {
        component,
        child: command.spawn().with_context(failed)?,
    })
}

/// Somebody may just have killed the component: while it ends it has no command line any more, but still its sockets.
fn wait_for_predecessor(pid_file: &Path) {
    /// Far more than the kernel needs; the pid may have been given to a kernel thread, which has no command line either.
    const LIMIT: Duration = Duration::from_secs(3);
    let pid = std::fs::read_to_string(pid_file)
        .ok()
        .and_then(|text| text.trim().parse().ok());
    if let Some(ending) = pid.and_then(|pid| Pinned::when(pid, || read(pid).is_none())) {
        ending.wait_gone(LIMIT);
    }
}

/// Leaves the caller's session, writes the pid file and becomes the given command. Returns only on failure.
pub fn become_component(pid_file: &Path, line: &[String]) -> anyhow::Error {
    let Some((program, arguments)) = line.split_first() else {
        return anyhow::anyhow!("no command to become");
    };
    // Fails only for the leader of a process group, who needs no new session to survive its parent.
    let _ = rustix::process::setsid();
    if let Err(error) = std::fs::write(pid_file, format!("{}\n", std::process::id())) {
        return anyhow::Error::from(error).context(format!("failed to write {}", pid_file.display()));
    }
    let error = Command::new(program).args(arguments).exec();
    anyhow::Error::from(error).context(format!("failed to run {program}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::example;

    #[test]
    fn command_lines_are_split_at_zeros() {
        assert_eq!(command_line(b"etcd\0--a=b\0\0x\0"), ["etcd", "--a=b", "", "x"]);
        assert!(command_line(b"").is_empty());
        assert!(command_line(b"\0").is_empty());
    }

    #[test]
    fn shims_of_our_containerd_are_ours_and_no_others() {
        let settings = example();
        let line = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        for (text, ours) in [
            (
                "/usr/bin/containerd-shim-runc-v2 -namespace k8s.io -id x -address /run/flotilla-local/containerd.sock",
                true,
            ),
            (
                "/usr/bin/containerd-shim-runc-v2 -namespace moby -id x -address /run/containerd/containerd.sock",
                false,
            ),
            ("runc --root /run/flotilla-local/runc/k8s.io kill x", true),
            ("tail -f /var/lib/flotilla-local/pod-logs/x", false),
        ] {
            assert_eq!(is_ours(&line(text), &settings), ours, "{text}");
        }
    }

    #[test]
    fn a_reused_pid_is_not_taken_for_ours() {
        let mut sleeper = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(sleeper.id()).unwrap();
        let stale = Process {
            pid,
            arguments: vec!["etcd".into(), "--data-dir=/var/lib/flotilla-local/etcd".into()],
        };
        assert!(!stale.is_alive());
        assert!(stale.pin().is_none());
        let real = Process {
            pid,
            arguments: vec!["sleep".into(), "60".into()],
        };
        // `spawn` may return a moment before the kernel shows the new command line.
        while !real.is_alive() {
            std::thread::yield_now();
        }
        let pinned = real.pin().unwrap();
        assert!(!pinned.wait_gone(Duration::ZERO));
        pinned.signal(Signal::KILL);
        assert!(pinned.wait_gone(Duration::from_secs(10)));
        sleeper.wait().unwrap();
        assert!(!real.is_alive());
        pinned.signal(Signal::KILL);
    }
}
