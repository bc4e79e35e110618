//! The programs that are compiled here: Kubernetes, etcd, CoreDNS, Helm, kwok, kubeconform, and the pause program.
//!
//! Each comes from a small Go module of ours (`build/<name>/go.mod` and `go.sum`, compiled into this program), which
//! only requires the published one: `go install` refuses modules with `replace` lines, and `go.sum` pins every byte
//! that is compiled. The result lies in the cache at `bin/<name>-<version>-<hash>/`, where the hash covers both files
//! and the build's flags: a changed pin is a new folder, and an unchanged one is never built twice on a machine.
//!
//! A program is built beside its place and renamed into it, so whatever is in place is whole. A build that was killed
//! goes on with the first program that is missing.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::lock::Lock;
use crate::progress::Progress;
use crate::settings::Settings;
use crate::shell;

/// A Go module of ours and the programs built from it.
#[derive(Debug)]
struct Module {
    name: &'static str,
    version: &'static str,
    go_mod: &'static str,
    go_sum: &'static str,
    /// File name, import path of the main package, seconds it takes with an empty build cache on two cores.
    programs: &'static [(&'static str, &'static str, u32)],
    /// Variables the linker sets: a module zip has no version in it.
    variables: &'static [(&'static str, &'static str)],
}

macro_rules! module {
    ($name:literal, $version:literal, $programs:expr, $variables:expr) => {
        Module {
            name: $name,
            version: $version,
            go_mod: include_str!(concat!("../build/", $name, "/go.mod")),
            go_sum: include_str!(concat!("../build/", $name, "/go.sum")),
            programs: $programs,
            variables: $variables,
        }
    };
}

/// The oldest Go release that compiles all of them.
const GO_MINOR: u32 = 26;

/// The API server comes last but one in weight: it compiles what the other Kubernetes programs share.
const MODULES: [Module; 7] = [
    module!(
        "etcd",
        "v3.7.1",
        &[("etcd", "go.etcd.io/etcd/server/v3", 21)],
        &[]
    ),
    module!(
        "kubernetes",
        "v1.37.0",
        &[
            ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver", 242),
            (
                "kube-controller-manager",
                "k8s.io/kubernetes/cmd/kube-controller-manager",
                75
            ),
            ("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler", 7),
            ("kubelet", "k8s.io/kubernetes/cmd/kubelet", 21),
            ("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy", 9),
            ("kubectl", "k8s.io/kubernetes/cmd/kubectl", 19),
        ],
        &[
            ("k8s.io/component-base/version.gitVersion", "v1.37.0"),
            ("k8s.io/component-base/version.gitMajor", "1"),
            ("k8s.io/component-base/version.gitMinor", "37"),
            ("k8s.io/component-base/version.gitTreeState", "clean"),
            ("k8s.io/client-go/pkg/version.gitVersion", "v1.37.0"),
            ("k8s.io/client-go/pkg/version.gitMajor", "1"),
            ("k8s.io/client-go/pkg/version.gitMinor", "37"),
            ("k8s.io/client-go/pkg/version.gitTreeState", "clean"),
        ]
    ),
    module!(
        "coredns",
        "v1.12.4",
        &[("coredns", "github.com/coredns/coredns", 99)],
        &[]
    ),
    module!(
        "helm",
        "v4.2.4",
        &[("helm", "helm.sh/helm/v4/cmd/helm", 59)],
        &[("helm.sh/helm/v4/internal/version.version", "v4.2.4")]
    ),
    module!(
        "helm3",
        "v3.21.4",
        &[("helm3", "helm.sh/helm/v3/cmd/helm", 44)],
        // Without the last two, `helm template` offers charts a Kubernetes far older than the cluster's.
        &[
            ("helm.sh/helm/v3/internal/version.version", "v3.21.4"),
            ("helm.sh/helm/v3/pkg/chartutil.k8sVersionMajor", "1"),
            ("helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor", "37"),
        ]
    ),
    module!(
        "kwok",
        "v0.8.0",
        &[("kwok", "sigs.k8s.io/kwok/cmd/kwok", 55)],
        &[]
    ),
    module!(
        "kubeconform",
        "v0.7.0",
        &[("kubeconform", "github.com/yannh/kubeconform/cmd/kubeconform", 3)],
        &[("main.version", "v0.7.0")]
    ),
];

/// The pause program's source; compiled with the C compiler that Rust's linker needs anyway.
const PAUSE_SOURCE: &str = include_str!("files/pause.c");
/// Flags of the pause program's compilation.
const PAUSE_FLAGS: [&str; 4] = ["-static", "-Os", "-s", "-Wall"];
/// The pause program's file name.
pub const PAUSE: &str = "pause";

/// What `.local/bin` offers to people and tests.
const FOR_PEOPLE: [&str; 5] = ["kubectl", "helm", "helm3", "kwok", "kubeconform"];

impl Module {
    fn ldflags(&self) -> String {
        let mut flags = "-s -w".to_owned();
        for (variable, value) in self.variables {
            flags.push_str(&format!(" -X {variable}={value}"));
        }
        flags
    }

    /// Folder in the cache: name, version, and a hash of everything that decides the result.
    fn key(&self) -> String {
        let mut hash = Sha256::new();
        for part in [self.go_mod, self.go_sum, &self.ldflags(), std::env::consts::ARCH] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        format!("{}-{}-{}", self.name, self.version, short(&hash.finalize()))
    }
}

fn pause_key() -> String {
    let mut hash = Sha256::new();
    hash.update(PAUSE_SOURCE);
    hash.update(std::env::consts::ARCH);
    format!("{PAUSE}-{}", short(&hash.finalize()))
}

fn short(digest: &[u8]) -> String {
    digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

/// Where the compiled programs are.
#[derive(Clone, Debug)]
pub struct Programs {
    folder: PathBuf,
}

impl Programs {
    /// In `$FLOTILLA_CACHE/bin`, or `~/.cache/flotilla/bin`.
    ///
    /// # Errors
    /// When neither `FLOTILLA_CACHE` nor a home is known.
    pub fn in_cache() -> Result<Self> {
        let cache = match std::env::var_os("FLOTILLA_CACHE").filter(|value| !value.is_empty()) {
            Some(cache) => PathBuf::from(cache),
            None => {
                let home = std::env::var_os("HOME").filter(|value| !value.is_empty());
                let home =
                    home.context("neither FLOTILLA_CACHE nor HOME is set: no place for the programs")?;
                PathBuf::from(home).join(".cache/flotilla")
            }
        };
        Ok(Self::at(std::path::absolute(cache)?.join("bin")))
    }

    /// In the given folder.
    pub fn at(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Path of a program, whether built yet or not. A name that is not built here is left to the search path.
    pub fn path(&self, program: &str) -> PathBuf {
        if program == PAUSE {
            return self.folder.join(pause_key()).join(PAUSE);
        }
        for module in &MODULES {
            if module.programs.iter().any(|(name, ..)| *name == program) {
                return self.folder.join(module.key()).join(program);
            }
        }
        program.into()
    }

    /// A hash over the keys of all programs: another one means other binaries.
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        for module in &MODULES {
            hash.update(module.key());
        }
        hash.update(pause_key());
        short(&hash.finalize())
    }

    fn missing(&self) -> Vec<(&'static Module, &'static str, &'static str, u32)> {
        let all = MODULES.iter().flat_map(|module| {
            module
                .programs
                .iter()
                .map(move |(name, package, seconds)| (module, *name, *package, *seconds))
        });
        all.filter(|(_, name, ..)| !self.path(name).is_file()).collect()
    }

    /// Builds what is missing.
    ///
    /// # Errors
    /// Names the program, shows the compiler's last lines, and says where its whole output is.
    pub fn build(&self, settings: &Settings, progress: &Progress) -> Result<()> {
        if self.missing().is_empty() && self.path(PAUSE).is_file() {
            return Ok(());
        }
        let _lock = Lock::take(&self.folder.join(".lock"), progress)?;
        let missing = self.missing();
        if !missing.is_empty() {
            check_go()?;
            let minutes = missing
                .iter()
                .map(|(.., seconds)| seconds)
                .sum::<u32>()
                .div_ceil(60);
            progress.say(format_args!(
                "building {} programs from source into {}, once per machine; about {minutes} min on 2 cores",
                missing.len(),
                self.folder.display()
            ));
        }
        for (at, (module, name, package, seconds)) in missing.iter().enumerate() {
            let what = format!(
                "[{}/{}] building {name} {} (about {seconds} s on 2 cores)",
                at + 1,
                missing.len(),
                module.version
            );
            progress.long(&what, || self.build_go(module, name, package, settings))?;
        }
        if !self.path(PAUSE).is_file() {
            self.build_pause(settings)?;
        }
        Ok(())
    }

    fn build_go(&self, module: &Module, name: &str, package: &str, settings: &Settings) -> Result<()> {
        let folder = self.folder.join(module.key());
        let source = folder.join("module");
        shell::write_atomically(&source.join("go.mod"), module.go_mod.as_bytes(), 0o644)?;
        shell::write_atomically(&source.join("go.sum"), module.go_sum.as_bytes(), 0o644)?;
        remove_unfinished(&folder);
        // With the pid: a compiler whose caller was killed goes on, and must not write into ours.
        let unfinished = folder.join(format!(".{name}.{}.unfinished", std::process::id()));
        let mut go = Command::new(shell::find("go").context("`go` is not on the search path")?);
        go.current_dir(&source)
            .args([
                "build",
                "-trimpath",
                "-mod=readonly",
                "-buildvcs=false",
                "-ldflags",
                &module.ldflags(),
                "-o",
            ])
            .arg(&unfinished)
            .arg(package)
            .env("CGO_ENABLED", "0")
            .env("GOTOOLCHAIN", "local")
            .env("GOWORK", "off")
            .env_remove("GOFLAGS")
            .env_remove("GOOS")
            .env_remove("GOARCH");
        compile(go, name, settings)?;
        std::fs::rename(&unfinished, folder.join(name)).with_context(|| format!("failed to place {name}"))
    }

    fn build_pause(&self, settings: &Settings) -> Result<()> {
        let folder = self.folder.join(pause_key());
        let source = folder.join("pause.c");
        shell::write_atomically(&source, PAUSE_SOURCE.as_bytes(), 0o644)?;
        let unfinished = folder.join(format!(".{PAUSE}.{}.unfinished", std::process::id()));
        let compiler = shell::find("cc").context(
            "no C compiler (`cc`) for the pause program: install gcc and libc6-dev, which Rust's linker needs too",
        )?;
        let mut cc = Command::new(compiler);
        cc.args(PAUSE_FLAGS).arg("-o").arg(&unfinished).arg(&source);
        compile(cc, PAUSE, settings)?;
        std::fs::rename(&unfinished, folder.join(PAUSE)).context("failed to place pause")
    }

    /// Puts links to what people use into `<state>/bin`.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn link(&self, settings: &Settings) -> Result<()> {
        let folder = settings.state.join("bin");
        std::fs::create_dir_all(&folder).with_context(|| format!("failed to make {}", folder.display()))?;
        for name in FOR_PEOPLE {
            let (link, target) = (folder.join(name), self.path(name));
            if std::fs::read_link(&link).is_ok_and(|now| now == target) {
                continue;
            }
            let fresh = folder.join(format!(".{name}.{}", std::process::id()));
            std::os::unix::fs::symlink(&target, &fresh)
                .and_then(|()| std::fs::rename(&fresh, &link))
                .with_context(|| format!("failed to link {}", link.display()))?;
        }
        Ok(())
    }
}

/// Whatever a killed build left; the lock says that none is running.
fn remove_unfinished(folder: &Path) {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().to_string_lossy().ends_with(".unfinished")) {
        let _ = std::fs::remove_file(entry.path());
    }
}

fn compile(mut compiler: Command, name: &str, settings: &Settings) -> Result<()> {
    let log = settings.logs().join(format!("build-{name}.log"));
    std::fs::create_dir_all(settings.logs()).with_context(|| format!("failed to make {}", log.display()))?;
    let output = File::create(&log).with_context(|| format!("failed to write {}", log.display()))?;
    let status = compiler
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .status()
        .with_context(|| format!("failed to run {:?}", compiler.get_program()))?;
    if !status.success() {
        bail!(
            "building {name} failed ({status}). Last lines of {}:\n{}\nWhen it was the network or the disk, mend it and \
             run the same command again: it goes on where it stopped.",
            log.display(),
            indent(&shell::tail(&log, 15))
        );
    }
    let _ = std::fs::remove_file(&log);
    Ok(())
}

/// Lines of a log, set off from the text around them.
pub fn indent(lines: &[String]) -> String {
    if lines.is_empty() {
        return "    (empty)".into();
    }
    lines
        .iter()
        .map(|line| format!("    {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}

fn check_go() -> Result<()> {
    let go = shell::find("go").with_context(|| {
        format!("Go 1.{GO_MINOR} or newer is needed to build Kubernetes, and `go` is not on the search path")
    })?;
    let version = shell::run(&go, &["env", "GOVERSION"])?;
    let minor = go_minor(&version);
    ensure!(
        minor.is_some_and(|minor| minor >= GO_MINOR),
        "Go 1.{GO_MINOR} or newer is needed to build Kubernetes; {} is {}",
        go.display(),
        version.trim()
    );
    Ok(())
}

/// The minor number in `go1.26.8`, `go1.27rc1` or `go1.27-devel_abc`.
fn go_minor(version: &str) -> Option<u32> {
    let rest = version.trim().strip_prefix("go1.")?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_changes_with_what_is_built() {
        let module = |go_sum, variables| Module {
            name: "x",
            version: "v1",
            go_mod: "module x",
            go_sum,
            programs: &[],
            variables,
        };
        let key = module("a", &[]).key();
        assert!(key.starts_with("x-v1-"), "{key}");
        assert_eq!(key, module("a", &[]).key());
        assert_ne!(key, module("b", &[]).key());
        assert_ne!(key, module("a", &[("v", "1")]).key());
    }

    #[test]
    fn the_version_is_the_one_required() {
        for module in &MODULES {
            assert!(
                module
                    .go_mod
                    .lines()
                    .any(|line| line.starts_with("require ") && line.ends_with(module.version)),
                "{} {}",
                module.name,
                module.version
            );
            assert!(!module.go_sum.is_empty(), "{}", module.name);
            for (_, package, _) in module.programs {
                assert!(
                    module.go_mod.contains(package),
                    "no `tool {package}` in {}",
                    module.name
                );
            }
        }
    }

    #[test]
    fn go_versions_are_read() {
        for (text, minor) in [
            ("go1.26.8\n", Some(26)),
            ("go1.27rc1", Some(27)),
            ("devel", None),
            ("", None),
        ] {
            assert_eq!(go_minor(text), minor, "{text}");
        }
    }

    #[test]
    fn programs_not_built_here_are_looked_up() {
        let programs = Programs::at("/cache/bin".into());
        assert_eq!(programs.path("containerd"), Path::new("containerd"));
        assert!(programs.path("kubelet").starts_with("/cache/bin"));
    }

    #[test]
    fn unfinished_programs_are_removed() {
        let folder = std::env::temp_dir().join(format!("flotilla-unfinished-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(".etcd.unfinished"), "half").unwrap();
        std::fs::write(folder.join("etcd"), "whole").unwrap();
        remove_unfinished(&folder);
        assert!(folder.join("etcd").exists() && !folder.join(".etcd.unfinished").exists());
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
