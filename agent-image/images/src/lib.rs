//! Builds the five container images without a container engine.
//!
//! An image here is two layers: one that all share, with the C library, the certificate authorities and the few files
//! that a program expects of a Unix ([`rootfs`]), and one with the program. There is no shell and no package
//! manager. A static binary in an empty image would be smaller, but glibc resolves names by loading code at run
//! time, and musl's target is not at hand everywhere.
//!
//! The result is a docker-archive, which `ctr images import`, `docker load` and `podman load` all take
//! ([`archive`]). It is reproducible: the same programs and libraries give the same digests, because entries are
//! sorted and carry no times, owners or machine names.

pub mod archive;
pub mod catalogue;
pub mod cli;
pub mod libraries;
pub mod rootfs;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::archive::{Image, Layer};
use crate::catalogue::Program;
use crate::rootfs::Rootfs;

/// An image that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Its name, as pods write it.
    pub name: String,
    /// The archive.
    pub file: PathBuf,
    /// The archive's size in bytes; layers are not compressed.
    pub bytes: u64,
    /// The digest of the image's configuration, by which it is known: `sha256:…`.
    pub digest: String,
}

/// The root file system that `programs` in `binaries` share: what each of them needs apart from itself.
///
/// # Errors
/// A missing program or library, or one that cannot be read.
pub fn base(binaries: &Path, programs: &[&Program]) -> Result<Rootfs> {
    let mut base = rootfs::skeleton()?;
    let mut needed = Vec::new();
    for program in programs {
        needed.extend(libraries::needed_by(&binary(binaries, program)?)?);
    }
    for library in libraries::with_name_services(needed)? {
        let content = fs::read(&library).with_context(|| format!("failed to read {}", library.display()))?;
        base.file(&library, 0o755, content)?;
    }
    Ok(base)
}

/// The layer of one program.
///
/// # Errors
/// When the program cannot be read.
pub fn program(binaries: &Path, program: &Program) -> Result<Rootfs> {
    let path = binary(binaries, program)?;
    let content = fs::read(&path).with_context(|| format!("failed to read {}", path.display()))?;
    let mut layer = Rootfs::default();
    layer.file(Path::new(&program.entrypoint()), 0o755, content)?;
    Ok(layer)
}

/// Builds the images of `programs` from `binaries` into the folder `out`, one archive each.
///
/// # Errors
/// What [`base`] and [`program`] fail with, an archive larger than `max_bytes`, or one that cannot be written.
pub fn build(
    binaries: &Path,
    out: &Path,
    tag: &str,
    programs: &[&Program],
    max_bytes: u64,
) -> Result<Vec<Written>> {
    fs::create_dir_all(out).with_context(|| format!("failed to create {}", out.display()))?;
    let shared = Layer::new(
        &base(binaries, programs)?,
        "the C library, certificates and accounts",
    )?;
    let mut written = Vec::new();
    for entry in programs {
        let own = Layer::new(
            &program(binaries, entry)?,
            &format!("the program {}", entry.binary),
        )?;
        let image = Image::new(entry, tag, &[&shared, &own])?;
        let bytes = image.archive.len() as u64;
        ensure!(
            bytes <= max_bytes,
            "{} has {:.1} MB, more than {:.0} MB; build it with --profile image",
            image.name,
            megabytes(bytes),
            megabytes(max_bytes)
        );
        let file = out.join(format!("{}.tar", entry.name));
        let unfinished = out.join(format!(".{}.tar.part", entry.name));
        fs::write(&unfinished, &image.archive)
            .and_then(|()| fs::rename(&unfinished, &file))
            .with_context(|| format!("failed to write {}", file.display()))?;
        written.push(Written {
            name: image.name,
            file,
            bytes,
            digest: image.digest,
        });
    }
    Ok(written)
}

/// Bytes as megabytes of 10^6.
pub fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

fn binary(binaries: &Path, program: &Program) -> Result<PathBuf> {
    let path = binaries.join(program.binary);
    ensure!(
        path.is_file(),
        "{} is missing; run: cargo build --profile image -p {}",
        path.display(),
        program.binary
    );
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with a small dynamic program under every program's name.
    fn binaries(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("flotilla-images-{}-{name}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        for program in catalogue::PROGRAMS {
            fs::copy("/bin/true", folder.join(program.binary)).expect("copied");
        }
        folder
    }

    fn all() -> Vec<&'static Program> {
        catalogue::PROGRAMS.iter().collect()
    }

    #[test]
    fn five_images_are_built_and_twice_the_same() {
        let folder = binaries("same");
        let first = build(&folder, &folder.join("a"), "dev", &all(), 40_000_000).expect("built");
        let again = build(&folder, &folder.join("b"), "dev", &all(), 40_000_000).expect("built");
        let names: Vec<&str> = first.iter().map(|image| image.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "flotilla.dev/operator:dev",
                "flotilla.dev/gateway:dev",
                "flotilla.dev/loadgen:dev",
                "flotilla.dev/agent:dev",
                "flotilla.dev/simulator:dev"
            ]
        );
        for (first, again) in first.iter().zip(&again) {
            assert_eq!(first.digest, again.digest);
            assert_eq!(
                fs::read(&first.file).expect("read"),
                fs::read(&again.file).expect("read")
            );
        }
        fs::remove_dir_all(folder).expect("removed");
    }

    #[test]
    fn the_shared_layer_has_what_a_program_needs_and_no_shell() {
        let folder = binaries("shared");
        let base = base(&folder, &all()).expect("a base");
        fs::remove_dir_all(folder).expect("removed");
        let paths: Vec<&str> = base.paths().collect();
        for wanted in [
            "etc/passwd",
            "etc/nsswitch.conf",
            "etc/ssl/certs/ca-certificates.crt",
            "tmp",
        ] {
            assert!(paths.contains(&wanted), "{wanted} in {paths:?}");
        }
        assert!(paths.iter().any(|path| path.ends_with("/libc.so.6")), "{paths:?}");
        assert!(paths.iter().any(|path| path.contains("ld-linux")), "{paths:?}");
        assert!(!paths.iter().any(|path| path.contains("bin/")), "{paths:?}");
    }

    #[test]
    fn a_missing_program_and_a_large_image_are_refused_with_a_sentence() {
        let folder = binaries("refused");
        let error = build(&folder, &folder.join("out"), "dev", &all(), 1_000).expect_err("too large");
        assert!(
            error.to_string().contains("flotilla.dev/operator:dev has"),
            "{error}"
        );
        fs::remove_file(folder.join("flotilla-gateway")).expect("removed");
        let error = build(&folder, &folder.join("out"), "dev", &all(), 40_000_000).expect_err("missing");
        assert!(
            error
                .to_string()
                .contains("cargo build --profile image -p flotilla-gateway"),
            "{error}"
        );
        fs::remove_dir_all(folder).expect("removed");
    }
}
