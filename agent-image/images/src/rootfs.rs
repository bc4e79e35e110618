//! A root file system as a value: paths with their content and mode, sorted.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path};

use anyhow::{Context, Result, ensure};

use crate::catalogue::USER;

/// Where programs look for the certificate authorities; also in `SSL_CERT_FILE`.
pub const CA_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A folder.
    Folder,
    /// A file.
    File(Vec<u8>),
}

/// Files and folders by path (relative, without a slash at either end), with their modes. All belong to root.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rootfs {
    entries: BTreeMap<String, (u32, Node)>,
}

impl Rootfs {
    /// Puts a file at `path` (absolute), and the folders above it.
    ///
    /// # Errors
    /// When the path is not absolute and plain UTF-8, or is taken.
    pub fn file(&mut self, path: &Path, mode: u32, content: Vec<u8>) -> Result<()> {
        self.put(path, mode, Node::File(content))
    }

    /// Puts a folder at `path` (absolute), and those above it.
    ///
    /// # Errors
    /// As [`Rootfs::file`].
    pub fn folder(&mut self, path: &Path, mode: u32) -> Result<()> {
        self.put(path, mode, Node::Folder)
    }

    fn put(&mut self, path: &Path, mode: u32, node: Node) -> Result<()> {
        let mut names = Vec::new();
        for component in path.components() {
            match component {
                Component::RootDir => {}
                Component::Normal(name) => names.push(name.to_str().context("a path is not UTF-8")?),
                _ => names.clear(),
            }
        }
        ensure!(
            path.is_absolute() && !names.is_empty(),
            "{} is not an absolute path",
            path.display()
        );
        for depth in 1..names.len() {
            self.entries
                .entry(names[..depth].join("/"))
                .or_insert((0o755, Node::Folder));
        }
        let taken = self.entries.insert(names.join("/"), (mode, node));
        ensure!(taken.is_none(), "{} is put twice", path.display());
        Ok(())
    }

    /// All paths, sorted.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Everything, sorted by path: folders come before what is in them.
    pub fn entries(&self) -> impl Iterator<Item = (&str, u32, &Node)> {
        self.entries
            .iter()
            .map(|(path, (mode, node))| (path.as_str(), *mode, node))
    }

    /// Writes it below the folder `target`, for a container engine to copy.
    ///
    /// # Errors
    /// When something cannot be written.
    pub fn write(&self, target: &Path) -> Result<()> {
        for (path, mode, node) in self.entries() {
            let path = target.join(path);
            match node {
                Node::Folder => fs::create_dir_all(&path),
                Node::File(content) => fs::write(&path, content),
            }
            .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(mode)))
            .with_context(|| format!("failed to write {}", path.display()))?;
        }
        Ok(())
    }
}

/// What every image has apart from libraries and programs: accounts, how to resolve names, the certificate authorities of
/// this machine's package `ca-certificates`, and a `/tmp`.
///
/// # Errors
/// When the certificates cannot be read.
pub fn skeleton() -> Result<Rootfs> {
    let certificates = fs::read(CA_BUNDLE)
        .with_context(|| format!("failed to read {CA_BUNDLE}; install the package ca-certificates"))?;
    let mut root = Rootfs::default();
    let passwd =
        format!("root:x:0:0:root:/:/sbin/nologin\nnonroot:x:{USER}:{USER}:nonroot:/tmp:/sbin/nologin\n");
    root.file(Path::new("/etc/passwd"), 0o644, passwd.into_bytes())?;
    root.file(
        Path::new("/etc/group"),
        0o644,
        format!("root:x:0:\nnonroot:x:{USER}:\n").into_bytes(),
    )?;
    root.file(
        Path::new("/etc/nsswitch.conf"),
        0o644,
        b"passwd: files\ngroup: files\nhosts: files dns\n".to_vec(),
    )?;
    root.file(Path::new(CA_BUNDLE), 0o644, certificates)?;
    root.folder(Path::new("/tmp"), 0o1777)?;
    Ok(root)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_come_before_what_is_in_them() {
        let mut root = Rootfs::default();
        root.file(Path::new("/usr/lib/x.so"), 0o755, vec![1])
            .expect("put");
        root.file(Path::new("/etc/passwd"), 0o644, vec![2]).expect("put");
        root.file(Path::new("/usr/lib/a/y.so"), 0o755, vec![3])
            .expect("put");
        let paths: Vec<&str> = root.paths().collect();
        assert_eq!(
            paths,
            [
                "etc",
                "etc/passwd",
                "usr",
                "usr/lib",
                "usr/lib/a",
                "usr/lib/a/y.so",
                "usr/lib/x.so"
            ]
        );
    }

    #[test]
    fn odd_paths_are_refused() {
        let mut root = Rootfs::default();
        assert!(root.file(Path::new("etc/passwd"), 0o644, Vec::new()).is_err());
        assert!(root.folder(Path::new("/"), 0o755).is_err());
        root.file(Path::new("/a"), 0o644, Vec::new()).expect("put");
        assert!(root.file(Path::new("/a"), 0o644, Vec::new()).is_err());
    }

    #[test]
    fn it_is_written_with_its_modes() {
        let target = std::env::temp_dir().join(format!("flotilla-images-rootfs-{}", std::process::id()));
        fs::create_dir_all(&target).expect("a folder");
        skeleton().expect("a skeleton").write(&target).expect("written");
        let mode = fs::metadata(target.join("tmp"))
            .expect("there")
            .permissions()
            .mode();
        let passwd = fs::read_to_string(target.join("etc/passwd")).expect("read");
        fs::remove_dir_all(target).expect("removed");
        assert_eq!(mode & 0o7777, 0o1777);
        assert!(passwd.contains("nonroot:x:65532:65532:"));
    }
}
