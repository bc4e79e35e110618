//! The part of `spec.traffic` that says what happens when something fails or waits.

use std::time::Duration;

use flotilla_core::balance::{BreakerPolicy, BudgetPolicy, EjectionPolicy, RetryPolicy};
use flotilla_crds::agent_pool::{Ejection, EjectionType, Retries, RetryOn};
use http::HeaderName;

use super::RetryConfig;

pub(super) fn retries(retries: &Retries) -> RetryConfig {
    RetryConfig {
        policy: RetryPolicy {
            attempts: u32::try_from(retries.attempts).unwrap_or(0),
            connect_failure: retries.retry_on.contains(&RetryOn::ConnectFailure),
            unavailable: retries.retry_on.contains(&RetryOn::Unavailable),
        },
        budget: BudgetPolicy {
            percent: u32::try_from(retries.budget_percent).unwrap_or(0),
            ..BudgetPolicy::default()
        },
        try_timeout: retries
            .per_try_timeout_seconds
            .and_then(|seconds| u64::try_from(seconds).ok())
            .map(Duration::from_secs),
    }
}

pub(super) fn ejection(ejection: &Ejection) -> EjectionPolicy {
    if ejection.type_ == EjectionType::None {
        return EjectionPolicy::off();
    }
    let breaker = BreakerPolicy::default();
    let open = Duration::from_secs(u64::try_from(ejection.open_seconds).unwrap_or(1));
    EjectionPolicy {
        consecutive_failures: u8::try_from(ejection.consecutive_failures).unwrap_or(u8::MAX),
        max_ejected_percent: u32::try_from(ejection.max_percent).unwrap_or(0),
        breaker: BreakerPolicy {
            open,
            open_max: breaker.open_max.max(open),
            ..breaker
        },
        ..EjectionPolicy::default()
    }
}

/// The header of this name; one that is no name, which the definition's rules refuse, is no header.
pub(super) fn header(name: Option<&str>) -> Option<HeaderName> {
    HeaderName::from_bytes(name?.as_bytes()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_of_the_definition_are_those_of_the_decisions() {
        assert_eq!(retries(&Retries::default()), RetryConfig::default());
        assert_eq!(ejection(&Ejection::default()), EjectionPolicy::default());
    }

    #[test]
    fn every_field_arrives() {
        let wanted = Retries {
            attempts: 2,
            retry_on: vec![RetryOn::Unavailable],
            budget_percent: 5,
            per_try_timeout_seconds: Some(7),
        };
        let expected = RetryConfig {
            policy: RetryPolicy {
                attempts: 2,
                connect_failure: false,
                unavailable: true,
            },
            budget: BudgetPolicy {
                percent: 5,
                ..BudgetPolicy::default()
            },
            try_timeout: Some(Duration::from_secs(7)),
        };
        assert_eq!(retries(&wanted), expected);
        let mut wanted = Ejection {
            type_: EjectionType::Passive,
            consecutive_failures: 2,
            open_seconds: 600,
            max_percent: 50,
        };
        let seen = ejection(&wanted);
        assert_eq!((seen.consecutive_failures, seen.max_ejected_percent), (2, 50));
        assert_eq!(seen.breaker.open, Duration::from_secs(600));
        assert_eq!(seen.breaker.open_max, Duration::from_secs(600));
        wanted.type_ = EjectionType::None;
        assert_eq!(ejection(&wanted), EjectionPolicy::off());
        assert_eq!(
            header(Some("X-Tenant")),
            Some(HeaderName::from_static("x-tenant"))
        );
        assert_eq!((header(None), header(Some("a b"))), (None, None));
    }
}
