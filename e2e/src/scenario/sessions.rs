//! People in the middle of their conversations while a revision is released and a gateway goes.

use super::pool::{self, SOON};
use super::release::{delete_one_gateway, wait_for_candidate};
use crate::fixtures::with;
use crate::{Namespace, fixtures, wait};
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use flotilla_crds::AgentPool;
use futures::future::try_join_all;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::client::conn::http1::handshake;
use hyper::header::HOST;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpStream;

/// Rounds while the release is held.
const ROUNDS: usize = 20;

/// What was seen.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Turns, all of them answered.
    pub turns: usize,
    /// Turns on another revision than the one before, while both served.
    pub switched: usize,
    /// Conversations on the candidate when the release was held.
    pub on_candidate: usize,
    /// Conversations that were led to the new revision once the old one was gone.
    pub led_over: usize,
}

/// `people` talk through the Service, each request over a connection of its own and so through any gateway. A release is held
/// when the candidate has a weight; new people come, everybody talks, and a gateway pod is deleted. Then the release goes
/// on to its end.
pub async fn through_a_release(namespace: Namespace, people: usize) -> Result<Outcome> {
    pool::provider(&namespace).await?;
    let mut wanted = with(
        fixtures::pool("support", 4),
        "/spec/sessions",
        json!({"key": {"type": "Header"}}),
    );
    namespace.apply(&wanted).await?;
    pool::ready(&namespace, "support", SOON).await?;
    let service = Service {
        address: pool::address(&namespace, "support").await?,
        host: format!("support.{}.svc", namespace.name),
    };
    let mut outcome = Outcome::default();
    let mut seen = service.round(0..people).await?;
    outcome.turns += seen.len();

    let prompt = format!("{} Be brief.", fixtures::PROMPT);
    wanted = with(wanted, "/spec/agent/prompt/text", json!(prompt));
    namespace.apply(&wanted).await?;
    let candidate = wait_for_candidate(&namespace, "support").await?;
    wait_for_weight(&namespace).await?;
    wanted = with(wanted, "/spec/rollout/paused", json!(true));
    namespace.apply(&wanted).await?;
    seen.extend(service.round(people..2 * people).await?);
    outcome.on_candidate = seen.iter().filter(|revision| **revision == candidate).count();
    for round in 0..ROUNDS {
        if round == ROUNDS / 2 {
            delete_one_gateway(&namespace).await?;
        }
        let now = service.round(0..seen.len()).await?;
        outcome.turns += now.len();
        outcome.switched += seen
            .iter()
            .zip(&now)
            .filter(|(before, now)| before != now)
            .count();
        seen = now;
    }

    wanted = with(wanted, "/spec/rollout/paused", json!(false));
    namespace.apply(&wanted).await?;
    pool::ready(&namespace, "support", Duration::from_secs(180)).await?;
    let now = service.round(0..seen.len()).await?;
    outcome.turns += now.len();
    ensure!(now.iter().all(|revision| *revision == candidate), "{now:?}");
    outcome.led_over = seen.iter().filter(|revision| **revision != candidate).count();
    Ok(outcome)
}

async fn wait_for_weight(namespace: &Namespace) -> Result<()> {
    let api = namespace.api::<AgentPool>();
    wait::until("a candidate with a weight", SOON, || async {
        let object = api.get("support").await.map_err(|error| error.to_string())?;
        match object.status.and_then(|status| status.candidate) {
            Some(candidate) if candidate.weight > 0 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await
}

struct Service {
    address: SocketAddr,
    host: String,
}

impl Service {
    /// One turn of each; gives the revision that answered.
    async fn round(&self, people: std::ops::Range<usize>) -> Result<Vec<String>> {
        let mut seen = Vec::new();
        let all: Vec<usize> = people.collect();
        for some in all.chunks(16) {
            seen.extend(try_join_all(some.iter().map(|person| self.turn(*person))).await?);
        }
        Ok(seen)
    }

    /// The agent card names the revision as its version.
    async fn turn(&self, person: usize) -> Result<String> {
        let stream = TcpStream::connect(self.address).await?;
        let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let request = Request::get("/.well-known/agent-card.json")
            .header(HOST, &self.host)
            .header("x-session-id", format!("person-{person}"))
            .body(Empty::<Bytes>::new())?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        ensure!(status == 200, "{status}: {}", String::from_utf8_lossy(&body));
        let card: Value = serde_json::from_slice(&body)?;
        Ok(card["version"]
            .as_str()
            .context("a card without version")?
            .to_owned())
    }
}
