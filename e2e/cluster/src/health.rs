//! Whether the cluster works, from outside: processes, API server, node, ServiceAccount, DNS.

use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::binaries::{Programs, indent};
use crate::component::Component;
use crate::objects::kubectl;
use crate::process::{self, Started};
use crate::progress::Progress;
use crate::settings::Settings;
use crate::shell;

/// How long to wait for one answer.
const ANSWER: Duration = Duration::from_millis(500);
/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(150);
/// Lines of a log shown with a failure.
const LOG_LINES: usize = 15;

/// What does not work yet, and who is responsible.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Whose log to read.
    pub component: Component,
    /// What is wrong.
    pub text: String,
}

fn problem(component: Component, text: impl Into<String>) -> Problem {
    Problem {
        component,
        text: text.into(),
    }
}

/// The first thing that does not work, from the ground up; none when the cluster is ready.
pub fn first_problem(settings: &Settings, programs: &Programs, expected: &[Component]) -> Option<Problem> {
    let running = process::components(settings);
    for component in expected {
        if !running.iter().any(|(found, _)| found == component) {
            return Some(problem(*component, "does not run"));
        }
    }
    api(settings, programs)
        .or_else(|| node(settings, programs))
        .or_else(|| services(settings))
}

/// Whether the API server says it is ready.
fn api(settings: &Settings, programs: &Programs) -> Option<Problem> {
    let address = SocketAddr::new(IpAddr::V4(settings.node_ip()), settings.ports.api_port);
    if TcpStream::connect_timeout(&address, ANSWER).is_err() {
        return Some(problem(
            Component::ApiServer,
            format!("does not listen on {address}"),
        ));
    }
    match kubectl(settings, programs, &["get", "--raw", "/readyz"], None) {
        Ok(_) => None,
        Err(error) => Some(problem(
            Component::ApiServer,
            format!("is not ready: {}", first_line(&error)),
        )),
    }
}

fn first_line(error: &anyhow::Error) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().to_owned()
}

fn node(settings: &Settings, programs: &Programs) -> Option<Problem> {
    let path = format!("/api/v1/nodes/{}", Settings::NODE);
    let Ok(text) = kubectl(settings, programs, &["get", "--raw", &path], None) else {
        return Some(problem(Component::Kubelet, "has not registered the node"));
    };
    if let Err(reason) = node_is_ready(&text) {
        return Some(problem(Component::Kubelet, reason));
    }
    let path = "/api/v1/namespaces/default/serviceaccounts/default";
    if kubectl(settings, programs, &["get", "--raw", path], None).is_err() {
        return Some(problem(
            Component::ControllerManager,
            "has not made the ServiceAccount `default`",
        ));
    }
    None
}

/// Whether pods can be scheduled on a node: its condition, and the taint that is removed some time later.
fn node_is_ready(text: &str) -> Result<(), String> {
    let node: Value =
        serde_json::from_str(text).map_err(|error| format!("node object not understood: {error}"))?;
    let conditions = node.pointer("/status/conditions").and_then(Value::as_array);
    let ready = conditions
        .into_iter()
        .flatten()
        .find(|condition| condition["type"] == "Ready");
    match ready {
        None => return Err("the node has no Ready condition yet".to_owned()),
        Some(condition) if condition["status"] != "True" => {
            return Err(format!(
                "the node is not ready: {}",
                condition["message"].as_str().unwrap_or("no message")
            ));
        }
        Some(_) => {}
    }
    let taints = node.pointer("/spec/taints").and_then(Value::as_array);
    match taints
        .into_iter()
        .flatten()
        .find(|taint| taint["effect"] == "NoSchedule")
    {
        Some(taint) => Err(format!(
            "the node still has the taint {}",
            taint["key"].as_str().unwrap_or("?")
        )),
        None => Ok(()),
    }
}

/// Whether Services lead where they should, from the host, through the same rules as from a pod.
fn services(settings: &Settings) -> Option<Problem> {
    let address = SocketAddr::new(IpAddr::V4(settings.api_service_ip()), 443);
    if TcpStream::connect_timeout(&address, ANSWER).is_err() {
        return Some(problem(
            Component::KubeProxy,
            format!("the API server's Service {address} does not answer"),
        ));
    }
    let name = format!("kubernetes.default.svc.{}", Settings::DOMAIN);
    let server = SocketAddr::new(IpAddr::V4(settings.dns_service_ip()), 53);
    if resolves(server, &name) {
        return None;
    }
    let direct = SocketAddr::new(IpAddr::V4(settings.node_ip()), settings.ports.dns_port);
    Some(if resolves(direct, &name) {
        problem(
            Component::KubeProxy,
            format!("the DNS answers at {direct}, but not through its Service {server}"),
        )
    } else {
        problem(Component::CoreDns, format!("no answer for {name} at {direct}"))
    })
}

/// Asks a DNS server for the IPv4 address of a name, and says whether it gave one.
fn resolves(server: SocketAddr, name: &str) -> bool {
    let ask = || -> std::io::Result<bool> {
        let socket = UdpSocket::bind(("0.0.0.0", 0))?;
        socket.set_read_timeout(Some(ANSWER))?;
        socket.connect(server)?;
        socket.send(&dns_question(name))?;
        let mut answer = [0_u8; 512];
        let length = socket.recv(&mut answer)?;
        Ok(dns_has_answer(answer.get(..length).unwrap_or_default()))
    };
    ask().unwrap_or(false)
}

/// The number that ties answer and question together. One question per socket, so any will do.
const DNS_ID: [u8; 2] = [0x46, 0x4c];

/// A question for an A record (RFC 1035, section 4.1), recursion desired.
fn dns_question(name: &str) -> Vec<u8> {
    let mut packet = DNS_ID.to_vec();
    packet.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        let bytes = label.as_bytes();
        packet.push(u8::try_from(bytes.len()).unwrap_or(u8::MAX));
        packet.extend(bytes);
    }
    packet.extend([0, 0, 1, 0, 1]);
    packet
}

/// Whether a packet is the answer to our question, without an error code and with at least one record.
fn dns_has_answer(packet: &[u8]) -> bool {
    matches!(packet, [a, b, _, flags, _, _, high, low, ..]
        if [*a, *b] == DNS_ID && flags & 0x0f == 0 && u16::from_be_bytes([*high, *low]) > 0)
}

/// Waits until the API server says it is ready.
///
/// # Errors
/// When it ends or takes longer than `limit`.
pub fn wait_for_api(
    settings: &Settings,
    programs: &Programs,
    started: &mut [Started],
    limit: Duration,
) -> Result<()> {
    wait(settings, started, limit, || api(settings, programs))
}

/// Waits until everything works.
///
/// # Errors
/// When a component ends or it takes longer than `limit`.
pub fn wait_until_ready(
    settings: &Settings,
    programs: &Programs,
    expected: &[Component],
    started: &mut [Started],
    limit: Duration,
) -> Result<()> {
    wait(settings, started, limit, || {
        first_problem(settings, programs, expected)
    })
}

/// Waits for a TCP port or a unix socket to be there.
///
/// # Errors
/// When the component ends or it takes longer than `limit`.
pub fn wait_for_containerd(settings: &Settings, started: &mut [Started], limit: Duration) -> Result<()> {
    let socket = settings.containerd_socket();
    wait(settings, started, limit, || {
        let there = std::os::unix::net::UnixStream::connect(&socket).is_ok();
        (!there).then(|| {
            problem(
                Component::Containerd,
                format!("{} does not answer", socket.display()),
            )
        })
    })
}

fn wait(
    settings: &Settings,
    started: &mut [Started],
    limit: Duration,
    look: impl Fn() -> Option<Problem>,
) -> Result<()> {
    let begun = Instant::now();
    loop {
        for process in started.iter_mut() {
            if let Some(status) = process.ended() {
                return Err(failure(
                    settings,
                    process.component,
                    &format!("ended at once ({status})"),
                ));
            }
        }
        let Some(problem) = look() else { return Ok(()) };
        if begun.elapsed() > limit {
            let text = format!("{} (waited {} s)", problem.text, limit.as_secs());
            return Err(failure(settings, problem.component, &text));
        }
        shell::pause(INTERVAL);
    }
}

/// An error that says which component failed, shows the end of its log and says what to do.
pub fn failure(settings: &Settings, component: Component, what: &str) -> anyhow::Error {
    let log = component.log(settings);
    anyhow::anyhow!(
        "{component}: {what}\nLast lines of {}:\n{}\nWhat to do: {}",
        log.display(),
        indent(&shell::tail(&log, LOG_LINES)),
        component.advice()
    )
}

/// Waits until kwok has made the fake nodes Ready.
///
/// # Errors
/// When kwok ends or it takes longer than `limit`.
pub fn wait_for_fake_nodes(
    settings: &Settings,
    programs: &Programs,
    count: u32,
    started: &mut [Started],
    limit: Duration,
    progress: &Progress,
) -> Result<()> {
    if count == 0 {
        return Ok(());
    }
    wait(settings, started, limit, || {
        match ready_fake_nodes(settings, programs) {
            Ok(ready) if ready >= count => None,
            Ok(ready) => Some(problem(
                Component::Kwok,
                format!("{ready} of {count} fake nodes are ready"),
            )),
            Err(error) => Some(problem(Component::ApiServer, first_line(&error))),
        }
    })?;
    progress.say(format_args!("{count} fake nodes are ready"));
    Ok(())
}

fn ready_fake_nodes(settings: &Settings, programs: &Programs) -> Result<u32> {
    let text = kubectl(
        settings,
        programs,
        &["get", "--raw", "/api/v1/nodes?labelSelector=type%3Dkwok"],
        None,
    )?;
    let list: Value = serde_json::from_str(&text).context("the list of nodes is no JSON")?;
    let Some(nodes) = list["items"].as_array() else {
        bail!("the list of nodes has no items")
    };
    ensure!(!text.is_empty(), "empty answer");
    let ready = |node: &&Value| {
        let conditions = node.pointer("/status/conditions").and_then(Value::as_array);
        conditions
            .into_iter()
            .flatten()
            .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
    };
    Ok(u32::try_from(nodes.iter().filter(ready).count())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_ready_without_taints() {
        let node = |status: &str, taints: &str| {
            format!(
                r#"{{"spec":{{"taints":{taints}}},"status":{{"conditions":[
                    {{"type":"MemoryPressure","status":"False"}},
                    {{"type":"Ready","status":"{status}","message":"cni"}}]}}}}"#
            )
        };
        assert_eq!(node_is_ready(&node("True", "[]")), Ok(()));
        assert!(node_is_ready(&node("False", "[]")).unwrap_err().contains("cni"));
        let tainted = node(
            "True",
            r#"[{"key":"node.kubernetes.io/not-ready","effect":"NoSchedule"}]"#,
        );
        assert!(node_is_ready(&tainted).unwrap_err().contains("not-ready"));
        assert!(node_is_ready("{}").is_err());
        assert!(node_is_ready("").is_err());
    }

    #[test]
    fn dns_packets() {
        let question = dns_question("a.bc");
        assert_eq!(
            question.get(12..),
            Some(&[1, b'a', 2, b'b', b'c', 0, 0, 1, 0, 1][..])
        );
        let answer = |code: u8, records: u8| [0x46, 0x4c, 0x81, 0x80 | code, 0, 1, 0, records, 0, 0, 0, 0];
        assert!(dns_has_answer(&answer(0, 1)));
        assert!(!dns_has_answer(&answer(3, 0)));
        assert!(!dns_has_answer(&answer(0, 0)));
        assert!(!dns_has_answer(&[]));
    }
}
