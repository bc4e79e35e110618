//! What the reference agent and the simulated provider have in common: one HTTP listener with a graceful
//! drain, bounded request bodies, server-sent events in both directions, and logging.
//!
//! It is `hyper` and little else. A framework would route nicer, but both programs have under ten routes, and what
//! matters here is below routing: a response body that is still streaming counts as work in flight, a client
//! that goes away drops the handler at once (so that its model call ends too), and a body over its limit is
//! refused before it is in memory.

mod body;
mod logging;
mod server;
mod sse;

pub use body::{Body, BodyError, empty, full, json, read_body, stream, text, with_guard};
pub use logging::{init_logging, log_error};
pub use server::{DrainLimits, Running, start, terminated};
pub use sse::{SseDecoder, SseError, sse_event, sse_response};
