//! Makes new inputs of known ones.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, RngCore as _};
use serde_json::{Map, Number, Value};

/// Longest input: beyond every limit that a parser has for a part, and longer ones only repeat.
pub const MAX_LENGTH: usize = 6 * 1024;
/// Bytes that mean something in one format or another.
const BYTES: &[u8] = b"\0\t\n\r \"#%&'(),-./:;<=>?@[\\]_`{|}~\x7f\x80\xbf\xc3\xe2\xf0\xff09azAZ";
/// Numbers at which something is wrong by one, too large, or no number of that kind.
const NUMBERS: &[&str] = &[
    "0",
    "-0",
    "-1",
    "1",
    "9",
    "00",
    "127",
    "128",
    "255",
    "256",
    "65535",
    "65536",
    "2147483647",
    "2147483648",
    "4294967295",
    "4294967296",
    "9007199254740993",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "340282366920938463463374607431768211456",
    "1e308",
    "1e309",
    "-1e-400",
    "0.1",
    "1.",
    ".5",
    "1_000",
    "0x10",
    "NaN",
    "Infinity",
];

/// A mutation of one input of `corpus`, which must not be empty, with the words of its format.
pub fn mutate(random: &mut StdRng, corpus: &[Vec<u8>], words: &[&str]) -> Vec<u8> {
    let mut input = corpus.choose(random).cloned().unwrap_or_default();
    match random.random_range(0..20) {
        0 => input = noise(random),
        1 => return input,
        _ => {}
    }
    if random.random_bool(0.3)
        && let Some(changed) = json(random, &input, words)
    {
        input = changed;
        if random.random_bool(0.7) {
            input.truncate(MAX_LENGTH);
            return input;
        }
    }
    // Mostly one or two changes: more of them rarely get past the first check.
    let changes = 1 + (random.next_u32().trailing_zeros() as usize).min(6);
    for _ in 0..changes {
        change(random, &mut input, corpus, words);
    }
    input.truncate(MAX_LENGTH);
    input
}

fn noise(random: &mut StdRng) -> Vec<u8> {
    let length = random.random_range(0..64);
    let printable = random.random_bool(0.5);
    (0..length)
        .map(|_| {
            if printable {
                random.random_range(b' '..=b'~')
            } else {
                random.random()
            }
        })
        .collect()
}

/// A range of `length` bytes, mostly short.
fn range(random: &mut StdRng, length: usize) -> std::ops::Range<usize> {
    let start = random.random_range(0..=length);
    let most = if random.random_bool(0.8) { 16 } else { length };
    let size = random.random_range(0..=most.min(length - start));
    start..start + size
}

fn change(random: &mut StdRng, input: &mut Vec<u8>, corpus: &[Vec<u8>], words: &[&str]) {
    let at = random.random_range(0..=input.len());
    match random.random_range(0..12) {
        0 => {
            if let Some(byte) = input.get_mut(at) {
                *byte ^= 1 << random.random_range(0..8);
            }
        }
        1 => {
            if let (Some(byte), Some(new)) = (input.get_mut(at), BYTES.choose(random)) {
                *byte = *new;
            }
        }
        2 => input.insert(at, BYTES.choose(random).copied().unwrap_or_default()),
        3 => {
            if let Some(word) = words.choose(random) {
                insert(input, at, word.as_bytes());
            }
        }
        4 => {
            // A word in the place of another part.
            if let Some(word) = words.choose(random) {
                let range = range(random, input.len());
                input.splice(range, word.bytes());
            }
        }
        5 => drop(input.drain(range(random, input.len()))),
        6 => {
            let range = range(random, input.len());
            let part = input.get(range).unwrap_or_default().to_vec();
            let times = if random.random_bool(0.05) {
                1000
            } else {
                random.random_range(1..4)
            };
            let times = times.min(MAX_LENGTH / part.len().max(1));
            insert(input, at, &part.repeat(times));
        }
        7 => input.truncate(at),
        8 => number(random, input),
        9 => {
            let (from, to) = (range(random, input.len()), at);
            let part: Vec<u8> = input.drain(from).collect();
            let to = to.min(input.len());
            insert(input, to, &part);
        }
        10 => {
            // The beginning of this one and the end of another.
            if let Some(other) = corpus.choose(random) {
                input.truncate(at);
                let from = random.random_range(0..=other.len());
                input.extend_from_slice(other.get(from..).unwrap_or_default());
            }
        }
        _ => {
            if let Some(other) = corpus.choose(random) {
                let part = other.get(range(random, other.len())).unwrap_or_default().to_vec();
                insert(input, at, &part);
            }
        }
    }
}

fn insert(input: &mut Vec<u8>, at: usize, part: &[u8]) {
    let at = at.min(input.len());
    input.splice(at..at, part.iter().copied());
}

/// Replaces one run of digits.
fn number(random: &mut StdRng, input: &mut Vec<u8>) {
    let runs: Vec<usize> = (0..input.len())
        .filter(|at| is_digit(input, *at) && (*at == 0 || !is_digit(input, at - 1)))
        .collect();
    let (Some(start), Some(new)) = (runs.choose(random), NUMBERS.choose(random)) else {
        return;
    };
    let end = (*start..input.len())
        .find(|at| !is_digit(input, *at))
        .unwrap_or(input.len());
    input.splice(*start..end, new.bytes());
}

fn is_digit(input: &[u8], at: usize) -> bool {
    input.get(at).is_some_and(u8::is_ascii_digit)
}

/// Changes a node of the tree; nothing when `input` is no JSON.
fn json(random: &mut StdRng, input: &[u8], words: &[&str]) -> Option<Vec<u8>> {
    let mut value: Value = serde_json::from_slice(input).ok()?;
    for _ in 0..random.random_range(1..4) {
        let steps = random.random_range(0..6);
        node(random, &mut value, steps, words);
    }
    serde_json::to_vec(&value).ok()
}

fn node(random: &mut StdRng, value: &mut Value, steps: u32, words: &[&str]) {
    if steps > 0 {
        match value {
            Value::Object(members) if !members.is_empty() => {
                let index = random.random_range(0..members.len());
                if let Some((_, member)) = members.iter_mut().nth(index) {
                    return node(random, member, steps - 1, words);
                }
            }
            Value::Array(items) if !items.is_empty() => {
                let index = random.random_range(0..items.len());
                if let Some(item) = items.get_mut(index) {
                    return node(random, item, steps - 1, words);
                }
            }
            _ => {}
        }
    }
    match value {
        Value::Object(members) if random.random_bool(0.6) => members_change(random, members, words),
        Value::Array(items) if random.random_bool(0.6) => items_change(random, items),
        _ => *value = leaf(random, words),
    }
}

fn members_change(random: &mut StdRng, members: &mut Map<String, Value>, words: &[&str]) {
    let names: Vec<String> = members.keys().cloned().collect();
    let Some(name) = names.choose(random) else {
        members.insert(word(random, words), leaf(random, words));
        return;
    };
    let member = members.remove(name).unwrap_or_default();
    match random.random_range(0..4) {
        0 => {}
        1 => drop(members.insert(word(random, words), member)),
        2 => {
            // Two members change places.
            let other = names.choose(random).cloned().unwrap_or_default();
            let theirs = members.insert(other, member).unwrap_or_default();
            members.insert(name.clone(), theirs);
        }
        _ => {
            members.insert(word(random, words), leaf(random, words));
            members.insert(name.clone(), member);
        }
    }
}

fn items_change(random: &mut StdRng, items: &mut Vec<Value>) {
    if items.is_empty() {
        items.push(Value::Null);
        return;
    }
    let index = random.random_range(0..items.len());
    if random.random_bool(0.5) {
        items.remove(index);
    } else if let Some(item) = items.get(index).cloned() {
        let times = if random.random_bool(0.05) { 200 } else { 1 };
        items.extend(std::iter::repeat_n(item, times));
    }
}

fn word(random: &mut StdRng, words: &[&str]) -> String {
    words.choose(random).copied().unwrap_or("x").to_owned()
}

fn leaf(random: &mut StdRng, words: &[&str]) -> Value {
    match random.random_range(0..9) {
        0 => Value::Null,
        1 => Value::Bool(random.random()),
        2 => Value::from(random.random::<i64>()),
        3 => Value::from(u64::MAX),
        4 => NUMBERS
            .choose(random)
            .and_then(|text| text.parse::<f64>().ok())
            .and_then(Number::from_f64)
            .map_or(Value::Null, Value::Number),
        5 => Value::String(NUMBERS.choose(random).copied().unwrap_or_default().to_owned()),
        6 => Value::String(word(random, words)),
        7 => {
            let mut nested = Value::from(1);
            for _ in 0..random.random_range(1..150) {
                nested = if random.random() {
                    Value::Array(vec![nested])
                } else {
                    Value::Object(Map::from_iter([(word(random, words), nested)]))
                };
            }
            nested
        }
        _ => Value::String("é\u{1F600}\u{0}\"\\".repeat(random.random_range(0..40))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng as _;
    use std::collections::BTreeSet;

    #[test]
    fn inputs_are_many_bounded_and_repeatable() {
        let corpus = vec![
            br#"{"a": [1, 20, {"b": "c"}], "n": 300}"#.to_vec(),
            b"data: x\n\n".to_vec(),
        ];
        let words = ["data:", "usage"];
        let many = |seed| -> BTreeSet<Vec<u8>> {
            let mut random = StdRng::seed_from_u64(seed);
            (0..2000).map(|_| mutate(&mut random, &corpus, &words)).collect()
        };
        let inputs = many(1);
        assert!(inputs.len() > 1500, "{} different inputs", inputs.len());
        assert!(inputs.iter().all(|input| input.len() <= MAX_LENGTH));
        assert!(inputs.iter().any(|input| input.len() > 1000) && inputs.contains(&corpus[0]));
        assert!(
            inputs
                .iter()
                .any(|input| serde_json::from_slice::<Value>(input).is_ok() && !corpus.contains(input))
        );
        assert_eq!(inputs, many(1));
        assert_ne!(inputs, many(2));
    }
}
