//! What a writer knows of a record that it overwrites by compare-and-swap.
//!
//! An answer may get lost, so "it failed" does not say whether it was written. What is found then decides: the content
//! that was there before, or one of the own attempts, means that nobody else writes. Anything else is another writer's,
//! however much its header looks like ours: two that took over from the same version have the same term.

use std::collections::VecDeque;

/// Attempts that are remembered. One is under way at a time, so older ones cannot be found any more.
const MAX_ATTEMPTS: usize = 4;

/// The newest version that is known, and what may have replaced it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record<V, D> {
    version: V,
    content: D,
    attempts: VecDeque<D>,
}

/// Whose content was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Ours, before the last attempt or after it: go on over this version.
    Ours,
    /// Another writer's: stop.
    Anothers,
}

impl<V, D: Clone + PartialEq> Record<V, D> {
    /// A record that was read.
    pub fn new(version: V, content: D) -> Self {
        Self {
            version,
            content,
            attempts: VecDeque::new(),
        }
    }

    /// The version to write over.
    pub fn version(&self) -> &V {
        &self.version
    }

    /// The content of that version.
    pub fn content(&self) -> &D {
        &self.content
    }

    /// `content` is about to be written over [`Record::version`].
    pub fn attempt(&mut self, content: D) {
        self.attempts.push_back(content);
        if self.attempts.len() > MAX_ATTEMPTS {
            self.attempts.pop_front();
        }
    }

    /// The newest attempt was written, as `version`.
    pub fn landed(&mut self, version: V) {
        if let Some(content) = self.attempts.pop_back() {
            self.content = content;
        }
        self.version = version;
        self.attempts.clear();
    }

    /// After an attempt whose fate is unknown, or that met another version, this was read.
    pub fn found(&mut self, version: V, content: D) -> Found {
        if content != self.content && !self.attempts.contains(&content) {
            return Found::Anothers;
        }
        self.version = version;
        self.content = content;
        Found::Ours
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_content_says_who_wrote() {
        let mut record = Record::new(1, "a");
        record.attempt("b");
        record.landed(2);
        assert_eq!((*record.version(), *record.content()), (2, "b"));
        record.attempt("c");
        assert_eq!(record.found(2, "b"), Found::Ours, "it was lost on the way");
        record.attempt("d");
        assert_eq!(record.found(3, "c"), Found::Ours, "the earlier one came late");
        assert_eq!(*record.version(), 3);
        record.attempt("e");
        assert_eq!(record.found(4, "x"), Found::Anothers);
        assert_eq!(*record.version(), 3, "nothing is learnt from another's");
        record.attempt("f");
        assert_eq!(
            record.found(5, "a"),
            Found::Anothers,
            "what was overwritten long ago"
        );
    }
}
