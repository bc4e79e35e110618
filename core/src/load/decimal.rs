//! Decimal strings, exactly.
//!
//! The API has no floats: rates, percentages and money are strings such as `"0.25"`. They are read into whole
//! millionths and computed as integers, so that two runs, two platforms and a person with a pencil agree.

use std::fmt;
use std::str::FromStr;

/// A non-negative decimal number with at most six places, held in millionths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Decimal(u128);

const SCALE: u128 = 1_000_000;
/// The largest readable whole part; far above any rate or price, far below any overflow.
pub(crate) const MAX_WHOLE: u128 = 1_000_000_000_000;

/// Why a string is not a [`Decimal`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a decimal number; write digits with at most six places, such as \"25\" or \"0.5\"")]
pub struct DecimalError {
    text: String,
}

impl Decimal {
    /// The number of millionths.
    pub fn millionths(self) -> u128 {
        self.0
    }

    /// The number that is `millionths` of one.
    pub fn from_millionths(millionths: u128) -> Self {
        Self(millionths)
    }

    /// Whether it is 0.
    pub fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// The nearest `f64`.
    pub fn to_f64(self) -> f64 {
        self.0 as f64 / SCALE as f64
    }
}

impl FromStr for Decimal {
    type Err = DecimalError;

    fn from_str(text: &str) -> Result<Self, DecimalError> {
        let error = || DecimalError {
            text: text.chars().take(40).collect(),
        };
        read(text, 6).map(Self).ok_or_else(error)
    }
}

impl fmt::Display for Decimal {
    /// Without trailing zeros: `25`, `0.5`. With a format precision exactly that many places, rounded half up.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(places) = f.precision() {
            let places = places.min(6);
            let unit = 10u128.pow(6 - places as u32);
            let rounded = (self.0 + unit / 2) / unit;
            let one = SCALE / unit;
            return match places {
                0 => write!(f, "{rounded}"),
                _ => write!(f, "{}.{:0places$}", rounded / one, rounded % one),
            };
        }
        write(f, self.0, 6)
    }
}

/// A plain decimal with at most `places` places, in the unit of the last of them.
pub(crate) fn read(text: &str, places: usize) -> Option<u128> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |part: &str, max: usize| {
        (1..=max).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit())
    };
    if !digits(whole, 13) || !digits(fraction, places) {
        return None;
    }
    let whole: u128 = whole.parse().ok().filter(|whole| *whole <= MAX_WHOLE)?;
    let fraction: u128 = format!("{fraction:0<places$}").parse().ok()?;
    Some(whole * 10u128.pow(u32::try_from(places).ok()?) + fraction)
}

/// Without trailing zeros; `value` is in the unit of the last of `places` places.
pub(crate) fn write(f: &mut fmt::Formatter<'_>, value: u128, places: usize) -> fmt::Result {
    let one = 10u128.pow(places as u32);
    let (whole, fraction) = (value / one, value % one);
    if fraction == 0 {
        return write!(f, "{whole}");
    }
    let fraction = format!("{fraction:0places$}");
    write!(f, "{whole}.{}", fraction.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes() {
        for (text, millionths, shown) in [
            ("0", 0, "0"),
            ("25", 25_000_000, "25"),
            ("0.5", 500_000, "0.5"),
            ("00.250", 250_000, "0.25"),
            ("1.000001", 1_000_001, "1.000001"),
            ("1000000000000", 1_000_000_000_000_000_000, "1000000000000"),
        ] {
            let decimal: Decimal = text.parse().unwrap();
            assert_eq!(
                (decimal.millionths(), decimal.to_string().as_str()),
                (millionths, shown)
            );
        }
    }

    #[test]
    fn refuses_what_is_not_a_plain_decimal() {
        for text in [
            "",
            ".",
            "1.",
            ".5",
            "-1",
            "+1",
            "1e3",
            "1.0000001",
            "1,5",
            " 1",
            "٣",
            "9999999999999",
            "inf",
        ] {
            assert!(text.parse::<Decimal>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn rounds_half_up_to_asked_places() {
        let decimal: Decimal = "1.995".parse().unwrap();
        assert_eq!(format!("{decimal:.2} {decimal:.1} {decimal:.0}"), "2.00 2.0 2");
        assert_eq!(format!("{:.3}", "0.0004".parse::<Decimal>().unwrap()), "0.000");
    }
}
