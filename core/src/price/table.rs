//! Public list prices of common models, in US dollars.
//!
//! Read on 2026-11-21 from two independent tables, LiteLLM 1.109.1 (`model_prices_and_context_window_backup.json`) and
//! genai-prices 0.2.3; a row stands here only if both say the same for each of its rates on that day. Rows with a date
//! are announced changes, which only the second one has. These are the providers' standard rates for text: no batch,
//! flex or priority tiers, no audio, no searches, no regional surcharge. DeepSeek's are those of its peak hours, twice
//! the others, because a budget must not be exceeded by the time of day.
//!
//! A model that is not here has no price: its spend is unknown, not nothing.

use jiff::civil::{Date, date};

use super::{Currency, Price, Rates};
use crate::load::decimal::Decimal;

/// When the table was read.
const READ: Date = date(2026, 11, 21);

/// A price found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The model whose price it is: the one asked for, or the one that it is a dated snapshot of.
    pub model: &'static str,
    /// Its price.
    pub price: Price,
    /// When the price was read from the providers' lists.
    pub read: Date,
}

/// The list price of `model` on a day.
///
/// By its exact name, else by that of the model it is a dated snapshot of (`gpt-5-mini-2025-08-07`,
/// `claude-haiku-4-5-20251001`): snapshots cost what their model costs, and those that do not have a row of their own.
/// Numbers that are no dates name other models (`mistral-large-2512`).
pub fn lookup(model: &str, on: Date) -> Option<Listed> {
    let row = exact(model, on).or_else(|| exact(without_date(model)?, on))?;
    Some(Listed {
        model: row.model,
        price: Price {
            currency: Currency::USD,
            rates: rates(row.rates),
            long: row.long.map(|(above, long)| (above, rates(long))),
        },
        read: READ,
    })
}

/// The last row of the model that has begun.
fn exact(model: &str, on: Date) -> Option<&'static Row> {
    let start = ROWS.partition_point(|row| row.model < model);
    let rows = ROWS.get(start..)?.iter().take_while(|row| row.model == model);
    rows.take_while(|row| row.from.is_none_or(|from| from <= on))
        .last()
}

/// The name before a date that ends it: `-2025-08-07` or `-20250807`.
fn without_date(model: &str) -> Option<&str> {
    let split = |length: usize| {
        let at = model.len().checked_sub(length)?;
        let (name, end) = (model.get(..at)?, model.get(at..)?);
        Some((name, end.strip_prefix('-')?)).filter(|(name, _)| !name.is_empty())
    };
    let is_date = |year: &str, month: &str, day: &str| {
        let number = |text: &str| {
            text.bytes()
                .all(|byte| byte.is_ascii_digit())
                .then(|| text.parse::<i8>().ok())
        };
        let year = year
            .bytes()
            .all(|byte| byte.is_ascii_digit())
            .then(|| year.parse::<i16>().ok());
        match (year.flatten(), number(month).flatten(), number(day).flatten()) {
            (Some(year @ 2000..), Some(month), Some(day)) => Date::new(year, month, day).is_ok(),
            _ => false,
        }
    };
    if let Some((name, end)) = split(11)
        && let [year, month, day] = end.split('-').collect::<Vec<_>>()[..]
        && (year.len(), month.len(), day.len()) == (4, 2, 2)
        && is_date(year, month, day)
    {
        return Some(name);
    }
    let (name, end) = split(9)?;
    (end.is_ascii() && is_date(&end[..4], &end[4..6], &end[6..])).then_some(name)
}

struct Row {
    model: &'static str,
    /// In millionths of a dollar per million tokens: input, cached input, cache writes, output.
    rates: [u64; 4],
    long: Option<(u64, [u64; 4])>,
    from: Option<Date>,
}

impl Row {
    /// The rates of calls with more than `above` tokens of prompt.
    const fn long(mut self, above: u64, rates: [&str; 4]) -> Self {
        self.long = Some((above, all(rates)));
        self
    }

    /// Valid from this day on.
    const fn from(mut self, day: Date) -> Self {
        self.from = Some(day);
        self
    }
}

const fn row(model: &'static str, rates: [&str; 4]) -> Row {
    Row {
        model,
        rates: all(rates),
        long: None,
        from: None,
    }
}

const fn all(rates: [&str; 4]) -> [u64; 4] {
    let [input, cached, write, output] = rates;
    [
        millionths(input),
        millionths(cached),
        millionths(write),
        millionths(output),
    ]
}

/// Reads a decimal while the crate is compiled; a malformed row does not compile.
const fn millionths(text: &str) -> u64 {
    let bytes = text.as_bytes();
    let (mut value, mut places, mut index) = (0, 0, 0);
    let mut is_fraction = false;
    while index < bytes.len() {
        match bytes[index] {
            b'.' if !is_fraction => is_fraction = true,
            digit @ b'0'..=b'9' => {
                value = value * 10 + (digit - b'0') as u64;
                places += is_fraction as u32;
            }
            _ => panic!("a rate is a plain decimal"),
        }
        index += 1;
    }
    assert!(places <= 6 && !bytes.is_empty());
    value * 10u64.pow(6 - places)
}

fn rates([input, cached, write, output]: [u64; 4]) -> Rates {
    let decimal = |millionths: u64| Decimal::from_millionths(u128::from(millionths));
    Rates {
        input: decimal(input),
        cached_input: decimal(cached),
        cache_write: decimal(write),
        output: decimal(output),
    }
}

/// By name and date. Input, cached input, cache writes, output; where a provider has no rate for cached input or cache
/// writes, that of input.
const ROWS: &[Row] = &[
    row("claude-fable-5-1", ["10", "0.25", "12.5", "50"]),
    row("claude-haiku-4-5", ["1", "0.1", "1.25", "5"]),
    row("claude-haiku-5-5", ["0.1", "0.01", "0.125", "0.5"]).long(100_000, ["0.5", "0.05", "0.625", "2.5"]),
    row("claude-opus-4-5", ["5", "0.5", "6.25", "25"]),
    row("claude-opus-4-8", ["5", "0.5", "6.25", "25"]),
    row("claude-opus-5", ["5", "0.5", "6.25", "25"]),
    row("claude-opus-5-5", ["4", "0.2", "5", "20"]),
    row("claude-sonnet-4-5", ["3", "0.3", "3.75", "15"]),
    row("claude-sonnet-4-6", ["3", "0.3", "3.75", "15"]),
    row("claude-sonnet-5", ["2", "0.2", "2.5", "10"]),
    row("claude-sonnet-5-5", ["2", "0.1", "2.5", "10"]),
    row("codestral-2508", ["0.3", "0.03", "0.3", "0.9"]),
    row("deepseek-v4-flash", ["0.3", "0.006", "0.3", "1.2"]),
    row("deepseek-v4-pro", ["1.32", "0.044", "1.32", "3.96"]),
    row("gemini-2.5-flash", ["0.3", "0.03", "0.3", "2.5"]),
    row("gemini-2.5-flash-lite", ["0.1", "0.01", "0.1", "0.4"]),
    row("gemini-2.5-pro", ["1.25", "0.125", "1.25", "10"]).long(200_000, ["2.5", "0.25", "2.5", "15"]),
    row("gemini-3.1-flash-lite", ["0.25", "0.025", "0.25", "1.5"]),
    row("gemini-3.1-pro-preview", ["2", "0.2", "2", "12"]).long(200_000, ["4", "0.4", "4", "18"]),
    row("gemini-3.5-flash", ["1.5", "0.15", "1.5", "9"]),
    row("gemini-3.5-flash-lite", ["0.3", "0.03", "0.3", "2.5"]),
    row("gemini-3.8-flash", ["0.75", "0.075", "0.75", "3.75"]),
    row("gemini-3.8-flash", ["1.5", "0.15", "1.5", "7.5"]).from(date(2027, 1, 1)),
    row("gemini-4-argon", ["2", "0.1", "2", "10"]),
    row("gemini-4-argon", ["4", "0.2", "4", "20"]).from(date(2026, 12, 1)),
    row("gemini-embedding-001", ["0.15", "0.15", "0.15", "0"]),
    row("gpt-4.1", ["2", "0.5", "2", "8"]),
    row("gpt-4.1-mini", ["0.4", "0.1", "0.4", "1.6"]),
    row("gpt-4.1-nano", ["0.1", "0.025", "0.1", "0.4"]),
    row("gpt-4o", ["2.5", "1.25", "2.5", "10"]),
    row("gpt-4o-2024-05-13", ["5", "5", "5", "15"]),
    row("gpt-4o-mini", ["0.15", "0.075", "0.15", "0.6"]),
    row("gpt-5", ["1.25", "0.125", "1.25", "10"]),
    row("gpt-5-mini", ["0.25", "0.025", "0.25", "2"]),
    row("gpt-5-nano", ["0.05", "0.005", "0.05", "0.4"]),
    row("gpt-5.1", ["1.25", "0.125", "1.25", "10"]),
    row("gpt-5.2", ["1.75", "0.175", "1.75", "14"]),
    row("gpt-5.4", ["2.5", "0.25", "2.5", "15"]).long(272_000, ["5", "0.5", "5", "22.5"]),
    row("gpt-5.4-mini", ["0.75", "0.075", "0.75", "4.5"]),
    row("gpt-5.4-nano", ["0.2", "0.02", "0.2", "1.25"]),
    row("gpt-5.5", ["5", "0.5", "5", "30"]).long(272_000, ["10", "1", "10", "45"]),
    row("gpt-5.6-luna", ["0.2", "0.02", "0.25", "1.2"]).long(272_000, ["0.4", "0.04", "0.5", "1.8"]),
    row("gpt-5.6-sol", ["4", "0.4", "5", "20"]).long(272_000, ["8", "0.8", "10", "30"]),
    row("gpt-5.6-terra", ["2", "0.2", "2.5", "12"]).long(272_000, ["4", "0.4", "5", "18"]),
    row("gpt-6-astra", ["10", "1", "12.5", "50"]).long(272_000, ["20", "2", "25", "75"]),
    row("gpt-6-luna", ["0.1", "0.01", "0.125", "0.5"]).long(272_000, ["0.2", "0.02", "0.25", "0.75"]),
    row("gpt-6-sol", ["2", "0.2", "2.5", "10"]).long(272_000, ["4", "0.4", "5", "15"]),
    row("gpt-6.1-sol", ["2", "0.1", "2.5", "10"]).long(272_000, ["4", "0.2", "5", "15"]),
    row("gpt-6.1-terra", ["1", "0.05", "1.25", "5"]).long(272_000, ["2", "0.1", "2.5", "7.5"]),
    row("grok-4.3", ["1.25", "0.2", "1.25", "2.5"]).long(199_999, ["2.5", "0.4", "2.5", "5"]),
    row("grok-4.7", ["2", "0.5", "2", "6"]).long(199_999, ["4", "1", "4", "12"]),
    row("mistral-large-2512", ["0.5", "0.05", "0.5", "1.5"]),
    row("mistral-medium-3-5", ["1.5", "0.15", "1.5", "7.5"]),
    row("mistral-small-2603", ["0.15", "0.015", "0.15", "0.6"]),
    row("o3", ["2", "0.5", "2", "8"]),
    row("o4-mini", ["1.1", "0.275", "1.1", "4.4"]),
    row("text-embedding-3-large", ["0.13", "0.13", "0.13", "0"]),
    row("text-embedding-3-small", ["0.02", "0.02", "0.02", "0"]),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_sorted_and_sane() {
        for pair in ROWS.windows(2) {
            let [first, second] = pair else { unreachable!() };
            assert!(
                first.model < second.model || (first.model == second.model && first.from < second.from),
                "{} {}",
                first.model,
                second.model
            );
        }
        for row in ROWS {
            let short = row.rates;
            for [input, cached, write, output] in [Some(short), row.long.map(|(_, long)| long)]
                .into_iter()
                .flatten()
            {
                assert!(input > 0 && cached <= input && input <= write, "{}", row.model);
                assert!(output >= input || output == 0, "{}", row.model);
            }
            assert!(
                row.long
                    .is_none_or(|(above, long)| above > 0 && (0..4).all(|i| long[i] >= short[i])),
                "{}",
                row.model
            );
            assert!(row.from.is_none_or(|from| from > READ), "{}", row.model);
            assert!(lookup(row.model, date(2030, 1, 1)).is_some(), "{}", row.model);
        }
    }

    #[test]
    fn finds_by_name_and_by_dated_name() {
        let found = |model: &str| {
            lookup(model, READ).map(|listed| (listed.model, listed.price.rates.input.to_string()))
        };
        for (asked, model, input) in [
            ("gpt-5-mini", "gpt-5-mini", "0.25"),
            ("gpt-5-mini-2025-08-07", "gpt-5-mini", "0.25"),
            ("claude-haiku-4-5-20251001", "claude-haiku-4-5", "1"),
            ("gpt-4o-2024-08-06", "gpt-4o", "2.5"),
            // A snapshot with a price of its own.
            ("gpt-4o-2024-05-13", "gpt-4o-2024-05-13", "5"),
            ("mistral-large-2512", "mistral-large-2512", "0.5"),
        ] {
            assert_eq!(found(asked), Some((model, input.to_owned())), "{asked}");
        }
        for unknown in [
            "",
            "gpt-5-mini-",
            "gpt-5-mini-2025-13-07",
            "gpt-5-mini-2025-02-30",
            "gpt-5-mini-20250230",
            "gpt-5-mini-2025-8-07",
            "gpt-5-mini-+025-08-07",
            "gpt-5-mini-2025-08-07-2025-08-07",
            "gpt-5-mini2025-08-07",
            "gpt-5-minis",
            "GPT-5-mini",
            "-2025-08-07",
            "2025-08-07",
            "mistral-large-2411",
            "gpt-5-mini-２０２５",
            "gpt-5-mini-é2025080",
        ] {
            assert_eq!(found(unknown), None, "{unknown:?}");
        }
    }

    #[test]
    fn announced_changes_come_on_their_day() {
        let input = |year, month, day| {
            let listed = lookup("gemini-4-argon", date(year, month, day)).unwrap();
            listed.price.rates.input.to_string()
        };
        assert_eq!(
            (input(2026, 11, 30).as_str(), input(2026, 12, 1).as_str()),
            ("2", "4")
        );
    }
}
