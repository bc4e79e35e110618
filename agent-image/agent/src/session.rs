//! Conversations, in memory, for a while.
//!
//! An agent that answers a second turn without the first gives a fluent wrong answer, and nobody notices that a
//! release or a scale-down cut the conversation. So a turn that belongs to a conversation which is not here fails,
//! with a sentence. A turn belongs to one when it says so (`turn` above 1), or when it brings an id that an
//! agent has issued: those begin with `s-`. A name of the client's own starts a conversation.
//!
//! Memory is bounded by the number of sessions (the least recently used goes) and by the bytes of each one's
//! history (the oldest exchanges go).

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// Prefix of the ids that agents issue.
const ISSUED_PREFIX: &str = "s-";

/// Longest id, in bytes.
pub const MAX_SESSION_ID_BYTES: usize = 128;

/// A message of the model's conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// Its text.
    pub content: String,
}

impl ChatMessage {
    /// A message of `role`.
    pub fn new(role: &str, content: impl Into<String>) -> Self {
        Self {
            role: role.to_owned(),
            content: content.into(),
        }
    }
}

/// The bounds of the store.
#[derive(Debug, Clone, Copy)]
pub struct SessionLimits {
    /// A session that rests this long is forgotten.
    pub ttl: Duration,
    /// Sessions at most.
    pub count: usize,
    /// Bytes of history of each at most.
    pub history_bytes: usize,
}

/// Which conversation a turn belongs to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SessionRequest {
    /// The session's id; without one, a new conversation starts.
    pub id: Option<String>,
    /// The turn's number from 1, where the client says it.
    pub turn: Option<u64>,
    /// An unknown id is a lost context whatever its form (A2A: contexts are named by agents).
    pub only_issued_ids: bool,
}

/// A turn that may begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenTurn {
    /// The session's id.
    pub id: String,
    /// The turn's number from 1.
    pub turn: u64,
    /// What was said before, oldest first.
    pub history: Vec<ChatMessage>,
}

/// Why a turn may not begin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// The conversation is not (or no longer) in this replica.
    #[error("session context lost: this agent does not know session '{id}'; start a new conversation")]
    ContextLost {
        /// The id the client gave.
        id: String,
    },
    /// No id.
    #[error("turn {turn} of a conversation needs its session")]
    TurnWithoutSession {
        /// The turn the client gave.
        turn: u64,
    },
    /// Not an id.
    #[error("a session id is 1 to {MAX_SESSION_ID_BYTES} visible ASCII characters")]
    InvalidId,
}

/// The conversations of this replica.
#[derive(Debug)]
pub struct SessionStore {
    limits: SessionLimits,
    sessions: HashMap<String, Session>,
}

#[derive(Debug)]
struct Session {
    history: VecDeque<ChatMessage>,
    bytes: usize,
    turns: u64,
    last_used: Instant,
}

impl SessionStore {
    /// An empty store.
    pub fn new(limits: SessionLimits) -> Self {
        Self {
            limits,
            sessions: HashMap::new(),
        }
    }

    /// Begins a turn at `now`. The session is kept from now on, even if the turn fails.
    pub fn begin(&mut self, request: SessionRequest, now: Instant) -> Result<OpenTurn, SessionError> {
        let ttl = self.limits.ttl;
        let id = match request.id {
            None => match request.turn {
                Some(turn) if turn > 1 => return Err(SessionError::TurnWithoutSession { turn }),
                _ => format!("{ISSUED_PREFIX}{}", uuid::Uuid::new_v4()),
            },
            Some(id) if !is_valid(&id) => return Err(SessionError::InvalidId),
            Some(id) => {
                let known = self
                    .sessions
                    .get(&id)
                    .is_some_and(|session| now < session.last_used + ttl);
                let starts = match request.turn {
                    Some(turn) => turn <= 1,
                    None => !request.only_issued_ids && !id.starts_with(ISSUED_PREFIX),
                };
                if !known {
                    self.sessions.remove(&id);
                    if !starts {
                        return Err(SessionError::ContextLost { id });
                    }
                }
                id
            }
        };
        if !self.sessions.contains_key(&id) {
            self.make_room(now);
        }
        let fresh = Session {
            history: VecDeque::new(),
            bytes: 0,
            turns: 0,
            last_used: now,
        };
        let session = self.sessions.entry(id.clone()).or_insert(fresh);
        session.last_used = now;
        Ok(OpenTurn {
            id,
            turn: session.turns + 1,
            history: session.history.iter().cloned().collect(),
        })
    }

    /// Keeps what was said in a turn that ended well. A session that has gone meanwhile stays gone.
    pub fn record(&mut self, id: &str, question: String, answer: String, now: Instant) {
        let Some(session) = self.sessions.get_mut(id) else {
            return;
        };
        session.turns += 1;
        session.last_used = now;
        session.bytes += question.len() + answer.len();
        session.history.push_back(ChatMessage::new("user", question));
        session.history.push_back(ChatMessage::new("assistant", answer));
        while session.bytes > self.limits.history_bytes {
            let Some(oldest) = session.history.pop_front() else {
                break;
            };
            session.bytes -= oldest.content.len();
        }
        // A history that begins with an answer would put words into the model's mouth.
        while session
            .history
            .front()
            .is_some_and(|message| message.role == "assistant")
        {
            if let Some(answer) = session.history.pop_front() {
                session.bytes -= answer.content.len();
            }
        }
    }

    /// How many sessions are kept.
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// Forgets the expired ones if the store is full, and the least recently used one if it still is.
    fn make_room(&mut self, now: Instant) {
        if self.sessions.len() < self.limits.count {
            return;
        }
        let ttl = self.limits.ttl;
        self.sessions.retain(|_, session| now < session.last_used + ttl);
        if self.sessions.len() >= self.limits.count {
            let oldest = self
                .sessions
                .iter()
                .min_by_key(|(_, session)| session.last_used)
                .map(|(id, _)| id.clone());
            if let Some(oldest) = oldest {
                self.sessions.remove(&oldest);
            }
        }
    }
}

fn is_valid(id: &str) -> bool {
    (1..=MAX_SESSION_ID_BYTES).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> SessionStore {
        SessionStore::new(SessionLimits {
            ttl: Duration::from_secs(60),
            count: 2,
            history_bytes: 30,
        })
    }

    fn named(id: &str) -> SessionRequest {
        SessionRequest {
            id: Some(id.to_owned()),
            ..SessionRequest::default()
        }
    }

    fn turn(id: &str, turn: u64) -> SessionRequest {
        SessionRequest {
            turn: Some(turn),
            ..named(id)
        }
    }

    #[test]
    fn a_second_turn_brings_the_first_along() {
        let (mut store, now) = (store(), Instant::now());
        let first = store
            .begin(SessionRequest::default(), now)
            .expect("a new conversation");
        assert!(first.id.starts_with("s-") && first.turn == 1 && first.history.is_empty());
        store.record(&first.id, "hello".to_owned(), "hi".to_owned(), now);
        let second = store.begin(turn(&first.id, 2), now).expect("known");
        assert_eq!(second.turn, 2);
        assert_eq!(
            second.history,
            [
                ChatMessage::new("user", "hello"),
                ChatMessage::new("assistant", "hi")
            ]
        );
    }

    #[test]
    fn which_unknown_sessions_are_lost() {
        let lost = |id: &str| Err(SessionError::ContextLost { id: id.to_owned() });
        let a2a = |request: SessionRequest| SessionRequest {
            only_issued_ids: true,
            ..request
        };
        for (request, expected) in [
            (named("my-own"), Ok(1)),
            (named("s-issued-elsewhere"), lost("s-issued-elsewhere")),
            (turn("my-own", 1), Ok(1)),
            (turn("my-own", 2), lost("my-own")),
            (turn("s-issued-elsewhere", 1), Ok(1)),
            (a2a(named("my-own")), lost("my-own")),
            (a2a(turn("my-own", 1)), Ok(1)),
            (
                SessionRequest {
                    turn: Some(3),
                    ..SessionRequest::default()
                },
                Err(SessionError::TurnWithoutSession { turn: 3 }),
            ),
            (named("with space"), Err(SessionError::InvalidId)),
            (named(""), Err(SessionError::InvalidId)),
        ] {
            let found = store()
                .begin(request.clone(), Instant::now())
                .map(|open| open.turn);
            assert_eq!(found, expected, "{request:?}");
        }
    }

    #[test]
    fn a_session_is_forgotten_when_it_rests_too_long() {
        let (mut store, now) = (store(), Instant::now());
        store.begin(named("a"), now).expect("new");
        store.record("a", "q".to_owned(), "a".to_owned(), now);
        let later = now + Duration::from_secs(59);
        assert_eq!(
            store.begin(turn("a", 2), later).map(|open| open.turn),
            Ok(2),
            "used in time, and so kept longer"
        );
        let too_late = later + Duration::from_secs(60);
        assert!(matches!(
            store.begin(turn("a", 2), too_late),
            Err(SessionError::ContextLost { .. })
        ));
        assert_eq!(
            store.begin(named("a"), too_late).map(|open| open.turn),
            Ok(1),
            "a new conversation of the same name"
        );
    }

    #[test]
    fn the_least_recently_used_session_makes_room() {
        let (mut store, now) = (store(), Instant::now());
        store.begin(named("a"), now).expect("new");
        store
            .begin(named("b"), now + Duration::from_secs(1))
            .expect("new");
        store
            .begin(named("a"), now + Duration::from_secs(2))
            .expect("known");
        store
            .begin(named("c"), now + Duration::from_secs(3))
            .expect("new");
        assert_eq!(store.len(), 2);
        store.record("b", "q".to_owned(), "a".to_owned(), now);
        assert_eq!(
            store.len(),
            2,
            "a turn that ends after its session went does not bring it back"
        );
        assert!(matches!(
            store.begin(turn("b", 2), now + Duration::from_secs(4)),
            Err(SessionError::ContextLost { .. })
        ));
    }

    #[test]
    fn the_oldest_exchanges_of_a_long_conversation_go() {
        let (mut store, now) = (store(), Instant::now());
        store.begin(named("a"), now).expect("new");
        for number in 0..5 {
            store.record("a", format!("question {number}"), format!("reply {number}"), now);
        }
        let open = store.begin(named("a"), now).expect("known");
        assert_eq!(open.turn, 6, "turns count on");
        let texts: Vec<&str> = open
            .history
            .iter()
            .map(|message| message.content.as_str())
            .collect();
        assert_eq!(texts, ["question 4", "reply 4"]);
    }
}
