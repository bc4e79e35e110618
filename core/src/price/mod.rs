//! What model calls cost: list prices, exact costs, budgets.
//!
//! * [`Money`] is exact; nothing here is a float.
//! * [`Price::cost`] is the cost of *one* call. It must be taken call by call and then summed: what a token costs can
//!   depend on the length of the prompt it came with, so the cost of a sum of tokens is not the sum of the costs.
//! * [`lookup`] knows public list prices of common models on a date. A price in the ModelProvider comes first.
//! * [`budget`] says which thresholds a spend has newly crossed.
//! * [`ledger`] is what the operator writes down of a budget, [`gate`] what a gateway admits under it.

pub mod budget;
pub mod gate;
pub mod ledger;
mod money;
mod table;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::load::decimal::{Decimal, DecimalError};

pub use money::{Money, MoneyError};
pub use table::{Listed, lookup};

/// A currency: three capital letters (ISO 4217).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Currency([u8; 3]);

impl Currency {
    /// US dollars: the currency of the built-in prices.
    pub const USD: Self = Self(*b"USD");
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .try_for_each(|letter| write!(f, "{}", char::from(*letter)))
    }
}

impl FromStr for Currency {
    type Err = PriceError;

    fn from_str(text: &str) -> Result<Self, PriceError> {
        match text.as_bytes() {
            &[a, b, c] if [a, b, c].iter().all(u8::is_ascii_uppercase) => Ok(Self([a, b, c])),
            _ => Err(PriceError::Currency(text.chars().take(40).collect())),
        }
    }
}

impl TryFrom<String> for Currency {
    type Error = PriceError;

    fn try_from(text: String) -> Result<Self, PriceError> {
        text.parse()
    }
}

impl From<Currency> for String {
    fn from(currency: Currency) -> Self {
        currency.to_string()
    }
}

/// Why a price cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PriceError {
    /// It is no currency.
    #[error("{0:?} is not a currency; write three capital letters, such as \"USD\"")]
    Currency(String),
    /// It is no amount.
    #[error(transparent)]
    Amount(#[from] DecimalError),
}

/// Prices of tokens, each per million.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// Of prompts, where no other rate applies.
    pub input: Decimal,
    /// Of the part of a prompt that the provider has read from its cache.
    pub cached_input: Decimal,
    /// Of the part of a prompt that the provider has written to its cache, for the shortest time it offers.
    pub cache_write: Decimal,
    /// Of answers, reasoning among them.
    pub output: Decimal,
}

/// What a model's tokens cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Price {
    /// In which currency.
    pub currency: Currency,
    /// The rates.
    pub rates: Rates,
    /// Rates for *all* tokens of a call whose prompt is longer than this many tokens.
    pub long: Option<(u64, Rates)>,
}

/// The tokens of one call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenUsage {
    /// The whole prompt, cached parts among it (OpenAI's `prompt_tokens` or `input_tokens`).
    pub input: u64,
    /// The part read from the provider's cache (OpenAI's `cached_tokens`).
    pub cached: u64,
    /// The part written to the provider's cache.
    pub cache_write: u64,
    /// The answer (OpenAI's `completion_tokens` or `output_tokens`, reasoning among them).
    pub output: u64,
}

impl TokenUsage {
    /// From counts that exclude each other, as Anthropic reports them: `input_tokens`, `cache_read_input_tokens`,
    /// `cache_creation_input_tokens`, `output_tokens`.
    pub fn from_disjoint(input: u64, cache_read: u64, cache_creation: u64, output: u64) -> Self {
        Self {
            input: input.saturating_add(cache_read).saturating_add(cache_creation),
            cached: cache_read,
            cache_write: cache_creation,
            output,
        }
    }
}

impl Price {
    /// Reads the decimal strings of a ModelProvider. Cached input costs what input costs: a budget must not be exceeded
    /// because of a discount that was not told.
    ///
    /// # Errors
    /// If the currency is none, or an amount is no decimal.
    pub fn parse(
        currency: &str,
        input_per_million: &str,
        output_per_million: &str,
    ) -> Result<Self, PriceError> {
        let input = input_per_million.parse()?;
        Ok(Self {
            currency: currency.parse()?,
            rates: Rates {
                input,
                cached_input: input,
                cache_write: input,
                output: output_per_million.parse()?,
            },
            long: None,
        })
    }

    /// The rates of a call with so many tokens of prompt.
    pub fn rates_for(&self, input: u64) -> &Rates {
        match &self.long {
            Some((above, rates)) if input > *above => rates,
            _ => &self.rates,
        }
    }

    /// What one call costs, exactly, in [`Price::currency`]. Cached parts beyond the prompt count as none.
    pub fn cost(&self, usage: &TokenUsage) -> Money {
        let rates = self.rates_for(usage.input);
        let cached = usage.cached.min(usage.input);
        let written = usage.cache_write.min(usage.input - cached);
        let plain = usage.input - cached - written;
        [
            (plain, rates.input),
            (cached, rates.cached_input),
            (written, rates.cache_write),
            (usage.output, rates.output),
        ]
        .into_iter()
        .map(|(tokens, rate)| Money::of_tokens(tokens, rate))
        .sum()
    }
}

#[cfg(test)]
mod tests {
    use jiff::civil::date;
    use proptest::prelude::*;

    use super::*;
    use crate::load::result::{Price as LoadPrice, Tokens};

    fn price(model: &str) -> Price {
        lookup(model, date(2026, 11, 21)).unwrap().price
    }

    #[test]
    fn costs_to_the_last_digit() {
        let call = |input, cached, cache_write, output| TokenUsage {
            input,
            cached,
            cache_write,
            output,
        };
        for (model, usage, cost) in [
            // 512345 · 0.25e-6 + 221009 · 2e-6
            ("gpt-5-mini", call(512_345, 0, 0, 221_009), "0.57010425"),
            // 100 · 0.25e-6 + 900 · 0.025e-6
            ("gpt-5-mini", call(1000, 900, 0, 0), "0.0000475"),
            ("gpt-5-nano", call(1, 1, 0, 0), "0.000000005"),
            // 100 · 2 + 800 · 0.1 + 100 · 2.5 + 50 · 10, in millionths
            (
                "claude-sonnet-5-5",
                TokenUsage::from_disjoint(100, 800, 100, 50),
                "0.00103",
            ),
            // The whole call costs more above 272,000 tokens of prompt, not only what is above.
            ("gpt-5.4", call(272_000, 0, 0, 1000), "0.695"),
            ("gpt-5.4", call(272_001, 0, 0, 1000), "1.382505"),
            // More cached than there is.
            ("gpt-5-mini", call(10, 20, 20, 0), "0.00000025"),
            ("gpt-5-mini", call(0, 0, 0, 0), "0"),
        ] {
            assert_eq!(price(model).cost(&usage).to_string(), cost, "{model} {usage:?}");
        }
    }

    #[test]
    fn reads_the_prices_of_a_provider() {
        let read = Price::parse("EUR", "0.25", "2.00").unwrap();
        assert_eq!(
            (read.currency.to_string().as_str(), read.rates.cached_input),
            ("EUR", read.rates.input)
        );
        assert!(matches!(
            Price::parse("eur", "0.25", "2"),
            Err(PriceError::Currency(_))
        ));
        assert!(matches!(
            Price::parse("EURO", "0.25", "2"),
            Err(PriceError::Currency(_))
        ));
        assert!(matches!(
            Price::parse("EUR", "-1", "2"),
            Err(PriceError::Amount(_))
        ));
    }

    proptest! {
        /// The cost that a LoadTest shows is this one, rounded.
        #[test]
        fn agrees_with_the_load_test(input in any::<u64>(), output in any::<u64>(), prices in (0u32..200_000_000, 0u32..200_000_000)) {
            let text = |millionths: u32| Decimal::from_millionths(u128::from(millionths)).to_string();
            let (per_input, per_output) = (text(prices.0), text(prices.1));
            let mine = Price::parse("USD", &per_input, &per_output).unwrap();
            let total = mine.cost(&TokenUsage { input, output, ..TokenUsage::default() }).rounded();
            let shown = LoadPrice::parse("USD", &per_input, &per_output).unwrap().cost(&Tokens { input, output, reported: 1 }).total;
            let expected = if total.millionths() >= 1_000_000 || total.is_zero() { format!("{total:.2}") } else { total.to_string() };
            prop_assert_eq!(shown, expected);
        }

        /// More tokens never cost less, but for what the cache saves, and nothing overflows.
        #[test]
        fn more_costs_more(usage in (any::<u64>(), any::<u64>(), any::<u64>()), more in any::<u64>()) {
            let price = price("gpt-5.4");
            let (input, cached, output) = usage;
            let usage = TokenUsage { input, cached, cache_write: 0, output };
            let with_more = TokenUsage { input: input.saturating_add(more), output: output.saturating_add(more), ..usage };
            prop_assert!(price.cost(&usage) <= price.cost(&with_more) || cached > input);
            let uncached = TokenUsage { cached: 0, ..usage };
            prop_assert!(price.cost(&usage) <= price.cost(&uncached));
        }
    }
}
