//! The record of a cluster: what it is and whose its folders are.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::settings::Settings;
use crate::shell;

/// File name of the record.
pub const RECORD: &str = "cluster.json";

/// What runs the cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// Processes on this machine.
    #[default]
    Native,
    /// kind, in a container engine.
    Kind,
}

/// What is known of a cluster: written to the root, run and state folders before anything else is made.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Its settings, with the absolute path of the clone's state folder: the owner.
    pub settings: Settings,
    /// What runs it.
    #[serde(default)]
    pub engine: Engine,
    /// Number of fake nodes.
    #[serde(default)]
    pub kwok: u32,
    /// The boot of the machine it was started in.
    #[serde(default)]
    pub boot: String,
    /// Hash over programs, command lines and configuration.
    #[serde(default)]
    pub fingerprint: String,
    /// Kernel settings before the kubelet changed them.
    #[serde(default)]
    pub kernel: BTreeMap<String, String>,
    /// Whether certificates, configuration and network are complete, so that components can be started.
    #[serde(default)]
    pub configured: bool,
}

impl Record {
    /// The record in a folder, if there is a readable one.
    pub fn read(folder: &Path) -> Option<Self> {
        serde_json::from_str(&std::fs::read_to_string(folder.join(RECORD)).ok()?).ok()
    }

    /// The record of this clone's cluster in the given folders: any copy will do.
    pub fn of(settings: &Settings) -> Option<Self> {
        let copies = [&settings.root, &settings.run, &settings.state]
            .into_iter()
            .filter_map(|folder| Self::read(folder));
        copies.into_iter().find(|record| {
            record.engine == Engine::Native
                && record.settings.state == settings.state
                && record.settings.root == settings.root
                && record.settings.run == settings.run
        })
    }

    /// A record for a kind cluster.
    pub fn kind(settings: &Settings, kwok: u32) -> Self {
        Self {
            settings: settings.clone(),
            engine: Engine::Kind,
            kwok,
            boot: boot_id(),
            fingerprint: String::new(),
            kernel: BTreeMap::new(),
            configured: true,
        }
    }

    /// Writes the record into a folder.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let text = format!("{:#}\n", serde_json::to_value(self)?);
        shell::write_atomically(&folder.join(RECORD), text.as_bytes(), 0o600)
    }

    /// Writes the record into the root, run and state folders.
    ///
    /// # Errors
    /// When one of them cannot be written.
    pub fn write_everywhere(&self) -> Result<()> {
        for folder in [&self.settings.root, &self.settings.run, &self.settings.state] {
            self.write(folder)?;
        }
        Ok(())
    }
}

/// The number of this boot of the machine.
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// A folder's content, as far as it matters for whose it is.
#[derive(Debug, PartialEq, Eq)]
pub enum Folder {
    /// Absent, empty, or no more than an unfinished record.
    Free,
    /// Somebody else's.
    Stranger,
    /// A cluster with these settings.
    Cluster(Box<Settings>),
}

/// Looks at whose a folder is.
pub fn inspect(folder: &Path) -> Folder {
    if let Some(record) = Record::read(folder) {
        return Folder::Cluster(Box::new(record.settings));
    }
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    // An unfinished record is what a start killed in its first moment leaves.
    if entries
        .into_iter()
        .all(|entry| entry.file_name().to_string_lossy().starts_with(RECORD))
    {
        Folder::Free
    } else {
        Folder::Stranger
    }
}

/// Whether a folder is absent, empty, or holds no more than an unfinished record.
pub fn is_free(folder: &Path) -> bool {
    inspect(folder) == Folder::Free
}

/// The record of this clone's cluster.
///
/// # Errors
/// When there is no cluster, or one that was never started to its end.
pub fn require(settings: &Settings) -> Result<Record> {
    Record::of(settings)
        .filter(|record| record.configured)
        .with_context(|| {
            format!(
                "there is no cluster for {}: `flotilla-cluster up` starts one",
                settings.state.display()
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::example;

    #[test]
    fn folders_tell_whose_they_are() {
        let folder = std::env::temp_dir().join(format!("flotilla-claim-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        assert_eq!(inspect(&folder), Folder::Free);
        assert_eq!(inspect(Path::new("/nowhere-at-all")), Folder::Free);
        std::fs::write(folder.join("cluster.json.tmp-1"), "{").unwrap();
        assert_eq!(inspect(&folder), Folder::Free);
        std::fs::write(folder.join("thesis.tex"), "x").unwrap();
        assert_eq!(inspect(&folder), Folder::Stranger);
        let record = Record::kind(&example(), 0);
        record.write(&folder).unwrap();
        assert_eq!(inspect(&folder), Folder::Cluster(Box::new(example())));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
