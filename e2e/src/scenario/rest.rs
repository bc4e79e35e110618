//! Silence: a fleet at rest costs the API server nothing but watches and the lease.

use super::pool::bring_up;
use crate::audit::Mark;
use crate::{Namespace, operator};
use anyhow::{Result, ensure};
use std::time::Duration;

/// Requests of the operator in `seconds` of rest, watches and leases apart, as `verb resource`.
pub async fn requests_at_rest(namespace: Namespace, seconds: u64) -> Result<Vec<String>> {
    bring_up(namespace.clone()).await?;
    // Whatever the start has left to do (closing windows, the last status) is done within this time.
    tokio::time::sleep(Duration::from_secs(20)).await;
    let mark = Mark::now(&namespace.cluster)?;
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let requests = mark.since(operator::USER)?;
    ensure!(
        !requests.is_empty(),
        "not even a lease was renewed: the audit log is not being read right"
    );
    // Namespaces of earlier scenarios may still be going, with traffic to report; they are not at rest.
    let elsewhere =
        |r: &crate::audit::Request| r.namespace().starts_with("t-") && r.namespace() != namespace.name;
    let counts = |r: &&crate::audit::Request| !r.is_allowed_at_rest() && !elsewhere(r);
    Ok(requests
        .iter()
        .filter(counts)
        .map(|r| format!("{} {} {}", r.verb, r.resource(), r.namespace()))
        .collect())
}
