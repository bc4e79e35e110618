//! Everything the server knows, behind one lock.

use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde_json::Value;

use crate::kinds::{KindId, Registry};
use crate::store::{Key, Store};

/// What admission says to an object that is about to be created: a sentence refuses it.
pub type Admission = Arc<dyn Fn(&Value) -> Option<String> + Send + Sync>;

/// The server's state.
pub struct State {
    /// The kinds.
    pub registry: Registry,
    /// The objects.
    pub store: Store,
    seed: u64,
    random: StdRng,
    addresses: u32,
    admission: Vec<(KindId, Admission)>,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "State(at {})", self.store.revision())
    }
}

/// What generated names end with: no vowels, no look-alikes.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

impl State {
    /// An empty server. `seed` decides names, UIDs and whatever else is drawn by lot.
    pub fn new(registry: Registry, seed: u64) -> Self {
        Self {
            store: Store::new(registry.len()),
            registry,
            seed,
            random: StdRng::seed_from_u64(seed),
            addresses: 0,
            admission: Vec::new(),
        }
    }

    /// The UID of an object that is about to be made. It is drawn from the seed, where the object lives, and how many lived there
    /// before, so that what else happened in a run has no part in it.
    pub fn uid(&self, key: &Key) -> String {
        let mut hasher = DefaultHasher::new();
        (self.seed, key, self.store.ended(key)).hash(&mut hasher);
        let bits: u128 = StdRng::seed_from_u64(hasher.finish()).random();
        let bits = (bits & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
        let text = format!("{bits:032x}");
        format!(
            "{}-{}-{}-{}-{}",
            &text[..8],
            &text[8..12],
            &text[12..16],
            &text[16..20],
            &text[20..]
        )
    }

    /// Five letters for a generated name.
    pub fn suffix(&mut self) -> String {
        (0..5)
            .map(|_| char::from(ALPHABET[self.random.random_range(0..ALPHABET.len())]))
            .collect()
    }

    /// The next free address of a Service.
    pub fn address(&mut self) -> String {
        self.addresses += 1;
        format!("10.96.{}.{}", self.addresses / 250, self.addresses % 250 + 1)
    }

    /// Asks `admission` about each creation of a kind from now on; `None` ends that.
    pub fn admit(&mut self, kind: KindId, admission: Option<Admission>) {
        self.admission.retain(|(other, _)| *other != kind);
        self.admission
            .extend(admission.map(|admission| (kind, admission)));
    }

    /// Why an object may not be created.
    pub fn refusal(&self, kind: KindId, object: &Value) -> Option<String> {
        self.admission
            .iter()
            .filter(|(other, _)| *other == kind)
            .find_map(|(_, admission)| admission(object))
    }
}
