//! The scenarios, by what they prove.

pub mod bad_input;
pub mod budget;
pub mod load_test;
pub mod pool;
pub mod release;
pub mod rest;
pub mod scale;
pub mod sessions;
pub mod survive;
