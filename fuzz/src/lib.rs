//! Mutated real input for every parser of foreign input.
//!
//! [`targets::all`] is the list; [`engine::run`] executes one of them so many times. Why not `cargo-fuzz`: it needs the
//! nightly toolchain, and a figure that only one machine can repeat is none. Its engine finds deep paths by coverage; here
//! the corpus starts deep, inputs are mutated by structure, and a target's outcome takes the place of coverage.

pub mod engine;
pub mod mutate;
pub mod targets;

use std::io;
use std::path::{Path, PathBuf};

/// A parser under test.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it reads, and from whom.
    pub about: &'static str,
    /// Real inputs.
    pub corpus: fn() -> Vec<Vec<u8>>,
    /// Words of the format.
    pub words: &'static [&'static str],
    /// Reads one input and panics when a promise is broken. The number says what came of it: equal numbers are taken
    /// for equal paths through the parser.
    pub execute: fn(&[u8]) -> u64,
}

/// The folder of inputs that once failed, with one folder per target.
pub fn regressions_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions")
}

/// Inputs on which the target `name` once failed, in the order of their files' names.
///
/// # Errors
/// When a file is there and cannot be read.
pub fn regressions(name: &str) -> io::Result<Vec<Vec<u8>>> {
    let folder = regressions_folder().join(name);
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut paths = std::fs::read_dir(folder)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    paths.into_iter().map(std::fs::read).collect()
}

/// Folds the numbers that describe an outcome into one.
pub fn outcome(parts: impl IntoIterator<Item = u64>) -> u64 {
    parts.into_iter().fold(0xcbf2_9ce4_8422_2325, |hash, part| {
        (hash ^ part).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23)
    })
}

/// The length of a number in bits, so that outcomes tell magnitudes apart and not values.
pub fn magnitude(value: u64) -> u64 {
    u64::from(u64::BITS - value.leading_zeros())
}

/// `input` in pieces whose borders depend on its content: the same input always falls apart in the same way.
pub fn pieces(input: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut state = outcome(input.iter().map(|byte| u64::from(*byte)));
    let mut rest = input;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        state = outcome([state]);
        // Mostly tiny, because borders inside a token are what goes wrong.
        let length = 1 + match state % 4 {
            0 => 0,
            1 | 2 => (state >> 8) % 7,
            _ => (state >> 8) % 200,
        };
        let length = usize::try_from(length).unwrap_or(1).min(rest.len());
        let (piece, after) = rest.split_at(length);
        rest = after;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_the_whole_and_the_same_each_time() {
        let input: Vec<u8> = (0..=255).cycle().take(1000).collect();
        let first: Vec<&[u8]> = pieces(&input).collect();
        assert_eq!(first.concat(), input);
        assert!(first.len() > 10);
        assert_eq!(first, pieces(&input).collect::<Vec<_>>());
        assert_eq!(pieces(b"").count(), 0);
    }
}
