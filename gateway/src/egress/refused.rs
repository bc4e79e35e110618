//! The gateway's own errors towards agents, in the shape that the provider's SDKs read.

use http::{Response, StatusCode, header};

use super::fallback::{Miss, Reason};
use super::provider::Provider;
use super::spend::OverBudget;
use crate::config::ProviderType;
use crate::reply::{Outgoing, Refusal, held};
use crate::upstream::FailureKind;

/// SDKs of OpenAI and Anthropic obey it: another try would be refused again.
const SHOULD_RETRY: &str = "x-should-retry";
/// Codes of refusals that stay for longer than a client should wait.
const LASTING: [&str; 2] = ["BudgetExhausted", "ModelWithoutPrice"];
/// A replica whose share of a budget is used up knows more after the operator's next look.
const NEXT_LOOK_SECONDS: u16 = 5;

/// `refusal` as a provider of this type would say it.
pub fn into_response(refusal: Refusal, type_: ProviderType) -> Response<Outgoing> {
    let code = refusal.code;
    let mut response = match type_ {
        ProviderType::OpenAI => refusal.into_response(),
        ProviderType::Anthropic => anthropic(&refusal),
    };
    if LASTING.contains(&code) {
        response
            .headers_mut()
            .insert(SHOULD_RETRY, header::HeaderValue::from_static("false"));
    }
    response
}

fn anthropic(refusal: &Refusal) -> Response<Outgoing> {
    let kind = match refusal.status.as_u16() {
        400 => "invalid_request_error",
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 | 529 => "overloaded_error",
        504 => "timeout_error",
        _ => "api_error",
    };
    let mut error = serde_json::json!({"type": kind, "message": refusal.message, "code": refusal.code});
    if let Some(limit) = refusal.limit {
        error["limit"] = limit.into();
    }
    let body = serde_json::json!({"type": "error", "error": error}).to_string();
    let mut response = held(refusal.status, "application/json", body);
    if let Some(seconds) = refusal.retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

/// What an agent is told when a budget refuses its request.
pub fn over_budget(provider: &Provider, model: Option<&str>, over: OverBudget) -> Miss {
    let name = &provider.name;
    let limit = provider
        .config
        .budget
        .map(|policy| (policy.limit, policy.currency));
    let limit = limit.map_or(String::new(), |(limit, currency)| {
        format!(" of {limit} {currency}")
    });
    let refusal = match over {
        OverBudget::Exhausted { until } => Refusal::new(
            StatusCode::TOO_MANY_REQUESTS,
            "BudgetExhausted",
            format!(
                "the budget{limit} of ModelProvider \"{name}\" is spent; it begins anew at {until}; raise spec.budget.limit \
                 or name a fallback in agent.models"
            ),
        )
        .limit("budget.limit"),
        OverBudget::ShareUsed => Refusal::new(
            StatusCode::TOO_MANY_REQUESTS,
            "BudgetShareUsed",
            format!(
                "this gateway's share of what is left of the budget{limit} of ModelProvider \"{name}\" is spent or \
                 reserved; it goes on when the operator has added up what all gateways have spent"
            ),
        )
        .limit("budget.limit")
        .retry_after(NEXT_LOOK_SECONDS),
        OverBudget::NoPrice => Refusal::new(
            StatusCode::FORBIDDEN,
            "ModelWithoutPrice",
            format!(
                "ModelProvider \"{name}\" has a budget, and model \"{}\" no known price; add it with its price to \
                 spec.models",
                model.unwrap_or_default()
            ),
        ),
    };
    Miss::new(Reason::Budget, refusal)
}

/// What an agent is told when there is no answer.
pub fn no_response(kind: &FailureKind) -> Miss {
    match kind {
        FailureKind::NotSent(error) => {
            let message = format!("the provider could not be reached: {error}");
            let refusal = Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "ProviderUnreachable", message);
            Miss::new(Reason::Unreachable, refusal.retry_after(1))
        }
        FailureKind::Closed { .. } => Miss::new(
            Reason::NoAnswer,
            Refusal::new(
                StatusCode::BAD_GATEWAY,
                "ProviderClosed",
                "the provider closed the connection before it answered; it may have worked on the request",
            ),
        ),
        FailureKind::Broken(_) => Miss::new(
            Reason::NoAnswer,
            Refusal::new(
                StatusCode::BAD_GATEWAY,
                "ProviderBroken",
                "the provider's answer could not be understood",
            ),
        ),
    }
}

/// A choice that is passed over while its breaker is open or its quota used up.
pub fn left_alone(provider: &Provider, reason: Reason) -> Miss {
    let message = format!(
        "ModelProvider \"{}\" is left alone for a moment ({})",
        provider.name,
        reason.as_str()
    );
    Miss::new(
        reason,
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "ProviderLeftAlone", message).retry_after(1),
    )
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn each_protocol_has_its_shape() {
        let refusal =
            Refusal::new(StatusCode::TOO_MANY_REQUESTS, "BudgetExhausted", "spent").limit("budget.limit");
        for (type_, expected) in [
            (
                ProviderType::OpenAI,
                serde_json::json!({"error": {"message": "spent", "type": "flotilla_gateway", "code": "BudgetExhausted", "limit": "budget.limit"}}),
            ),
            (
                ProviderType::Anthropic,
                serde_json::json!({"type": "error", "error": {"type": "rate_limit_error", "message": "spent", "code": "BudgetExhausted", "limit": "budget.limit"}}),
            ),
        ] {
            let response = into_response(refusal.clone(), type_);
            assert_eq!(
                (response.status().as_u16(), &response.headers()[SHOULD_RETRY]),
                (429, &"false".parse().unwrap())
            );
            let body = response.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(
                serde_json::from_slice::<serde_json::Value>(&body).unwrap(),
                expected
            );
        }
        let missing = Refusal::new(StatusCode::NOT_FOUND, "NoSuchRoute", "no").retry_after(3);
        let response = into_response(missing, ProviderType::Anthropic);
        assert!(!response.headers().contains_key(SHOULD_RETRY));
        assert_eq!(response.headers()["retry-after"], "3");
    }
}
