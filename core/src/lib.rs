//! Every decision of Flotilla as a pure function of numbers and states.
//!
//! Nothing here has a client, does I/O, reads a clock, or draws a random number that is not a parameter: a decision is
//! a value computed from values, so that a reviewer can read the table of cases it must satisfy.

pub mod balance;
pub mod evidence;
pub mod histogram;
pub mod load;
pub mod price;
pub mod queue;
pub mod quota;
pub mod release;
pub mod revision;
pub mod rollout;
pub mod seeded;
pub mod session;
pub mod stats;
pub mod usage;
