//! A request, taken apart: path, query, body and what it wants back.

use http::{HeaderMap, Method, header};
use serde_json::Value;

use super::failure::Failure;

/// Where a path leads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path {
    /// "" for core.
    pub group: String,
    /// `v1` and the like.
    pub version: String,
    /// The namespace, if the path names one.
    pub namespace: Option<String>,
    /// The plural; "" for a discovery path.
    pub plural: String,
    /// The object.
    pub name: Option<String>,
    /// `status`, `scale`, `eviction` …
    pub subresource: Option<String>,
}

impl Path {
    /// `/api/v1[/namespaces/{namespace}]/{plural}[/{name}[/{subresource}]]`, and the same below `/apis/{group}/{version}`.
    ///
    /// # Errors
    /// 404 for anything else.
    pub fn parse(path: &str) -> Result<Self, Failure> {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let (group, version, rest) = match parts.as_slice() {
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return Err(Failure::no_such_path()),
        };
        let own = |text: &str| Some(text.to_owned());
        let (namespace, plural, name, subresource) = match rest {
            [] => (None, "", None, None),
            // Subresources of a namespace, not collections in it.
            ["namespaces", name, sub @ ("status" | "finalize")] => (None, "namespaces", own(name), own(sub)),
            ["namespaces", namespace, plural] => (own(namespace), *plural, None, None),
            ["namespaces", namespace, plural, name] => (own(namespace), *plural, own(name), None),
            ["namespaces", namespace, plural, name, sub] => (own(namespace), *plural, own(name), own(sub)),
            [plural] => (None, *plural, None, None),
            [plural, name] => (None, *plural, own(name), None),
            [plural, name, sub] => (None, *plural, own(name), own(sub)),
            _ => return Err(Failure::no_such_path()),
        };
        Ok(Self {
            group: group.to_owned(),
            version: version.to_owned(),
            namespace,
            plural: plural.to_owned(),
            name,
            subresource,
        })
    }
}

/// What is asked of a request's answer and how it is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Decodes a query string.
    pub fn parse(query: &str) -> Self {
        Self(form_urlencoded::parse(query.as_bytes()).into_owned().collect())
    }

    /// The value of a parameter.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// Whether a parameter is `true` or `1`.
    pub fn flag(&self, name: &str) -> bool {
        matches!(self.get(name), Some("true" | "1"))
    }

    /// A parameter as a number; what is none counts as not given.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.get(name)?.parse().ok()
    }
}

/// What the caller wants to read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum View {
    /// Whole objects.
    #[default]
    Full,
    /// `PartialObjectMetadata`.
    Metadata,
}

/// Whether a write is only tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DryRun(pub bool);

/// A request as the server got it.
#[derive(Clone, Debug)]
pub struct Request {
    /// The verb.
    pub method: Method,
    /// The whole path.
    pub path: String,
    /// The query string as it came.
    pub raw_query: String,
    /// The query, decoded.
    pub query: Query,
    /// The body; null for none.
    pub body: Value,
    /// The body's media type.
    pub content_type: String,
    /// What to answer with.
    pub view: View,
    /// The first word of the user agent: the field manager where none is given.
    pub agent: String,
}

impl Request {
    /// From the parts of an HTTP request.
    ///
    /// # Errors
    /// 400 for a body that is no JSON.
    pub fn new(
        method: Method,
        path: &str,
        query: &str,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Result<Self, Failure> {
        let text = |name: header::HeaderName| {
            headers
                .get(name)
                .and_then(|value| value.to_str().ok())
                .unwrap_or_default()
        };
        let accept = text(header::ACCEPT);
        let view = if accept.contains("as=PartialObjectMetadata") {
            View::Metadata
        } else {
            View::Full
        };
        let body = if body.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(body).map_err(|error| {
                Failure::bad_request(format!("the object provided is unrecognized: {error}"))
            })?
        };
        let agent = text(header::USER_AGENT).split(['/', ' ']).next();
        Ok(Self {
            method,
            path: path.to_owned(),
            raw_query: query.to_owned(),
            query: Query::parse(query),
            body,
            content_type: text(header::CONTENT_TYPE).to_owned(),
            view,
            agent: agent
                .filter(|agent| !agent.is_empty())
                .unwrap_or("unknown")
                .to_owned(),
        })
    }

    /// Whether it opens a watch.
    pub fn is_watch(&self) -> bool {
        self.method == Method::GET && self.query.flag("watch")
    }

    /// Whether it may change something.
    pub fn is_write(&self) -> bool {
        self.method != Method::GET
    }

    /// Whether it is a write that is only tried.
    pub fn dry_run(&self) -> DryRun {
        let in_body = self.body.pointer("/dryRun/0").and_then(Value::as_str);
        let asked = match self.method {
            // The options of a deletion are read from the query only when there is no body.
            Method::DELETE if !self.body.is_null() => in_body,
            _ => self.query.get("dryRun"),
        };
        DryRun(asked == Some("All"))
    }

    /// Who owns the fields of this write.
    pub fn manager(&self) -> &str {
        self.query
            .get("fieldManager")
            .filter(|name| !name.is_empty())
            .unwrap_or(&self.agent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let path = |text: &str| Path::parse(text).unwrap();
        let pod = path("/api/v1/namespaces/shop/pods/a/status");
        assert_eq!(
            (pod.namespace.as_deref(), &*pod.plural, pod.name.as_deref()),
            (Some("shop"), "pods", Some("a"))
        );
        assert_eq!(pod.subresource.as_deref(), Some("status"));
        let all = path("/apis/apps/v1/replicasets");
        assert_eq!(
            (&*all.group, &*all.version, &*all.plural, all.name),
            ("apps", "v1", "replicasets", None)
        );
        let namespace = path("/api/v1/namespaces/shop");
        assert_eq!(
            (&*namespace.plural, namespace.name.as_deref()),
            ("namespaces", Some("shop"))
        );
        assert_eq!(
            path("/api/v1/namespaces/shop/finalize").subresource.as_deref(),
            Some("finalize")
        );
        assert!(Path::parse("/metrics").is_err());
    }

    #[test]
    fn queries_are_decoded() {
        let query = Query::parse("labelSelector=a%3Db%2Cc&watch=true&limit=5");
        assert_eq!(query.get("labelSelector"), Some("a=b,c"));
        assert!(query.flag("watch"));
        assert_eq!((query.number("limit"), query.number("watch")), (Some(5), None));
    }
}
