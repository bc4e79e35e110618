//! What the server knows of the shape of objects: which lists are maps, which maps are atomic, what is checked.

pub mod admission;
pub mod built_in;
pub mod custom;
pub mod defaults;
pub mod immutable;
pub mod names;
pub mod types;

pub use types::{Form, Type};
