//! Bad input that only shows in the cluster. What the API server itself refuses is in `admission.rs`.

use flotilla_e2e::scenario::bad_input;
use flotilla_e2e::with_namespace;

macro_rules! scenarios {
    ($($name:ident),* $(,)?) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            with_namespace(&stringify!($name).replace('_', "-"), bad_input::$name).await;
        }
    )*};
}

scenarios!(
    missing_config_map,
    missing_provider,
    missing_secret,
    missing_agent_secret,
    missing_pool,
    unpullable_image,
    quota_zero,
    name_taken,
    bad_pod_template,
);
