//! A few namespaces at a time.
//!
//! A new operator may bring a new gateway to every namespace of the cluster at once. If that gateway is bad, all tenants
//! would find out together; and a thousand Deployments that roll at the same moment need a thousand pods more. So a
//! namespace takes a turn, and a turn is free while fewer than `parallelism` others roll.
//!
//! What rolls is read from the Deployments. Between the grant and the moment the Deployment's status shows it, the grant
//! itself counts, for [`GRACE`]: otherwise all who ask within one watch delay would be let through. A gateway that cannot
//! finish does not block the others for ever: it stops counting when its Deployment gives up
//! ([`build::is_rolling`](super::build::is_rolling)).

use std::collections::{BTreeSet, HashMap};

use jiff::{SignedDuration, Timestamp};

/// How long a grant counts by itself.
const GRACE: SignedDuration = SignedDuration::from_secs(5);

/// Who has been let through lately.
#[derive(Debug)]
pub struct Turns {
    parallelism: usize,
    granted: HashMap<String, Timestamp>,
}

impl Turns {
    /// At most `parallelism` namespaces at a time, and at least one.
    pub fn new(parallelism: usize) -> Self {
        Self {
            parallelism: parallelism.max(1),
            granted: HashMap::new(),
        }
    }

    /// Whether `namespace` may roll now. `rolling` are the other namespaces that are seen to roll.
    pub fn take(&mut self, namespace: &str, rolling: &BTreeSet<String>, now: Timestamp) -> bool {
        self.granted.retain(|_, at| now.duration_since(*at) < GRACE);
        let others = self
            .granted
            .keys()
            .filter(|granted| *granted != namespace && !rolling.contains(*granted));
        if rolling.len() + others.count() >= self.parallelism {
            return false;
        }
        self.granted.insert(namespace.to_owned(), now);
        true
    }

    /// The namespace has no gateway any more.
    pub fn forget(&mut self, namespace: &str) {
        self.granted.remove(namespace);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn rolling(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn grants_count_until_the_rollout_is_seen() {
        let mut turns = Turns::new(2);
        assert!(turns.take("a", &rolling(&[]), at(0)));
        assert!(turns.take("b", &rolling(&[]), at(0)));
        assert!(
            !turns.take("c", &rolling(&[]), at(1)),
            "both grants count although nothing is seen to roll yet"
        );
        assert!(
            !turns.take("c", &rolling(&["a", "b"]), at(2)),
            "a grant and its rollout count once"
        );
        assert!(
            turns.take("a", &rolling(&["b"]), at(2)),
            "whoever has a turn keeps it"
        );
        assert!(turns.take("c", &rolling(&["b"]), at(20)));
    }

    #[test]
    fn a_namespace_that_goes_gives_its_turn_back() {
        let mut turns = Turns::new(0);
        assert!(
            turns.take("a", &rolling(&[]), at(0)),
            "no parallelism is still one at a time"
        );
        assert!(!turns.take("b", &rolling(&[]), at(0)));
        turns.forget("a");
        assert!(turns.take("b", &rolling(&[]), at(0)));
    }
}
