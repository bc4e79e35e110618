//! Commands and what they print.

use crate::check::{self, Outcome};
use crate::cluster;
use crate::plan::{EXAMPLE_FAILED_PERCENT, Known, Report, depends_on_traffic, report, told};
use clap::{Parser, Subcommand, ValueEnum};
use flotilla_core::evidence::Traffic;
use flotilla_crds::AgentPool;
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
    /// Show what the next release of a pool will do: its steps with pods, true weights, and the expected time to a verdict at the
    /// present traffic.
    ///
    /// Nothing is changed. The traffic is read from the pool's gateways through the API server, which needs the rights to `list` `pods`
    /// and to `get` `pods/proxy`, unless it is told with `--requests-per-second`; where it is not known, plans for 1, 10 and 100
    /// requests per second are shown. Ends with 1 when the pool cannot be read.
    Plan {
        /// Name of the AgentPool. With a file it may be left out: then no cluster is asked.
        #[arg(required_unless_present = "file")]
        pool: Option<String>,
        /// File with an AgentPool whose spec is planned in place of the one in the cluster; `-` is standard input.
        #[arg(short = 'f', long = "filename", value_name = "FILE")]
        file: Option<PathBuf>,
        /// Namespace of the pool. Default: the context's.
        #[arg(short, long)]
        namespace: Option<String>,
        /// Context of the kubeconfig. Default: the current one.
        #[arg(long)]
        context: Option<String>,
        /// Requests per second of the pool, for example 12.5. Default: what its gateways have counted.
        #[arg(long, value_name = "RATE", value_parser = rate)]
        requests_per_second: Option<f64>,
        /// How many of them fail, in percent.
        #[arg(long, value_name = "PERCENT", value_parser = percent, requires = "requests_per_second", default_value_t = EXAMPLE_FAILED_PERCENT)]
        failed_percent: f64,
        /// Format of the answer.
        #[arg(short, long, value_enum, default_value_t)]
        output: Format,
    },
    /// Print the version.
    Version,
}

/// How an answer is printed.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// Carries out `cli` and prints to `out`.
pub fn run(cli: Cli, out: &mut impl Write) -> ExitCode {
    let printed = match cli.command {
        Command::Version => {
            writeln!(out, "kubectl-flotilla {}", env!("CARGO_PKG_VERSION")).map(|()| ExitCode::SUCCESS)
        }
        Command::Validate { files } => validate(&files, out),
        Command::Plan {
            pool,
            file,
            namespace,
            context,
            requests_per_second,
            failed_percent,
            output,
        } => {
            let given = requests_per_second.map(|rate| told(rate, failed_percent));
            let found = planned(pool.as_deref(), file.as_deref(), namespace, context, given);
            match (found, output) {
                (Ok(report), Format::Text) => write!(out, "{report}").map(|()| ExitCode::SUCCESS),
                (Ok(report), Format::Json) => serde_json::to_writer_pretty(&mut *out, &report)
                    .map_err(Into::into)
                    .and_then(|()| writeln!(out))
                    .map(|()| ExitCode::SUCCESS),
                (Err(sentence), _) => {
                    eprintln!("{sentence}");
                    Ok(ExitCode::FAILURE)
                }
            }
        }
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

fn rate(text: &str) -> Result<f64, String> {
    between(text, 0.001, 1e6)
}

fn percent(text: &str) -> Result<f64, String> {
    between(text, 0.0, 100.0)
}

fn between(text: &str, least: f64, most: f64) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| format!("write a number from {least} to {most}"))
}

/// The plans for the pool of this name, with the spec in `file` where there is one, at the traffic that is `given`.
fn planned(
    name: Option<&str>,
    file: Option<&Path>,
    namespace: Option<String>,
    context: Option<String>,
    given: Option<Traffic>,
) -> Result<Report, String> {
    let own = file.map(manifest).transpose()?;
    let Some(name) = name else {
        let pool = own.ok_or("name a pool, or a file with one")?;
        let unknown = || {
            Known::Unknown(
                "no cluster was asked; name the pool to have its gateways asked, or tell --requests-per-second".to_owned(),
            )
        };
        return Ok(report(&pool, true, given.map_or_else(unknown, Known::Counted)));
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("failed to start: {error}"))?;
    runtime.block_on(async {
        let client = cluster::connect(context).await?;
        let namespace = namespace.unwrap_or_else(|| client.default_namespace().to_owned());
        let found = cluster::pool(&client, &namespace, name).await?;
        let serves = found
            .status
            .as_ref()
            .is_some_and(|status| status.stable.is_some());
        let planned = AgentPool {
            spec: own.unwrap_or_else(|| found.clone()).spec,
            ..found.clone()
        };
        let known = match (given, depends_on_traffic(&planned) && serves) {
            (Some(given), _) => Known::Counted(given),
            (None, true) => cluster::traffic(&client, &namespace, &found).await,
            (None, false) => Known::Unknown("it was not asked for".to_owned()),
        };
        Ok(report(&planned, serves, known))
    })
}

/// The AgentPool in a file, if it is valid.
fn manifest(file: &Path) -> Result<AgentPool, String> {
    let shown = file.display();
    let documents = read(file).map_err(|error| format!("{shown}: {error}"))?;
    let mut pools = documents
        .into_iter()
        .filter(|document| document["kind"] == "AgentPool");
    let (Some(pool), None) = (pools.next(), pools.next()) else {
        return Err(format!("{shown}: needs exactly one AgentPool"));
    };
    if let Outcome::Checked(problems) = check::create(&pool)
        && !problems.is_empty()
    {
        return Err(format!(
            "{shown}: {}: {}",
            check::title(&pool),
            problems.join("; ")
        ));
    }
    serde_json::from_value(pool).map_err(|error| format!("{shown}: is no AgentPool: {error}"))
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
