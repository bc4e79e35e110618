//! Spans, and the trace context (W3C `traceparent` and `tracestate`) that they continue.
//!
//! A request to an agent is a span of kind server, one to a provider a span of kind client by OpenTelemetry's conventions
//! for generative AI. A trace that comes in is continued; without one a trace begins here, if the sampler takes it. What
//! is not sampled passes with the context it came with. The sampler is the standard one (`OTEL_TRACES_SAMPLER`).

use http::header::HeaderMap;
use http::{Method, Version};
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::{
    Span as _, SpanKind, Status, TraceContextExt as _, TraceId, Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{HeaderExtractor, HeaderInjector};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, Span};

use super::{Ending, Facts, Noted, Plane};

/// Makes spans.
pub struct Spans {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    propagator: TraceContextPropagator,
}

/// A span that is under way.
pub(super) struct Traced(Span);

impl std::fmt::Debug for Spans {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Spans")
    }
}

/// The trace that `headers` name.
pub(super) fn trace_of(headers: &HeaderMap) -> Option<TraceId> {
    // version "-" trace "-" parent "-" flags
    let trace = headers.get("traceparent")?.to_str().ok()?.get(3..35)?;
    TraceId::from_hex(trace)
        .ok()
        .filter(|trace| *trace != TraceId::INVALID)
}

impl Spans {
    /// Spans that go where `provider` sends them.
    pub fn new(provider: SdkTracerProvider) -> Self {
        Self {
            tracer: provider.tracer("flotilla-gateway"),
            provider,
            propagator: TraceContextPropagator::new(),
        }
    }

    /// Sends what is still here. Blocks; not for a runtime's worker.
    pub fn shutdown(&self) {
        if let Err(error) = self.provider.shutdown() {
            tracing::warn!(%error, "failed to send the last spans");
        }
    }

    /// Starts a span if the request is sampled, and writes it into `headers` as the parent of what follows.
    pub(super) fn begin(&self, plane: Plane, method: &Method, headers: &mut HeaderMap) -> Option<Traced> {
        let parent = self
            .propagator
            .extract_with_context(&Context::new(), &HeaderExtractor(headers));
        let kind = match plane {
            Plane::Egress => SpanKind::Client,
            Plane::Ingress | Plane::Admin => SpanKind::Server,
        };
        let builder = self.tracer.span_builder(known(method)).with_kind(kind);
        let span = builder.start_with_context(&self.tracer, &parent);
        if !span.is_recording() {
            return None;
        }
        let own = Context::new().with_remote_span_context(span.span_context().clone());
        self.propagator.inject_context(&own, &mut HeaderInjector(headers));
        Some(Traced(span))
    }
}

/// A method's name for a span; made-up ones must not be as many as clients like.
fn known(method: &Method) -> &'static str {
    const KNOWN: [(&Method, &str); 8] = [
        (&Method::GET, "GET"),
        (&Method::POST, "POST"),
        (&Method::PUT, "PUT"),
        (&Method::DELETE, "DELETE"),
        (&Method::PATCH, "PATCH"),
        (&Method::HEAD, "HEAD"),
        (&Method::OPTIONS, "OPTIONS"),
        (&Method::TRACE, "TRACE"),
    ];
    let found = KNOWN.iter().find(|(known, _)| *known == method);
    found.map_or("_OTHER", |(_, name)| *name)
}

impl Traced {
    /// Ends the span, with what is known now.
    pub(super) fn end(mut self, facts: &Facts, noted: &Noted) {
        let span = &mut self.0;
        let method = known(&facts.method);
        span.set_attribute(KeyValue::new("http.request.method", method));
        span.set_attribute(KeyValue::new("url.path", facts.uri.path().to_owned()));
        span.set_attribute(KeyValue::new("url.scheme", "http"));
        let version = if facts.version == Version::HTTP_2 {
            "2"
        } else {
            "1.1"
        };
        span.set_attribute(KeyValue::new("network.protocol.version", version));
        span.set_attribute(KeyValue::new("client.address", facts.client.to_string()));
        let status = facts.status.map(|status| i64::from(status.as_u16()));
        let mut set = |name: &'static str, value: Option<opentelemetry::Value>| {
            if let Some(value) = value {
                span.set_attribute(KeyValue::new(name, value));
            }
        };
        let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX).into();
        set("http.response.status_code", status.map(Into::into));
        set("flotilla.request_id", facts.request_id.clone().map(Into::into));
        set("flotilla.pool", noted.pool.clone().map(Into::into));
        set("flotilla.revision", noted.revision.clone().map(Into::into));
        set(
            "flotilla.replica",
            noted.replica.map(|replica| replica.to_string().into()),
        );
        let resent = noted
            .sends
            .checked_sub(2)
            .map(|resent| number(u64::from(resent) + 1));
        set("http.request.resend_count", resent);
        set("flotilla.provider", noted.provider.clone().map(Into::into));
        if let Some(names) = noted.operation {
            set("gen_ai.operation.name", Some(names.operation.into()));
            set("gen_ai.provider.name", Some(names.provider.into()));
        }
        set("gen_ai.request.model", noted.model.clone().map(Into::into));
        set(
            "gen_ai.response.model",
            noted.response_model.clone().map(Into::into),
        );
        set("gen_ai.usage.input_tokens", noted.input_tokens.map(number));
        set("gen_ai.usage.output_tokens", noted.output_tokens.map(number));
        let first = noted.first_chunk.filter(|_| noted.operation.is_some());
        set(
            "gen_ai.response.time_to_first_chunk",
            first.map(|first| first.as_secs_f64().into()),
        );
        if let Some(error) = error_type(facts) {
            set("error.type", Some(error.clone().into()));
            span.set_status(Status::error(error));
        }
        let name = match (noted.operation, &noted.model, &noted.pool) {
            (Some(names), Some(model), _) => format!("{} {model}", names.operation),
            (Some(names), None, _) => names.operation.to_owned(),
            (None, _, Some(pool)) => format!("{method} {pool}"),
            (None, ..) => method.to_owned(),
        };
        span.update_name(name);
        span.end();
    }
}

/// By the conventions: a server's span has failed from 500 on, a client's from 400 on.
fn error_type(facts: &Facts) -> Option<String> {
    let limit = if facts.plane == Plane::Egress { 400 } else { 500 };
    match (facts.status, facts.ending) {
        (Some(status), _) if status.as_u16() >= limit => Some(
            facts
                .code
                .map_or_else(|| status.as_str().to_owned(), str::to_owned),
        ),
        (_, Ending::Broken) => Some("broken".to_owned()),
        (_, Ending::Cancelled) => Some("cancelled".to_owned()),
        (None, Ending::Whole) => Some("_OTHER".to_owned()),
        (Some(_), Ending::Whole) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_read_from_its_place() {
        let of = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("traceparent", value.parse().expect("a value"));
            trace_of(&headers).map(|trace| trace.to_string())
        };
        let id = "0af7651916cd43dd8448eb211c80319c";
        assert_eq!(
            of("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").as_deref(),
            Some(id)
        );
        for nothing in [
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-xyz",
            "",
        ] {
            assert_eq!(of(nothing), None, "{nothing}");
        }
    }
}
