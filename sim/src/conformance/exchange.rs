//! Sends a sequence to one server.

use std::collections::BTreeMap;
use std::time::Duration;

use http::Request;
use http_body_util::BodyExt as _;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};

use super::sequence::Asked;

/// How often and how long a sequence waits for the garbage collector, which looks for new kinds twice a minute only, and not while
/// another controller manager is elected.
const SETTLE_LOOKS: u32 = 1_800;
const SETTLE_PAUSE: Duration = Duration::from_millis(50);

/// What one server answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Answered {
    /// HTTP status.
    pub code: u16,
    /// The body.
    pub body: Value,
}

/// One server, and what it has said of each object.
#[derive(Clone)]
pub struct Side {
    client: Client,
    seen: BTreeMap<String, Seen>,
}

impl std::fmt::Debug for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Side({} objects)", self.seen.len())
    }
}

#[derive(Clone, Debug, Default)]
struct Seen {
    first: String,
    newest: String,
    uid: String,
}

/// Sends all requests of a sequence, one after the other.
///
/// # Errors
/// When the server cannot be reached; refusals are answers.
pub async fn exchange(client: &Client, asked: &[Asked]) -> Result<Vec<Answered>, String> {
    let mut side = Side {
        client: client.clone(),
        seen: BTreeMap::new(),
    };
    let mut answers = Vec::with_capacity(asked.len());
    for one in asked {
        answers.push(side.ask(one).await?);
    }
    Ok(answers)
}

impl Side {
    async fn ask(&mut self, asked: &Asked) -> Result<Answered, String> {
        let seen = self.seen.get(&asked.name).cloned().unwrap_or_default();
        let body = filled(&asked.body, &seen);
        let answered = self.send(asked, &body).await?;
        self.learn(asked, &answered.body);
        if asked.method == "DELETE" && answered.code < 300 && body["propagationPolicy"] != "Background" {
            self.settle(asked).await?;
        }
        Ok(answered)
    }

    /// Waits until the garbage collector has done with an object whose deletion it finishes.
    async fn settle(&self, asked: &Asked) -> Result<(), String> {
        let again = Asked {
            method: "GET",
            query: String::new(),
            body: Value::Null,
            ..asked.clone()
        };
        for _ in 0..SETTLE_LOOKS {
            let found = self.send(&again, &Value::Null).await?;
            let finalizers = found.body["metadata"]["finalizers"].as_array();
            let is_collectors =
                |finalizer: &Value| *finalizer == "orphan" || *finalizer == "foregroundDeletion";
            if !finalizers.into_iter().flatten().any(is_collectors) {
                return Ok(());
            }
            tokio::time::sleep(SETTLE_PAUSE).await;
        }
        Err(format!("the garbage collector does not finish {}", asked.path))
    }

    async fn send(&self, asked: &Asked, body: &Value) -> Result<Answered, String> {
        let uri = if asked.query.is_empty() {
            asked.path.clone()
        } else {
            format!("{}?{}", asked.path, asked.query)
        };
        let bytes = if body.is_null() {
            Vec::new()
        } else {
            body.to_string().into_bytes()
        };
        let request = Request::builder()
            .method(asked.method)
            .uri(uri)
            .header("content-type", asked.content_type)
            .header("accept", "application/json")
            .header("user-agent", "conformance/1")
            .body(Body::from(bytes))
            .map_err(|error| error.to_string())?;
        let response = self
            .client
            .send(request)
            .await
            .map_err(|error| error.to_string())?;
        let code = response.status().as_u16();
        let bytes = response
            .into_body()
            .collect()
            .await
            .map_err(|error| error.to_string())?
            .to_bytes();
        let body: Value = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| json!({"text": String::from_utf8_lossy(&bytes)}));
        Ok(Answered { code, body })
    }

    fn learn(&mut self, asked: &Asked, body: &Value) {
        let text = |field: &str| body["metadata"][field].as_str().unwrap_or_default().to_owned();
        let (version, uid) = (text("resourceVersion"), text("uid"));
        if text("name") != asked.name || uid.is_empty() || version.is_empty() {
            return;
        }
        let seen = self.seen.entry(asked.name.clone()).or_default();
        if seen.uid != uid {
            seen.first.clone_from(&version);
        }
        seen.newest = version;
        seen.uid = uid;
    }
}

fn filled(body: &Value, seen: &Seen) -> Value {
    match body {
        Value::String(text) => json!(match text.as_str() {
            "{{rv}}" => seen.newest.as_str(),
            "{{old}}" => seen.first.as_str(),
            "{{uid}}" => seen.uid.as_str(),
            other => other,
        }),
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| (name.clone(), filled(value, seen)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
        Value::Array(items) => items.iter().map(|item| filled(item, seen)).collect(),
        other => other.clone(),
    }
}
