//! What an A2A message says about its conversation, found without reading the rest.
//!
//! A2A 1.0 names a conversation by `contextId` and a piece of work in it by a task id; both are given by the agent, so the first
//! message has neither and the response tells them. Shapes (A2A 1.0, `a2a.proto` and section 9, the JSON-RPC binding; section 11 for
//! HTTP+JSON; A2A 0.3.0 section 7 where it differs):
//!
//! | where | conversation | task |
//! |---|---|---|
//! | `SendMessage`, `SendStreamingMessage` (0.3 `message/send`, `message/stream`) | `params.message.contextId` | `params.message.taskId` |
//! | `GetTask`, `CancelTask`, `SubscribeToTask` (0.3 `tasks/get`, `tasks/cancel`, `tasks/resubscribe`) | | `params.id` |
//! | push notification configs | | `params.taskId`; in 0.3 `params.id`, or `params.taskId` to set one |
//! | `ListTasks` | `params.contextId` | |
//! | result with a task | `result.task.contextId`; 0.3 and `GetTask`: `result.contextId` | `result.task.id`; `result.id` |
//! | result with a message | `result.message.contextId`; 0.3: `result.contextId` | `result.message.taskId`; `result.taskId` |
//! | streamed updates | `result.statusUpdate.contextId`, `result.artifactUpdate.contextId`; 0.3: `result.contextId` | `….taskId` |
//! | HTTP+JSON | the same without `params` or `result`; a task also in the path, see [`task_in_path`] | |
//!
//! The walk visits only these places and skips everything else, keeps nothing but hashed keys, allocates nothing per field
//! (but for a scratch buffer where a string has escapes), accepts any type anywhere, and reports what it found before
//! a syntax error or a cut. So a prefix of a large body is enough when the ids come early, and no input makes it fail.

mod response;

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::key::{Keyer, SessionKey};

pub use response::{MAX_EVENTS, ResponseIds};

/// What a request asks for, by its JSON-RPC method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// `SendMessage`, `message/send`.
    SendMessage,
    /// `SendStreamingMessage`, `message/stream`.
    SendStreamingMessage,
    /// `GetTask`, `tasks/get`.
    GetTask,
    /// `ListTasks`, `tasks/list`.
    ListTasks,
    /// `CancelTask`, `tasks/cancel`.
    CancelTask,
    /// `SubscribeToTask`, `tasks/resubscribe`.
    SubscribeToTask,
    /// Any of those about push notification configs.
    PushConfig,
    /// Anything else.
    Other,
}

impl Method {
    fn from_name(name: &str) -> Self {
        match name {
            "SendMessage" | "message/send" => Self::SendMessage,
            "SendStreamingMessage" | "message/stream" => Self::SendStreamingMessage,
            "GetTask" | "tasks/get" => Self::GetTask,
            "ListTasks" | "tasks/list" => Self::ListTasks,
            "CancelTask" | "tasks/cancel" => Self::CancelTask,
            "SubscribeToTask" | "tasks/resubscribe" => Self::SubscribeToTask,
            _ if name.contains("PushNotificationConfig")
                || name.starts_with("tasks/pushNotificationConfig/") =>
            {
                Self::PushConfig
            }
            _ => Self::Other,
        }
    }

    /// Whether it can begin a conversation.
    pub fn sends(self) -> bool {
        matches!(self, Self::SendMessage | Self::SendStreamingMessage)
    }
}

/// What was found in a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ids {
    /// The JSON-RPC method of a request.
    pub method: Option<Method>,
    /// The conversation.
    pub context: Option<SessionKey>,
    /// The task.
    pub task: Option<SessionKey>,
}

impl Ids {
    /// What to look a request up by: its conversation, else its task, whose entry names the conversation.
    pub fn key(&self) -> Option<SessionKey> {
        self.context.or(self.task)
    }

    /// What was found here, and in `earlier` what was not.
    fn or(self, earlier: Self) -> Self {
        Self {
            method: self.method.or(earlier.method),
            context: self.context.or(earlier.context),
            task: self.task.or(earlier.task),
        }
    }
}

/// The ids in a request's body or in the beginning of it. Anything that is not A2A has none.
pub fn request(keyer: &Keyer, body: &[u8]) -> Ids {
    walk(keyer, body, Place::Request).0
}

/// The ids in a response's body, or in the data of one streamed event. The second value tells whether it was whole JSON.
pub fn response(keyer: &Keyer, body: &[u8]) -> (Ids, bool) {
    walk(keyer, body, Place::Response)
}

/// The task in a path of the HTTP+JSON binding, such as `/tasks/<id>`, `/v1/tasks/<id>:cancel`,
/// `/<tenant>/tasks/<id>:subscribe` and `/tasks/<id>/pushNotificationConfigs`. Percent-encoding is left as it is: ids are
/// taken as they are written, and agents write them as UUIDs.
pub fn task_in_path(keyer: &Keyer, path: &str) -> Option<SessionKey> {
    let mut segments = path.split('/');
    segments.find(|segment| *segment == "tasks")?;
    let id = segments.next()?;
    keyer.task(id.split_once(':').map_or(id, |(id, _)| id))
}

fn walk(keyer: &Keyer, body: &[u8], place: Place) -> (Ids, bool) {
    let mut found = Found::default();
    let mut json = serde_json::Deserializer::from_slice(body);
    let walk = Walk {
        keyer,
        place,
        found: &mut found,
    };
    let whole = walk.deserialize(&mut json).is_ok();
    (found.ids(), whole)
}

/// Where in a message the walk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Request,
    Params,
    Response,
    /// `result`, which is one of the below or wraps it.
    Result,
    Task,
    /// A message or an update.
    Message,
    Version,
    Method,
    Context,
    TaskId,
    /// An `id` that is a task's unless there is a `taskId` too.
    WeakTaskId,
    /// An `id` at the top: of the JSON-RPC call, or of a task in the HTTP+JSON binding.
    TopId,
}

impl Place {
    fn child(self, name: &str) -> Option<Self> {
        Some(match (self, name) {
            (Self::Request, "method") => Self::Method,
            (Self::Request, "params") => Self::Params,
            (Self::Request | Self::Params, "message") => Self::Message,
            (Self::Params, "id") => Self::WeakTaskId,
            (Self::Response, "jsonrpc") => Self::Version,
            (Self::Response, "id") => Self::TopId,
            (Self::Response, "result") => Self::Result,
            (Self::Response | Self::Result, "task") => Self::Task,
            (Self::Response | Self::Result, "message" | "statusUpdate" | "artifactUpdate") => Self::Message,
            (Self::Result, "id") => Self::WeakTaskId,
            (Self::Task, "id") => Self::TaskId,
            (Self::Params | Self::Response | Self::Result | Self::Message, "taskId") => Self::TaskId,
            (Self::Params | Self::Response | Self::Result | Self::Task | Self::Message, "contextId") => {
                Self::Context
            }
            _ => return None,
        })
    }
}

#[derive(Default)]
struct Found {
    ids: Ids,
    weak_task: Option<SessionKey>,
    top_id: Option<SessionKey>,
    is_rpc: bool,
}

impl Found {
    fn ids(self) -> Ids {
        let request = self.ids.method.is_some();
        let named = self.ids.context.is_some();
        // A result's `id` is a task's only if it has a context too, as every task has.
        let weak = self.weak_task.filter(|_| request || named || !self.is_rpc);
        let top = self.top_id.filter(|_| named && !self.is_rpc);
        Ids {
            task: self.ids.task.or(weak).or(top),
            ..self.ids
        }
    }
}

struct Walk<'a> {
    keyer: &'a Keyer,
    place: Place,
    found: &'a mut Found,
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        let found = self.found;
        match self.place {
            Place::Method => found.ids.method = Some(Method::from_name(text)),
            Place::Version => found.is_rpc = true,
            Place::Context => found.ids.context = self.keyer.context(text),
            Place::TaskId => found.ids.task = self.keyer.task(text),
            Place::WeakTaskId => found.weak_task = self.keyer.task(text),
            Place::TopId => found.top_id = self.keyer.task(text),
            Place::Request
            | Place::Params
            | Place::Response
            | Place::Result
            | Place::Task
            | Place::Message => {}
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(child) = map.next_key_seed(Name(self.place))? {
            match child {
                Some(place) => map.next_value_seed(Walk {
                    keyer: self.keyer,
                    place,
                    found: &mut *self.found,
                })?,
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

/// The name of a field, and where it leads from a place.
struct Name(Place);

impl<'de> DeserializeSeed<'de> for Name {
    type Value = Option<Place>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<Place>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Name {
    type Value = Option<Place>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Option<Place>, E> {
        Ok(self.0.child(name))
    }
}

#[cfg(test)]
mod tests;
