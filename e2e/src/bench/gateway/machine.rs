//! The machine: which cores are used, how many files may be open, and how to wait.

use anyhow::{Context as _, Result, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

/// Client, origin, gateway and the gateway's connections to both hold a file for each of thousands of streams.
const FILES: u64 = 16_384;

/// The two cores that a benchmark uses.
#[derive(Clone, Copy, Debug)]
pub struct Cores {
    /// Client and origin, where a measured process has a core of its own.
    pub load: usize,
    /// The measured process.
    pub proxy: usize,
}

impl Cores {
    /// The first two cores that this process may use.
    ///
    /// # Errors
    /// On a machine with one core.
    pub fn find() -> Result<Self> {
        let allowed = sched_getaffinity(None).context("failed to ask for the allowed cores")?;
        let mut usable = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
        match (usable.next(), usable.next()) {
            (Some(load), Some(proxy)) => Ok(Self { load, proxy }),
            _ => {
                bail!("the gateway's benchmarks need two cores: one for the proxy, one for client and origin")
            }
        }
    }

    /// Both, as `taskset` wants them.
    pub fn both(&self) -> String {
        format!("{},{}", self.load, self.proxy)
    }

    /// Moves the calling thread to `cores`.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn pin(cores: &[usize]) -> Result<()> {
        let mut set = CpuSet::new();
        cores.iter().for_each(|core| set.set(*core));
        sched_setaffinity(None, &set).context("failed to choose cores for a thread")
    }
}

/// Raises the limit of open files for this process and its children.
///
/// # Errors
/// When the hard limit is too low.
pub fn allow_files() -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= FILES) {
        return Ok(());
    }
    let wanted = Rlimit {
        current: Some(FILES),
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, wanted)
        .with_context(|| format!("{FILES} open files are needed; raise the limit with `ulimit -n {FILES}`"))
}

/// A free port on `address`. It may be taken before it is used; then the child says so.
///
/// # Errors
/// When there is none.
pub fn free_port(address: IpAddr) -> Result<u16> {
    let listener = TcpListener::bind(SocketAddr::new(address, 0)).context("failed to find a free port")?;
    Ok(listener.local_addr()?.port())
}

/// Waits; only for threads that drive no runtime.
#[allow(
    clippy::disallowed_methods,
    reason = "the benchmark's own thread has nothing else to do; no runtime runs on it"
)]
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Asks until there is an answer, at most for `limit`.
///
/// # Errors
/// With the last reason.
pub fn wait_for<T>(limit: Duration, what: &str, mut ask: impl FnMut() -> Result<T>) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(error) if Instant::now() >= end => {
                return Err(error.context(format!("waited {} s in vain for {what}", limit.as_secs())));
            }
            Err(_) => pause(Duration::from_millis(50)),
        }
    }
}
