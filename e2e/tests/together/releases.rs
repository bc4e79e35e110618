//! A sample of the scenarios of releases; `make acceptance` runs all of them.

use flotilla_e2e::scenario::releases;
use flotilla_e2e::with_namespace;

async fn run(name: &str) {
    let (_, scenario) = releases::all()
        .find(|(known, _)| *known == name)
        .unwrap_or_else(|| panic!("there is no scenario {name}"));
    with_namespace(&name.replace('_', "-"), scenario).await;
}

macro_rules! sample {
    ($($name:ident),* $(,)?) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            run(stringify!($name)).await;
        }
    )*};
}

sample!(
    aborted,
    retried_after_an_abort,
    superseded,
    back_to_stable,
    two_skips_of_one_step_pass_one,
    a_preview_is_smaller_and_has_no_traffic,
    good_then_bad_then_bad_then_good,
    a_config_map_alone_and_its_bytes_back,
    deleted_under_way,
);
