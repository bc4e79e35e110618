//! Choosing: which revision by weight, which replica by load. Pure functions of numbers.

pub mod replica;
pub mod weights;
