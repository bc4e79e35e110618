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

use serde_json::{Value, json};

use crate::kinds::{Kind, Registry};

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
