//! Conversations stay where they are.

use flotilla_e2e::scenario::sessions;
use flotilla_e2e::with_namespace;

#[tokio::test(flavor = "multi_thread")]
async fn a_release_and_the_loss_of_a_gateway_switch_nobody() {
    with_namespace("sessions", |namespace| async move {
        let outcome = sessions::through_a_release(namespace, 100).await?;
        println!("{outcome:?}");
        anyhow::ensure!(outcome.switched == 0, "{outcome:?}");
        anyhow::ensure!(
            outcome.on_candidate > 0 && outcome.led_over > 0,
            "both revisions served: {outcome:?}"
        );
        Ok(())
    })
    .await;
}
