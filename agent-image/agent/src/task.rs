//! An A2A task in memory: its state, and who watches it.
//!
//! A task holds the reply's text and where each chunk of it ended. A watcher reads from its own position, so every
//! watcher gets the same chunks in the same order (A2A 1.0, section 3.5.2), a slow one holds up nobody, and
//! nothing is queued per watcher.
//!
//! A2A says that a task outlives its streams, so that a client can come back with `SubscribeToTask`; but a model
//! that talks to nobody costs money. So a task whose last watcher has gone is given some time to be watched again,
//! and then cancelled.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use a2a::{
    Artifact, Message, Part, Role, StreamResponse, Task, TaskArtifactUpdateEvent, TaskState, TaskStatus,
    TaskStatusUpdateEvent,
};
use chrono::{DateTime, SubsecRound, Utc};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::model::Usage;

/// Where messages, tasks and status updates carry [`Usage`].
pub const USAGE_KEY: &str = "flotilla.dev/usage";
/// Where a failed task's message carries its reason and HTTP status.
pub const ERROR_KEY: &str = "flotilla.dev/error";

type Metadata = HashMap<String, Value>;

/// Why a task failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskFailure {
    /// A sentence.
    pub message: String,
    /// A word, as in HTTP answers.
    pub reason: &'static str,
    /// The status that HTTP would have had.
    pub status: u16,
    /// When to come back, where the provider said so.
    pub retry_after: Option<String>,
}

/// How a task ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskEnd {
    /// With a whole reply.
    Completed,
    /// Without one.
    Failed(TaskFailure),
    /// Because its client asked for it or left; the text says which.
    Canceled(&'static str),
}

/// One task.
#[derive(Debug)]
pub struct TaskEntry {
    id: String,
    context_id: String,
    question: Message,
    artifact_id: String,
    cancel: CancellationToken,
    progress: Mutex<Progress>,
    version: watch::Sender<u64>,
    watchers: watch::Sender<usize>,
    bytes: Bytes,
}

#[derive(Debug)]
struct Progress {
    text: String,
    /// Where each chunk of the text ends.
    ends: Vec<usize>,
    usage: Option<Usage>,
    end: Option<TaskEnd>,
    ended_at: Option<Instant>,
    changed_at: DateTime<Utc>,
}

/// Bytes of one task, counted in the store's sum until the task is dropped.
#[derive(Debug)]
struct Bytes {
    sum: Arc<AtomicUsize>,
    own: AtomicUsize,
}

impl Bytes {
    fn add(&self, bytes: usize) {
        self.own.fetch_add(bytes, Ordering::Relaxed);
        self.sum.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        self.sum
            .fetch_sub(self.own.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// Counts one watcher of a task until dropped.
#[derive(Debug)]
pub struct Watcher(Arc<TaskEntry>);

impl Drop for Watcher {
    fn drop(&mut self) {
        self.0.watchers.send_modify(|watchers| *watchers -= 1);
    }
}

impl TaskEntry {
    /// A task at work on `question`. Its bytes are counted in `bytes` as long as it is there.
    pub(crate) fn new(context_id: String, question: Message, bytes: Arc<AtomicUsize>) -> Self {
        let id = a2a::new_task_id();
        let bytes = Bytes {
            sum: bytes,
            own: AtomicUsize::new(0),
        };
        bytes.add(
            question
                .parts
                .iter()
                .filter_map(Part::as_text)
                .map(str::len)
                .sum(),
        );
        Self {
            artifact_id: format!("{id}-reply"),
            question: Message {
                task_id: Some(id.clone()),
                context_id: Some(context_id.clone()),
                ..question
            },
            id,
            context_id,
            cancel: CancellationToken::new(),
            progress: Mutex::new(Progress {
                text: String::new(),
                ends: Vec::new(),
                usage: None,
                end: None,
                ended_at: None,
                changed_at: Utc::now(),
            }),
            version: watch::Sender::new(0),
            watchers: watch::Sender::new(0),
            bytes,
        }
    }

    /// When it ended, if it has.
    pub(crate) fn ended_at(&self) -> Option<Instant> {
        self.progress.lock().ended_at
    }

    /// The task's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The conversation's id.
    pub fn context_id(&self) -> &str {
        &self.context_id
    }

    /// Appends a chunk of the reply.
    pub fn push(&self, chunk: &str) {
        let mut progress = self.progress.lock();
        if progress.end.is_some() {
            return;
        }
        progress.text.push_str(chunk);
        let end = progress.text.len();
        progress.ends.push(end);
        drop(progress);
        self.bytes.add(chunk.len() + size_of::<usize>());
        self.version.send_modify(|version| *version += 1);
    }

    /// Ends the task. The first end counts.
    pub fn end(&self, end: TaskEnd, usage: Option<Usage>, now: Instant) {
        let mut progress = self.progress.lock();
        if progress.end.is_some() {
            return;
        }
        progress.end = Some(end);
        progress.usage = usage;
        progress.ended_at = Some(now);
        progress.changed_at = Utc::now();
        drop(progress);
        self.version.send_modify(|version| *version += 1);
    }

    /// The reply so far.
    pub fn text(&self) -> String {
        self.progress.lock().text.clone()
    }

    /// Whether the task has ended.
    pub fn has_ended(&self) -> bool {
        self.progress.lock().end.is_some()
    }

    /// Waits for the end.
    pub async fn ended(&self) {
        let mut version = self.version.subscribe();
        while !self.has_ended() {
            if version.changed().await.is_err() {
                return;
            }
        }
    }

    /// Asks the task to end.
    pub fn cancel(&self) {
        self.cancel.cancel();
    }

    /// Resolves when somebody has asked the task to end.
    pub async fn cancelled(&self) {
        self.cancel.cancelled().await;
    }

    /// Counts a watcher until the guard is dropped.
    pub fn watch(self: &Arc<Self>) -> Watcher {
        self.watchers.send_modify(|watchers| *watchers += 1);
        Watcher(Arc::clone(self))
    }

    /// Resolves once nobody has watched for `grace`.
    pub async fn abandoned(&self, grace: Duration) {
        let mut watchers = self.watchers.subscribe();
        loop {
            if watchers.wait_for(|watchers| *watchers == 0).await.is_err() {
                return;
            }
            match tokio::time::timeout(grace, watchers.wait_for(|watchers| *watchers > 0)).await {
                Ok(Ok(_)) => {}
                Ok(Err(_)) | Err(_) => return,
            }
        }
    }

    /// The task as it is, with at most `history_length` messages of history.
    pub fn snapshot(&self, history_length: Option<i32>) -> Task {
        let progress = self.progress.lock();
        self.task(&progress, history_length)
    }

    /// The task as it is, and the chunk that a watcher who has seen it reads next.
    pub fn snapshot_to_watch(&self) -> (Task, usize) {
        let progress = self.progress.lock();
        (self.task(&progress, None), progress.ends.len())
    }

    fn task(&self, progress: &Progress, history_length: Option<i32>) -> Task {
        let wants_history = history_length.is_none_or(|length| length > 0);
        let artifact = (!progress.text.is_empty()).then(|| self.artifact(&progress.text));
        Task {
            id: self.id.clone(),
            context_id: self.context_id.clone(),
            status: self.status(progress),
            artifacts: artifact.map(|artifact| vec![artifact]),
            history: wants_history.then(|| vec![self.question.clone()]),
            metadata: usage_metadata(progress.usage),
        }
    }

    /// The event after chunk `next` (counted from 0), or the final status; `None` after that.
    pub async fn next_event(&self, position: &mut WatchPosition) -> Option<StreamResponse> {
        let mut version = self.version.subscribe();
        loop {
            if position.ended {
                return None;
            }
            version.borrow_and_update();
            if let Some(event) = self.event_at(position) {
                return Some(event);
            }
            if version.changed().await.is_err() {
                return None;
            }
        }
    }

    fn event_at(&self, position: &mut WatchPosition) -> Option<StreamResponse> {
        let progress = self.progress.lock();
        if let Some(end) = progress.ends.get(position.chunk).copied() {
            let start = position
                .chunk
                .checked_sub(1)
                .and_then(|before| progress.ends.get(before))
                .copied();
            let start = start.unwrap_or(0);
            let event = TaskArtifactUpdateEvent {
                task_id: self.id.clone(),
                context_id: self.context_id.clone(),
                artifact: self.artifact(progress.text.get(start..end).unwrap_or_default()),
                append: Some(position.chunk > 0),
                last_chunk: None,
                metadata: None,
            };
            position.chunk += 1;
            return Some(StreamResponse::ArtifactUpdate(event));
        }
        progress.end.as_ref()?;
        position.ended = true;
        Some(StreamResponse::StatusUpdate(TaskStatusUpdateEvent {
            task_id: self.id.clone(),
            context_id: self.context_id.clone(),
            status: self.status(&progress),
            metadata: usage_metadata(progress.usage),
        }))
    }

    fn artifact(&self, text: &str) -> Artifact {
        Artifact {
            artifact_id: self.artifact_id.clone(),
            name: Some("reply".to_owned()),
            description: None,
            parts: vec![Part::text(text)],
            metadata: None,
            extensions: None,
        }
    }

    fn status(&self, progress: &Progress) -> TaskStatus {
        let (state, text, metadata) = match &progress.end {
            None => (TaskState::Working, None, None),
            Some(TaskEnd::Completed) => {
                let tokens = progress.usage.map(|usage| usage.output_tokens);
                let text = tokens.map_or("Replied.".to_owned(), |tokens| {
                    format!("Replied with {tokens} tokens.")
                });
                (TaskState::Completed, Some(text), usage_metadata(progress.usage))
            }
            Some(TaskEnd::Failed(failure)) => {
                let TaskFailure {
                    message,
                    reason,
                    status,
                    retry_after,
                } = failure;
                let detail = json!({"reason": reason, "status": status, "retryAfter": retry_after});
                (
                    TaskState::Failed,
                    Some(message.clone()),
                    Some(Metadata::from([(ERROR_KEY.to_owned(), detail)])),
                )
            }
            Some(TaskEnd::Canceled(why)) => (TaskState::Canceled, Some((*why).to_owned()), None),
        };
        let message = text.map(|text| Message {
            message_id: format!("{}-status", self.id),
            context_id: Some(self.context_id.clone()),
            task_id: Some(self.id.clone()),
            metadata,
            ..Message::new(Role::Agent, vec![Part::text(text)])
        });
        // A2A 1.0, section 5.6.1: milliseconds.
        TaskStatus {
            state,
            message,
            timestamp: Some(progress.changed_at.trunc_subsecs(3)),
        }
    }
}

fn usage_metadata(usage: Option<Usage>) -> Option<Metadata> {
    usage.map(|usage| Metadata::from([(USAGE_KEY.to_owned(), json!(usage))]))
}

/// How far a watcher has read.
#[derive(Debug, Clone, Copy, Default)]
pub struct WatchPosition {
    chunk: usize,
    ended: bool,
}

impl WatchPosition {
    /// After `chunk` chunks.
    pub fn after(chunk: usize) -> Self {
        Self { chunk, ended: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task() -> Arc<TaskEntry> {
        let question = Message::new(Role::User, vec![Part::text("q")]);
        Arc::new(TaskEntry::new("c".to_owned(), question, Arc::default()))
    }

    #[tokio::test]
    async fn every_watcher_gets_the_same_chunks_and_the_end() {
        let (task, now) = (task(), Instant::now());
        task.push("Hello");
        let (snapshot, seen) = task.snapshot_to_watch();
        assert_eq!(snapshot.status.state, TaskState::Working);
        task.push(" you");
        task.end(
            TaskEnd::Completed,
            Some(Usage {
                input_tokens: 3,
                output_tokens: 2,
            }),
            now,
        );
        task.push("never");

        for (from, texts) in [(0, vec!["Hello", " you"]), (seen, vec![" you"])] {
            let mut position = WatchPosition::after(from);
            let mut found = Vec::new();
            let mut last = None;
            while let Some(event) = task.next_event(&mut position).await {
                match event {
                    StreamResponse::ArtifactUpdate(update) => {
                        assert_eq!(update.append, Some(from + found.len() > 0));
                        found.push(update.artifact.parts[0].as_text().unwrap_or_default().to_owned());
                    }
                    other => last = Some(other),
                }
            }
            assert_eq!(found, texts);
            let Some(StreamResponse::StatusUpdate(status)) = last else {
                panic!("{last:?}")
            };
            assert_eq!(status.status.state, TaskState::Completed);
            let usage = json!({"inputTokens": 3, "outputTokens": 2});
            assert_eq!(status.metadata.expect("usage")[USAGE_KEY], usage);
            assert_eq!(
                status.status.message.expect("a message").metadata.expect("usage")[USAGE_KEY],
                usage
            );
        }
        assert_eq!(task.snapshot(Some(0)).history, None);
        assert_eq!(task.snapshot(None).history.map(|history| history.len()), Some(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_is_abandoned_when_nobody_comes_back_in_time() {
        let task = task();
        let first = task.watch();
        let waiting = {
            let task = Arc::clone(&task);
            tokio::spawn(async move {
                task.abandoned(Duration::from_secs(5)).await;
                Instant::now()
            })
        };
        let start = Instant::now();
        tokio::time::advance(Duration::from_secs(60)).await;
        drop(first);
        tokio::time::sleep(Duration::from_secs(4)).await;
        let second = task.watch();
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(!waiting.is_finished(), "watched again in time");
        drop(second);
        let abandoned_at = waiting.await.expect("no panic");
        assert_eq!((abandoned_at - start).as_secs(), 60 + 4 + 60 + 5);
    }
}
