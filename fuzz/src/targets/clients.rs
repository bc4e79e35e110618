//! What clients send through the gateway's ingress.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::LazyLock;
use std::time::Duration;

use flotilla_core::session::{Keyer, a2a, cookie_value};
use flotilla_gateway::config::{Config, PoolConfig};
use flotilla_gateway::ingress::Ingress;
use flotilla_gateway::upstream::{Limits, forward};
use http::{Request, Uri, header};

use super::{first_line, headers, texts};
use crate::{Target, magnitude, outcome, pieces};

pub(super) const TARGETS: &[Target] = &[
    Target {
        name: "route",
        about: "host and path of a request on the shared port",
        corpus: || {
            texts(&[
                "gateway\n/pools/support/a/b?c=d",
                "help.apps.svc.cluster.local.:80\n/",
                "HELP.apps\n/pools/x?y",
                "[::1]:8080\n/pools/support",
                "x\nhttp://help.apps/pools/support/",
                "\n/pools//a",
                "help\n*",
            ])
        },
        words: &[
            "/pools/",
            "support",
            "help",
            ".apps",
            ".svc",
            ".cluster.local",
            "..",
            "%2e%2e",
            "%2f",
            "//",
            ":80",
            "http://",
            "?",
            "#",
            "@",
            "[::1]",
            "\u{130}",
        ],
        execute: route,
    },
    Target {
        name: "heads",
        about: "headers of requests and responses that pass through",
        corpus: || {
            texts(&[
                "host: h\nconnection: x-mine, close, host\nx-mine: 1\nkeep-alive: 5\nte: gzip, trailers",
                "connection: upgrade\nupgrade: websocket, h2c\nsec-websocket-key: x",
                "transfer-encoding: chunked\ncontent-length: 5\nx-forwarded-for: 1.2.3.4, ::1\nx-forwarded-proto: https",
                "authorization: Bearer theirs\nx-api-key: theirs\napi-key: theirs\ncookie: a=b\nproxy-authorization: Basic x",
                "connection: authorization, content-length, transfer-encoding\nauthorization: Bearer x\ncontent-length: 1",
                "expect: 100-continue\nhttp2-settings: AAMA\nproxy-connection: close\ntrailer: x",
            ])
        },
        words: &[
            "connection:",
            "host:",
            "te: trailers",
            "upgrade:",
            "transfer-encoding: chunked",
            "content-length:",
            "authorization",
            "x-api-key",
            "x-forwarded-for:",
            "expect: 100-continue",
            "\n",
            ", ",
            "close",
            "keep-alive",
            "\t",
        ],
        execute: heads,
    },
    Target {
        name: "session-key",
        about: "cookies and headers that name a conversation",
        corpus: || {
            texts(&[
                "sid=abc",
                "a=1; sid=\"abc\"; b=2",
                "sid=a=b==;sid=2",
                "SID=x; sid =y ; =z;;",
                "sid=\"; b=\"",
                "6b9b3c2e-58a1-4c8e-a0cf-7f1f6d0f1f0c",
            ])
        },
        words: &["sid", "=", ";", "\"", "; sid=", " ", "\t", "\u{feff}"],
        execute: session_key,
    },
    Target {
        name: "a2a-request",
        about: "bodies and paths of A2A requests",
        corpus: || {
            texts(&[
                r#"{"jsonrpc":"2.0","id":1,"method":"SendMessage","params":{"message":{"messageId":"m","contextId":"c-1","taskId":"t-1","role":"ROLE_USER","parts":[{"text":"hi"}]}}}"#,
                r#"{"jsonrpc":"2.0","id":"x","method":"message/stream","params":{"message":{"kind":"message","contextId":"c\u002d2","parts":[{"kind":"text","text":"a \"contextId\":\"no\""}]},"configuration":{"blocking":true}}}"#,
                r#"{"jsonrpc":"2.0","id":2,"method":"GetTask","params":{"id":"t-9","historyLength":3}}"#,
                r#"{"jsonrpc":"2.0","id":3,"method":"tasks/cancel","params":{"id":"t-9"}}"#,
                r#"{"message":{"contextId":"c-3","parts":[]}}"#,
                "/v1/tasks/t-1:cancel",
                "/tenant/tasks/t-1/pushNotificationConfigs",
            ])
        },
        words: &[
            "contextId",
            "taskId",
            "params",
            "message",
            "method",
            "id",
            "SendMessage",
            "SubscribeToTask",
            "GetTask",
            "CancelTask",
            "tasks/get",
            "message/send",
            "\\u0000",
            "\\ud800",
            "/tasks/",
            ":subscribe",
            "result",
            "jsonrpc",
        ],
        execute: a2a_request,
    },
    Target {
        name: "a2a-response",
        about: "answers of agents, whole and streamed",
        corpus: || {
            texts(&[
                r#"{"jsonrpc":"2.0","id":1,"result":{"task":{"id":"t-1","contextId":"c-1","status":{"state":"TASK_STATE_COMPLETED"},"artifacts":[{"parts":[{"text":"x"}]}]}}}"#,
                r#"{"jsonrpc":"2.0","id":1,"result":{"kind":"task","id":"t-1","contextId":"c-1","history":[{"contextId":"no"}]}}"#,
                "data: {\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"statusUpdate\":{\"taskId\":\"t-1\",\"contextId\":\"c-1\",\"final\":true}}}\n\n",
                ": ping\r\n\r\nevent: x\r\ndata: {\"result\":{\"message\":\r\ndata: {\"contextId\":\"c\"}}}\r\n\r\ndata: [DONE]\r\n\r\n",
                "data:{\"result\":{}}\r\rdata:\rdata\n\n",
                r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32001,"message":"no such task"}}"#,
            ])
        },
        words: &[
            "data:",
            "data: ",
            "\n\n",
            "\r\n",
            "\r",
            ": ",
            "event: ",
            "result",
            "task",
            "contextId",
            "taskId",
            "statusUpdate",
            "artifactUpdate",
            "message",
            "\u{feff}",
            "[DONE]",
            "\\u",
        ],
        execute: a2a_response,
    },
];

static INGRESS: LazyLock<Ingress> = LazyLock::new(|| {
    let second = Duration::from_secs(1);
    let ingress = Ingress::new(
        "apps",
        "cluster.local",
        Limits {
            connect: second,
            idle: second,
        },
    );
    let mut config = Config::default();
    let pool = PoolConfig {
        uid: "u".into(),
        service: "help".into(),
        ..PoolConfig::default()
    };
    config.pools.insert("support".into(), pool);
    ingress.apply(&config);
    ingress
});

fn route(input: &[u8]) -> u64 {
    let (host, target) = first_line(input);
    let Ok(request) = Request::builder()
        .uri(target)
        .header(header::HOST, host.trim_ascii())
        .body(())
    else {
        return 0;
    };
    let mut head = request.into_parts().0;
    let asked = head.uri.clone();
    match INGRESS.route(&mut head) {
        Err(_) => 1,
        Ok((pool, None)) => {
            assert_eq!(pool.name(), "support");
            assert_eq!(head.uri, asked, "a known host changed the path");
            let host = forward::host(&head).unwrap_or_default().to_ascii_lowercase();
            assert!(host.starts_with("help"), "{host} is not the Service's name");
            2
        }
        Ok((_, Some(prefix))) => {
            assert_eq!(prefix, "/pools/support");
            assert!(
                head.uri.path().starts_with('/') && head.uri.authority().is_none(),
                "{} of {asked}",
                head.uri
            );
            assert!(asked.path().starts_with(&prefix), "{asked}");
            outcome([
                3,
                u64::from(head.uri.query().is_some()),
                magnitude(head.uri.path().len() as u64),
            ])
        }
    }
}

fn heads(input: &[u8]) -> u64 {
    let given = headers(input);
    let mut request = Request::new(());
    *request.headers_mut() = given.clone();
    let upgrade = forward::wanted_upgrade(&given).is_some();
    let client = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 9));
    let connection = [
        "connection",
        "keep-alive",
        "proxy-connection",
        "http2-settings",
        "upgrade",
        "proxy-authenticate",
        "proxy-authorization",
    ];

    let mut agent = request.clone().into_parts().0;
    forward::to_agent(&mut agent, client, true, Some("/pools/support"));
    assert!(
        connection.iter().all(|name| !agent.headers.contains_key(*name)),
        "{:?}",
        agent.headers
    );
    let framings = usize::from(agent.headers.contains_key(header::CONTENT_LENGTH))
        + usize::from(agent.headers.contains_key(header::TRANSFER_ENCODING));
    assert_eq!(framings, 1, "{:?}", agent.headers);
    assert_eq!(
        agent.headers.get_all(header::HOST).iter().count(),
        given.get_all(header::HOST).iter().count()
    );

    let mut provider = request.into_parts().0;
    let ours = http::HeaderValue::from_static("Bearer ours");
    let host = http::HeaderValue::from_static("api.example.com");
    let ours = Some((header::AUTHORIZATION, ours));
    forward::to_provider(&mut provider, Uri::from_static("/v1/x"), host, ours, false);
    let proofs: Vec<_> = provider.headers.get_all(header::AUTHORIZATION).iter().collect();
    assert_eq!(proofs, ["Bearer ours"]);
    let hosts: Vec<_> = provider.headers.get_all(header::HOST).iter().collect();
    assert_eq!(hosts, ["api.example.com"]);
    for name in connection
        .iter()
        .chain(&["x-api-key", "api-key", "cookie", "transfer-encoding"])
    {
        assert!(!provider.headers.contains_key(*name), "{name} reaches a provider");
    }

    let mut response = http::Response::new(());
    *response.headers_mut() = given;
    let mut client_head = response.into_parts().0;
    forward::to_client(&mut client_head);
    assert!(
        connection
            .iter()
            .all(|name| !client_head.headers.contains_key(*name))
    );
    outcome([
        agent.headers.len() as u64,
        client_head.headers.len() as u64,
        u64::from(upgrade),
    ])
}

fn session_key(input: &[u8]) -> u64 {
    static KEYER: LazyLock<Keyer> = LazyLock::new(|| Keyer::new("uid"));
    let value = cookie_value(input, "sid");
    if let Some(value) = value {
        assert!(!value.contains(&b';') && value.len() <= input.len());
        let (inside, part) = (input.as_ptr_range(), value.as_ptr_range());
        assert!(
            inside.start <= part.start && part.end <= inside.end,
            "not a part of the header"
        );
    }
    let by_cookie = KEYER.cookie([input], "sid");
    assert_eq!(by_cookie.is_some(), value.is_some_and(|value| !value.is_empty()));
    let by_header = KEYER.header(input);
    assert_eq!(by_header.is_some(), !input.trim_ascii().is_empty());
    if let (Some(cookie), Some(header)) = (by_cookie, by_header) {
        assert_ne!(cookie, header, "keys from different places must not meet");
    }
    outcome([
        u64::from(by_cookie.is_some()),
        value.map_or(0, |value| 1 + magnitude(value.len() as u64)),
    ])
}

fn a2a_request(input: &[u8]) -> u64 {
    static KEYER: LazyLock<Keyer> = LazyLock::new(|| Keyer::new("uid"));
    let ids = a2a::request(&KEYER, input);
    let path = std::str::from_utf8(input)
        .ok()
        .and_then(|path| a2a::task_in_path(&KEYER, path));
    outcome([
        ids.method.map_or(0, |method| 1 + method as u64),
        u64::from(ids.context.is_some()),
        u64::from(ids.task.is_some()),
        u64::from(path.is_some()),
    ])
}

fn a2a_response(input: &[u8]) -> u64 {
    static KEYER: LazyLock<Keyer> = LazyLock::new(|| Keyer::new("uid"));
    const LIMIT: usize = 4096;
    let mut result = Vec::new();
    for kind in ["text/event-stream; charset=utf-8", "application/json"] {
        let mut reader = a2a::ResponseIds::new(kind, LIMIT);
        let mut ended = false;
        for piece in pieces(input) {
            let done = reader.push(&KEYER, piece);
            assert!(done || !ended, "it wants more after it was done");
            ended = done;
        }
        let before = reader.ids();
        reader.finish(&KEYER);
        let ids = reader.ids();
        assert!(!ended || ids == before, "it learnt more after it was done");
        result.extend([
            u64::from(ended),
            u64::from(ids.context.is_some()),
            u64::from(ids.task.is_some()),
        ]);
    }
    outcome(result)
}
