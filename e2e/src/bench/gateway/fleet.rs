//! What is measured: gateways as processes of their own between a client and the origin, told by an API server.

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use serde_json::Value;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::api::Api;
use super::machine::{free_port, wait_for};
use super::objects::{self, NAMESPACE, POOL, POOL_PORT, REVISIONS, SESSION_HEADER};
use super::origin::{REPLICAS, chat_request};
use super::process::{Child, Start};

/// Conversations that requests belong to, in turn.
const CONVERSATIONS: usize = 1000;
/// Until a process serves.
const START: Duration = Duration::from_secs(20);

/// Origin, API server and gateways.
pub struct Fleet {
    /// Where objects are changed.
    pub api: Api,
    /// The first address of the origin.
    pub origin: SocketAddr,
    /// The gateways.
    pub gateways: Vec<Gateway>,
    kubeconfig: PathBuf,
    /// Kept until the end.
    _origin: Child,
}

/// One gateway process.
pub struct Gateway {
    /// The process.
    pub process: Child,
    /// The pool's own port.
    pub ingress: SocketAddr,
    /// The egress.
    pub egress: SocketAddr,
    /// Metrics and `/stats`.
    pub admin: SocketAddr,
}

/// What a fleet is made of.
pub struct Layout<'a> {
    /// The gateway's program.
    pub program: &'a Path,
    /// A folder that is ours.
    pub folder: &'a Path,
    /// Cores of the origin, as `taskset` takes them.
    pub origin: String,
    /// Cores of each gateway.
    pub gateway: String,
    /// Number of gateways.
    pub gateways: u8,
    /// Half of the origin's addresses to each of the two revisions, instead of all to the first.
    pub split: bool,
}

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To the origin itself, or through a proxy that sends everything to it.
    Plain,
    /// To the pool.
    Ingress,
    /// To the provider.
    Egress,
}

impl Fleet {
    /// Starts everything and waits until it serves.
    ///
    /// # Errors
    /// When something does not start.
    pub fn start(layout: &Layout<'_>) -> Result<Self> {
        let port = free_port(IpAddr::V4(Ipv4Addr::LOCALHOST))?;
        let own = std::env::current_exe().context("failed to find this program")?;
        let mut origin_process = Start {
            name: "origin",
            program: &own,
            arguments: vec!["origin".into(), "--port".into(), port.to_string()],
            environment: vec![],
            cores: layout.origin.clone(),
            folder: layout.folder,
        }
        .spawn()?;
        let origin = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        wait_for(START, "the origin", || {
            origin_process.check()?;
            let last = SocketAddr::from((Ipv4Addr::new(127, 0, 0, REPLICAS), port));
            Ok(TcpStream::connect(last)?)
        })?;
        let api = Api::start()?;
        let kubeconfig = prepare(layout, &api, port)?;
        let gateways = (1..=layout.gateways)
            .map(|number| Gateway::start(layout, &kubeconfig, number))
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            api,
            origin,
            gateways,
            kubeconfig,
            _origin: origin_process,
        })
    }

    /// Kills a gateway, and starts it again with the same name and address.
    ///
    /// # Errors
    /// When there is none with this index, or it does not start.
    pub fn restart(&mut self, layout: &Layout<'_>, index: usize) -> Result<()> {
        if index >= self.gateways.len() {
            bail!("there is no gateway {}", index + 1);
        }
        drop(self.gateways.remove(index));
        let started = Gateway::start(layout, &self.kubeconfig, u8::try_from(index + 1)?)?;
        self.gateways.insert(index, started);
        Ok(())
    }

    /// The only gateway, or the first.
    ///
    /// # Errors
    /// When there is none.
    pub fn gateway(&self) -> Result<&Gateway> {
        self.gateways.first().context("a fleet without gateways")
    }
}

/// Writes the objects, the key and the kubeconfig; gives the kubeconfig's path.
fn prepare(layout: &Layout<'_>, api: &Api, port: u16) -> Result<PathBuf> {
    let [first, second] = REVISIONS;
    let half = REPLICAS / 2;
    if layout.split {
        api.put(objects::path::SLICES, objects::slice(first, port, 1..=half));
        api.put(
            objects::path::SLICES,
            objects::slice(second, port, half + 1..=REPLICAS),
        );
    } else {
        api.put(objects::path::SLICES, objects::slice(first, port, 1..=REPLICAS));
    }
    api.put(objects::path::POOLS, objects::pool(&[(first, 100)], 1));
    api.put(
        objects::path::PROVIDERS,
        objects::provider(&format!("http://127.0.0.1:{port}/v1")),
    );
    let pods: Vec<_> = (1..=layout.gateways)
        .map(|number| (pod_name(number), address(number)))
        .collect();
    api.put(objects::path::SLICES, objects::gateways(&pods));
    let keys = layout.folder.join("credentials").join(POOL);
    fs::create_dir_all(&keys)?;
    fs::write(
        keys.join(flotilla_crds::names::API_KEY_FILE),
        "sk-bench-0123456789",
    )?;
    let kubeconfig = layout.folder.join("kubeconfig");
    let text = serde_json::json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "bench",
        "clusters": [{"name": "bench", "cluster": {"server": format!("http://{}", api.address)}}],
        "users": [{"name": "bench", "user": {}}],
        "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench", "namespace": NAMESPACE}}],
    });
    fs::write(&kubeconfig, text.to_string())?;
    Ok(kubeconfig)
}

fn pod_name(number: u8) -> String {
    format!("gateway-{number}")
}

/// Each gateway has an address of its own, as pods have; the ports are those of a pod.
fn address(number: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(127, 0, 1, number))
}

impl Gateway {
    fn start(layout: &Layout<'_>, kubeconfig: &Path, number: u8) -> Result<Self> {
        use flotilla_crds::names::{GATEWAY_ADMIN_PORT, GATEWAY_EGRESS_PORT};
        let ip = address(number);
        let name = pod_name(number);
        let credentials = layout.folder.join("credentials");
        let mut process = Start {
            name: &name,
            program: layout.program,
            arguments: vec!["--listen".into(), ip.to_string()],
            environment: vec![
                ("KUBECONFIG", kubeconfig.to_string_lossy().into_owned()),
                ("POD_NAMESPACE", NAMESPACE.into()),
                ("POD_NAME", name.clone()),
                ("POD_UID", format!("uid-{ip}")),
                ("POD_IP", ip.to_string()),
                ("FLOTILLA_CREDENTIALS", credentials.to_string_lossy().into_owned()),
                ("FLOTILLA_LOG", "warn".into()),
            ],
            cores: layout.gateway.clone(),
            folder: layout.folder,
        }
        .spawn()?;
        let admin = SocketAddr::new(ip, GATEWAY_ADMIN_PORT);
        wait_for(START, "a ready gateway", || {
            process.check()?;
            get(admin, "/readyz")
        })?;
        Ok(Self {
            process,
            ingress: SocketAddr::new(ip, POOL_PORT),
            egress: SocketAddr::new(ip, GATEWAY_EGRESS_PORT),
            admin,
        })
    }

    /// `/stats`, as the operator reads it.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn stats(&self) -> Result<Value> {
        Ok(serde_json::from_str(&get(self.admin, "/stats")?)?)
    }
}

/// The body of a 200.
fn get(to: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: {to}\r\nconnection: close\r\n\r\n"
    )?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").context("no answer")?;
    if !head.starts_with("HTTP/1.1 200") {
        bail!("{path}: {}", text.trim());
    }
    Ok(body.to_owned())
}

/// Requests with a body of `bytes` bytes for `model`, of many conversations, by way of `way`. `extra` are header lines.
pub fn requests(way: Way, model: &str, stream: bool, bytes: usize, extra: &str) -> Arc<[Bytes]> {
    let body = chat_request(model, stream, bytes);
    let path = match way {
        Way::Plain | Way::Ingress => "/v1/chat/completions".to_owned(),
        Way::Egress => format!("/providers/{POOL}/v1/chat/completions"),
    };
    (0..CONVERSATIONS)
        .map(|conversation| {
            Bytes::from(format!(
                "POST {path} HTTP/1.1\r\nhost: agents.bench.svc\r\nuser-agent: flotilla-bench\r\naccept: */*\r\n\
                 content-type: application/json\r\nauthorization: Bearer sk-client-0123456789abcdef\r\n{extra}\
                 {SESSION_HEADER}: conversation-{conversation:04}\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            ))
        })
        .collect()
}
