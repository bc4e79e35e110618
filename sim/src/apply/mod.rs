//! Ownership of fields: server-side apply, and what the other writes do to it. After `structured-merge-diff`.

pub mod compare;
pub mod fields;
pub mod managed;
pub mod merge;
pub mod typed;

pub use fields::{Element, Set};
