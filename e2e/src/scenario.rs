//! The scenarios, by what they prove.

pub mod bad_input;
pub mod budget;
pub mod judged;
pub mod load_test;
pub mod pool;
pub mod release;
pub mod release_tests;
pub mod releases;
pub mod rest;
pub mod routes;
pub mod scale;
pub mod sessions;
pub mod survive;
pub mod turmoil;
