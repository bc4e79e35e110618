use crate::balance::{Attempt, Failure, NoRetry, RetryPolicy, is_stale, may_retry};

fn fresh() -> Attempt {
    Attempt {
        tries: 1,
        replayable: true,
        idempotent: false,
        next_start_nanos: 10,
        deadline_nanos: 100,
    }
}

/// Policies in the columns: nothing listed, ConnectFailure, Unavailable, both.
#[test]
fn the_table() {
    let policies = [(false, false), (true, false), (false, true), (true, true)];
    #[rustfmt::skip]
    let table = [
        (Failure::NotSent,                 false, [false, true,  false, true]),
        (Failure::NotSent,                 true,  [false, true,  false, true]),
        (Failure::NotRead { reused: false }, false, [false, true, false, true]),
        (Failure::NotRead { reused: true }, true, [false, true,  false, true]),
        (Failure::Closed { reused: true }, true,  [false, true,  true,  true]),
        (Failure::Closed { reused: true }, false, [false, false, true,  true]),
        (Failure::Closed { reused: false }, true, [false, false, true,  true]),
        (Failure::Closed { reused: false }, false, [false, false, true, true]),
        (Failure::Unavailable,             false, [false, false, true,  true]),
        (Failure::Unavailable,             true,  [false, false, true,  true]),
        (Failure::TryTimedOut,             false, [false, false, true,  true]),
        (Failure::TryTimedOut,             true,  [false, false, true,  true]),
        (Failure::Broken,                  false, [false; 4]),
        (Failure::Broken,                  true,  [false; 4]),
    ];
    for (failure, idempotent, expected) in table {
        for ((connect_failure, unavailable), expected) in policies.into_iter().zip(expected) {
            let policy = RetryPolicy {
                attempts: 1,
                connect_failure,
                unavailable,
            };
            let attempt = Attempt {
                idempotent,
                ..fresh()
            };
            let expected = if expected {
                Ok(())
            } else {
                Err(NoRetry::NotAllowed)
            };
            assert_eq!(
                may_retry(&attempt, failure, &policy),
                expected,
                "{failure:?} {policy:?}"
            );
            // Whatever the policy: these are never repeated.
            for (never, reason) in [
                (
                    Attempt {
                        replayable: false,
                        ..attempt
                    },
                    NoRetry::NotReplayable,
                ),
                (Attempt { tries: 2, ..attempt }, NoRetry::NoAttemptsLeft),
                (
                    Attempt {
                        next_start_nanos: 100,
                        ..attempt
                    },
                    NoRetry::NoTimeLeft,
                ),
            ] {
                let refused = may_retry(&never, failure, &policy).unwrap_err();
                let reason = if expected.is_ok() {
                    reason
                } else {
                    NoRetry::NotAllowed
                };
                assert_eq!(refused, reason, "{never:?}");
            }
        }
    }
}

#[test]
fn attempts_are_counted_after_the_first_try() {
    for (attempts, tries, allowed) in [
        (0, 1, false),
        (1, 1, true),
        (1, 2, false),
        (3, 3, true),
        (3, 4, false),
    ] {
        let policy = RetryPolicy {
            attempts,
            ..RetryPolicy::default()
        };
        let attempt = Attempt { tries, ..fresh() };
        assert_eq!(may_retry(&attempt, Failure::NotSent, &policy).is_ok(), allowed);
    }
}

#[test]
fn only_a_reused_connection_is_stale() {
    for (failure, post, put) in [
        (Failure::NotSent, false, false),
        (Failure::NotRead { reused: true }, true, true),
        (Failure::NotRead { reused: false }, false, false),
        (Failure::Closed { reused: true }, false, true),
        (Failure::Closed { reused: false }, false, false),
        (Failure::Unavailable, false, false),
        (Failure::TryTimedOut, false, false),
        (Failure::Broken, false, false),
    ] {
        assert_eq!(
            (is_stale(failure, false), is_stale(failure, true)),
            (post, put),
            "{failure:?}"
        );
    }
}
