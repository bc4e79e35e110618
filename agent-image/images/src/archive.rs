//! Layers, configuration and the docker-archive around them.
//!
//! The layout is the one that `docker save` has written since 1.10: `manifest.json` names the configuration and the
//! layers, and every engine and containerd read it. The image's digest is that of its configuration, which
//! names the layers by theirs; so equal digests mean equal images.

use anyhow::{Context, Result};
use serde_json::json;
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

use crate::catalogue::{Program, USER};
use crate::rootfs::{CA_BUNDLE, Node, Rootfs};

/// A layer: an uncompressed tar with its digest.
#[derive(Debug, Clone)]
pub struct Layer {
    tar: Vec<u8>,
    digest: String,
    made_of: String,
}

impl Layer {
    /// The layer that adds `root`. `made_of` is for the image's history.
    ///
    /// # Errors
    /// A path that a tar cannot hold.
    pub fn new(root: &Rootfs, made_of: &str) -> Result<Self> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, mode, node) in root.entries() {
            let (kind, content): (EntryType, &[u8]) = match node {
                Node::Folder => (EntryType::Directory, &[]),
                Node::File(content) => (EntryType::Regular, content),
            };
            append(&mut builder, path, kind, mode, content)?;
        }
        let tar = builder.into_inner()?;
        let digest = sha256(&tar);
        Ok(Self {
            tar,
            digest,
            made_of: made_of.to_owned(),
        })
    }
}

/// An image, ready to be written.
#[derive(Debug, Clone)]
pub struct Image {
    /// Its name with its tag.
    pub name: String,
    /// The digest of its configuration: `sha256:…`.
    pub digest: String,
    /// The docker-archive.
    pub archive: Vec<u8>,
}

impl Image {
    /// The image of `program` with `layers`, lowest first.
    ///
    /// # Errors
    /// When the archive cannot be put together.
    pub fn new(program: &Program, tag: &str, layers: &[&Layer]) -> Result<Self> {
        let name = program.image(tag);
        // No time, so that the digest depends on the content only.
        let created = "1970-01-01T00:00:00Z";
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            "created": created,
            "config": {
                "User": format!("{USER}:{USER}"),
                "Entrypoint": [program.entrypoint()],
                "Env": ["PATH=/usr/local/bin", format!("SSL_CERT_FILE={CA_BUNDLE}")],
                "WorkingDir": "/",
                "Labels": {
                    "org.opencontainers.image.title": program.binary,
                    "org.opencontainers.image.description": program.description,
                    "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
                    "org.opencontainers.image.licenses": "Apache-2.0",
                },
            },
            "rootfs": {
                "type": "layers",
                "diff_ids": layers.iter().map(|layer| format!("sha256:{}", layer.digest)).collect::<Vec<_>>(),
            },
            "history": layers
                .iter()
                .map(|layer| json!({"created": created, "created_by": format!("flotilla-images: {}", layer.made_of)}))
                .collect::<Vec<_>>(),
        });
        let config = serde_json::to_vec(&config)?;
        let digest = sha256(&config);
        let config_name = format!("{digest}.json");
        let layer_names: Vec<String> = layers
            .iter()
            .map(|layer| format!("{}/layer.tar", layer.digest))
            .collect();
        let manifest = json!([{"Config": config_name, "RepoTags": [name], "Layers": layer_names}]);
        let mut builder = tar::Builder::new(Vec::new());
        append(
            &mut builder,
            "manifest.json",
            EntryType::Regular,
            0o644,
            &serde_json::to_vec(&manifest)?,
        )?;
        append(&mut builder, &config_name, EntryType::Regular, 0o644, &config)?;
        for (layer, layer_name) in layers.iter().zip(&layer_names) {
            append(&mut builder, &layer.digest, EntryType::Directory, 0o755, &[])?;
            append(&mut builder, layer_name, EntryType::Regular, 0o644, &layer.tar)?;
        }
        Ok(Self {
            name,
            digest: format!("sha256:{digest}"),
            archive: builder.into_inner()?,
        })
    }
}

fn append(
    builder: &mut tar::Builder<Vec<u8>>,
    path: &str,
    kind: EntryType,
    mode: u32,
    content: &[u8],
) -> Result<()> {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(content.len() as u64);
    let path = if kind == EntryType::Directory {
        format!("{path}/")
    } else {
        path.to_owned()
    };
    builder
        .append_data(&mut header, &path, content)
        .with_context(|| format!("failed to archive {path}"))
}

/// This machine's architecture as images name it. The programs were built for it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read;
    use std::path::Path;

    use serde_json::Value;

    use super::*;
    use crate::catalogue::PROGRAMS;

    /// Path → (mode, content) of a tar; folders end in a slash.
    fn unpack(bytes: &[u8]) -> BTreeMap<String, (u32, Vec<u8>)> {
        let mut archive = tar::Archive::new(bytes);
        let entries = archive.entries().expect("a tar");
        entries
            .map(|entry| {
                let mut entry = entry.expect("an entry");
                let header = entry.header();
                assert_eq!(
                    (header.mtime().ok(), header.uid().ok(), header.gid().ok()),
                    (Some(0), Some(0), Some(0))
                );
                let mode = header.mode().expect("a mode");
                let path = String::from_utf8(entry.path_bytes().into_owned()).expect("UTF-8");
                let mut content = Vec::new();
                entry.read_to_end(&mut content).expect("content");
                (path, (mode, content))
            })
            .collect()
    }

    fn image() -> Image {
        let mut base = Rootfs::default();
        base.folder(Path::new("/tmp"), 0o1777).expect("put");
        let mut own = Rootfs::default();
        own.file(Path::new(&PROGRAMS[3].entrypoint()), 0o755, b"program".to_vec())
            .expect("put");
        let layers = [
            Layer::new(&base, "base").expect("a layer"),
            Layer::new(&own, "own").expect("a layer"),
        ];
        Image::new(&PROGRAMS[3], "dev", &[&layers[0], &layers[1]]).expect("an image")
    }

    #[test]
    fn the_digests_fit_together() {
        let image = image();
        let files = unpack(&image.archive);
        let manifest: Value = serde_json::from_slice(&files["manifest.json"].1).expect("JSON");
        assert_eq!(manifest[0]["RepoTags"], json!(["flotilla.dev/agent:dev"]));
        let config_name = manifest[0]["Config"].as_str().expect("a name");
        let config = &files[config_name].1;
        assert_eq!(format!("sha256:{}", sha256(config)), image.digest);
        let config: Value = serde_json::from_slice(config).expect("JSON");
        let layers = manifest[0]["Layers"].as_array().expect("layers");
        let ids = config["rootfs"]["diff_ids"].as_array().expect("ids");
        assert_eq!(
            (
                layers.len(),
                ids.len(),
                config["history"].as_array().map(Vec::len)
            ),
            (2, 2, Some(2))
        );
        for (layer, id) in layers.iter().zip(ids) {
            let tar = &files[layer.as_str().expect("a name")].1;
            assert_eq!(id, &json!(format!("sha256:{}", sha256(tar))));
        }
        assert_eq!(config["config"]["User"], "65532:65532");
        assert_eq!(
            config["config"]["Entrypoint"],
            json!(["/usr/local/bin/flotilla-agent"])
        );
        assert_eq!(
            config["config"]["Env"][1],
            "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt"
        );

        let base = unpack(&files[layers[0].as_str().expect("a name")].1);
        assert_eq!(base["tmp/"].0, 0o1777);
        let own = unpack(&files[layers[1].as_str().expect("a name")].1);
        assert_eq!(own["usr/local/bin/flotilla-agent"], (0o755, b"program".to_vec()));
    }

    #[test]
    fn the_same_content_is_the_same_image() {
        assert_eq!(image().archive, image().archive);
    }
}
