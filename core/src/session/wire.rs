//! What gateways say to each other about sessions: version 1, as plain serde types.
//!
//! One [`Envelope`] is at most a few tens of kilobytes ([`MAX_RECORDS`] records of about 100 bytes in JSON), carries no raw key, and
//! may be lost, repeated and reordered. Fields are only ever added, with a default; a reader refuses a `version` it does not
//! know, and skips a message it does not know.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::key::SessionKey;
use super::members::MemberId;

/// The version of this format.
pub const VERSION: u32 = 1;
/// Records in one message at most.
pub const MAX_RECORDS: usize = 128;

/// A message with what every message says of its sender.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Envelope {
    /// [`VERSION`].
    pub version: u32,
    /// [`super::Keyer::pool`].
    pub pool: u64,
    /// [`SessionKey::shard`].
    pub shard: u8,
    /// Who says it.
    pub from: MemberId,
    /// Whom it is for. A process that is not this one (a restarted container at the same address) must not take it.
    pub to: MemberId,
    /// [`super::View::id`] of the sender's view.
    pub view: u64,
    /// Counts the sender's changes of view, so that an older message does not undo a newer one.
    pub sequence: u64,
    /// The sender is on its way out and no home of anything any more.
    #[serde(default, skip_serializing_if = "is_false")]
    pub leaving: bool,
    /// The message.
    pub message: Message,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// One entry as it travels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The conversation or task.
    pub key: SessionKey,
    /// The conversation of a task; the same as `key` when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<SessionKey>,
    /// Its revision.
    pub revision: Box<str>,
    /// Its replica, where the pool's balancing keeps one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replica: Option<SocketAddr>,
    /// `trafficGeneration` under which it was assigned.
    pub epoch: i64,
    /// 1 at first; one more with each move.
    pub number: u32,
    /// Milliseconds since its last use: clocks of gateways are not compared.
    #[serde(default)]
    pub age: u64,
}

impl Record {
    /// The conversation that it belongs to.
    pub fn root(&self) -> SessionKey {
        self.root.unwrap_or(self.key)
    }
}

/// Entries of `revision` assigned before the generation `floor` are dead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Floor {
    /// Its name.
    pub revision: Box<str>,
    /// A `trafficGeneration`.
    pub floor: i64,
}

/// What is said.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum Message {
    /// "What has this conversation? If nothing, take this." To a home; answered by [`Message::Answer`] as often as asked.
    #[serde(rename_all = "camelCase")]
    Ask {
        /// Repeated in the answer.
        nonce: u64,
        /// The proposal.
        record: Record,
        /// The proposal is in use already (learnt from a response, or decided while nobody could be reached): it is
        /// merged with what the home has, not only taken where it has nothing.
        #[serde(default, skip_serializing_if = "is_false")]
        held: bool,
        /// Those that the home may not know.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        floors: Vec<Floor>,
    },
    /// "It has this."
    #[serde(rename_all = "camelCase")]
    Answer {
        /// Of the question.
        nonce: u64,
        /// What it has.
        record: Record,
        /// A second gateway has it too, so the first byte may go out.
        copied: bool,
        /// Those that the asker may not know.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        floors: Vec<Floor>,
    },
    /// "I am about to assign this one. Do you know it?" Among gateways that do not agree yet who its home is.
    #[serde(rename_all = "camelCase")]
    Query {
        /// Repeated in the reply.
        nonce: u64,
        /// Which.
        key: SessionKey,
    },
    /// The reply to [`Message::Query`].
    #[serde(rename_all = "camelCase")]
    Known {
        /// Of the question.
        nonce: u64,
        /// Which.
        key: SessionKey,
        /// What the sender has, if it has something that serves.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        record: Option<Record>,
        /// Those that the asker may not know: one that has just started may have an old route.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        floors: Vec<Floor>,
    },
    /// "Keep a copy of these": new ones, moved ones, and all that change homes. One at a time per pair of gateways,
    /// repeated until acknowledged. Empty ones look whether a silent gateway is back.
    #[serde(rename_all = "camelCase")]
    Entries {
        /// Counts them per pair of gateways.
        batch: u64,
        /// At most [`MAX_RECORDS`].
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        records: Vec<Record>,
        /// With these you have all that I owe you in the view of this envelope.
        #[serde(default, skip_serializing_if = "is_false")]
        done: bool,
        /// What became dead, so that no gateway serves a conversation from an old copy.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        floors: Vec<Floor>,
    },
    /// "I have these."
    #[serde(rename_all = "camelCase")]
    Ack {
        /// Which.
        batch: u64,
        /// Those of which I know better.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        better: Vec<Record>,
    },
    /// A message of a later version.
    #[serde(other)]
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Keyer;

    fn envelope(message: Message) -> Envelope {
        Envelope {
            version: VERSION,
            pool: u64::MAX,
            shard: 3,
            from: MemberId::of("a"),
            to: MemberId::of("b"),
            view: u64::MAX - 1,
            sequence: 4,
            leaving: false,
            message,
        }
    }

    fn record() -> Record {
        Record {
            key: Keyer::new("u").context("c").unwrap(),
            root: None,
            revision: "support-6f9c4d".into(),
            replica: Some("[fd00::1]:8080".parse().unwrap()),
            epoch: 31,
            number: 1,
            age: 1200,
        }
    }

    #[test]
    fn every_message_survives_json() {
        let key = record().key;
        let floors = vec![Floor {
            revision: "r".into(),
            floor: 7,
        }];
        let task = Record {
            root: Keyer::new("u").task("t"),
            replica: None,
            ..record()
        };
        for message in [
            Message::Ask {
                nonce: u64::MAX,
                record: record(),
                held: true,
                floors: floors.clone(),
            },
            Message::Answer {
                nonce: 1,
                record: task.clone(),
                copied: true,
                floors: vec![],
            },
            Message::Query { nonce: 2, key },
            Message::Known {
                nonce: 2,
                key,
                record: None,
                floors: floors.clone(),
            },
            Message::Entries {
                batch: 9,
                records: vec![record(), task],
                done: true,
                floors,
            },
            Message::Ack {
                batch: 9,
                better: vec![record()],
            },
        ] {
            let sent = envelope(message);
            let text = serde_json::to_string(&sent).unwrap();
            assert_eq!(serde_json::from_str::<Envelope>(&text).unwrap(), sent, "{text}");
        }
    }

    #[test]
    fn records_are_small_and_their_names_stay() {
        let text = serde_json::to_string(&record()).unwrap();
        assert!(text.len() < 160, "{text}");
        for name in [
            "\"key\":",
            "\"revision\":",
            "\"replica\":",
            "\"epoch\":31",
            "\"number\":1",
            "\"age\":1200",
        ] {
            assert!(text.contains(name), "{text}");
        }
        let entries = Message::Entries {
            batch: 1,
            records: vec![record(); MAX_RECORDS],
            done: false,
            floors: vec![],
        };
        assert!(serde_json::to_string(&envelope(entries)).unwrap().len() < 24_000);
    }

    #[test]
    fn a_later_message_is_skipped_and_a_later_field_too() {
        let mut value = serde_json::to_value(envelope(Message::Unknown)).unwrap();
        value["message"] = serde_json::json!({"type": "somethingNew", "x": [1]});
        value["newField"] = serde_json::json!(1);
        let read: Envelope = serde_json::from_value(value).unwrap();
        assert_eq!(read.message, Message::Unknown);
    }
}
