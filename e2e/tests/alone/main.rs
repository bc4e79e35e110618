//! Scenarios that need the whole cluster for themselves, one after the other.

mod quiet;
mod survive;

/// Held by the scenario that runs.
static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
