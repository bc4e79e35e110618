//! Limits from what a user wrote.

use flotilla_crds::quota::{Quota, QuotaResource, QuotaWindow};

use super::window::CalendarUnit;
use super::{Calendar, Counted, Limit, Nanos, Resource, SECOND, Slope, Window};

/// Providers decide about a request when it arrives, and one whose connection has gone arrives soon or never.
const LOST: Nanos = 30 * SECOND;

/// The limits of `quotas`. `within` is the longest time in which a provider answers a request.
///
/// Output tokens alone are counted until the end of an answer, because providers that limit them count them as they are
/// made; input, and both together, until its headers, because those charge an estimate of the output beforehand.
///
/// # Errors
/// A sentence that names the quota and says what to write instead.
pub fn limits(quotas: &[Quota], within: Nanos) -> Result<Vec<Limit>, String> {
    quotas.iter().map(|quota| limit(quota, within)).collect()
}

fn limit(quota: &Quota, within: Nanos) -> Result<Limit, String> {
    let name = &quota.name;
    let resource = match quota.resource {
        QuotaResource::Requests => Resource::Requests,
        QuotaResource::InputTokens => Resource::InputTokens,
        QuotaResource::OutputTokens => Resource::OutputTokens,
        QuotaResource::Tokens => Resource::Tokens,
        QuotaResource::Concurrency => Resource::Concurrency,
    };
    let mut limit = Limit::new(name, resource, window(quota)?, units(quota.limit));
    limit.within = within;
    limit.within_lost = Some(within.min(LOST));
    limit.floor = units(quota.floor).min(limit.limit);
    limit.models.clone_from(&quota.models);
    if resource == Resource::OutputTokens {
        limit.counted = Counted::ByEnd;
        limit.within_lost = None;
    }
    if let (Some(slope), Window::Rolling(_)) = (&quota.slope, &limit.window) {
        limit.slope = Some(Slope {
            base: units(slope.start),
            step_percent: u64::try_from(slope.step_percent).unwrap_or(0),
            memory: usize::try_from(slope.memory_windows).unwrap_or(1),
        });
    }
    Ok(limit)
}

fn window(quota: &Quota) -> Result<Window, String> {
    let name = &quota.name;
    let unit = match (quota.resource, quota.window_seconds, quota.window) {
        (QuotaResource::Concurrency, None, None) => return Ok(Window::None),
        (QuotaResource::Concurrency, ..) => {
            return Err(format!(
                "quotas[{name}]: resource Concurrency has no window; leave it out"
            ));
        }
        (_, Some(seconds), None) => return Ok(Window::Rolling(units(seconds.into()).max(1) * SECOND)),
        (_, None, Some(QuotaWindow::Minute)) => return Ok(Window::seconds(60)),
        (_, None, Some(QuotaWindow::Hour)) => return Ok(Window::seconds(3_600)),
        (_, None, Some(QuotaWindow::Day)) => CalendarUnit::Day,
        (_, None, Some(QuotaWindow::Month)) => CalendarUnit::Month,
        _ => {
            return Err(format!(
                "quotas[{name}]: write exactly one of windowSeconds and window, for example windowSeconds: 60"
            ));
        }
    };
    let zone = Calendar::zone(&quota.time_zone).ok_or_else(|| {
        format!(
            "quotas[{name}].timeZone: {:?} is not in the time zone database; write a name such as Europe/Berlin",
            quota.time_zone
        )
    })?;
    Ok(Window::Calendar(Calendar::new(unit, zone)))
}

fn units(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(quota: serde_json::Value) -> Result<String, String> {
        let quota: Quota = serde_json::from_value(quota).expect("a quota");
        let limits = limits(&[quota], 600 * SECOND)?;
        let [limit] = limits.as_slice() else {
            panic!("one for one")
        };
        Ok(format!(
            "{} {} floor {} {:?} {:?}",
            limit.key(),
            limit.limit,
            limit.floor,
            limit.counted,
            limit.slope
        ))
    }

    #[test]
    fn what_users_write() {
        for (quota, expected) in [
            (
                json!({"name": "rpm", "resource": "Requests", "limit": 60, "windowSeconds": 60, "floor": 3}),
                "rpm/Requests/60000ms 60 floor 3 ByHeaders None",
            ),
            (
                json!({"name": "tph", "resource": "Tokens", "limit": 9, "window": "Hour", "slope": {"start": 2}}),
                "tph/Tokens/3600000ms 9 floor 0 ByHeaders Some(Slope { base: 2, step_percent: 20, memory: 15 })",
            ),
            (
                json!({"name": "otd", "resource": "OutputTokens", "limit": 9, "window": "Day", "timeZone": "Asia/Tokyo"}),
                "otd/OutputTokens/Day@Asia/Tokyo 9 floor 0 ByEnd None",
            ),
            (
                json!({"name": "open", "resource": "Concurrency", "limit": 9}),
                "open/Concurrency/open 9 floor 0 ByEnd None",
            ),
        ] {
            assert_eq!(read(quota).as_deref(), Ok(expected));
        }
        for (quota, part) in [
            (
                json!({"name": "a", "resource": "Requests", "limit": 1}),
                "exactly one of",
            ),
            (
                json!({"name": "a", "resource": "Concurrency", "limit": 1, "window": "Day"}),
                "leave it out",
            ),
            (
                json!({"name": "a", "resource": "Tokens", "limit": 1, "window": "Day", "timeZone": "Mars/North"}),
                "Mars/North",
            ),
        ] {
            let sentence = read(quota).expect_err(part);
            assert!(sentence.contains(part), "{sentence}");
        }
    }
}
