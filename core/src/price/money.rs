//! Amounts of money, exactly.
//!
//! A price is whole millionths of the currency per million tokens ([`Decimal`]), so one token costs a whole number of
//! 10⁻¹² of the currency. Amounts are kept in that unit and are rounded only to be shown: a sum does not depend on the
//! order or the grouping of what was added, and a counter that is written down and read again is the same counter.

use std::fmt;
use std::iter::Sum;
use std::ops::Add;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::load::decimal::Decimal;

/// 10¹² of them are one of the currency.
const SCALE: u128 = 1_000_000_000_000;
/// As [`Decimal`]: far above any bill, far below any overflow.
const MAX_WHOLE: u128 = 1_000_000_000_000;

/// A non-negative amount, in 10⁻¹² of its currency. As a string it is a plain decimal with at most twelve places.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Money(u128);

/// Why a string is not an amount.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not an amount of money; write digits with at most twelve places, such as \"500\" or \"0.25\""
)]
pub struct MoneyError {
    text: String,
}

impl Money {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// What `tokens` cost at `per_million`.
    pub fn of_tokens(tokens: u64, per_million: Decimal) -> Self {
        Self(u128::from(tokens).saturating_mul(per_million.millionths()))
    }

    /// The amount in 10⁻¹² of the currency.
    pub fn picos(self) -> u128 {
        self.0
    }

    /// Rounded half up to millionths, for where the API shows it.
    pub fn rounded(self) -> Decimal {
        Decimal::from_millionths(self.0.saturating_add(500_000) / 1_000_000)
    }

    /// An equal part for each of `parts`, rounded up; 0 parts count as 1.
    pub fn shared_by(self, parts: u32) -> Self {
        Self(self.0.div_ceil(u128::from(parts.max(1))))
    }

    /// The nearest `f64`, for metrics.
    pub fn to_f64(self) -> f64 {
        self.0 as f64 / SCALE as f64
    }

    /// What is left of this after `spent`; nothing where that is more.
    pub fn less(self, spent: Self) -> Self {
        Self(self.0.saturating_sub(spent.0))
    }
}

impl From<Decimal> for Money {
    fn from(decimal: Decimal) -> Self {
        Self(decimal.millionths().saturating_mul(1_000_000))
    }
}

impl Add for Money {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl Sum for Money {
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        amounts.fold(Self::ZERO, Add::add)
    }
}

impl FromStr for Money {
    type Err = MoneyError;

    fn from_str(text: &str) -> Result<Self, MoneyError> {
        let error = || MoneyError {
            text: text.chars().take(40).collect(),
        };
        let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |part: &str, max: usize| {
            (1..=max).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit())
        };
        if !digits(whole, 13) || !digits(fraction, 12) {
            return Err(error());
        }
        let whole: u128 = whole.parse().map_err(|_| error())?;
        let picos: u128 = format!("{fraction:0<12}").parse().map_err(|_| error())?;
        if whole > MAX_WHOLE {
            return Err(error());
        }
        Ok(Self(whole * SCALE + picos))
    }
}

impl fmt::Display for Money {
    /// Exactly, without trailing zeros. What is beyond the largest readable amount is shown as that.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.0.min(MAX_WHOLE * SCALE + SCALE - 1);
        let (whole, fraction) = (shown / SCALE, shown % SCALE);
        if fraction == 0 {
            return write!(f, "{whole}");
        }
        write!(f, "{whole}.{}", format!("{fraction:012}").trim_end_matches('0'))
    }
}

impl TryFrom<String> for Money {
    type Error = MoneyError;

    fn try_from(text: String) -> Result<Self, MoneyError> {
        text.parse()
    }
}

impl From<Money> for String {
    fn from(money: Money) -> Self {
        money.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_and_writes() {
        for (text, picos, shown) in [
            ("0", 0, "0"),
            ("500.00", 500 * SCALE, "500"),
            ("0.25", SCALE / 4, "0.25"),
            ("0.000000000001", 1, "0.000000000001"),
            (
                "1000000000000.999999999999",
                MAX_WHOLE * SCALE + SCALE - 1,
                "1000000000000.999999999999",
            ),
        ] {
            let money: Money = text.parse().unwrap();
            assert_eq!((money.picos(), money.to_string().as_str()), (picos, shown));
        }
        for text in [
            "",
            ".",
            "1.",
            ".5",
            "-1",
            "+1",
            "1e3",
            "0.0000000000001",
            "1,5",
            " 1",
            "٣",
            "1000000000001",
            "$1",
        ] {
            assert!(text.parse::<Money>().is_err(), "{text:?}");
        }
        assert_eq!(
            Money(u128::MAX).to_string().parse::<Money>().unwrap().to_string(),
            Money(u128::MAX).to_string()
        );
    }

    #[test]
    fn a_decimal_of_the_api_is_the_same_amount() {
        for text in ["0", "500.00", "0.000001", "12.345678", "1000000000000"] {
            let decimal: Decimal = text.parse().unwrap();
            assert_eq!(Money::from(decimal), text.parse().unwrap());
            assert_eq!(Money::from(decimal).rounded(), decimal);
        }
        let rounded = |text: &str| text.parse::<Money>().unwrap().rounded().to_string();
        assert_eq!(
            (rounded("0.0000005"), rounded("0.0000004999")),
            ("0.000001".into(), "0".into())
        );
    }

    proptest! {
        #[test]
        fn a_written_amount_is_the_same_when_read(picos in 0..=MAX_WHOLE * SCALE) {
            let money = Money(picos);
            prop_assert_eq!(money.to_string().parse::<Money>().unwrap(), money);
            let json = serde_json::to_string(&money).unwrap();
            prop_assert_eq!(serde_json::from_str::<Money>(&json).unwrap(), money);
        }

        /// Token by token or at once, in any order: the same amount.
        #[test]
        fn sums_do_not_depend_on_grouping(mut tokens in prop::collection::vec(0u64..1_000_000, 1..20), millionths in 0u128..1_000_000_000) {
            let price = Decimal::from_millionths(millionths);
            let at_once = Money::of_tokens(tokens.iter().sum(), price);
            tokens.sort_unstable();
            prop_assert_eq!(tokens.iter().map(|count| Money::of_tokens(*count, price)).sum::<Money>(), at_once);
        }
    }
}
