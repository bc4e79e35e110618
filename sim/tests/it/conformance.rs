//! Two simulated servers with different seeds answer the same requests alike: this holds the generator of requests and the
//! comparison to account with which `tests/conformance.rs` looks at a real server.

use flotilla_sim::conformance::{compare, simulated};

#[tokio::test(start_paused = true)]
async fn two_simulated_servers_agree() {
    let (there, _controllers) = simulated(2);
    let divergences = compare(&there, 0..300).await.unwrap();
    assert!(divergences.is_empty(), "{}", divergences.join("\n"));
}
