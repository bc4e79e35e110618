//! One `flotilla-cluster` at a time per cluster.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};

use crate::progress::Progress;

/// An exclusive lock on a file, which is removed when the lock is dropped.
///
/// The kernel releases the lock when the process dies, however it dies. Removing the file is safe because a waiter
/// that gets the lock of a removed file notices that the path no longer leads there, and tries again.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    /// Waits for the lock, saying so when it has to.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn take(path: &Path, progress: &Progress) -> Result<Self> {
        let failed = || format!("failed to lock {}", path.display());
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).with_context(failed)?;
        }
        loop {
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .open(path)
                .with_context(failed)?;
            if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
                progress.say(format_args!(
                    "waiting for another flotilla-cluster (lock {})",
                    path.display()
                ));
                flock(&file, FlockOperation::LockExclusive).with_context(failed)?;
            }
            let held = file.metadata().with_context(failed)?;
            let current = std::fs::metadata(path);
            if current.is_ok_and(|now| now.ino() == held.ino() && now.dev() == held.dev()) {
                return Ok(Self {
                    path: path.to_owned(),
                    _file: file,
                });
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_file_goes_with_the_lock() {
        let path = std::env::temp_dir().join(format!("flotilla-lock-{}", std::process::id()));
        let lock = Lock::take(&path, &Progress::default()).unwrap();
        assert!(path.exists());
        drop(lock);
        assert!(!path.exists());
    }
}
