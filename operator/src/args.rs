//! Command line and environment.

use std::ffi::OsString;
use std::net::SocketAddr;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// The Flotilla operator: runs fleets of LLM agents on Kubernetes.
///
/// Watches AgentPools, LoadTests, ModelProviders and RolloutActions (group flotilla.dev) and makes the cluster match
/// them. Several replicas may run: one leads, the others stand by with warm caches and take over within 17 s.
#[derive(Debug, Parser)]
#[command(name = "flotilla-operator", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// What to do; `run` when left out.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The flags of `run`.
    #[command(flatten)]
    pub run: RunArgs,
    /// How to log.
    #[command(flatten)]
    pub log: LogArgs,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the operator until SIGTERM or Ctrl-C.
    Run(Box<RunArgs>),
    /// Print the CustomResourceDefinitions as YAML, for `kubectl apply -f -`.
    Crds,
}

/// Flags of `run`.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// Kubeconfig to use; several files separated by `:` are merged. Without it the pod's service account is used;
    /// `~/.kube/config` never is.
    #[arg(long, env = "KUBECONFIG", value_name = "FILE", help_heading = "Cluster")]
    pub kubeconfig: Option<OsString>,

    /// Context of the kubeconfig. Default: its current context.
    #[arg(
        long,
        env = "FLOTILLA_CONTEXT",
        value_name = "NAME",
        requires = "kubeconfig",
        help_heading = "Cluster"
    )]
    pub context: Option<String>,

    /// Namespaces to watch, separated by commas. Default: all. With it, Roles in these namespaces are enough.
    #[arg(
        long,
        env = "FLOTILLA_WATCH_NAMESPACES",
        value_name = "NAMESPACE,…",
        value_delimiter = ',',
        help_heading = "Cluster"
    )]
    pub watch_namespaces: Vec<String>,

    /// Address of /metrics, /healthz and /readyz.
    #[arg(
        long,
        env = "FLOTILLA_HTTP_ADDRESS",
        value_name = "ADDRESS:PORT",
        default_value = "0.0.0.0:8080",
        help_heading = "Server"
    )]
    pub http_address: SocketAddr,

    /// Image of the gateway that is put into each namespace with a pool.
    #[arg(
        long,
        env = "FLOTILLA_GATEWAY_IMAGE",
        value_name = "IMAGE",
        default_value = "flotilla.dev/gateway:dev",
        help_heading = "Images"
    )]
    pub gateway_image: String,

    /// Image of the load generator that LoadTests run.
    #[arg(
        long,
        env = "FLOTILLA_LOADGEN_IMAGE",
        value_name = "IMAGE",
        default_value = "flotilla.dev/loadgen:dev",
        help_heading = "Images"
    )]
    pub loadgen_image: String,

    /// Gateway pods in each namespace with a pool.
    #[arg(
        long,
        env = "FLOTILLA_GATEWAY_REPLICAS",
        value_name = "PODS",
        default_value_t = 2,
        value_parser = clap::value_parser!(i32).range(1..=100),
        help_heading = "Gateways"
    )]
    pub gateway_replicas: i32,

    /// Environment variable of every gateway, for its own flags (`FLOTILLA_ACCESS_LOG_PERCENT=10`) and for OpenTelemetry
    /// (`OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4318`). Repeatable. No place for secrets: pods show it.
    #[arg(
        long,
        value_name = "NAME=VALUE",
        value_parser = gateway_env,
        help_heading = "Gateways"
    )]
    pub gateway_env: Vec<(String, String)>,

    /// Namespaces whose gateways are replaced at the same time after an upgrade.
    #[arg(
        long,
        env = "FLOTILLA_UPGRADE_PARALLELISM",
        value_name = "NAMESPACES",
        default_value_t = 2,
        value_parser = clap::value_parser!(u32).range(1..=1000),
        help_heading = "Gateways"
    )]
    pub upgrade_parallelism: u32,

    /// Sources of numbers that pools may name in analysis.metrics, as NAME=URL: a Prometheus, or a service that answers with
    /// JSON. Plain http, without credentials. Several are separated by commas. Default: none.
    #[arg(
        long = "metric-source",
        env = "FLOTILLA_METRIC_SOURCES",
        value_name = "NAME=URL",
        value_delimiter = ',',
        value_parser = metric_source,
        help_heading = "Releases"
    )]
    pub metric_sources: Vec<(String, String)>,

    /// Name of the Lease that elects the leader.
    #[arg(
        long,
        env = "FLOTILLA_LEASE_NAME",
        value_name = "NAME",
        default_value = "flotilla-operator",
        help_heading = "Leader election"
    )]
    pub lease_name: String,

    /// Namespace of the Lease. Default: the pod's namespace, or that of the kubeconfig's context.
    #[arg(
        long,
        env = "POD_NAMESPACE",
        value_name = "NAMESPACE",
        help_heading = "Leader election"
    )]
    pub lease_namespace: Option<String>,

    /// Who this replica is in the election: the pod's name, so that a restarted container takes its own lease up at
    /// once. Default: the host's name with a random suffix.
    #[arg(long, env = "POD_NAME", value_name = "NAME", help_heading = "Leader election")]
    pub identity: Option<String>,
}

/// How to log.
#[derive(Debug, Clone, Args)]
pub struct LogArgs {
    /// Format of the log on stderr. Default: text on a terminal, else json.
    #[arg(
        long,
        env = "FLOTILLA_LOG_FORMAT",
        value_name = "FORMAT",
        global = true,
        help_heading = "Log"
    )]
    pub log_format: Option<LogFormat>,

    /// Level, or a filter such as `info,flotilla_operator=debug`.
    #[arg(
        long,
        env = "RUST_LOG",
        value_name = "FILTER",
        default_value = "info",
        global = true,
        help_heading = "Log"
    )]
    pub log_level: String,
}

/// A variable's name and value.
fn gateway_env(text: &str) -> Result<(String, String), String> {
    const OURS: &str = "POD_";
    let (name, value) = text
        .split_once('=')
        .ok_or("write NAME=VALUE, for example FLOTILLA_ACCESS_LOG_PERCENT=10")?;
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty() || !name.chars().all(word) || name.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(format!("{name:?} is no name of an environment variable"));
    }
    if name.starts_with(OURS) {
        return Err(format!("{name} is set by Flotilla"));
    }
    Ok((name.to_owned(), value.to_owned()))
}

/// Format of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One line for people.
    Text,
    /// One JSON object per line.
    Json,
}

/// A source of numbers: its name, and its address without a slash at the end.
fn metric_source(text: &str) -> Result<(String, String), String> {
    let help = "write NAME=URL, for example main=http://prometheus.monitoring.svc:9090";
    let (name, url) = text.split_once('=').ok_or(help)?;
    let is_name = |name: &str| {
        name.starts_with(|first: char| first.is_ascii_lowercase())
            && name
                .chars()
                .all(|char| char.is_ascii_lowercase() || char.is_ascii_digit() || char == '-')
    };
    let uri = url
        .parse::<http::Uri>()
        .map_err(|error| format!("{error}; {help}"))?;
    if !is_name(name) || uri.scheme_str() != Some("http") || uri.host().is_none() || uri.query().is_some() {
        return Err(help.to_owned());
    }
    Ok((name.to_owned(), url.trim_end_matches('/').to_owned()))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_gateways_variable_has_a_name_and_a_value() {
        let parsed = |text| gateway_env(text).ok();
        let pair = |name: &str, value: &str| Some((name.to_owned(), value.to_owned()));
        assert_eq!(parsed("A_1=b=c"), pair("A_1", "b=c"));
        assert_eq!(parsed("A="), pair("A", ""));
        for bad in ["A", "=b", "1A=b", "a b=c", "POD_NAME=x"] {
            assert_eq!(parsed(bad), None, "{bad}");
        }
    }

    #[test]
    fn run_is_the_default_and_takes_its_flags_with_or_without_the_name() {
        let cli = Cli::try_parse_from(["flotilla-operator", "--watch-namespaces", "a,b"]).unwrap();
        assert!(cli.command.is_none());
        assert_eq!(cli.run.watch_namespaces, ["a", "b"]);
        let cli = Cli::try_parse_from([
            "flotilla-operator",
            "run",
            "--lease-name",
            "x",
            "--log-level",
            "debug",
        ])
        .unwrap();
        assert_eq!(cli.log.log_level, "debug");
        assert!(matches!(cli.command, Some(Command::Run(args)) if args.lease_name == "x"));
        let cli = Cli::try_parse_from(["flotilla-operator", "crds"]).unwrap();
        assert!(matches!(cli.command, Some(Command::Crds)));
    }

    #[test]
    fn metric_sources_have_a_name_and_a_plain_address() {
        let parse = |text: &str| Cli::try_parse_from(["flotilla-operator", "--metric-source", text]);
        let cli = parse("main=http://prometheus.monitoring.svc:9090/,own=http://own.svc/api").unwrap();
        let expected = [
            ("main", "http://prometheus.monitoring.svc:9090"),
            ("own", "http://own.svc/api"),
        ]
        .map(|(name, url)| (name.to_owned(), url.to_owned()));
        assert_eq!(cli.run.metric_sources, expected);
        for bad in [
            "http://prometheus.svc",
            "Main=http://p.svc",
            "main=https://p.svc",
            "main=p.svc",
            "main=http://p.svc?a=b",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
