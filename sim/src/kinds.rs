//! The kinds the server knows: those the operator, the gateway and the controllers use, and custom ones from their
//! definitions.

use std::sync::{Arc, LazyLock};

use serde_json::Value;

use crate::schema::custom::Custom;

/// When `metadata.generation` grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    /// Never; the kind has none.
    None,
    /// When `spec` changes.
    Spec,
    /// When anything but metadata and, with the status subresource, status changes.
    Content,
}

/// Where the scale subresource finds its numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scale {
    /// Path of the wanted number, such as `/spec/replicas`.
    pub spec: String,
    /// Path of the present number.
    pub status: String,
    /// Path of the selector as a string or a LabelSelector.
    pub selector: String,
}

/// A kind that is served.
#[derive(Clone, Debug)]
pub struct Kind {
    /// API group, "" for core.
    pub group: String,
    /// API version.
    pub version: String,
    /// Plural in lower case.
    pub plural: String,
    /// Singular in lower case.
    pub singular: String,
    /// Kind in PascalCase.
    pub kind: String,
    /// Short names.
    pub short: Vec<String>,
    /// Whether it lives in namespaces.
    pub namespaced: bool,
    /// Whether it has the status subresource.
    pub status: bool,
    /// Whether it has the scale subresource.
    pub scale: Option<Scale>,
    /// When its generation grows.
    pub generation: Generation,
    /// Whether `PUT` needs no resourceVersion.
    pub unconditional_update: bool,
    /// Whether `PUT` creates what is not there.
    pub create_on_update: bool,
    /// Whether a deletion answers with the object instead of a Status.
    pub deletion_returns_object: bool,
    /// Its definition, for a custom kind.
    pub custom: Option<Arc<Custom>>,
}

/// Index of a kind in the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KindId(pub usize);

impl Kind {
    /// `plural.group`, as in messages.
    pub fn resource(&self) -> String {
        if self.group.is_empty() {
            self.plural.clone()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    /// `group/version`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.clone()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// `/api/v1` or `/apis/group/version`.
    pub fn prefix(&self) -> String {
        if self.group.is_empty() {
            format!("/api/{}", self.version)
        } else {
            format!("/apis/{}/{}", self.group, self.version)
        }
    }

    /// Whether it is this built-in kind.
    pub fn is(&self, group: &str, kind: &str) -> bool {
        self.group == group && self.kind == kind && self.custom.is_none()
    }

    fn built_in(row: &Row) -> Self {
        let has = |flag: char| row.flags.contains(flag);
        let scale = has('c').then(|| Scale {
            spec: "/spec/replicas".to_owned(),
            status: "/status/replicas".to_owned(),
            selector: "/spec/selector".to_owned(),
        });
        Self {
            group: row.group.to_owned(),
            version: row.version.to_owned(),
            plural: row.plural.to_owned(),
            singular: row.kind.to_lowercase(),
            kind: row.kind.to_owned(),
            short: row.short.iter().map(|name| (*name).to_owned()).collect(),
            namespaced: !has('g'),
            status: has('s'),
            scale,
            generation: match (has('n'), has('N')) {
                (true, _) => Generation::Spec,
                (_, true) => Generation::Content,
                _ => Generation::None,
            },
            unconditional_update: !has('v'),
            create_on_update: has('p'),
            deletion_returns_object: has('o'),
            custom: None,
        }
    }

    /// A kind from a CustomResourceDefinition; its storage version.
    ///
    /// # Errors
    /// A sentence when it is none that can be served.
    pub fn from_definition(definition: &Value) -> Result<Self, String> {
        let text = |pointer: &str| {
            let found = definition.pointer(pointer).and_then(Value::as_str);
            found
                .map(str::to_owned)
                .ok_or_else(|| format!("the definition has no {pointer}"))
        };
        let versions = definition.pointer("/spec/versions").and_then(Value::as_array);
        let version = versions
            .into_iter()
            .flatten()
            .find(|version| version.get("storage") == Some(&Value::Bool(true)))
            .ok_or("the definition has no storage version")?;
        let schema = version
            .pointer("/schema/openAPIV3Schema")
            .ok_or("the definition has no schema")?;
        let path = |name: &str| {
            let found = version
                .pointer("/subresources/scale")?
                .get(name)
                .and_then(Value::as_str)?;
            Some(found.replace('.', "/"))
        };
        let kind = text("/spec/names/kind")?;
        let short = definition
            .pointer("/spec/names/shortNames")
            .and_then(Value::as_array);
        Ok(Self {
            group: text("/spec/group")?,
            version: version
                .get("name")
                .and_then(Value::as_str)
                .unwrap_or("v1")
                .to_owned(),
            plural: text("/spec/names/plural")?,
            singular: text("/spec/names/singular").unwrap_or_else(|_| kind.to_lowercase()),
            short: short
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect(),
            kind,
            namespaced: definition.pointer("/spec/scope").and_then(Value::as_str) == Some("Namespaced"),
            status: version.pointer("/subresources/status").is_some(),
            scale: path("specReplicasPath").map(|spec| Scale {
                spec,
                status: path("statusReplicasPath").unwrap_or_default(),
                selector: path("labelSelectorPath").unwrap_or_default(),
            }),
            generation: Generation::Content,
            unconditional_update: false,
            create_on_update: false,
            deletion_returns_object: false,
            custom: Some(Arc::new(Custom::new(schema.clone()))),
        })
    }
}

/// A row of the table. Flags: g cluster-scoped, s status subresource, c scale subresource, n generation by spec, N
/// generation by content, v version needed to replace, p replace creates, o a deletion answers with the object.
struct Row {
    group: &'static str,
    version: &'static str,
    plural: &'static str,
    kind: &'static str,
    short: &'static [&'static str],
    flags: &'static str,
}

const fn row(
    group: &'static str,
    version: &'static str,
    plural: &'static str,
    kind: &'static str,
    short: &'static [&'static str],
    flags: &'static str,
) -> Row {
    Row {
        group,
        version,
        plural,
        kind,
        short,
        flags,
    }
}

const BUILT_IN: &[Row] = &[
    row("", "v1", "namespaces", "Namespace", &["ns"], "gs"),
    row("", "v1", "pods", "Pod", &["po"], "sno"),
    row("", "v1", "services", "Service", &["svc"], "spo"),
    row("", "v1", "configmaps", "ConfigMap", &["cm"], ""),
    row("", "v1", "secrets", "Secret", &[], ""),
    row("", "v1", "serviceaccounts", "ServiceAccount", &["sa"], "vo"),
    row("", "v1", "events", "Event", &["ev"], "p"),
    row("apps", "v1", "replicasets", "ReplicaSet", &["rs"], "scn"),
    row("apps", "v1", "deployments", "Deployment", &["deploy"], "scn"),
    row("apps", "v1", "controllerrevisions", "ControllerRevision", &[], ""),
    row("batch", "v1", "jobs", "Job", &[], "sn"),
    row(
        "policy",
        "v1",
        "poddisruptionbudgets",
        "PodDisruptionBudget",
        &["pdb"],
        "snv",
    ),
    row("rbac.authorization.k8s.io", "v1", "roles", "Role", &[], "p"),
    row(
        "rbac.authorization.k8s.io",
        "v1",
        "rolebindings",
        "RoleBinding",
        &[],
        "p",
    ),
    row("coordination.k8s.io", "v1", "leases", "Lease", &[], "pv"),
    row(
        "discovery.k8s.io",
        "v1",
        "endpointslices",
        "EndpointSlice",
        &[],
        "N",
    ),
];

/// Every kind of a server. Built-in ones first, in a fixed order.
#[derive(Clone, Debug)]
pub struct Registry(Arc<Vec<Kind>>);

impl Registry {
    /// The built-in kinds and these custom ones.
    pub fn new(custom: impl IntoIterator<Item = Kind>) -> Self {
        Self(Arc::new(
            BUILT_IN.iter().map(Kind::built_in).chain(custom).collect(),
        ))
    }

    /// The built-in kinds and Flotilla's, from their generated definitions.
    pub fn flotilla() -> Self {
        static FLOTILLA: LazyLock<Registry> = LazyLock::new(|| {
            let definitions = flotilla_crds::yaml::all();
            let kinds = definitions
                .iter()
                .filter_map(|(_, definition)| Kind::from_definition(definition).ok());
            Registry::new(kinds)
        });
        FLOTILLA.clone()
    }

    /// A kind by its index.
    pub fn get(&self, id: KindId) -> &Kind {
        &self.0[id.0]
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (KindId, &Kind)> {
        self.0
            .iter()
            .enumerate()
            .map(|(index, kind)| (KindId(index), kind))
    }

    /// The kind with this plural.
    pub fn by_plural(&self, group: &str, version: &str, plural: &str) -> Option<KindId> {
        self.find(|kind| kind.group == group && kind.version == version && kind.plural == plural)
    }

    /// The kind an object says it is.
    pub fn by_kind(&self, api_version: &str, name: &str) -> Option<KindId> {
        self.find(|kind| kind.kind == name && kind.api_version() == api_version)
    }

    fn find(&self, matches: impl Fn(&Kind) -> bool) -> Option<KindId> {
        self.iter().find(|(_, kind)| matches(kind)).map(|(id, _)| id)
    }
}
