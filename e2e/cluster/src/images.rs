//! Images in the cluster's containerd: the pause image made here, and archives given to `load`.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::binaries::{PAUSE, Programs};
use crate::config::PAUSE_IMAGE;
use crate::objects::kubernetes_arch;
use crate::progress::Progress;
use crate::record;
use crate::settings::Settings;
use crate::shell;

/// containerd's namespace for Kubernetes.
const NAMESPACE: &str = "k8s.io";
/// Largest `manifest.json` read from an archive, in bytes.
const MANIFEST_LIMIT: u64 = 4 << 20;

/// One entry of an archive's `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
}

impl Entry {
    /// The image's id: the digest of its configuration, after which the file is named in both archive layouts.
    fn id(&self) -> Option<String> {
        let name = self.config.rsplit('/').next()?;
        let hex = name.strip_suffix(".json").unwrap_or(name);
        (hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| format!("sha256:{hex}"))
    }
}

/// Makes the archive of the pause image: one layer with one static program.
fn pause_archive(program: &[u8]) -> Result<Vec<u8>> {
    let layer = tar_of(&[("pause", program, 0o755)])?;
    let config = json!({
        "architecture": kubernetes_arch(),
        "os": "linux",
        "config": { "Entrypoint": ["/pause"], "User": "65535:65535" },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", hex_digest(&layer))] },
    });
    let config = serde_json::to_vec(&config)?;
    let config_name = format!("{}.json", hex_digest(&config));
    let manifest = json!([{ "Config": config_name, "RepoTags": [PAUSE_IMAGE], "Layers": ["layer.tar"] }]);
    let manifest = serde_json::to_vec(&manifest)?;
    tar_of(&[
        (&config_name, &config, 0o644),
        ("layer.tar", &layer, 0o644),
        ("manifest.json", &manifest, 0o644),
    ])
}

fn tar_of(files: &[(&str, &[u8], u32)]) -> Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content, mode) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(*mode);
        header.set_mtime(0);
        builder.append_data(&mut header, name, *content)?;
    }
    Ok(builder.into_inner()?)
}

fn hex_digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Writes and imports the pause image.
///
/// # Errors
/// When containerd refuses it.
pub fn import_pause(settings: &Settings, programs: &Programs) -> Result<()> {
    let program = std::fs::read(programs.path(PAUSE)).context("failed to read the pause program")?;
    let file = settings.root.join("pause.tar");
    shell::write_atomically(&file, &pause_archive(&program)?, 0o600)?;
    import(settings, &file).context("failed to import the pause image")
}

fn ctr(settings: &Settings, arguments: &[&str]) -> Result<String> {
    let socket = settings.containerd_socket().display().to_string();
    shell::run(
        "ctr",
        &[
            &["--address", socket.as_str(), "--namespace", NAMESPACE],
            arguments,
        ]
        .concat(),
    )
}

fn import(settings: &Settings, file: &Path) -> Result<()> {
    ctr(settings, &["images", "import", &file.display().to_string()]).map(drop)
}

/// Imports archives, except those whose images are there already.
///
/// # Errors
/// When an archive cannot be read or containerd refuses it.
pub fn load(settings: &Settings, files: &[PathBuf], progress: &Progress) -> Result<()> {
    record::require(settings)?;
    for file in files {
        let file = std::path::absolute(file)?;
        let entries =
            read_manifest(&file).with_context(|| format!("{} is not an image archive", file.display()))?;
        let names = entries
            .iter()
            .flat_map(|entry| entry.repo_tags.iter().flatten())
            .cloned()
            .collect::<Vec<_>>()
            .join(", ");
        let listed = ctr(settings, &["images", "list"])?;
        if !entries.is_empty() && entries.iter().all(|entry| is_present(entry, &listed)) {
            progress.say(format_args!("{names}: already there"));
            continue;
        }
        import(settings, &file).with_context(|| format!("failed to import {}", file.display()))?;
        progress.say(format_args!("{names}: loaded from {}", file.display()));
    }
    Ok(())
}

/// Whether every name of an image already stands for this very image in the list of `ctr images list`. containerd's
/// Kubernetes part also lists each image under its id, so the two are compared by what they lead to.
fn is_present(entry: &Entry, listed: &str) -> bool {
    let digest_of = |name: &str| {
        listed.lines().map(str::split_whitespace).find_map(|mut words| {
            (words.next() == Some(name)).then(|| words.find(|word| word.starts_with("sha256:")))?
        })
    };
    let Some(own) = entry.id().and_then(|id| digest_of(&id)) else {
        return false;
    };
    let tags = entry.repo_tags.as_deref().unwrap_or_default();
    !tags.is_empty() && tags.iter().all(|tag| digest_of(&full_name(tag)) == Some(own))
}

/// A name as containerd writes it: with its domain.
fn full_name(tag: &str) -> String {
    match tag.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => tag.to_owned(),
        Some(_) => format!("docker.io/{tag}"),
        None => format!("docker.io/library/{tag}"),
    }
}

fn read_manifest(file: &Path) -> Result<Vec<Entry>> {
    let mut archive = tar::Archive::new(File::open(file)?);
    for entry in archive.entries_with_seek()? {
        let entry = entry.map_err(|_| anyhow!("it is not a plain, uncompressed tar"))?;
        if entry.path()?.as_ref() == Path::new("manifest.json") {
            ensure!(
                entry.size() <= MANIFEST_LIMIT,
                "its manifest.json has {} bytes",
                entry.size()
            );
            let mut text = String::new();
            entry.take(MANIFEST_LIMIT).read_to_string(&mut text)?;
            return Ok(serde_json::from_str(&text)?);
        }
    }
    bail!("it has no manifest.json, as an archive in Docker's layout has")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_archive_is_read_back() {
        let archive = pause_archive(b"program").unwrap();
        let file = std::env::temp_dir().join(format!("flotilla-pause-{}.tar", std::process::id()));
        std::fs::write(&file, &archive).unwrap();
        let entries = read_manifest(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        assert_eq!(entries.len(), 1);
        assert_eq!(
            entries[0].repo_tags.as_deref(),
            Some(&[PAUSE_IMAGE.to_owned()][..])
        );
        assert!(entries[0].id().unwrap().starts_with("sha256:"));
        assert_eq!(
            archive,
            pause_archive(b"program").unwrap(),
            "archives of the same program differ"
        );
    }

    #[test]
    fn an_archive_without_a_manifest_is_refused() {
        let file = std::env::temp_dir().join(format!("flotilla-none-{}.tar", std::process::id()));
        std::fs::write(&file, tar_of(&[("x", b"y", 0o644)]).unwrap()).unwrap();
        assert!(
            read_manifest(&file)
                .unwrap_err()
                .to_string()
                .contains("manifest.json")
        );
        std::fs::remove_file(&file).unwrap();
    }

    #[test]
    fn an_image_is_present_when_its_name_and_its_id_agree() {
        let id = "a".repeat(64);
        let entry = |tag: &str| Entry {
            config: format!("blobs/sha256/{id}"),
            repo_tags: Some(vec![tag.to_owned()]),
        };
        let listed = format!(
            "REF TYPE DIGEST SIZE PLATFORMS LABELS\n\
             flotilla.dev/agent:dev application/x sha256:111 9.1 MiB linux/amd64 io.cri\n\
             flotilla.dev/old:dev application/x sha256:222 9.1 MiB linux/amd64 io.cri\n\
             docker.io/library/busybox:1 application/x sha256:111 1 MiB linux/amd64 -\n\
             sha256:{id} application/x sha256:111 9.1 MiB linux/amd64 io.cri\n"
        );
        assert!(is_present(&entry("flotilla.dev/agent:dev"), &listed));
        assert!(is_present(&entry("busybox:1"), &listed));
        assert!(!is_present(&entry("flotilla.dev/old:dev"), &listed));
        assert!(!is_present(&entry("flotilla.dev/new:dev"), &listed));
        let unnamed = Entry {
            config: format!("{id}.json"),
            repo_tags: None,
        };
        assert!(!is_present(&unnamed, &listed));
    }
}
