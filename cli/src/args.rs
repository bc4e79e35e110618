//! Commands and what they print.

use crate::check::{self, Outcome};
use clap::{Parser, Subcommand};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Fleets of LLM agents on Kubernetes.
#[derive(Debug, Parser)]
#[command(name = "kubectl-flotilla", bin_name = "kubectl flotilla", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Check manifests without a cluster: fields, bounds and rules of the kinds of flotilla.dev.
    ///
    /// Objects of other kinds are passed over. Ends with 1 when something is wrong, and with 2 when a file cannot be
    /// read.
    Validate {
        /// File with one or more YAML or JSON documents; `-` is standard input. May be given several times.
        #[arg(short = 'f', long = "filename", value_name = "FILE", required = true)]
        files: Vec<PathBuf>,
    },
    /// Print the version.
    Version,
}

/// Carries out `cli` and prints to `out`.
pub fn run(cli: Cli, out: &mut impl Write) -> ExitCode {
    let printed = match cli.command {
        Command::Version => {
            writeln!(out, "kubectl-flotilla {}", env!("CARGO_PKG_VERSION")).map(|()| ExitCode::SUCCESS)
        }
        Command::Validate { files } => validate(&files, out),
    };
    // A closed pipe (`| head`) is the reader's decision.
    printed.unwrap_or(ExitCode::FAILURE)
}

fn validate(files: &[PathBuf], out: &mut impl Write) -> std::io::Result<ExitCode> {
    let mut worst = 0;
    for file in files {
        let shown = file.display();
        let documents = match read(file) {
            Ok(documents) => documents,
            Err(error) => {
                writeln!(out, "{shown}: {error}")?;
                worst = 2;
                continue;
            }
        };
        for document in documents.iter().filter(|document| !document.is_null()) {
            match check::create(document) {
                Outcome::Foreign => writeln!(
                    out,
                    "{shown}: {}: not of flotilla.dev, passed over",
                    check::title(document)
                )?,
                Outcome::Checked(problems) if problems.is_empty() => {
                    writeln!(out, "{shown}: {}: valid", check::title(document))?;
                }
                Outcome::Checked(problems) => {
                    worst = worst.max(1);
                    for problem in problems {
                        writeln!(out, "{shown}: {}: {problem}", check::title(document))?;
                    }
                }
            }
        }
    }
    Ok(ExitCode::from(worst))
}

fn read(file: &Path) -> Result<Vec<serde_json::Value>, String> {
    let mut text = String::new();
    if file == Path::new("-") {
        std::io::stdin()
            .read_to_string(&mut text)
            .map_err(|error| format!("failed to read: {error}"))?;
    } else {
        text = std::fs::read_to_string(file).map_err(|error| format!("failed to read: {error}"))?;
    }
    serde_saphyr::from_multiple(&text).map_err(|error| format!("is not YAML: {error}"))
}
