//! Budgets of a provider and of its models, as requests meet them.

use flotilla_core::price::budget::Calendar;

use super::*;

fn config(limit: &str) -> ProviderConfig {
    ProviderConfig {
        prices: [("m".to_owned(), Price::parse("USD", "1", "10").unwrap())].into(),
        budget: Some(Policy {
            limit: limit.parse().unwrap(),
            currency: Currency::USD,
            calendar: Calendar::Month,
            blocks: true,
        }),
        ..ProviderConfig::default()
    }
}

fn now() -> Timestamp {
    "2026-11-21T12:00:00Z".parse().unwrap()
}

fn call(input: u64, output: u64) -> Option<TokenUsage> {
    Some(TokenUsage {
        input,
        output,
        ..TokenUsage::default()
    })
}

#[test]
fn made_up_models_share_one_entry() {
    let (usage, config) = (Usage::default(), ProviderConfig::default());
    for number in 0..300 {
        usage.begin();
        let model = format!("m{number}");
        let ended = Ended {
            model: Some(&model),
            reported: call(1, 1),
            ..Ended::default()
        };
        assert_eq!(usage.end(&config, &ended, now()), None);
    }
    let models = usage.models();
    assert_eq!(models.len(), MAX_MODELS + 1);
    assert_eq!(models[OTHER].requests, 300 - MAX_MODELS as u64);
    assert_eq!((usage.in_flight(), usage.spend().1), (0, 300));
}

#[test]
fn what_is_in_flight_and_what_was_spent_fill_the_budget() {
    // A call of 1,000 and 100 tokens costs 0.002.
    let (usage, config) = (Usage::default(), config("0.004"));
    let reserve = || usage.reserve(&config, "i", Some("m"), 1_000, Some(100), now());
    let first = reserve().unwrap();
    assert!(first.tokens.input <= 1_000 && first.tokens.output == 100);
    let second = reserve().unwrap();
    let mut reserved = vec![first, second];
    while let Ok(more) = reserve() {
        reserved.push(more);
    }
    assert_eq!(reserve().unwrap_err(), OverBudget::ShareUsed(Scope::Provider));
    for reserved in reserved.drain(1..) {
        usage.cancel(Some("m"), reserved);
    }
    for reserved in [reserved.remove(0), reserve().unwrap()] {
        usage.begin();
        let ended = Ended {
            model: Some("m"),
            reported: call(1_000, 100),
            bytes: 1_000,
            reserved,
            ..Ended::default()
        };
        let cost = usage.end(&config, &ended, now());
        assert_eq!(
            cost.map(|(currency, cost)| (currency.to_string(), cost.to_string())),
            Some(("USD".into(), "0.002".into()))
        );
    }
    let exhausted = OverBudget::Exhausted {
        scope: Scope::Provider,
        until: "2026-12-01T00:00:00Z".parse().unwrap(),
    };
    assert_eq!(reserve().unwrap_err(), exhausted);
    assert_eq!(usage.refused()["budget_exhausted"], 1);
    // What the operator has counted of it leaves room for a larger limit only.
    let written = SpendConfig {
        window_start: "2026-11-01T00:00:00Z".parse().unwrap(),
        spent: "0.004".parse().unwrap(),
        counted: [("i".to_owned(), "0.004".parse().unwrap())].into(),
    };
    usage.follow(Some(&written), None, 1);
    assert_eq!(reserve().unwrap_err(), exhausted);
    assert_eq!(
        usage.budget(&config, "i", now()).unwrap().spent.to_string(),
        "0.004"
    );
}

#[test]
fn a_model_has_a_budget_of_its_own_beside_the_providers() {
    let mut config = config("1");
    let policy = config.budget.unwrap();
    let own = Policy {
        limit: "0.004".parse().unwrap(),
        ..policy
    };
    config.model_budgets = [("m".to_owned(), own)].into();
    config.prices.insert("n".into(), config.prices["m"]);
    let usage = Usage::default();
    for number in 0..MAX_MODELS {
        let model = format!("made-up-{number}");
        usage.begin();
        let ended = Ended {
            model: Some(&model),
            ..Ended::default()
        };
        usage.end(&config, &ended, now());
    }
    let reserve = |model: &str| usage.reserve(&config, "i", Some(model), 1_000, Some(100), now());
    let spend = |model: &str| {
        let reserved = reserve(model).unwrap();
        usage.begin();
        let ended = Ended {
            model: Some(model),
            reported: call(1_000, 100),
            bytes: 1_000,
            reserved,
            ..Ended::default()
        };
        usage.end(&config, &ended, now());
    };
    let reserved = reserve("m").unwrap();
    let more = reserve("m").unwrap();
    usage.cancel(Some("m"), more);
    usage.cancel(Some("m"), reserved);
    spend("m");
    spend("m");
    let until = "2026-12-01T00:00:00Z".parse().unwrap();
    assert_eq!(
        reserve("m").unwrap_err(),
        OverBudget::Exhausted {
            scope: Scope::Model,
            until
        }
    );
    spend("n");
    assert_eq!(usage.refused()["model_budget_exhausted"], 1);
    // The operator has counted it, and half of it by another gateway; of what is left each may use half.
    let written = SpendConfig {
        window_start: "2026-11-01T00:00:00Z".parse().unwrap(),
        spent: "0.0035".parse().unwrap(),
        counted: [("i".to_owned(), "0.004".parse().unwrap())].into(),
    };
    let models = [("m".to_owned(), written)].into();
    usage.follow(None, Some(&models), 2);
    let first = reserve("m").unwrap();
    assert_eq!(reserve("m").unwrap_err(), OverBudget::ShareUsed(Scope::Model));
    usage.cancel(Some("m"), first);
    let views = usage.model_budgets(&config, "i", now());
    let [(name, view)] = views.as_slice() else {
        panic!("{views:?}")
    };
    assert_eq!(
        (name.as_str(), view.spent.to_string(), view.limit.to_string()),
        ("m", "0.0035".into(), "0.004".into())
    );
}

#[test]
fn a_budget_that_blocks_wants_prices() {
    let (usage, config) = (Usage::default(), config("1"));
    let reserve = |model| usage.reserve(&config, "i", model, 10, None, now()).map(|_| ());
    assert_eq!(reserve(Some("unheard-of")), Err(OverBudget::NoPrice));
    assert_eq!(reserve(Some("gpt-5-mini")), Ok(()), "built in");
    assert_eq!(reserve(None), Ok(()), "a list of models costs nothing");
}

#[test]
fn an_answer_without_usage_is_charged_as_assumed_and_a_failure_is_not() {
    let (usage, config) = (Usage::default(), config("1"));
    for (assumed, spent) in [(None, "0"), (call(1_000, 0), "0.001")] {
        usage.begin();
        let ended = Ended {
            model: Some("m"),
            assumed,
            ..Ended::default()
        };
        usage.end(&config, &ended, now());
        let (spend, unpriced) = usage.spend();
        let sum = spend.get(&Currency::USD).copied().unwrap_or_default();
        assert_eq!((sum.to_string().as_str(), unpriced), (spent, 0));
    }
    let used = usage.models()["m"];
    assert_eq!(
        (used.requests, used.input_tokens),
        (2, 0),
        "tokens are as reported"
    );
}
