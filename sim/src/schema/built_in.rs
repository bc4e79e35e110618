//! The special lists and maps of the built-in kinds: a table out of the server's OpenAPI document, for the kinds served
//! here. What the table does not name is a plain struct, whose lists are replaced as a whole.

use super::types::{Form, Keys, Node, Type};

/// The struct a kind's objects are.
pub(super) fn root(group: &str, kind: &str) -> &'static str {
    match (group, kind) {
        ("", "Pod") => "Pod",
        ("", "Service") => "Service",
        ("", "ConfigMap" | "Secret") => "Data",
        ("", "ServiceAccount") => "ServiceAccount",
        ("", "Namespace") => "Namespace",
        ("apps", "ReplicaSet" | "Deployment") | ("batch", "Job") => "Workload",
        ("apps", "ControllerRevision") => "Record",
        ("policy", "PodDisruptionBudget") => "Budget",
        ("rbac.authorization.k8s.io", "RoleBinding") => "Binding",
        ("discovery.k8s.io", "EndpointSlice") => "Slice",
        _ => "Object",
    }
}

const fn plain(name: &'static str) -> Type<'static> {
    Type::new(Node::Struct(name), Form::Plain)
}

const fn map() -> Type<'static> {
    Type::new(Node::Map, Form::Plain)
}

const fn atomic() -> Type<'static> {
    Type::new(Node::Map, Form::Atomic)
}

const fn set() -> Type<'static> {
    Type::new(Node::Map, Form::Set)
}

const fn keyed(name: &'static str, keys: &'static [&'static str]) -> Type<'static> {
    Type::new(Node::Struct(name), Form::Keyed(Keys::Fixed(keys)))
}

/// The shape of a field of a struct.
pub(super) fn field(parent: &'static str, name: &str) -> Type<'static> {
    match (parent, name) {
        ("Meta", "labels" | "annotations") => map(),
        ("Meta", "ownerReferences") => keyed("OwnerReference", &["uid"]),
        ("Meta", "finalizers") => set(),
        (
            "PodTemplate" | "Pod" | "Service" | "Data" | "ServiceAccount" | "Workload" | "Record" | "Budget"
            | "Binding" | "Slice" | "Namespace" | "Object",
            "metadata",
        ) => plain("Meta"),
        ("Data", "data" | "binaryData" | "stringData") => map(),
        ("Record", "data") | ("Binding", "roleRef") | ("Slice", "endpoints" | "ports") => atomic(),
        ("ServiceAccount", "secrets") => keyed("", &["name"]),
        ("ServiceAccount" | "PodSpec", "imagePullSecrets") => keyed("", &["name"]),

        ("Service", "spec") => plain("ServiceSpec"),
        ("ServiceSpec", "ports") => keyed("", &["port", "protocol"]),
        ("ServiceSpec", "selector") => atomic(),
        ("Service" | "Pod" | "Budget" | "Workload" | "Namespace", "status") => plain("Status"),
        ("Status", "conditions") => keyed("", &["type"]),
        ("Status", "podIPs" | "hostIPs") => keyed("", &["ip"]),
        ("Namespace", "spec") => plain("NamespaceSpec"),

        ("Workload" | "JobTemplate", "spec") => plain("WorkloadSpec"),
        ("WorkloadSpec" | "Term", "selector" | "labelSelector" | "namespaceSelector") => atomic(),
        ("WorkloadSpec", "template") => plain("PodTemplate"),
        ("WorkloadSpec", "podFailurePolicy") => plain("FailurePolicy"),
        ("FailurePolicy", "rules") => atomic(),
        ("Budget", "spec") => plain("BudgetSpec"),
        ("BudgetSpec", "selector") => atomic(),

        ("Pod" | "PodTemplate", "spec") => plain("PodSpec"),
        ("PodSpec", "containers" | "initContainers" | "ephemeralContainers") => keyed("Container", &["name"]),
        ("PodSpec", "volumes") => keyed("Volume", &["name"]),
        ("PodSpec", "nodeSelector") => atomic(),
        ("PodSpec", "hostAliases") => keyed("", &["ip"]),
        ("PodSpec", "topologySpreadConstraints") => keyed("Term", &["topologyKey", "whenUnsatisfiable"]),
        ("PodSpec", "schedulingGates" | "resourceClaims") => keyed("", &["name"]),
        ("PodSpec", "overhead") => map(),
        ("Container", "env") => keyed("EnvVar", &["name"]),
        ("Container", "ports") => keyed("", &["containerPort", "protocol"]),
        ("Container", "volumeMounts") => keyed("", &["mountPath"]),
        ("Container", "volumeDevices") => keyed("", &["devicePath"]),
        ("Container", "resources") => plain("Resources"),
        ("Resources", "limits" | "requests") => map(),
        ("Resources", "claims") => keyed("", &["name"]),
        ("EnvVar", "valueFrom") => plain("EnvVarSource"),
        ("EnvVarSource", _) => atomic(),
        _ => plain(""),
    }
}
