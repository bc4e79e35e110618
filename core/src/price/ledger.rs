//! What the operator writes down of a budget.
//!
//! The spend of a provider is summed over gateway processes as its other use is ([`crate::usage`]): each increment that
//! was seen counts exactly once, whoever is restarted. That sum only grows. The spend of a window is the sum less what
//! it was when the window began ([`BudgetStatus::base`]), so one number more makes a budget of a counter, and nothing
//! has to be reset at midnight.
//!
//! What a gateway spent before midnight and tells after it counts in the new window: at most the time between two
//! looks, and never in no window at all. A budget counts from the first look after it was written.

use flotilla_crds::model_provider::{Budget, BudgetStatus, BudgetWindow, OnExhausted, Usage};
use jiff::tz::TimeZone;
use jiff::{Error, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::budget::{Alerted, Calendar, Threshold, Window, alert, percent};
use super::{Currency, Money, PriceError};
use crate::usage::spent;

/// A budget as numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The most that should be spent in a window.
    pub limit: Money,
    /// In which currency.
    pub currency: Currency,
    /// How long a window lasts.
    pub calendar: Calendar,
    /// Nothing more is sent once the limit is reached.
    pub blocks: bool,
}

impl Policy {
    /// Reads a budget's spec.
    ///
    /// # Errors
    /// If the limit is no amount, or the currency none.
    pub fn parse(budget: &Budget) -> Result<Self, PriceError> {
        let Budget {
            limit,
            currency,
            window,
            on_exhausted,
        } = budget;
        let limit: crate::load::decimal::Decimal = limit.parse()?;
        Ok(Self {
            limit: limit.into(),
            currency: currency.parse()?,
            calendar: match window {
                BudgetWindow::Day => Calendar::Day,
                BudgetWindow::Week => Calendar::Week,
                BudgetWindow::Month => Calendar::Month,
                BudgetWindow::Year => Calendar::Year,
            },
            blocks: *on_exhausted == OnExhausted::Block,
        })
    }

    /// The window that `now` is in, by UTC.
    ///
    /// # Errors
    /// At the ends of the calendar.
    pub fn window(&self, now: Timestamp) -> Result<Window, Error> {
        self.calendar.window(now, &TimeZone::UTC)
    }
}

/// The budget's status after a look, and the thresholds to announce, lowest first.
///
/// `written` is what was written last; `before` and `after` are the usage written last and the one to be written now.
///
/// # Errors
/// At the ends of the calendar.
pub fn settle(
    policy: &Policy,
    written: Option<&BudgetStatus>,
    before: Option<&Usage>,
    after: Option<&Usage>,
    now: Timestamp,
) -> Result<(BudgetStatus, Vec<Threshold>), Error> {
    let total =
        |usage: Option<&Usage>| usage.map_or(Money::ZERO, |usage| spent(&usage.spend, policy.currency));
    let written = written.filter(|written| written.currency == policy.currency.to_string());
    let mut window = policy.window(now)?;
    let start = written.map(|written| written.start_time.0);
    let base = match (written, start) {
        // A clock that went back into an earlier window changes nothing.
        (Some(written), Some(start)) if start >= window.end => {
            window = policy.window(start)?;
            read(&written.base)
        }
        // The same window, or a longer one that holds it (Day became Month).
        (Some(written), Some(start)) if start >= window.start => read(&written.base),
        _ => total(before),
    };
    let spend = total(after).less(base);
    let announced = written.map(|written| Alerted {
        window_start: written.start_time.0,
        limit: read(&written.limit),
        threshold: Threshold::ALL
            .into_iter()
            .find(|threshold| i32::from(threshold.percent()) == written.alerted_percent),
    });
    let (alerted, news) = alert(announced.as_ref(), &window, spend, policy.limit);
    let status = BudgetStatus {
        spent: spend.to_string(),
        limit: policy.limit.to_string(),
        currency: policy.currency.to_string(),
        percent: i32::from(percent(spend, policy.limit)),
        start_time: Time(window.start),
        end_time: Time(window.end),
        base: base.to_string(),
        alerted_percent: alerted
            .threshold
            .map_or(0, |threshold| i32::from(threshold.percent())),
    };
    Ok((status, news))
}

/// An amount that we have written ourselves.
fn read(text: &str) -> Money {
    text.parse().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use flotilla_crds::model_provider::Spend;

    use super::*;

    fn policy(limit: &str, calendar: Calendar) -> Policy {
        Policy {
            limit: limit.parse().unwrap(),
            currency: Currency::USD,
            calendar,
            blocks: true,
        }
    }

    fn usage(amount: &str) -> Usage {
        Usage {
            spend: vec![Spend {
                currency: "USD".into(),
                amount: amount.into(),
            }],
            ..Usage::default()
        }
    }

    /// A history of looks: when, the lifetime's spend by then, the budget; spent and percent, and what is announced.
    #[test]
    fn a_budget_through_its_windows() {
        use Calendar::{Day, Month};
        use Threshold::{Eighty, Exhausted, Ninety};
        let mut written: Option<(BudgetStatus, Usage)> = None;
        for (now, total, limit, calendar, spent, percent, announced) in [
            ("2026-11-20T10:00:00Z", "7", "10", Day, "7", 70, vec![]),
            ("2026-11-20T11:00:00Z", "8.5", "10", Day, "8.5", 85, vec![Eighty]),
            ("2026-11-20T12:00:00Z", "8.5", "10", Day, "8.5", 85, vec![]),
            (
                "2026-11-20T23:59:00Z",
                "10.25",
                "10",
                Day,
                "10.25",
                102,
                vec![Ninety, Exhausted],
            ),
            // Told after midnight: of the new day.
            ("2026-11-21T00:00:10Z", "10.5", "10", Day, "0.25", 2, vec![]),
            // A clock that went back.
            ("2026-11-20T23:59:50Z", "11.5", "10", Day, "1.25", 12, vec![]),
            ("2026-11-21T01:00:00Z", "19", "10", Day, "8.75", 87, vec![Eighty]),
            // A longer window keeps what its part has spent, and has its own alerts.
            ("2026-11-21T02:00:00Z", "19", "10", Month, "8.75", 87, vec![]),
            ("2026-11-21T03:00:00Z", "19", "20", Month, "8.75", 43, vec![]),
            ("2026-12-01T00:00:00Z", "20", "20", Month, "1", 5, vec![]),
        ] {
            let now: Timestamp = now.parse().unwrap();
            let after = usage(total);
            let (status, news) = settle(
                &policy(limit, calendar),
                written.as_ref().map(|(status, _)| status),
                written.as_ref().map(|(_, usage)| usage),
                Some(&after),
                now,
            )
            .unwrap();
            assert_eq!((status.spent.as_str(), status.percent), (spent, percent), "{now}");
            assert_eq!(news, announced, "{now}");
            written = Some((status, after));
        }
    }

    #[test]
    fn another_currency_begins_anew() {
        let before = usage("5");
        let (dollars, _) = settle(
            &policy("10", Calendar::Month),
            None,
            None,
            Some(&before),
            Timestamp::UNIX_EPOCH,
        )
        .unwrap();
        assert_eq!(dollars.spent, "5");
        let euros = Policy {
            currency: "EUR".parse().unwrap(),
            ..policy("10", Calendar::Month)
        };
        let (euros, _) = settle(
            &euros,
            Some(&dollars),
            Some(&before),
            Some(&before),
            Timestamp::UNIX_EPOCH,
        )
        .unwrap();
        assert_eq!((euros.spent.as_str(), euros.currency.as_str()), ("0", "EUR"));
    }

    #[test]
    fn what_was_spent_before_the_budget_is_not_its_own() {
        let (status, _) = settle(
            &policy("10", Calendar::Month),
            None,
            Some(&usage("7")),
            Some(&usage("7.5")),
            Timestamp::UNIX_EPOCH,
        )
        .unwrap();
        assert_eq!(status.spent, "0.5");
    }

    #[test]
    fn specs_are_read() {
        let budget = |text: &str| serde_json::from_str::<Budget>(text).unwrap();
        let parsed = Policy::parse(&budget(r#"{"limit": "500.00"}"#)).unwrap();
        assert_eq!(parsed, policy("500", Calendar::Month));
        let parsed = Policy::parse(&budget(
            r#"{"limit": "0.5", "window": "Day", "onExhausted": "Allow"}"#,
        ))
        .unwrap();
        assert_eq!((parsed.calendar, parsed.blocks), (Calendar::Day, false));
        assert!(Policy::parse(&budget(r#"{"limit": "much"}"#)).is_err());
    }
}
