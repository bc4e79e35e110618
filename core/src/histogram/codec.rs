//! The wire form of a histogram.
//!
//! Bytes: precision (high bit: empty), then varints: zeros, minimum, maximum, sum, index of the first bucket,
//! number of buckets, and the counts, where a 0 is followed by the length of its run. Text: one byte that says
//! whether the rest is deflated (done only where it is smaller), all of it in base64 without padding.
//!
//! The decoder reads what other pods wrote. It checks every length before it allocates, and accepts only what
//! is consistent with itself, so that a merged result can be trusted arithmetically.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;

use super::{Histogram, MAX_INDEX, Precision, coarse_index, index_of};

/// No histogram is larger: 2,219 buckets of at most 10 bytes and a header.
const MAX_BYTES: usize = 64 * 1024;
const EMPTY: u8 = 0x80;

/// Why bytes or text are not a histogram or a result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not base64, or the compressed part is damaged or too large.
    #[error("failed to unpack: {0}")]
    Unpack(&'static str),
    /// The bytes end before the value does.
    #[error("failed to decode: the data ends early")]
    Truncated,
    /// A number is out of its range, or numbers contradict each other.
    #[error("failed to decode: {0}")]
    Inconsistent(&'static str),
}

/// Appends `value` in groups of seven bits, least significant first.
pub(crate) fn put_varint(out: &mut Vec<u8>, value: impl Into<u128>) {
    let mut value = value.into();
    while value >= 0x80 {
        out.push((value as u8) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A cursor over bytes from outside.
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn byte(&mut self) -> Result<u8, DecodeError> {
        let (first, rest) = self.0.split_first().ok_or(DecodeError::Truncated)?;
        self.0 = rest;
        Ok(*first)
    }

    pub(crate) fn varint(&mut self) -> Result<u128, DecodeError> {
        let mut value = 0u128;
        for shift in (0..128).step_by(7) {
            let byte = self.byte()?;
            let bits = u128::from(byte & 0x7f);
            if (bits << shift) >> shift != bits {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(DecodeError::Inconsistent("a number is too large"))
    }

    pub(crate) fn number<T: TryFrom<u128>>(&mut self) -> Result<T, DecodeError> {
        T::try_from(self.varint()?).map_err(|_| DecodeError::Inconsistent("a number is too large"))
    }

    pub(crate) fn finish(self) -> Result<(), DecodeError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(DecodeError::Inconsistent("there is data after the end"))
        }
    }
}

/// Base64 of `bytes`, deflated where that is smaller.
pub(crate) fn pack(bytes: &[u8]) -> String {
    let deflated = miniz_oxide::deflate::compress_to_vec(bytes, 9);
    let (flag, body) = if deflated.len() < bytes.len() {
        (1, deflated.as_slice())
    } else {
        (0, bytes)
    };
    let mut packed = Vec::with_capacity(body.len() + 1);
    packed.push(flag);
    packed.extend_from_slice(body);
    STANDARD_NO_PAD.encode(packed)
}

/// The inverse of [`pack`]; at most [`MAX_BYTES`] come out.
pub(crate) fn unpack(text: &str) -> Result<Vec<u8>, DecodeError> {
    if text.len() > MAX_BYTES {
        return Err(DecodeError::Unpack("the text is too long"));
    }
    let packed = STANDARD_NO_PAD
        .decode(text)
        .map_err(|_| DecodeError::Unpack("not base64"))?;
    match packed.split_first() {
        Some((0, body)) => Ok(body.to_vec()),
        Some((1, body)) => miniz_oxide::inflate::decompress_to_vec_with_limit(body, MAX_BYTES)
            .map_err(|_| DecodeError::Unpack("the compressed part is damaged or too large")),
        _ => Err(DecodeError::Unpack("unknown packing")),
    }
}

pub(super) fn to_text(histogram: &Histogram) -> String {
    let mut bytes = Vec::with_capacity(1024);
    encode(histogram, &mut bytes);
    pack(&bytes)
}

pub(super) fn from_text(text: &str) -> Result<Histogram, DecodeError> {
    let bytes = unpack(text)?;
    let mut reader = Reader::new(&bytes);
    let histogram = decode(&mut reader)?;
    reader.finish()?;
    Ok(histogram)
}

/// Appends the bytes of `histogram`, which say themselves where they end.
pub(crate) fn encode(histogram: &Histogram, out: &mut Vec<u8>) {
    let Histogram {
        precision,
        zeros,
        counts,
        count,
        sum,
        min,
        max,
    } = histogram;
    if *count == 0 {
        out.push(precision.halvings() | EMPTY);
        return;
    }
    out.push(precision.halvings());
    put_varint(out, *zeros);
    put_varint(out, *min);
    // As a distance, which is shorter, and cannot be below the minimum.
    put_varint(out, max - min);
    put_varint(out, *sum);
    let first = counts.iter().position(|n| *n > 0).unwrap_or(counts.len());
    put_varint(out, first as u64);
    put_varint(out, (counts.len() - first) as u64);
    let mut rest = counts.iter().skip(first).peekable();
    while let Some(n) = rest.next() {
        put_varint(out, *n);
        if *n == 0 {
            let mut run = 1u64;
            while rest.next_if(|n| **n == 0).is_some() {
                run += 1;
            }
            put_varint(out, run);
        }
    }
}

/// Reads one histogram and leaves the cursor behind it.
pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<Histogram, DecodeError> {
    let head = reader.byte()?;
    let precision =
        Precision::from_halvings(head & !EMPTY).ok_or(DecodeError::Inconsistent("unknown precision"))?;
    if head & EMPTY != 0 {
        return Ok(Histogram {
            precision,
            ..Histogram::default()
        });
    }
    let zeros: u64 = reader.number()?;
    let min: u64 = reader.number()?;
    let max = min
        .checked_add(reader.number()?)
        .ok_or(DecodeError::Inconsistent("the maximum is too large"))?;
    let sum = reader.varint()?;
    let first: usize = reader.number()?;
    let length: usize = reader.number()?;
    let limit = coarse_index(MAX_INDEX, precision.halvings()) + 1;
    if first > limit || length > limit - first {
        return Err(DecodeError::Inconsistent("too many buckets"));
    }
    let mut counts = vec![0u64; if length == 0 { 0 } else { first + length }];
    let mut count = zeros;
    let mut at = first;
    while at < first + length {
        let n: u64 = reader.number()?;
        if n == 0 {
            let run: usize = reader.number()?;
            if run == 0 || run > first + length - at {
                return Err(DecodeError::Inconsistent("a run of zeros has a wrong length"));
            }
            at += run;
        } else {
            counts[at] = n;
            count = count
                .checked_add(n)
                .ok_or(DecodeError::Inconsistent("the counts overflow"))?;
            at += 1;
        }
    }
    let histogram = Histogram {
        precision,
        zeros,
        counts,
        count,
        sum,
        min,
        max,
    };
    check(&histogram)?;
    Ok(histogram)
}

fn check(histogram: &Histogram) -> Result<(), DecodeError> {
    let Histogram {
        precision,
        zeros,
        counts,
        count,
        sum,
        min,
        max,
    } = histogram;
    let level = precision.halvings();
    let first = counts.iter().position(|n| *n > 0);
    let minimum_fits = match first {
        _ if *zeros > 0 => *min == 0,
        Some(first) => *min > 0 && coarse_index(index_of(*min), level) <= first,
        None => false,
    };
    let maximum_fits = match counts.last() {
        None => *max == 0,
        Some(0) => false,
        Some(_) => *max > 0 && coarse_index(index_of(*max), level) >= counts.len() - 1,
    };
    let count = u128::from(*count);
    let sum_fits = count.checked_mul(u128::from(*min)).is_some_and(|low| low <= *sum)
        && count
            .checked_mul(u128::from(*max))
            .is_none_or(|high| *sum <= high);
    if !minimum_fits {
        Err(DecodeError::Inconsistent(
            "the minimum is not in the first bucket",
        ))
    } else if !maximum_fits {
        Err(DecodeError::Inconsistent("the maximum is not in the last bucket"))
    } else if !sum_fits {
        Err(DecodeError::Inconsistent("the sum does not fit the values"))
    } else {
        Ok(())
    }
}
