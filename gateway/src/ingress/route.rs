//! Which pool a request on the shared port is for: by a known Host, else by `/pools/<pool>/…`.
//!
//! The Host goes first, because a pool may well serve a path of its own that begins with `/pools/`.

use std::sync::Arc;

use http::{Uri, request, uri};

use super::pool::Pool;
use super::{Ingress, Pools, refusals};
use crate::reply::Refusal;
use crate::upstream::forward;

/// A pool, and what was cut off the path.
pub type Route = (Arc<Pool>, Option<String>);

impl Ingress {
    /// Finds the pool and cuts its prefix off the path.
    pub fn route(&self, head: &mut request::Parts) -> Result<Route, Refusal> {
        let pools = self.pools.load();
        if let Some(pool) = forward::host(head).and_then(|host| self.by_host(&pools, host)) {
            return Ok((pool.clone(), None));
        }
        let Some((name, _)) = split(head.uri.path()) else {
            return Err(Refusal::new(
                http::StatusCode::NOT_FOUND,
                "NoSuchRoute",
                "this port serves /pools/<pool>/… and the Host names of the pools' Services",
            ));
        };
        let Some(pool) = pools.by_name.get(name) else {
            return Err(refusals::gone(name));
        };
        let prefix = format!("/pools/{name}");
        head.uri = cut(&head.uri, prefix.len());
        Ok((pool.clone(), Some(prefix)))
    }

    /// `service`, `service.<namespace>`, `….svc` and `….svc.<cluster domain>`, in any case, with or without port and
    /// final dot.
    fn by_host<'a>(&self, pools: &'a Pools, host: &str) -> Option<&'a Arc<Pool>> {
        let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
        let name = name.strip_suffix('.').unwrap_or(name);
        let (service, rest) = name
            .split_once('.')
            .map_or((name, None), |(service, rest)| (service, Some(rest)));
        if let Some(rest) = rest {
            let (namespace, suffix) = rest
                .split_once('.')
                .map_or((rest, None), |(ns, suffix)| (ns, Some(suffix)));
            let known = match suffix {
                None => true,
                Some(suffix) => {
                    suffix.eq_ignore_ascii_case("svc")
                        || suffix.split_once('.').is_some_and(|(svc, domain)| {
                            svc.eq_ignore_ascii_case("svc")
                                && domain.eq_ignore_ascii_case(&self.cluster_domain)
                        })
                }
            };
            if !known || !namespace.eq_ignore_ascii_case(&self.namespace) {
                return None;
            }
        }
        pools
            .by_service
            .get(service)
            .or_else(|| pools.by_service.get(&service.to_ascii_lowercase()))
    }
}

/// `/pools/<pool>` and the rest of the path.
fn split(path: &str) -> Option<(&str, &str)> {
    let after = path.strip_prefix("/pools/")?;
    let (name, rest) = after.split_at(after.find('/').unwrap_or(after.len()));
    (!name.is_empty()).then_some((name, rest))
}

/// `uri` without the first `length` bytes of its path, in origin form; an empty path becomes `/`.
fn cut(uri: &Uri, length: usize) -> Uri {
    let all = uri.path_and_query().map_or("/", uri::PathAndQuery::as_str);
    let rest = all.get(length..).unwrap_or_default();
    let rest = if rest.starts_with('/') {
        rest.to_owned()
    } else {
        format!("/{rest}")
    };
    rest.parse().unwrap_or_else(|_| Uri::from_static("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, PoolConfig};
    use crate::upstream::Limits;
    use std::time::Duration;

    fn ingress() -> Ingress {
        let limits = Limits {
            connect: Duration::from_secs(1),
            idle: Duration::from_secs(1),
        };
        let ingress = Ingress::new("apps", "cluster.local", limits);
        let mut config = Config::default();
        let pool = PoolConfig {
            uid: "u".into(),
            service: "help".into(),
            ..PoolConfig::default()
        };
        config.pools.insert("support".into(), pool);
        ingress.apply(&config);
        ingress
    }

    fn route(host: &str, uri: &str) -> Option<(String, String)> {
        let request = http::Request::builder()
            .uri(uri)
            .header("host", host)
            .body(())
            .expect("a request");
        let mut head = request.into_parts().0;
        let (pool, _) = ingress().route(&mut head).ok()?;
        Some((pool.name().to_owned(), head.uri.to_string()))
    }

    #[test]
    fn hosts_of_the_front_service_are_known() {
        let hosts = [
            "help",
            "help:8080",
            "HELP.apps",
            "help.apps.svc",
            "help.apps.svc.cluster.local.",
            "help.apps.svc:80",
        ];
        for host in hosts {
            assert_eq!(
                route(host, "/pools/x?y"),
                Some(("support".into(), "/pools/x?y".into())),
                "{host}"
            );
        }
        for host in [
            "support",
            "help.other",
            "help.apps.svc.example.com",
            "help.apps.example",
        ] {
            assert_eq!(route(host, "/"), None, "{host}");
        }
    }

    #[test]
    fn the_prefix_is_cut_off() {
        for (uri, rest) in [
            ("/pools/support/a/b?c=d", "/a/b?c=d"),
            ("/pools/support", "/"),
            ("/pools/support?c=d", "/?c=d"),
            ("/pools/support/", "/"),
        ] {
            assert_eq!(
                route("gateway", uri),
                Some(("support".into(), rest.into())),
                "{uri}"
            );
        }
        for uri in ["/", "/pools/", "/pools/other/x", "/pool/support"] {
            assert_eq!(route("gateway", uri), None, "{uri}");
        }
    }
}
