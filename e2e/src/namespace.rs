//! One namespace per scenario, with Pod Security `restricted`; when a scenario fails, what was in it is printed.

use crate::Cluster;
use anyhow::{Result, anyhow};
use k8s_openapi::api::core::v1::Namespace as Object;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::json;
use std::future::Future;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Label of such namespaces: what they are for.
const SCENARIO: &str = "flotilla.dev/scenario";

/// A namespace of a scenario.
#[derive(Clone)]
pub struct Namespace {
    /// The cluster it is in.
    pub cluster: Cluster,
    /// Its name.
    pub name: String,
}

impl Namespace {
    /// API of a namespaced kind in here.
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.cluster.client.clone(), &self.name)
    }

    /// Applies a manifest by `kubectl apply`, as a user would; gives kubectl's complaint as the error.
    pub async fn apply(&self, manifest: &serde_json::Value) -> Result<()> {
        let path = std::env::temp_dir().join(format!("{}-{}.json", self.name, unique()));
        tokio::fs::write(&path, serde_json::to_vec(manifest)?).await?;
        let result = self
            .cluster
            .kubectl(&["-n", &self.name, "apply", "-f", &path.to_string_lossy()])
            .await;
        tokio::fs::remove_file(&path).await?;
        result.map(drop)
    }

    /// Runs kubectl in here.
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.cluster
            .kubectl(&[&["-n", &self.name], arguments].concat())
            .await
    }
}

fn unique() -> String {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let nanos = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_nanos());
    format!(
        "{:x}{}",
        nanos & 0xff_ffff,
        COUNTER.fetch_add(1, Ordering::Relaxed)
    )
}

/// Makes a namespace called after `purpose`, runs `body` in it, prints its state when that fails, and deletes it.
///
/// # Panics
/// When `body` fails, with its error: this is meant for `#[tokio::test]`.
pub async fn with_namespace<F>(purpose: &str, body: impl FnOnce(Namespace) -> F)
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let cluster = Cluster::connect().await.expect("a cluster");
    if let Err(error) = in_namespace(&cluster, purpose, body).await {
        panic!("{error:#}");
    }
}

/// As [`with_namespace`], on a cluster that is already connected, giving the error back.
pub async fn in_namespace<T, F>(
    cluster: &Cluster,
    purpose: &str,
    body: impl FnOnce(Namespace) -> F,
) -> Result<T>
where
    T: Send + 'static,
    F: Future<Output = Result<T>> + Send + 'static,
{
    let api: Api<Object> = Api::all(cluster.client.clone());
    let name = format!("t-{purpose}-{}", unique());
    let object: Object = serde_json::from_value(json!({
        "metadata": {"name": name, "labels": {
            SCENARIO: purpose,
            "pod-security.kubernetes.io/enforce": "restricted",
        }}
    }))?;
    api.create(&PostParams::default(), &object).await?;
    let namespace = Namespace {
        cluster: cluster.clone(),
        name: name.clone(),
    };
    let result = tokio::spawn(body(namespace.clone()))
        .await
        .unwrap_or_else(|panic| Err(anyhow!("panicked: {panic}")));
    if let Err(error) = &result {
        eprintln!(
            "--- scenario {purpose} failed: {error:#}\n{}",
            state(&namespace).await
        );
    }
    if result.is_ok() || std::env::var_os("FLOTILLA_KEEP").is_none() {
        api.delete(&name, &DeleteParams::background())
            .await
            .map(drop)
            .or_else(|e| if crate::wait::is_gone(&e) { Ok(()) } else { Err(e) })?;
    }
    result
}

/// Waits until namespaces that were deleted are gone, so that what is measured next has the machine to itself.
///
/// # Errors
/// When one is still there after `limit`.
pub async fn cleared(cluster: &Cluster, limit: Duration) -> Result<()> {
    let api: Api<Object> = Api::all(cluster.client.clone());
    let ours = ListParams::default().labels(SCENARIO);
    crate::wait::until("the end of deleted namespaces", limit, async || {
        let all = api.list(&ours).await.map_err(|error| error.to_string())?;
        let mut left = all
            .iter()
            .filter(|object| object.metadata.deletion_timestamp.is_some());
        left.next().map_or(Ok(()), |object| Err(object.name_any()))
    })
    .await
}

async fn state(namespace: &Namespace) -> String {
    let mut text = String::new();
    for arguments in [
        &[
            "get",
            "apool,ltest,mprov,raction,pods,rs,deploy,jobs,endpointslices",
            "-o",
            "wide",
        ][..],
        &[
            "get",
            "apool,ltest,mprov",
            "-o",
            "yaml",
            "--show-managed-fields=false",
        ],
        &["get", "events", "--sort-by=.lastTimestamp"],
        &[
            "logs",
            "-l",
            "app.kubernetes.io/managed-by=flotilla",
            "--all-containers",
            "--tail=15",
            "--prefix",
        ],
    ] {
        text += &namespace
            .kubectl(arguments)
            .await
            .unwrap_or_else(|e| format!("{e:#}\n"));
    }
    text += &namespace
        .cluster
        .kubectl(&[
            "-n",
            "flotilla-system",
            "logs",
            "-l",
            "app.kubernetes.io/name=flotilla-operator",
            "--tail=40",
            "--prefix",
        ])
        .await
        .unwrap_or_else(|e| format!("{e:#}\n"));
    text
}
