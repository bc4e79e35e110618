//! Is the server of this crate like the real one? The same sequences of requests, generated from a seed, are sent to
//! both, and the answers compared without what is drawn by lot.
//!
//! [`sequence`] makes requests, [`exchange`] sends them to one server, [`plain`] takes the chance out of answers,
//! [`diverge`] finds the first answer that differs. Requests name objects of one sequence only, so sequences can run in
//! any order and side by side in one namespace. Kinds are those without effects on nodes; our own kinds are served in
//! another group, where no operator looks ([`stand_ins`]).

mod bodies;
mod exchange;
mod plain;
mod sequence;

pub use exchange::{Answered, Side, exchange};
pub use plain::plain;
pub use sequence::{Asked, sequence};

use std::sync::Arc;

use kube::Client;
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::controllers::{Controllers, Fate};
use crate::kinds::{Kind, Registry};

/// Where the objects of all sequences live.
pub const NAMESPACE: &str = "flotilla-conformance";

/// The group of the copies of our kinds.
pub const GROUP: &str = "conformance.flotilla.dev";

/// Definitions of our kinds in [`GROUP`], to be created on a real cluster.
pub fn stand_ins() -> Vec<Value> {
    let copies = flotilla_crds::yaml::all().into_iter().map(|(_, mut definition)| {
        let plural = definition["spec"]["names"]["plural"].clone();
        definition["metadata"]["name"] = json!(format!("{}.{GROUP}", plural.as_str().unwrap_or_default()));
        definition["spec"]["group"] = json!(GROUP);
        if let Some(names) = definition["spec"]["names"].as_object_mut() {
            names.remove("shortNames");
            names.remove("categories");
        }
        definition
    });
    copies.collect()
}

/// The built-in kinds and the copies.
pub fn registry() -> Registry {
    Registry::new(
        stand_ins()
            .iter()
            .filter_map(|definition| Kind::from_definition(definition).ok()),
    )
}

/// A simulated server, with its garbage collector for as long as the controllers are kept.
pub fn simulated(seed: u64) -> (Client, Controllers) {
    let cluster = Cluster::with_registry(registry(), seed);
    cluster.namespace(NAMESPACE);
    let controllers = Controllers::start(&cluster, Arc::new(|_: &Cluster, _: &Value| Fate::Unready));
    (Client::new(cluster.service(), NAMESPACE), controllers)
}

/// Sends the sequences of these seeds to a simulated server and to another one: where the answers differ, a text for each sequence.
///
/// # Errors
/// When the other server cannot be reached.
pub async fn compare(there: &Client, seeds: impl Iterator<Item = u64>) -> Result<Vec<String>, String> {
    let (here, _controllers) = simulated(1);
    let mut divergences = Vec::new();
    for seed in seeds {
        let asked = sequence(seed, NAMESPACE);
        let (ours, theirs) = (exchange(&here, &asked).await?, exchange(there, &asked).await?);
        divergences.extend(diverge(&asked, &ours, &theirs).map(|text| format!("sequence {seed}: {text}")));
    }
    Ok(divergences)
}

/// The first request that two servers answer differently, with both answers.
pub fn diverge(asked: &[Asked], here: &[Answered], there: &[Answered]) -> Option<String> {
    for (index, ((asked, here), there)) in asked.iter().zip(here).zip(there).enumerate() {
        let (ours, theirs) = (plain(here, asked), plain(there, asked));
        if ours != theirs {
            return Some(format!(
                "request {index} {asked:?}\n  here  {} {}\n  there {} {}\n  plainly here  {ours}\n  plainly there {theirs}",
                here.code, here.body, there.code, there.body
            ));
        }
    }
    None
}
