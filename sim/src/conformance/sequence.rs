//! Sequences of requests, by lot.

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde_json::{Value, json};

use super::bodies::{SUBJECTS, Subject, pick};

/// One request. `{{rv}}`, `{{old}}` and `{{uid}}` stand for the version last seen of its object, the first one seen, and
/// its UID: each server has its own.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// The verb.
    pub method: &'static str,
    /// The path.
    pub path: String,
    /// The query string.
    pub query: String,
    /// The media type of the body.
    pub content_type: &'static str,
    /// The body; null for none.
    pub body: Value,
    /// The object it is about.
    pub name: String,
}

const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";
const JSON_PATCH: &str = "application/json-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";

/// The sequence of a seed, in a namespace.
pub fn sequence(seed: u64, namespace: &str) -> Vec<Asked> {
    let mut random = StdRng::seed_from_u64(seed);
    let subject = SUBJECTS[random.random_range(0..SUBJECTS.len())];
    let names = [format!("s{seed}-a"), format!("s{seed}-b")];
    let length = random.random_range(4..12);
    let mut asked: Vec<Asked> = (0..length)
        .map(|index| {
            let name = &names[usize::from(random.random_bool(0.15))];
            one(subject, name, seed, namespace, index == 0, &mut random)
        })
        .collect();
    // Nothing is left behind on the real cluster.
    for name in &names {
        let path = format!("{}/{name}", subject.collection(namespace));
        let free = json!({"metadata": {"finalizers": null}});
        asked.push(request("PATCH", &path, "", MERGE, free, name));
        asked.push(request(
            "DELETE",
            &path,
            "",
            JSON,
            json!({"propagationPolicy": "Background"}),
            name,
        ));
    }
    asked
}

fn request(
    method: &'static str,
    path: &str,
    query: &str,
    content_type: &'static str,
    body: Value,
    name: &str,
) -> Asked {
    Asked {
        method,
        path: path.to_owned(),
        query: query.to_owned(),
        content_type,
        body,
        name: name.to_owned(),
    }
}

fn one(
    subject: Subject,
    name: &str,
    seed: u64,
    namespace: &str,
    is_first: bool,
    random: &mut StdRng,
) -> Asked {
    let collection = subject.collection(namespace);
    let path = format!("{collection}/{name}");
    let manager = pick(random, &["one", "two"]);
    let dry = if random.random_bool(0.08) {
        "&dryRun=All"
    } else {
        ""
    };
    let by = format!("fieldManager={manager}{dry}");
    let choice = if is_first {
        random.random_range(0..2)
    } else {
        random.random_range(0..14)
    };
    match choice {
        0 => request("POST", &collection, &by, JSON, subject.object(name, random), name),
        1 | 2 => {
            let mut body = if is_first || random.random_bool(0.3) {
                subject.object(name, random)
            } else {
                let mut part = subject.part(random, false);
                part["apiVersion"] = json!(subject.api_version);
                part["kind"] = json!(subject.kind);
                part["metadata"]["name"] = json!(name);
                part
            };
            guard(subject, &mut body, random);
            let force = if random.random_bool(0.5) {
                "&force=true"
            } else {
                ""
            };
            request("PATCH", &path, &format!("{by}{force}"), APPLY, body, name)
        }
        3 | 4 => {
            let mut body = subject.object(name, random);
            body["metadata"]["resourceVersion"] = json!("{{rv}}");
            if random.random_bool(0.3) && !subject.busy {
                body["metadata"]["resourceVersion"] = json!(pick(random, &["{{old}}", ""]));
            }
            if subject.busy
                && let Some(metadata) = body["metadata"].as_object_mut()
            {
                metadata.remove("resourceVersion");
            }
            request("PUT", &path, &by, JSON, body, name)
        }
        5 | 6 => {
            let mut body = subject.part(random, true);
            guard(subject, &mut body, random);
            request("PATCH", &path, &by, MERGE, body, name)
        }
        7 => {
            let operation = match random.random_range(0..4) {
                0 => json!({"op": "replace", "path": "/metadata/labels/a", "value": "9"}),
                1 => json!({"op": "remove", "path": "/metadata/labels/b"}),
                2 => json!({"op": "test", "path": "/metadata/labels/a", "value": "1"}),
                _ => json!({"op": "add", "path": "/metadata/annotations", "value": {"n": "1"}}),
            };
            request("PATCH", &path, &by, JSON_PATCH, json!([operation]), name)
        }
        8 if subject.status => {
            let body = json!({"status": subject.status(random), "spec": {"replicas": 4}});
            request("PATCH", &format!("{path}/status"), &by, MERGE, body, name)
        }
        8 if !subject.api_version.starts_with(super::GROUP) => {
            request("PATCH", &path, &by, STRATEGIC, subject.part(random, true), name)
        }
        // Of a busy kind only 0 could be written, as it is already; and who owns the number after a write that does not change it
        // is left to chance by the real server.
        9 if subject.scale && subject.busy => {
            request("GET", &format!("{path}/scale"), "", JSON, Value::Null, name)
        }
        9 if subject.scale => {
            let replicas = match random.random_range(0..5) {
                0 => -1,
                _ => random.random_range(10..1_000),
            };
            let body = json!({"spec": {"replicas": replicas}});
            request("PATCH", &format!("{path}/scale"), &by, MERGE, body, name)
        }
        10 => {
            let selector = pick(random, &["a=1", "a in (1,2),b", "!b", "a!=2"]);
            let selector: String = form_urlencoded::byte_serialize(selector.as_bytes()).collect();
            let limit = pick(random, &["", "&limit=1"]);
            let field = format!("metadata.name%3Ds{seed}-a");
            request(
                "GET",
                &collection,
                &format!("labelSelector={selector}&fieldSelector={field}{limit}"),
                JSON,
                Value::Null,
                name,
            )
        }
        11 => {
            let mut body =
                json!({"propagationPolicy": pick(random, &["Background", "Orphan", "Foreground"])});
            if random.random_bool(0.3) {
                body["preconditions"] =
                    json!({"uid": pick(random, &["{{uid}}", "11111111-1111-4111-8111-111111111111"])});
            } else if random.random_bool(0.2) && !subject.busy {
                body["preconditions"] = json!({"resourceVersion": pick(random, &["{{rv}}", "{{old}}"])});
            }
            request("DELETE", &path, dry.trim_start_matches('&'), JSON, body, name)
        }
        _ => request("GET", &path, "", JSON, Value::Null, name),
    }
}

/// What a patch may be conditional on.
fn guard(subject: Subject, body: &mut Value, random: &mut StdRng) {
    if random.random_bool(0.15) {
        body["metadata"]["uid"] = json!(pick(random, &["{{uid}}", "11111111-1111-4111-8111-111111111111"]));
    }
    if random.random_bool(0.15) && !subject.busy {
        body["metadata"]["resourceVersion"] = json!(pick(random, &["{{rv}}", "{{old}}"]));
    }
}
