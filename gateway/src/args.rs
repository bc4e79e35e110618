//! Command line and environment.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use flotilla_crds::names;

use crate::egress::quota::Groups;
use crate::egress::quota::redis::Server;
use crate::observe::Observe;
use crate::server::ConnectionLimits;
use crate::upstream::Limits;
use crate::{Ports, Settings};

/// The data plane of Flotilla, one Deployment per namespace: clients reach agents through it, agents reach model providers.
///
/// It follows AgentPools, ModelProviders and EndpointSlices of its namespace by itself and serves on when the API server
/// or the operator is away. SIGTERM drains: responses ask clients to reconnect elsewhere, what runs is finished.
#[derive(Clone, Debug, Parser)]
#[command(name = "flotilla-gateway", version)]
pub struct Args {
    /// Namespace to serve.
    #[arg(long, env = "POD_NAMESPACE")]
    pub namespace: String,
    /// Name of this pod, as reported in /stats.
    #[arg(long, env = "POD_NAME", default_value = "flotilla-gateway")]
    pub pod_name: String,
    /// UID of this pod: draining begins as soon as its endpoint is seen terminating.
    #[arg(long, env = "POD_UID", default_value = "")]
    pub pod_uid: String,
    /// Address of this pod; decides between IPv4 and IPv6 when --listen is not given.
    #[arg(long, env = "POD_IP")]
    pub pod_ip: Option<IpAddr>,
    /// Address to listen on. Default: all addresses of the family of --pod-ip.
    #[arg(long, env = "FLOTILLA_LISTEN")]
    pub listen: Option<IpAddr>,
    /// Shared ingress port: /pools/<pool>/… and the Host names of the pools' Services.
    #[arg(long, default_value_t = names::GATEWAY_INGRESS_PORT)]
    pub ingress_port: u16,
    /// Egress port: /providers/<provider>/v1/…, for agent pods of the namespace.
    #[arg(long, default_value_t = names::GATEWAY_EGRESS_PORT)]
    pub egress_port: u16,
    /// Admin port: /metrics, /stats, /healthz, /readyz.
    #[arg(long, default_value_t = names::GATEWAY_ADMIN_PORT)]
    pub admin_port: u16,
    /// Folder with one folder per ModelProvider, each holding the file api-key.
    #[arg(long, env = "FLOTILLA_CREDENTIALS", default_value = names::CREDENTIALS_DIR)]
    pub credentials: PathBuf,
    /// Domain of the cluster, for Host names.
    #[arg(long, env = "FLOTILLA_CLUSTER_DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,
    /// Connections of clients and agents that may be open at once; further ones wait.
    #[arg(long, env = "FLOTILLA_MAX_CONNECTIONS", default_value_t = 20_000)]
    pub max_connections: usize,
    /// Seconds a client may take for the head of a request.
    #[arg(long, env = "FLOTILLA_HEAD_SECONDS", default_value_t = 10)]
    pub head_seconds: u64,
    /// Seconds after which a client's idle connection is closed.
    #[arg(long, env = "FLOTILLA_IDLE_SECONDS", default_value_t = 600)]
    pub idle_seconds: u64,
    /// Seconds a client may leave a response waiting without taking a byte.
    #[arg(long, env = "FLOTILLA_STALL_SECONDS", default_value_t = 60)]
    pub stall_seconds: u64,
    /// Milliseconds for a connection to an agent.
    #[arg(long, env = "FLOTILLA_AGENT_CONNECT_MILLISECONDS", default_value_t = 1000)]
    pub agent_connect_milliseconds: u64,
    /// Milliseconds after which an idle connection to an agent is not used again. Keep it below the agents' own
    /// keep-alive timeout (5 s in many servers).
    #[arg(long, env = "FLOTILLA_AGENT_IDLE_MILLISECONDS", default_value_t = 4000)]
    pub agent_idle_milliseconds: u64,
    /// Seconds for a whole request to a model provider.
    #[arg(long, env = "FLOTILLA_PROVIDER_SECONDS", default_value_t = 600)]
    pub provider_seconds: u64,
    /// Seconds for a connection to a model provider, name resolution and TLS included.
    #[arg(long, env = "FLOTILLA_PROVIDER_CONNECT_SECONDS", default_value_t = 10)]
    pub provider_connect_seconds: u64,
    /// Seconds after which an idle connection to a model provider is not used again.
    #[arg(long, env = "FLOTILLA_PROVIDER_IDLE_SECONDS", default_value_t = 20)]
    pub provider_idle_seconds: u64,
    /// Redis or Valkey where gateways of several namespaces or clusters meet that share quotas, for example
    /// rediss://redis.tools.svc:6379, or redis:// without TLS. Default: none, and ModelProviders with a quotaGroup cannot be
    /// used.
    #[arg(long, env = names::QUOTA_REDIS_VARIABLE)]
    pub quota_redis: Option<String>,
    /// Folder with the files username, password and ca.crt (who may have signed its certificate) for it, each optional.
    #[arg(long, env = "FLOTILLA_QUOTA_REDIS_SECRET", default_value = names::QUOTA_REDIS_DIR)]
    pub quota_redis_secret: PathBuf,
    /// Seconds from SIGTERM until what still runs is cut. The pod's terminationGracePeriodSeconds must be longer, by the
    /// preStop sleep and a little.
    #[arg(long, env = "FLOTILLA_DRAIN_SECONDS", default_value_t = 300)]
    pub drain_seconds: u64,
    /// Seconds after the beginning of the drain during which idle connections are left open for their next request.
    #[arg(long, env = "FLOTILLA_DRAIN_IDLE_SECONDS", default_value_t = 10)]
    pub drain_idle_seconds: u64,
    /// Bytes of the longest request to a model provider; a longer one is answered with 413.
    #[arg(
        long,
        env = "FLOTILLA_MAX_PROVIDER_REQUEST_BYTES",
        default_value_t = 512 * 1024 * 1024
    )]
    pub max_provider_request_bytes: u64,
    /// Percent of requests that are written to the access log on standard output, one JSON object a line: address and
    /// path, never a query, a header or a body. 0: none.
    #[arg(
        long,
        env = "FLOTILLA_ACCESS_LOG_PERCENT",
        default_value_t = 1,
        value_parser = clap::value_parser!(u8).range(0..=100)
    )]
    pub access_log_percent: u8,
    /// Threads that carry requests. Default: one for each core that this process may use, at most 8.
    #[arg(long, env = "FLOTILLA_WORKERS", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub workers: Option<u16>,
    /// What is logged, for example `info` or `flotilla_gateway=debug`.
    #[arg(long, env = "FLOTILLA_LOG", default_value = "info")]
    pub log: String,
    /// Form of the log.
    #[arg(long, env = "FLOTILLA_LOG_FORMAT", value_enum, default_value_t)]
    pub log_format: LogFormat,
}

/// Form of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    #[default]
    Auto,
    /// JSON, one object a line.
    Json,
    /// For people.
    Text,
}

/// Where nobody has said how many workers there are.
const MOST_WORKERS: usize = 8;

impl Args {
    /// Threads that carry requests. The cores are those that this process may use: affinity and a limit of CPU count.
    fn workers(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        self.workers
            .map_or_else(|| cores().min(MOST_WORKERS), usize::from)
    }

    /// What the data plane needs to know.
    pub fn settings(&self) -> Settings {
        let any = match self.pod_ip {
            Some(IpAddr::V6(_)) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            _ => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        };
        Settings {
            namespace: self.namespace.clone(),
            pod: self.pod_name.clone(),
            cluster_domain: self.cluster_domain.clone(),
            listen: self.listen.unwrap_or(any),
            ports: Ports {
                ingress: self.ingress_port,
                egress: self.egress_port,
                admin: self.admin_port,
            },
            credentials: self.credentials.clone(),
            max_connections: self.max_connections,
            clients: ConnectionLimits {
                head: Duration::from_secs(self.head_seconds),
                idle: Duration::from_secs(self.idle_seconds),
                stall: Duration::from_secs(self.stall_seconds),
            },
            agents: Limits {
                connect: Duration::from_millis(self.agent_connect_milliseconds),
                idle: Duration::from_millis(self.agent_idle_milliseconds),
            },
            providers: Limits {
                connect: Duration::from_secs(self.provider_connect_seconds),
                idle: Duration::from_secs(self.provider_idle_seconds),
            },
            provider_timeout: Duration::from_secs(self.provider_seconds),
            max_provider_request_bytes: self.max_provider_request_bytes,
            observe: Observe::default(),
            workers: self.workers(),
            drain_idle: Duration::from_secs(self.drain_idle_seconds),
            drain_deadline: Duration::from_secs(self.drain_seconds),
        }
    }
}

impl Args {
    /// Where quotas are shared with others, if anywhere.
    ///
    /// # Errors
    /// With a sentence, when the address is none.
    pub fn groups(&self) -> Result<Option<Groups>, String> {
        let Some(address) = self.quota_redis.as_deref().filter(|address| !address.is_empty()) else {
            return Ok(None);
        };
        // Names of pods come again, and are the same in other clusters; UIDs are not.
        let name = format!("{}.{}.{}", self.namespace, self.pod_name, self.pod_uid);
        Ok(Some(Groups {
            server: Arc::new(Server::new(address, &self.quota_redis_secret)?),
            name,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn flags_are_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn the_pods_address_decides_the_family() {
        let args = |ip: &str| {
            Args::parse_from(["gateway", "--namespace", "n", "--pod-ip", ip])
                .settings()
                .listen
        };
        assert_eq!(args("10.0.0.1"), IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        assert_eq!(args("fd00::1"), IpAddr::V6(Ipv6Addr::UNSPECIFIED));
    }
}
