//! The A2A tasks of this replica, and how many of them are kept: a number, a time after their end, and a sum of bytes.
//! Tasks at work never go; when all that may be there are at work, there is no room for another.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use a2a::Message;
use tokio::time::Instant;

use crate::task::TaskEntry;

/// The bounds of the store.
#[derive(Debug, Clone, Copy)]
pub struct TaskLimits {
    /// An ended task is kept this long for `GetTask`.
    pub ttl: Duration,
    /// Tasks at most.
    pub count: usize,
    /// Bytes of questions and replies at which ended tasks go early.
    pub bytes: usize,
}

/// Every task that may be there is at work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the agent has as many tasks at work as it may have")]
pub struct TaskStoreFull;

/// The tasks of this replica.
#[derive(Debug)]
pub struct TaskStore {
    limits: TaskLimits,
    tasks: HashMap<String, Arc<TaskEntry>>,
    /// Ids in the order of creation.
    order: VecDeque<String>,
    bytes: Arc<AtomicUsize>,
}

impl TaskStore {
    /// An empty store.
    pub fn new(limits: TaskLimits) -> Self {
        Self {
            limits,
            tasks: HashMap::new(),
            order: VecDeque::new(),
            bytes: Arc::new(AtomicUsize::new(0)),
        }
    }

    /// Keeps a new task for `question` in the conversation `context_id`.
    pub fn create(
        &mut self,
        context_id: String,
        question: Message,
        now: Instant,
    ) -> Result<Arc<TaskEntry>, TaskStoreFull> {
        self.make_room(now);
        if self.tasks.len() >= self.limits.count {
            return Err(TaskStoreFull);
        }
        let entry = Arc::new(TaskEntry::new(context_id, question, Arc::clone(&self.bytes)));
        let id = entry.id().to_owned();
        self.tasks.insert(id.clone(), Arc::clone(&entry));
        self.order.push_back(id);
        Ok(entry)
    }

    /// The task called `id`.
    pub fn get(&self, id: &str) -> Option<Arc<TaskEntry>> {
        self.tasks.get(id).cloned()
    }

    /// Forgets the ended tasks whose time is over, then the oldest ended ones while there are too many.
    fn make_room(&mut self, now: Instant) {
        let (limits, bytes) = (self.limits, &self.bytes);
        let mut excess = (self.tasks.len() + 1).saturating_sub(limits.count);
        let crowded = excess > 0 || bytes.load(Ordering::Relaxed) > limits.bytes;
        // Ids are in order of creation, so the front is all there is to look at unless it must be searched.
        let oldest_expired = self
            .order
            .front()
            .and_then(|id| self.tasks.get(id))
            .and_then(|task| task.ended_at())
            .is_some_and(|ended| now >= ended + limits.ttl);
        if !crowded && !oldest_expired {
            return;
        }
        let mut gone = HashSet::new();
        for id in &self.order {
            let Some(task) = self.tasks.get(id) else { continue };
            let Some(ended_at) = task.ended_at() else {
                continue;
            };
            let over = excess > 0 || bytes.load(Ordering::Relaxed) > limits.bytes;
            if over || now >= ended_at + limits.ttl {
                self.tasks.remove(id);
                gone.insert(id.clone());
                excess = excess.saturating_sub(1);
            }
        }
        self.order.retain(|id| !gone.contains(id));
    }
}

#[cfg(test)]
mod tests {
    use a2a::{Part, Role};

    use super::*;
    use crate::task::TaskEnd;

    fn store(count: usize, bytes: usize) -> TaskStore {
        TaskStore::new(TaskLimits {
            ttl: Duration::from_secs(60),
            count,
            bytes,
        })
    }

    fn question(text: &str) -> Message {
        Message::new(Role::User, vec![Part::text(text)])
    }

    fn ended(store: &mut TaskStore, text: &str, now: Instant) -> Arc<TaskEntry> {
        let task = store.create("c".to_owned(), question(text), now).expect("room");
        task.end(TaskEnd::Completed, None, now);
        task
    }

    #[test]
    fn ended_tasks_make_room_and_tasks_at_work_do_not() {
        let (mut store, now) = (store(2, 1_000), Instant::now());
        let working = store.create("c".to_owned(), question("q"), now).expect("room");
        let old = ended(&mut store, "q", now).id().to_owned();
        let new = ended(&mut store, "q", now).id().to_owned();
        assert!(store.get(&old).is_none() && store.get(&new).is_some() && store.get(working.id()).is_some());

        store
            .create("c".to_owned(), question("q"), now)
            .expect("the ended one makes room");
        assert!(
            store.create("c".to_owned(), question("q"), now).is_err(),
            "both are at work"
        );
    }

    #[test]
    fn ended_tasks_go_when_their_time_or_the_memory_is_over() {
        let (mut store, now) = (store(100, 1_000), Instant::now());
        let expired = ended(&mut store, "q", now).id().to_owned();
        ended(&mut store, "q", now + Duration::from_secs(60));
        assert!(store.get(&expired).is_none());

        let large = ended(&mut store, &"x".repeat(2_000), now + Duration::from_secs(60))
            .id()
            .to_owned();
        ended(&mut store, "q", now + Duration::from_secs(61));
        assert!(store.get(&large).is_none());
        assert!(
            store.bytes.load(Ordering::Relaxed) < 100,
            "dropped tasks are not counted"
        );
    }
}
