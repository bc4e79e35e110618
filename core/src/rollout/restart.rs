//! Replacing the pods of one revision by new ones of the same, batch by batch.
//!
//! The ReplicaSet grows by the surge; as many old pods as are available beyond `replicas` are deleted, and the
//! ReplicaSet makes new ones in their place; when no old one is left it shrinks again. What is old follows from the
//! creation time alone, so nothing has to be remembered.

/// The state of a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restart {
    /// Replicas that must stay available.
    pub replicas: i32,
    /// Pods that may run in addition.
    pub surge: i32,
    /// Pods older than the command that are available.
    pub old_available: i32,
    /// Pods older than the command that are not available.
    pub old_unavailable: i32,
    /// Newer pods that are available.
    pub new_available: i32,
}

/// What may be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestartStep {
    /// `spec.replicas` of the ReplicaSet.
    pub replicas: i32,
    /// Old pods to delete that are not available.
    pub delete_unavailable: i32,
    /// Old pods to delete that are available.
    pub delete_available: i32,
}

impl Restart {
    /// The next step.
    pub fn step(&self) -> RestartStep {
        let old = self.old_available + self.old_unavailable;
        let spare = (self.old_available + self.new_available - self.replicas).max(0);
        RestartStep {
            replicas: self.replicas + self.surge.min(old),
            // A pod that serves nothing can go without loss, but not all at once: images have to be pulled again.
            delete_unavailable: self.old_unavailable.min(self.surge),
            delete_available: spare.min(self.old_available),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_replicas_one_by_one() {
        for (old_available, old_unavailable, new_available, expected) in [
            (2, 0, 0, (3, 0, 0)),
            (2, 0, 1, (3, 0, 1)),
            (1, 0, 1, (3, 0, 0)),
            (1, 0, 2, (3, 0, 1)),
            (0, 0, 2, (2, 0, 0)),
            (0, 2, 0, (3, 1, 0)),
            (1, 1, 1, (3, 1, 0)),
        ] {
            let step = Restart {
                replicas: 2,
                surge: 1,
                old_available,
                old_unavailable,
                new_available,
            }
            .step();
            let actual = (step.replicas, step.delete_unavailable, step.delete_available);
            assert_eq!(
                actual, expected,
                "{old_available} {old_unavailable} {new_available}"
            );
        }
    }
}
