//! Peers, started and configured for one worker, no log, kept connections: as good as they are at plain forwarding.

use anyhow::{Context as _, Result};
use bytes::Bytes;
use serde_json::json;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::fleet::{Way, requests};
use super::install::{Peer, find_program};
use super::machine::{free_port, wait_for};
use super::origin::REPLICAS;
use super::process::{Child, Start};

/// LiteLLM imports for long.
const START: Duration = Duration::from_secs(120);
/// LiteLLM refuses short ones.
const MASTER_KEY: &str = "sk-bench-7c1d0a9be4f24c0c9a5e3d6f8b2a1e47";

/// A peer that serves.
pub struct Running {
    /// Its process.
    pub process: Child,
    /// Where it listens.
    pub address: SocketAddr,
    /// Chat requests of 1 KiB, as it wants them.
    pub requests: Arc<[Bytes]>,
    /// Chat requests for a paced stream.
    pub streams: Arc<[Bytes]>,
}

struct Place<'a> {
    installed: &'a Path,
    folder: &'a Path,
    cores: &'a str,
    origin: SocketAddr,
    port: u16,
}

/// Installs and starts `peer` in front of `origin`, on `cores`; `folder` is ours.
///
/// # Errors
/// When it cannot be installed or does not start.
pub fn start(peer: Peer, cache: &Path, folder: &Path, cores: &str, origin: SocketAddr) -> Result<Running> {
    let installed = peer.install(cache)?;
    let port = free_port(IpAddr::V4(Ipv4Addr::LOCALHOST))?;
    let place = Place {
        installed: &installed,
        folder,
        cores,
        origin,
        port,
    };
    let (mut process, extra, model) = match peer {
        Peer::Envoy => (envoy(&place)?, String::new(), "bench"),
        Peer::Nginx => (nginx(&place)?, String::new(), "bench"),
        Peer::LiteLlm => (litellm(&place)?, String::new(), "bench"),
        Peer::Portkey => {
            let extra =
                format!("x-portkey-provider: openai\r\nx-portkey-custom-host: http://{origin}/v1\r\n");
            (portkey(&place)?, extra, "bench")
        }
    };
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    wait_for(START, peer.name(), || {
        process.check()?;
        Ok(TcpStream::connect(address)?)
    })?;
    let ask = |model: &str, stream: bool| -> Arc<[Bytes]> {
        let made = requests(Way::Plain, model, stream, 1024, &extra);
        if peer != Peer::LiteLlm {
            return made;
        }
        let text = |request: &Bytes| String::from_utf8_lossy(request).into_owned();
        made.iter()
            .map(|request| {
                text(request)
                    .replace("sk-client-0123456789abcdef", MASTER_KEY)
                    .into()
            })
            .collect()
    };
    Ok(Running {
        process,
        address,
        requests: ask(model, false),
        streams: ask("paced", true),
    })
}

impl Place<'_> {
    fn spawn(
        &self,
        peer: Peer,
        program: &Path,
        arguments: Vec<String>,
        environment: Vec<(&'static str, String)>,
    ) -> Result<Child> {
        Start {
            name: peer.name(),
            program,
            arguments,
            environment,
            cores: self.cores.to_owned(),
            folder: self.folder,
        }
        .spawn()
    }

    fn write(&self, name: &str, text: &str) -> Result<String> {
        let path = self.folder.join(name);
        fs::write(&path, text).with_context(|| format!("failed to write {}", path.display()))?;
        Ok(path.to_string_lossy().into_owned())
    }

    /// The origin's addresses.
    fn replicas(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        (1..=REPLICAS)
            .map(|replica| SocketAddr::from((Ipv4Addr::new(127, 0, 0, replica), self.origin.port())))
    }
}

fn envoy(place: &Place<'_>) -> Result<Child> {
    let socket = |address: SocketAddr| json!({"socket_address": {"address": address.ip(), "port_value": address.port()}});
    let endpoints: Vec<_> = place
        .replicas()
        .map(|address| json!({"endpoint": {"address": socket(address)}}))
        .collect();
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench",
        "route_config": {"virtual_hosts": [{
            "name": "all", "domains": ["*"],
            "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "origin", "timeout": "0s"}}],
        }]},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
        }}],
    });
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, place.port));
    let config = json!({"static_resources": {
        "listeners": [{"name": "in", "address": socket(listen), "filter_chains": [{"filters": [{
            "name": "envoy.filters.network.http_connection_manager", "typed_config": manager,
        }]}]}],
        "clusters": [{
            "name": "origin", "type": "STATIC", "connect_timeout": "1s",
            "load_assignment": {"cluster_name": "origin", "endpoints": [{"lb_endpoints": endpoints}]},
            "circuit_breakers": {"thresholds": [{"max_connections": 8192, "max_pending_requests": 8192, "max_requests": 8192}]},
        }],
    }});
    let config = place.write("envoy.json", &config.to_string())?;
    let program = find_program(place.installed, "envoy")?;
    let arguments = [
        "-c",
        &config,
        "--concurrency",
        "1",
        "--disable-hot-restart",
        "-l",
        "error",
    ];
    place.spawn(Peer::Envoy, &program, arguments.map(str::to_owned).into(), vec![])
}

fn nginx(place: &Place<'_>) -> Result<Child> {
    let servers: String = place
        .replicas()
        .map(|address| format!("server {address}; "))
        .collect();
    let folder = place.folder.join("nginx");
    fs::create_dir_all(&folder)?;
    let (folder, port) = (folder.display(), place.port);
    let config = place.write(
        "nginx.conf",
        &format!(
            "daemon off; master_process off; worker_processes 1; pid {folder}/pid; error_log stderr crit;\n\
             events {{ worker_connections 8192; }}\n\
             http {{\n\
               access_log off; keepalive_requests 1000000000; tcp_nodelay on; client_body_buffer_size 256k;\n\
               client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;\n\
               uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;\n\
               upstream origin {{ {servers} keepalive 512; keepalive_requests 1000000000; }}\n\
               server {{ listen 127.0.0.1:{port}; location / {{\n\
                 proxy_pass http://origin; proxy_http_version 1.1; proxy_set_header Connection \"\";\n\
               }} }}\n\
             }}\n"
        ),
    )?;
    let program = find_program(place.installed, "nginx")?;
    let prefix = format!("{folder}");
    place.spawn(
        Peer::Nginx,
        &program,
        vec![
            "-p".into(),
            prefix,
            "-e".into(),
            "stderr".into(),
            "-c".into(),
            config,
        ],
        vec![],
    )
}

fn litellm(place: &Place<'_>) -> Result<Child> {
    let models: Vec<_> = ["bench", "paced"]
        .map(|model| {
            json!({"model_name": model, "litellm_params": {
                "model": format!("openai/{model}"), "api_base": format!("http://{}/v1", place.origin),
                "api_key": "sk-bench-0123456789",
            }})
        })
        .into();
    let config = json!({
        "model_list": models,
        "general_settings": {"master_key": MASTER_KEY},
        "litellm_settings": {"telemetry": false, "set_verbose": false, "request_timeout": 60},
    });
    let config = place.write("litellm.yaml", &config.to_string())?;
    let port = place.port.to_string();
    let arguments = [
        "--config",
        &config,
        "--host",
        "127.0.0.1",
        "--port",
        &port,
        "--num_workers",
        "1",
        "--telemetry",
        "False",
    ];
    let environment = vec![
        ("LITELLM_LOG", "ERROR".into()),
        // Without it the price list is fetched from elsewhere.
        ("LITELLM_LOCAL_MODEL_COST_MAP", "True".into()),
    ];
    let program = place.installed.join("bin/litellm");
    place.spawn(
        Peer::LiteLlm,
        &program,
        arguments.map(str::to_owned).into(),
        environment,
    )
}

fn portkey(place: &Place<'_>) -> Result<Child> {
    let script = place
        .installed
        .join("node_modules/@portkey-ai/gateway/build/start-server.js");
    let arguments = vec![
        script.to_string_lossy().into_owned(),
        format!("--port={}", place.port),
        "--headless".into(),
    ];
    let environment = vec![
        ("NODE_ENV", "production".into()),
        ("TRUSTED_CUSTOM_HOSTS", "127.0.0.1".into()),
    ];
    let node = find_in_path("node")?;
    place.spawn(Peer::Portkey, &node, arguments, environment)
}

fn find_in_path(name: &str) -> Result<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .with_context(|| format!("{name} is not installed"))
}
