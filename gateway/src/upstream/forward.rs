//! Heads of requests and responses on their way through: what belongs to one connection stays behind.

use std::net::IpAddr;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Uri, Version, request, response, uri};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");

/// Removes what RFC 9110 section 7.6.1 calls hop-by-hop, named ones included. `Trailer` is not among them: it announces
/// fields that pass through.
pub fn strip_connection_headers(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
            // A peer must not make us forget what frames the message or names the host.
            .filter(|name| name != header::HOST && name != header::CONTENT_LENGTH)
            .collect();
        for name in named {
            headers.remove(name);
        }
        headers.remove(header::CONNECTION);
    }
    for name in [
        KEEP_ALIVE,
        PROXY_CONNECTION,
        HTTP2_SETTINGS,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
    ] {
        headers.remove(name);
    }
}

/// The protocol the client wants to switch to, other than h2c: that one may be ignored (RFC 9110 section 7.8) and is
/// offered by clients that do very well without (Java's).
pub fn wanted_upgrade(headers: &HeaderMap) -> Option<&str> {
    let upgrade = headers.get(header::UPGRADE)?.to_str().ok()?;
    upgrade
        .split(',')
        .map(str::trim)
        .find(|protocol| !protocol.is_empty() && !protocol.eq_ignore_ascii_case("h2c"))
}

/// Host and port the client asked for: the target's authority (HTTP/2, absolute form), else `Host`.
pub fn host(head: &request::Parts) -> Option<&str> {
    head.uri
        .authority()
        .map(uri::Authority::as_str)
        .or_else(|| head.headers.get(header::HOST).and_then(|host| host.to_str().ok()))
}

/// Makes a client's head one for an agent: origin form, HTTP/1.1, `Host` as the client sent it, `x-forwarded-*` added.
///
/// `streamed` says that the body's length is unknown; `prefix` is what was cut off the path.
pub fn to_agent(head: &mut request::Parts, client: IpAddr, streamed: bool, prefix: Option<&str>) {
    let trailers = head.headers.get(header::TE).is_some_and(wants_trailers);
    strip_connection_headers(&mut head.headers);
    head.headers.remove(header::TE);
    head.headers.remove(header::EXPECT);
    if trailers {
        head.headers
            .insert(header::TE, HeaderValue::from_static("trailers"));
    }
    if let Some(host) = head
        .uri
        .authority()
        .and_then(|host| HeaderValue::from_str(host.as_str()).ok())
    {
        head.headers.insert(header::HOST, host);
    }
    append_forwarded_for(&mut head.headers, client);
    if !head.headers.contains_key(FORWARDED_PROTO) {
        head.headers
            .insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
    }
    if !head.headers.contains_key(FORWARDED_HOST)
        && let Some(host) = head.headers.get(header::HOST).cloned()
    {
        head.headers.insert(FORWARDED_HOST, host);
    }
    if let Some(prefix) = prefix.and_then(|prefix| HeaderValue::from_str(prefix).ok()) {
        head.headers.insert(FORWARDED_PREFIX, prefix);
    }
    set_framing(&mut head.headers, streamed);
    if head.uri.scheme().is_some() || head.uri.authority().is_some() {
        head.uri = origin_form(&head.uri);
    }
    head.version = Version::HTTP_11;
}

/// hyper sends no body of unknown length with GET or HEAD unless told that there is one.
fn set_framing(headers: &mut HeaderMap, streamed: bool) {
    if streamed && !headers.contains_key(header::CONTENT_LENGTH) {
        headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
}

/// Makes an agent pod's head one for a provider: `Host`, path and proof are the provider's, and nothing tells of us.
/// Compression is declined, because token counts are read from the response on its way.
pub fn to_provider(
    head: &mut request::Parts,
    target: Uri,
    host: HeaderValue,
    proof: Option<(HeaderName, HeaderValue)>,
    streamed: bool,
) {
    strip_connection_headers(&mut head.headers);
    for name in [header::TE, header::EXPECT, header::AUTHORIZATION, header::COOKIE] {
        head.headers.remove(name);
    }
    for name in ["x-api-key", "api-key"] {
        head.headers.remove(name);
    }
    head.headers
        .insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    head.headers.insert(header::HOST, host);
    if let Some((name, proof)) = proof {
        head.headers.insert(name, proof);
    }
    set_framing(&mut head.headers, streamed);
    head.uri = target;
    head.version = Version::HTTP_11;
}

/// Makes a peer's response head one for the client.
pub fn to_client(head: &mut response::Parts) {
    strip_connection_headers(&mut head.headers);
    head.version = Version::HTTP_11;
}

fn wants_trailers(value: &HeaderValue) -> bool {
    value.to_str().is_ok_and(|value| {
        value
            .split(',')
            .any(|item| item.trim().eq_ignore_ascii_case("trailers"))
    })
}

fn append_forwarded_for(headers: &mut HeaderMap, client: IpAddr) {
    let value = match headers.get(FORWARDED_FOR).and_then(|value| value.to_str().ok()) {
        Some(before) => format!("{before}, {client}"),
        None => client.to_string(),
    };
    if let Ok(value) = HeaderValue::from_str(&value) {
        headers.insert(FORWARDED_FOR, value);
    }
}

fn origin_form(uri: &Uri) -> Uri {
    let path = uri.path_and_query().map_or("/", uri::PathAndQuery::as_str);
    path.parse().unwrap_or_else(|_| Uri::from_static("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn head(uri: &str, headers: &[(&str, &str)]) -> request::Parts {
        let mut request = Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).expect("a request").into_parts().0
    }

    fn client() -> IpAddr {
        IpAddr::from([10, 0, 0, 9])
    }

    #[test]
    fn what_belongs_to_the_connection_stays_behind() {
        let mut head = head(
            "/a?b",
            &[
                ("host", "h"),
                ("connection", "x-mine, close, host"),
                ("x-mine", "1"),
                ("keep-alive", "5"),
                ("te", "gzip, trailers"),
                ("x-stays", "1"),
            ],
        );
        to_agent(&mut head, client(), false, None);
        assert!(!head.headers.contains_key("connection") && !head.headers.contains_key("x-mine"));
        assert!(!head.headers.contains_key("keep-alive"));
        assert_eq!(head.headers["te"], "trailers");
        assert_eq!(head.headers["host"], "h");
        assert_eq!(head.headers["x-stays"], "1");
    }

    #[test]
    fn an_agent_learns_who_asked_and_how() {
        let mut head = head("http://support.apps/x?y=1", &[("x-forwarded-for", "1.2.3.4")]);
        to_agent(&mut head, client(), true, Some("/pools/support"));
        assert_eq!(head.uri, "/x?y=1");
        assert_eq!(head.headers["host"], "support.apps");
        assert_eq!(head.headers["x-forwarded-for"], "1.2.3.4, 10.0.0.9");
        assert_eq!(head.headers["x-forwarded-host"], "support.apps");
        assert_eq!(head.headers["x-forwarded-proto"], "http");
        assert_eq!(head.headers["x-forwarded-prefix"], "/pools/support");
        assert_eq!(head.headers["transfer-encoding"], "chunked");
    }

    #[test]
    fn a_provider_sees_its_own_key_and_no_other() {
        let mut head = head(
            "/providers/main/v1/x",
            &[("authorization", "Bearer mine"), ("x-api-key", "mine")],
        );
        let proof = (header::AUTHORIZATION, HeaderValue::from_static("Bearer theirs"));
        to_provider(
            &mut head,
            Uri::from_static("/v1/x"),
            HeaderValue::from_static("p"),
            Some(proof),
            false,
        );
        assert_eq!(head.headers["authorization"], "Bearer theirs");
        assert!(!head.headers.contains_key("x-api-key"));
        assert!(!head.headers.contains_key("x-forwarded-for"));
    }

    #[test]
    fn h2c_is_ignored_and_a_websocket_is_not() {
        let upgrade = |value| wanted_upgrade(&head("/", &[("upgrade", value)]).headers).map(str::to_owned);
        assert_eq!(upgrade("h2c"), None);
        assert_eq!(upgrade("websocket").as_deref(), Some("websocket"));
    }
}
