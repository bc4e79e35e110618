//! Label and field selectors.

use serde_json::Value;

use super::failure::Failure;
use crate::kinds::Kind;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Absent,
}

/// Both selectors of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    labels: Vec<(String, Test)>,
    fields: Vec<(String, bool, String)>,
}

impl Selector {
    /// Parses both.
    ///
    /// # Errors
    /// 400 for what cannot be understood or is not served.
    pub fn parse(kind: &Kind, labels: Option<&str>, fields: Option<&str>) -> Result<Self, Failure> {
        let labels = split(labels.unwrap_or_default())
            .into_iter()
            .map(|term| parse_label(&term))
            .collect::<Result<_, _>>()?;
        let fields = split(fields.unwrap_or_default())
            .into_iter()
            .map(|term| parse_field(kind, &term))
            .collect::<Result<_, _>>()?;
        Ok(Self { labels, fields })
    }

    /// From a `LabelSelector` object. An empty one selects everything.
    pub fn of_object(selector: &Value) -> Self {
        let pairs = selector
            .get("matchLabels")
            .and_then(Value::as_object)
            .into_iter()
            .flatten();
        let mut labels: Vec<(String, Test)> = pairs
            .map(|(key, value)| (key.clone(), Test::In(vec![text(value)])))
            .collect();
        let expressions = selector.get("matchExpressions").and_then(Value::as_array);
        for expression in expressions.into_iter().flatten() {
            let values = || {
                let values = expression.get("values").and_then(Value::as_array);
                values.into_iter().flatten().map(text).collect()
            };
            let test = match expression.get("operator").and_then(Value::as_str) {
                Some("In") => Test::In(values()),
                Some("NotIn") => Test::NotIn(values()),
                Some("DoesNotExist") => Test::Absent,
                _ => Test::Exists,
            };
            labels.push((expression.get("key").map(text).unwrap_or_default(), test));
        }
        Self {
            labels,
            fields: Vec::new(),
        }
    }

    /// Whether it selects everything.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// Whether it selects an object.
    pub fn matches(&self, object: &Value) -> bool {
        let labels = object.pointer("/metadata/labels");
        self.matches_labels(labels.unwrap_or(&Value::Null))
            && self.fields.iter().all(|(field, equal, wanted)| {
                let pointer = format!("/{}", field.replace('.', "/"));
                let found = object.pointer(&pointer).map(text).unwrap_or_default();
                (found == *wanted) == *equal
            })
    }

    /// Whether it selects these labels.
    pub fn matches_labels(&self, labels: &Value) -> bool {
        self.labels.iter().all(|(key, test)| {
            let found = labels.get(key).and_then(Value::as_str);
            match test {
                Test::In(values) => found.is_some_and(|found| values.iter().any(|value| value == found)),
                Test::NotIn(values) => found.is_none_or(|found| values.iter().all(|value| value != found)),
                Test::Exists => found.is_some(),
                Test::Absent => found.is_none(),
            }
        })
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// Splits at commas outside parentheses.
fn split(selector: &str) -> Vec<String> {
    let mut terms = vec![String::new()];
    let mut depth = 0;
    for letter in selector.chars() {
        match letter {
            ',' if depth == 0 => {
                terms.push(String::new());
                continue;
            }
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if let Some(term) = terms.last_mut() {
            term.push(letter);
        }
    }
    terms.retain(|term| !term.trim().is_empty());
    terms
}

fn parse_label(term: &str) -> Result<(String, Test), Failure> {
    let bad = || Failure::bad_request(format!("unable to parse requirement: {term}"));
    let term = term.trim();
    if let Some(key) = term.strip_prefix('!') {
        return Ok((key.trim().to_owned(), Test::Absent));
    }
    if let Some((key, values)) = term.split_once('(') {
        let values = values.strip_suffix(')').ok_or_else(bad)?;
        let values = values.split(',').map(|value| value.trim().to_owned()).collect();
        let (key, operator) = key.trim().rsplit_once(' ').ok_or_else(bad)?;
        let key = key.trim().to_owned();
        return match operator {
            "in" => Ok((key, Test::In(values))),
            "notin" => Ok((key, Test::NotIn(values))),
            _ => Err(bad()),
        };
    }
    let pair = |key: &str, value: &str| (key.trim().to_owned(), vec![value.trim().to_owned()]);
    if let Some((key, value)) = term.split_once("!=") {
        let (key, values) = pair(key, value);
        return Ok((key, Test::NotIn(values)));
    }
    if let Some((key, value)) = term.split_once('=') {
        let (key, values) = pair(key, value.trim_start_matches('='));
        return Ok((key, Test::In(values)));
    }
    if term.contains(' ') {
        return Err(bad());
    }
    Ok((term.to_owned(), Test::Exists))
}

fn parse_field(kind: &Kind, term: &str) -> Result<(String, bool, String), Failure> {
    let bad = || Failure::bad_request(format!("invalid selector: {term:?}; can't understand {term:?}"));
    let (field, equal, value) = match term.split_once("!=") {
        Some((field, value)) => (field, false, value),
        None => {
            let (field, value) = term.split_once('=').ok_or_else(bad)?;
            (field, true, value.trim_start_matches('='))
        }
    };
    if !is_served(kind, field) {
        return Err(Failure::bad_request(format!(
            "field label not supported: {field}"
        )));
    }
    Ok((field.to_owned(), equal, value.to_owned()))
}

fn is_served(kind: &Kind, field: &str) -> bool {
    let more: &[&str] = match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Pod") => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ],
        ("", "Event") => &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
        ("", "Secret") => &["type"],
        ("", "Namespace") => &["status.phase"],
        ("", "Service") => &["spec.clusterIP", "spec.type"],
        ("batch", "Job") => &["status.successful"],
        ("apps", "ReplicaSet") => &["status.replicas"],
        _ => &[],
    };
    field == "metadata.name" || (field == "metadata.namespace" && kind.namespaced) || more.contains(&field)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::Registry;

    fn selects(selector: &str, labels: Value) -> bool {
        let registry = Registry::flotilla();
        let kind = registry.get(registry.by_kind("v1", "Pod").unwrap());
        let selector = Selector::parse(kind, Some(selector), None).unwrap();
        selector.matches(&json!({"metadata": {"labels": labels}}))
    }

    #[test]
    fn labels() {
        for (selector, labels, expected) in [
            ("", json!({}), true),
            ("a=b", json!({"a": "b"}), true),
            ("a==b,c", json!({"a": "b"}), false),
            ("a==b,c", json!({"a": "b", "c": ""}), true),
            ("a!=b", json!({}), true),
            ("!a", json!({"a": "b"}), false),
            ("a in (x, y),b notin (z)", json!({"a": "y"}), true),
            ("a in (x,y)", json!({"a": "z"}), false),
            ("a", json!(null), false),
        ] {
            assert_eq!(selects(selector, labels), expected, "{selector}");
        }
    }

    #[test]
    fn fields() {
        let registry = Registry::flotilla();
        let event = registry.get(registry.by_kind("v1", "Event").unwrap());
        let selector = Selector::parse(event, None, Some("involvedObject.name=x,reason!=Y")).unwrap();
        assert!(selector.matches(&json!({"involvedObject": {"name": "x"}, "reason": "Z"})));
        assert!(!selector.matches(&json!({"involvedObject": {"name": "x"}, "reason": "Y"})));
        assert_eq!(
            Selector::parse(event, None, Some("spec.x=1")).unwrap_err().code,
            400
        );
    }

    #[test]
    fn objects() {
        let selector = Selector::of_object(&json!({
            "matchLabels": {"a": "b"}, "matchExpressions": [{"key": "c", "operator": "DoesNotExist"}],
        }));
        assert!(selector.matches_labels(&json!({"a": "b"})));
        assert!(!selector.matches_labels(&json!({"a": "b", "c": "d"})));
    }
}
