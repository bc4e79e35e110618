//! Defaults of the built-in kinds.

use serde_json::{Value, json};

use crate::kinds::Kind;

/// Sets a member that is not there.
fn default(object: &mut Value, field: &str, value: Value) {
    if let Some(fields) = object.as_object_mut()
        && fields.get(field).is_none_or(Value::is_null)
    {
        fields.insert(field.to_owned(), value);
    }
}

fn each<'a>(object: &'a mut Value, field: &str) -> impl Iterator<Item = &'a mut Value> + use<'a> {
    object
        .get_mut(field)
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
}

/// Drops members that are `false`, 0 or empty: the server's types cannot tell that from nothing.
fn omit(object: &mut Value, names: &[&str]) {
    if let Some(fields) = object.as_object_mut() {
        for name in names {
            let is_nothing = match fields.get(*name) {
                Some(Value::Bool(is_set)) => !is_set,
                Some(Value::Number(number)) => number.as_i64() == Some(0),
                Some(Value::String(text)) => text.is_empty(),
                _ => false,
            };
            if is_nothing {
                fields.remove(*name);
            }
        }
    }
}

/// Fills in what the server fills in. `spec` and `template` are made where a kind must have them.
pub fn fill(kind: &Kind, object: &mut Value) {
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Pod") => pod(&mut object["spec"]),
        ("", "Service") => service(object),
        ("", "Secret") => default(object, "type", json!("Opaque")),
        ("", "Namespace") => {
            default(object, "spec", json!({}));
            default(&mut object["spec"], "finalizers", json!(["kubernetes"]));
            default(object, "status", json!({}));
            default(&mut object["status"], "phase", json!("Active"));
        }
        ("apps", "ReplicaSet") => {
            omit(&mut object["spec"], &["minReadySeconds"]);
            default(&mut object["spec"], "replicas", json!(1));
            template(&mut object["spec"]);
        }
        ("apps", "Deployment") => deployment(object),
        ("batch", "Job") => job(object),
        ("rbac.authorization.k8s.io", "RoleBinding") => {
            default(
                &mut object["roleRef"],
                "apiGroup",
                json!("rbac.authorization.k8s.io"),
            );
            for subject in each(object, "subjects") {
                let group = match subject["kind"].as_str() {
                    Some("User" | "Group") => "rbac.authorization.k8s.io",
                    _ => continue,
                };
                default(subject, "apiGroup", json!(group));
            }
        }
        _ => {}
    }
}

fn service(object: &mut Value) {
    default(object, "spec", json!({}));
    let spec = &mut object["spec"];
    default(spec, "type", json!("ClusterIP"));
    default(spec, "sessionAffinity", json!("None"));
    default(spec, "internalTrafficPolicy", json!("Cluster"));
    if spec["type"] != "ExternalName" {
        default(spec, "ipFamilies", json!(["IPv4"]));
        default(spec, "ipFamilyPolicy", json!("SingleStack"));
    }
    omit(spec, &["publishNotReadyAddresses"]);
    if spec["sessionAffinity"] == "ClientIP" {
        default(spec, "sessionAffinityConfig", json!({}));
        default(&mut spec["sessionAffinityConfig"], "clientIP", json!({}));
        let client = &mut spec["sessionAffinityConfig"]["clientIP"];
        default(client, "timeoutSeconds", json!(10_800));
    } else if let Some(fields) = spec.as_object_mut() {
        fields.remove("sessionAffinityConfig");
    }
    for port in each(spec, "ports") {
        omit(port, &["name", "nodePort"]);
        default(port, "protocol", json!("TCP"));
        let number = port["port"].clone();
        default(port, "targetPort", number);
    }
    default(object, "status", json!({"loadBalancer": {}}));
}

fn deployment(object: &mut Value) {
    let spec = &mut object["spec"];
    omit(spec, &["minReadySeconds", "paused"]);
    default(spec, "replicas", json!(1));
    default(spec, "progressDeadlineSeconds", json!(600));
    default(spec, "revisionHistoryLimit", json!(10));
    default(spec, "strategy", json!({}));
    let strategy = &mut spec["strategy"];
    default(strategy, "type", json!("RollingUpdate"));
    if strategy["type"] == "RollingUpdate" {
        default(strategy, "rollingUpdate", json!({}));
        default(&mut strategy["rollingUpdate"], "maxUnavailable", json!("25%"));
        default(&mut strategy["rollingUpdate"], "maxSurge", json!("25%"));
    }
    template(spec);
}

fn job(object: &mut Value) {
    let uid = object["metadata"]["uid"].clone();
    let name = object["metadata"]["name"].clone();
    let spec = &mut object["spec"];
    default(spec, "completionMode", json!("NonIndexed"));
    default(spec, "suspend", json!(false));
    if spec["completions"].is_null() && spec["parallelism"].is_null() {
        default(spec, "completions", json!(1));
    }
    default(spec, "parallelism", json!(1));
    let limit = if spec["backoffLimitPerIndex"].is_null() {
        6
    } else {
        i64::from(i32::MAX)
    };
    default(spec, "backoffLimit", json!(limit));
    let replacement = if spec["podFailurePolicy"].is_null() {
        "TerminatingOrFailed"
    } else {
        "Failed"
    };
    default(spec, "podReplacementPolicy", json!(replacement));
    default(spec, "manualSelector", json!(false));
    let rules = spec
        .pointer_mut("/podFailurePolicy/rules")
        .and_then(Value::as_array_mut);
    for rule in rules.into_iter().flatten() {
        for pattern in each(rule, "onPodConditions") {
            default(pattern, "status", json!("True"));
        }
    }
    // The server makes the selector, once it knows the UID.
    if spec["manualSelector"] == false && uid.is_string() {
        default(
            spec,
            "selector",
            json!({"matchLabels": {"batch.kubernetes.io/controller-uid": uid}}),
        );
        default(&mut spec["template"], "metadata", json!({}));
        default(&mut spec["template"]["metadata"], "labels", json!({}));
        let labels = &mut spec["template"]["metadata"]["labels"];
        for (key, value) in [
            ("batch.kubernetes.io/controller-uid", &uid),
            ("batch.kubernetes.io/job-name", &name),
            ("controller-uid", &uid),
            ("job-name", &name),
        ] {
            default(labels, key, value.clone());
        }
    }
    if let Some(fields) = spec.as_object_mut() {
        fields.retain(|name, value| name != "manualSelector" || *value == true);
    }
    template(spec);
}

fn template(spec: &mut Value) {
    default(spec, "template", json!({}));
    let template = &mut spec["template"];
    default(template, "metadata", json!({}));
    default(template, "spec", json!({}));
    pod(&mut template["spec"]);
}

fn pod(spec: &mut Value) {
    omit(spec, &["hostNetwork", "hostPID", "hostIPC", "serviceAccountName"]);
    default(spec, "restartPolicy", json!("Always"));
    default(spec, "terminationGracePeriodSeconds", json!(30));
    default(spec, "dnsPolicy", json!("ClusterFirst"));
    default(spec, "schedulerName", json!("default-scheduler"));
    default(spec, "securityContext", json!({}));
    if let Some(account) = spec
        .get("serviceAccountName")
        .filter(|name| name.is_string())
        .cloned()
    {
        default(spec, "serviceAccount", account);
    }
    for list in ["containers", "initContainers"] {
        each(spec, list).for_each(container);
    }
    each(spec, "volumes").for_each(volume);
}

fn container(container: &mut Value) {
    default(container, "terminationMessagePath", json!("/dev/termination-log"));
    default(container, "terminationMessagePolicy", json!("File"));
    let image = container["image"].as_str().unwrap_or_default();
    let tag = image.rsplit('/').next().unwrap_or_default();
    let policy = if image.contains('@') || (tag.contains(':') && !tag.ends_with(":latest")) {
        "IfNotPresent"
    } else {
        "Always"
    };
    default(container, "imagePullPolicy", json!(policy));
    default(container, "resources", json!({}));
    omit(container, &["stdin", "stdinOnce", "tty", "workingDir"]);
    for mount in each(container, "volumeMounts") {
        omit(mount, &["readOnly", "subPath"]);
    }
    for port in each(container, "ports") {
        omit(port, &["name", "hostPort"]);
        default(port, "protocol", json!("TCP"));
    }
    for variable in each(container, "env") {
        omit(variable, &["value"]);
        if let Some(field) = variable.pointer_mut("/valueFrom/fieldRef") {
            default(field, "apiVersion", json!("v1"));
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(probe) = container.get_mut(probe).filter(|probe| probe.is_object()) else {
            continue;
        };
        omit(probe, &["initialDelaySeconds"]);
        default(probe, "timeoutSeconds", json!(1));
        default(probe, "periodSeconds", json!(10));
        default(probe, "successThreshold", json!(1));
        default(probe, "failureThreshold", json!(3));
        http_get(probe);
    }
    for hook in ["postStart", "preStop"] {
        if let Some(hook) = container.pointer_mut(&format!("/lifecycle/{hook}")) {
            http_get(hook);
        }
    }
    // A limit without a request is the request.
    let limits = container["resources"]["limits"].as_object().cloned();
    if let Some(limits) = limits {
        default(&mut container["resources"], "requests", json!({}));
        for (name, value) in limits {
            default(&mut container["resources"]["requests"], &name, value);
        }
    }
}

fn http_get(handler: &mut Value) {
    if let Some(get) = handler.get_mut("httpGet").filter(|get| get.is_object()) {
        default(get, "path", json!("/"));
        default(get, "scheme", json!("HTTP"));
    }
}

fn volume(volume: &mut Value) {
    for source in ["configMap", "secret", "projected", "downwardAPI"] {
        if let Some(source) = volume.get_mut(source).filter(|source| source.is_object()) {
            default(source, "defaultMode", json!(0o644));
        }
    }
    for source in volume
        .pointer_mut("/projected/sources")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        if let Some(token) = source.get_mut("serviceAccountToken") {
            default(token, "expirationSeconds", json!(3600));
        }
    }
}
