//! Silence: it listens to everything the operator asks of the API server.

use flotilla_e2e::{Cluster, namespace::in_namespace, scenario::rest};

use crate::ONE_AT_A_TIME;

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_at_rest_is_silent() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let cluster = Cluster::connect().await.expect("a cluster");
    if !cluster.is_local() {
        println!("skipped: another cluster's audit log cannot be read");
        return;
    }
    let requests = in_namespace(&cluster, "rest", |n| rest::requests_at_rest(n, 20))
        .await
        .expect("the scenario");
    assert!(requests.is_empty(), "{requests:#?}");
}
