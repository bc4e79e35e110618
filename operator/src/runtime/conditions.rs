//! Building `status.conditions` so that a transition time moves only when the status does.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// Longest message kept, in bytes; the API allows 32 KiB, a reader one paragraph.
const MAX_MESSAGE: usize = 1024;

/// The conditions of one object, begun from those observed. Types that are never set stay as they were.
#[derive(Clone, Debug)]
pub struct Conditions {
    list: Vec<Condition>,
    generation: i64,
    now: Timestamp,
}

impl Conditions {
    /// Begins with the observed conditions. `generation` is the `metadata.generation` that was judged; every
    /// condition set from here carries it.
    pub fn new(observed: &[Condition], generation: Option<i64>, now: Timestamp) -> Self {
        Self {
            list: observed.to_vec(),
            generation: generation.unwrap_or_default(),
            now,
        }
    }

    /// Sets a condition to `True`, `False` or (with `None`) `Unknown`. `reason` is one PascalCase word, `message` one
    /// sentence, cut to 1 KiB.
    pub fn set(
        &mut self,
        type_: &str,
        status: impl Into<Option<bool>>,
        reason: &str,
        message: impl AsRef<str>,
    ) {
        let status = match status.into() {
            Some(true) => "True",
            Some(false) => "False",
            None => "Unknown",
        };
        let message = truncate(message.as_ref(), MAX_MESSAGE).to_owned();
        match self.list.iter_mut().find(|condition| condition.type_ == type_) {
            Some(condition) => {
                if condition.status != status {
                    condition.status = status.to_owned();
                    condition.last_transition_time = Time(self.now);
                }
                condition.reason = reason.to_owned();
                condition.message = message;
                condition.observed_generation = Some(self.generation);
            }
            None => self.list.push(Condition {
                type_: type_.to_owned(),
                status: status.to_owned(),
                reason: reason.to_owned(),
                message,
                observed_generation: Some(self.generation),
                last_transition_time: Time(self.now),
            }),
        }
    }

    /// Removes a condition.
    pub fn remove(&mut self, type_: &str) {
        self.list.retain(|condition| condition.type_ != type_);
    }

    /// The condition of a type.
    pub fn get(&self, type_: &str) -> Option<&Condition> {
        self.list.iter().find(|condition| condition.type_ == type_)
    }

    /// Whether the condition is there and `True`.
    pub fn is_true(&self, type_: &str) -> bool {
        self.get(type_)
            .is_some_and(|condition| condition.status == "True")
    }

    /// The finished list, in the order the types were first set.
    pub fn into_vec(self) -> Vec<Condition> {
        self.list
    }
}

/// The longest prefix of `text` of at most `max` bytes that ends on a character boundary.
pub fn truncate(text: &str, max: usize) -> &str {
    let mut end = max.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn transition_time_moves_only_with_the_status() {
        let mut first = Conditions::new(&[], Some(1), at(10));
        first.set("Ready", false, "Progressing", "0 of 2");
        let mut second = Conditions::new(&first.into_vec(), Some(2), at(20));
        second.set("Ready", false, "Waiting", "1 of 2");
        let ready = second.get("Ready").unwrap();
        assert_eq!(
            (
                ready.last_transition_time.0,
                ready.reason.as_str(),
                ready.observed_generation
            ),
            (at(10), "Waiting", Some(2))
        );
        let mut third = Conditions::new(&second.into_vec(), Some(2), at(30));
        third.set("Ready", true, "Complete", "");
        assert_eq!(third.get("Ready").unwrap().last_transition_time.0, at(30));
        assert!(third.is_true("Ready"));
    }

    #[test]
    fn foreign_types_stay_and_unknown_is_written() {
        let mut observed = Conditions::new(&[], None, at(1));
        observed.set("Foreign", true, "Theirs", "");
        let mut conditions = Conditions::new(&observed.into_vec(), Some(3), at(2));
        conditions.set("Available", None, "GatewayUnconfirmed", "");
        assert!(conditions.is_true("Foreign"));
        assert_eq!(conditions.get("Available").unwrap().status, "Unknown");
        conditions.remove("Foreign");
        assert_eq!(conditions.into_vec().len(), 1);
    }

    #[test]
    fn messages_are_cut_between_characters() {
        assert_eq!(truncate("grün", 3), "gr");
        assert_eq!(truncate("grün", 4), "grü");
        assert_eq!(truncate("ab", 9), "ab");
    }
}
