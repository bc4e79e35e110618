//! Threads that carry connections.
//!
//! A client's connection, its requests and the connections to agents that these use stay on one thread: a request then waits
//! for no other thread to wake up, which on few cores costs more than the request itself.
//!
//! ```text
//!  accept ─► the worker with the fewest connections ─► its own tasks, its own connections to agents
//! ```
//!
//! The runtime that accepts is the first worker; every further one is a thread with a runtime of its own.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::TcpStream;
use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;
use tracing::warn;

thread_local! {
    /// 0 for the runtime that accepts, and for every other thread.
    static WORKER: Cell<usize> = const { Cell::new(0) };
}

/// The number of the worker whose thread this is.
pub fn current() -> usize {
    WORKER.get()
}

/// The workers of one process.
pub struct Workers {
    first: Load,
    others: Vec<Worker>,
}

/// A thread with a runtime of its own.
struct Worker {
    runtime: Handle,
    load: Load,
}

/// Connections that are open.
#[derive(Clone, Default)]
struct Load(Arc<AtomicUsize>);

/// One of them.
struct Counted(Load);

impl Workers {
    /// `count` workers, this runtime among them; the threads of the others end with `stop`.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(count: usize, stop: &CancellationToken) -> io::Result<Self> {
        let others = (1..count).map(|number| Worker::start(number, stop.clone()));
        Ok(Self {
            first: Load::default(),
            others: others.collect::<io::Result<_>>()?,
        })
    }

    /// Only this runtime.
    pub fn here() -> Self {
        Self {
            first: Load::default(),
            others: Vec::new(),
        }
    }

    /// Serves `stream` on the worker with the fewest connections.
    pub fn carry<F: Future<Output = ()> + Send + 'static>(
        &self,
        stream: TcpStream,
        serve: impl FnOnce(TcpStream) -> F + Send + 'static,
    ) {
        let worker = self.others.iter().min_by_key(|worker| worker.load.get());
        let Some(worker) = worker.filter(|worker| worker.load.get() < self.first.get()) else {
            let counted = self.first.count();
            tokio::spawn(async move {
                serve(stream).await;
                drop(counted);
            });
            return;
        };
        let counted = worker.load.count();
        // The socket is known to the poll of this runtime until it has left it.
        let stream = match stream.into_std() {
            Ok(stream) => stream,
            Err(error) => return warn!(%error, "failed to hand a connection to its worker"),
        };
        worker.runtime.spawn(async move {
            match TcpStream::from_std(stream) {
                Ok(stream) => serve(stream).await,
                Err(error) => warn!(%error, "failed to take a connection over"),
            }
            drop(counted);
        });
    }
}

impl Worker {
    fn start(number: usize, stop: CancellationToken) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        std::thread::Builder::new()
            .name(format!("worker-{number}"))
            .spawn(move || {
                WORKER.set(number);
                runtime.block_on(stop.cancelled());
                // Without waiting for names that are being resolved.
                runtime.shutdown_background();
            })?;
        Ok(Self {
            runtime: handle,
            load: Load::default(),
        })
    }
}

impl Load {
    fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    fn count(&self) -> Counted {
        self.0.fetch_add(1, Ordering::Relaxed);
        Counted(self.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;
    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn connections_go_where_there_are_fewest() {
        let stop = CancellationToken::new();
        let workers = Workers::start(3, &stop).expect("threads");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (told, mut carried) = mpsc::unbounded_channel();
        let connect = async || {
            let client = TcpStream::connect(address).await.expect("connected");
            let (stream, _) = listener.accept().await.expect("accepted");
            let (end, ended) = tokio::sync::oneshot::channel::<()>();
            let told = told.clone();
            workers.carry(stream, move |stream| async move {
                // Never, where the socket were still another runtime's.
                stream.writable().await.expect("a socket that can be written");
                told.send(current()).expect("the test listens");
                let _ = ended.await;
            });
            (client, end)
        };
        let mut open = Vec::new();
        let mut on = Vec::new();
        for _ in 0..6 {
            open.push(connect().await);
            on.push(carried.recv().await.expect("carried"));
        }
        assert_eq!(on, [0, 1, 2, 0, 1, 2]);
        drop(open.remove(4));
        while workers.others[0].load.get() == 2 {
            tokio::task::yield_now().await;
        }
        for expected in [1, 0] {
            open.push(connect().await);
            assert_eq!(carried.recv().await, Some(expected));
        }
        stop.cancel();
    }
}
