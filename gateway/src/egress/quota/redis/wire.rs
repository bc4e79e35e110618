//! Messages between the gateways of a group, through Redis: each takes what is for it from a list of its own.
//!
//! A list, and not publish and subscribe: what is sent while its receiver connects again is not lost, and whoever sends
//! needs no subscription. The receiver waits in `BLPOP` on a connection of its own, so nothing is polled. A list that
//! nobody takes from ends by itself.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use flotilla_core::quota::Reply;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use redis::RedisResult;
use redis::aio::MultiplexedConnection;
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use uuid::Uuid;

use super::super::Quotas;
use super::super::link::{MAX_BYTES, Message, SendError, Transport, Word};
use super::{Server, key, words};

/// A receiver waits this long in one call.
const WAIT: Duration = Duration::from_secs(2);
/// Pause after a failed connection.
const RETRY: Duration = Duration::from_millis(500);
/// Milliseconds after which messages that nobody takes are gone; whoever sent them has given up long before.
const LASTS: i64 = 5_000;
/// The newest messages that a list holds.
const MOST: isize = 1_024;
/// Messages that are answered at once.
const MAX_BUSY: usize = 256;

/// What goes through a list.
#[derive(Debug, Serialize, Deserialize)]
struct Letter {
    /// Of the question.
    id: String,
    /// Where the answer goes.
    from: String,
    body: Body,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Body {
    Report(Message),
    Word(Word),
    /// To a report, where there is an answer.
    Reply(Option<Reply>),
    /// To a word.
    Agreed,
    /// To either.
    Refused(String),
}

/// One gateway's way to the others of its group.
pub struct Wire {
    server: Arc<Server>,
    group: String,
    me: String,
    waiting: Mutex<HashMap<String, oneshot::Sender<Body>>>,
    busy: Arc<Semaphore>,
}

/// A question that waits for its answer, until it is dropped.
struct Question<'a> {
    id: String,
    wire: &'a Wire,
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        self.wire.waiting.lock().remove(&self.id);
    }
}

impl Wire {
    /// That of the gateway `me`. Nothing arrives before [`receive`](Self::receive) runs.
    pub fn new(server: Arc<Server>, group: &str, me: &str) -> Self {
        Self {
            server,
            group: group.to_owned(),
            me: me.to_owned(),
            waiting: Mutex::default(),
            busy: Arc::new(Semaphore::new(MAX_BUSY)),
        }
    }

    fn list(&self, gateway: &str) -> String {
        key(&self.group, &format!("to:{gateway}"))
    }

    async fn post(&self, to: &str, letter: &Letter) -> Result<(), String> {
        let text = serde_json::to_vec(letter).map_err(|error| error.to_string())?;
        let list = self.list(to);
        let mut push = redis::pipe();
        push.atomic()
            .rpush(&list, text)
            .ltrim(&list, -MOST, -1)
            .pexpire(&list, LASTS)
            .ignore();
        self.server
            .call(async |connection| push.exec_async(connection).await)
            .await
            .map_err(|error| words(&error))
    }

    /// The answer of the gateway `to`.
    async fn ask(&self, to: &str, body: Body) -> Result<Body, SendError> {
        let question = Question {
            id: Uuid::new_v4().to_string(),
            wire: self,
        };
        let (sender, answer) = oneshot::channel();
        self.waiting.lock().insert(question.id.clone(), sender);
        let letter = Letter {
            id: question.id.clone(),
            from: self.me.clone(),
            body,
        };
        // That Redis is away says nothing of the other gateway.
        self.post(to, &letter).await.map_err(SendError::Unwilling)?;
        match answer.await {
            Ok(Body::Refused(why)) => Err(SendError::Unwilling(why)),
            Ok(body) => Ok(body),
            Err(_) => Err(SendError::Silent("no answer".to_owned())),
        }
    }

    /// Takes what is for this gateway, and has `quotas` answer, until `stop`.
    pub async fn receive(self: Arc<Self>, quotas: Arc<Quotas>, stop: CancellationToken) {
        let mut failing = false;
        loop {
            let lost = tokio::select! {
                lost = self.take_all(&quotas, &mut failing) => lost,
                () = stop.cancelled() => return,
            };
            if let Err(error) = lost
                && !std::mem::replace(&mut failing, true)
            {
                let error = words(&error);
                warn!(
                    group = self.group,
                    error, "cut off from the gateways that share quotas"
                );
            }
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    async fn take_all(self: &Arc<Self>, quotas: &Arc<Quotas>, failing: &mut bool) -> RedisResult<Infallible> {
        let mut connection = self.server.connect(WAIT + super::CALL_TIMEOUT).await?;
        *failing = false;
        loop {
            if let Some(text) = self.take(&mut connection).await? {
                self.open(&text, quotas);
            }
        }
    }

    async fn take(&self, connection: &mut MultiplexedConnection) -> RedisResult<Option<Vec<u8>>> {
        let taken: Option<(String, Vec<u8>)> = redis::cmd("BLPOP")
            .arg(self.list(&self.me))
            .arg(WAIT.as_secs())
            .query_async(connection)
            .await?;
        Ok(taken.map(|(_, text)| text))
    }

    /// Answers a question, or hands an answer to whoever waits for it.
    fn open(self: &Arc<Self>, text: &[u8], quotas: &Arc<Quotas>) {
        if text.len() > MAX_BYTES {
            return;
        }
        let Letter { id, from, body } = match serde_json::from_slice(text) {
            Ok(letter) => letter,
            Err(error) => return debug!(%error, "a message in Redis cannot be read"),
        };
        if matches!(body, Body::Reply(_) | Body::Agreed | Body::Refused(_)) {
            if let Some(waiting) = self.waiting.lock().remove(&id) {
                // Whoever does not wait any more has asked again.
                let _ = waiting.send(body);
            }
            return;
        }
        // Whoever gets no answer asks again.
        let Ok(place) = self.busy.clone().try_acquire_owned() else {
            return;
        };
        let (wire, quotas) = (self.clone(), quotas.clone());
        tokio::spawn(async move {
            if let Some(body) = answer(&quotas, body).await {
                let letter = Letter {
                    id,
                    from: wire.me.clone(),
                    body,
                };
                if let Err(error) = wire.post(&from, &letter).await {
                    debug!(error, "failed to answer another gateway");
                }
            }
            drop(place);
        });
    }
}

/// The answer to a question.
async fn answer(quotas: &Quotas, question: Body) -> Option<Body> {
    let refused = |why: &str| Some(Body::Refused(why.to_owned()));
    match question {
        Body::Report(message) => match quotas.answer(message).await {
            Some(reply) => Some(Body::Reply(reply)),
            None => refused("this gateway does not deal out quotas"),
        },
        Body::Word(word) if quotas.vouch(word.clone()) => Some(Body::Agreed),
        Body::Word(_) => refused("this gateway is no witness for that"),
        Body::Reply(_) | Body::Agreed | Body::Refused(_) => None,
    }
}

impl Transport for Wire {
    fn send<'a>(&'a self, pod: &'a str, message: Message) -> BoxFuture<'a, Result<Option<Reply>, SendError>> {
        Box::pin(async move {
            match self.ask(pod, Body::Report(message)).await? {
                Body::Reply(reply) => Ok(reply),
                other => Err(SendError::Unwilling(format!("{other:?} is no reply"))),
            }
        })
    }

    fn vouch<'a>(&'a self, pod: &'a str, word: Word) -> BoxFuture<'a, Result<(), SendError>> {
        Box::pin(async move {
            match self.ask(pod, Body::Word(word)).await? {
                Body::Agreed => Ok(()),
                other => Err(SendError::Unwilling(format!("{other:?} agrees to nothing"))),
            }
        })
    }
}
