//! Which shared libraries a program needs.
//!
//! `ldd` asks the machine's own loader, so the answer is what would be loaded here, with everything that those libraries
//! need in turn. It runs the loader on the program; the programs are our own.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// Libraries come from these places; anything else would be a stray of this machine.
const SYSTEM_FOLDERS: &[&str] = &["/lib/", "/lib64/", "/usr/lib/", "/usr/lib64/"];

/// Since this version of glibc, `files` and `dns` are part of libc itself.
const NAME_SERVICES_BUILT_IN: (u32, u32) = (2, 34);

/// The libraries and the loader that the program at `binary` needs, by the paths where the loader looks for them.
///
/// # Errors
/// When `ldd` cannot be run, or a library is missing or comes from outside the system's folders.
pub fn needed_by(binary: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd")
        .arg(binary)
        .env("LC_ALL", "C")
        .output()
        .context("failed to run ldd (package libc-bin)")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    if text.contains("statically linked") || errors.contains("not a dynamic executable") {
        return Ok(Vec::new());
    }
    ensure!(
        output.status.success(),
        "ldd {} failed: {}",
        binary.display(),
        errors.trim()
    );
    parse(&text).with_context(|| format!("the libraries of {}", binary.display()))
}

fn parse(text: &str) -> Result<Vec<PathBuf>> {
    let mut libraries = Vec::new();
    for line in text.lines().map(str::trim) {
        let (name, target) = match line.split_once("=>") {
            Some((name, target)) => (name.trim(), target.trim()),
            None => (line, line),
        };
        let path = target.split(" (").next().unwrap_or_default().trim();
        if path == "not found" {
            bail!("{name} is not installed");
        }
        // The kernel's own page has a name but no file.
        if !path.starts_with('/') {
            continue;
        }
        let is_system = SYSTEM_FOLDERS.iter().any(|folder| path.starts_with(folder));
        ensure!(
            is_system && !path.contains("/../"),
            "{name} is at {path}, outside the system's library folders"
        );
        libraries.push(PathBuf::from(path));
    }
    Ok(libraries)
}

/// `needed`, once each and sorted, with the modules that an older libc loads to resolve names.
///
/// # Errors
/// When the version of libc cannot be found out.
pub fn with_name_services(needed: Vec<PathBuf>) -> Result<BTreeSet<PathBuf>> {
    let mut libraries: BTreeSet<PathBuf> = needed.into_iter().collect();
    let libc = libraries
        .iter()
        .find(|path| path.file_name().is_some_and(|name| name == "libc.so.6"));
    let Some(folder) = libc.and_then(|libc| libc.parent()).map(Path::to_owned) else {
        return Ok(libraries);
    };
    let output = Command::new("getconf")
        .arg("GNU_LIBC_VERSION")
        .output()
        .context("failed to run getconf")?;
    let version = String::from_utf8_lossy(&output.stdout).into_owned();
    if loads_name_services(&version)? {
        for module in ["libnss_files.so.2", "libnss_dns.so.2", "libresolv.so.2"] {
            libraries.insert(folder.join(module));
        }
    }
    Ok(libraries)
}

/// Whether the libc of `version` ("glibc 2.36") loads its name services from files.
fn loads_name_services(version: &str) -> Result<bool> {
    let number = version
        .trim()
        .strip_prefix("glibc ")
        .and_then(|version| version.split_once('.'));
    let (major, minor) = number.with_context(|| format!("'{}' is not a version of glibc", version.trim()))?;
    let minor = minor.split('.').next().unwrap_or_default();
    Ok((major.parse::<u32>()?, minor.parse::<u32>()?) < NAME_SERVICES_BUILT_IN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ldd_prints() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\
            \tlibgcc_s.so.1 => /lib/x86_64-linux-gnu/libgcc_s.so.1 (0x00007f1)\n\
            \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f2)\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007f3)\n";
        let expected = [
            "/lib/x86_64-linux-gnu/libgcc_s.so.1",
            "/lib/x86_64-linux-gnu/libc.so.6",
            "/lib64/ld-linux-x86-64.so.2",
        ];
        assert_eq!(parse(text).expect("parsed"), expected.map(PathBuf::from));
        for (text, problem) in [
            ("\tlibfoo.so.1 => not found\n", "libfoo.so.1 is not installed"),
            (
                "\tlibfoo.so.1 => /opt/lib/libfoo.so.1 (0x1)\n",
                "outside the system's library folders",
            ),
            (
                "\tlibfoo.so.1 => /lib/../opt/libfoo.so.1 (0x1)\n",
                "outside the system's library folders",
            ),
        ] {
            assert!(parse(text).expect_err(text).to_string().contains(problem));
        }
    }

    #[test]
    fn name_services_are_built_in_since_2_34() {
        assert!(loads_name_services("glibc 2.31\n").expect("a version"));
        assert!(!loads_name_services("glibc 2.34\n").expect("a version"));
        assert!(!loads_name_services("glibc 2.36.1\n").expect("a version"));
        assert!(!loads_name_services("glibc 3.1\n").expect("a version"));
        assert!(loads_name_services("musl 1.2").is_err());
    }
}
