//! Where the gateways of a namespace meet: a Lease that says which of them deals out quotas, and a record of what was
//! dealt out. Both are overwritten by compare-and-swap only. Those of several namespaces meet [elsewhere](super::redis).

pub mod kube;
pub mod memory;

use std::collections::BTreeMap;
use std::fmt::Debug;

use futures::future::BoxFuture;

pub use memory::Memory;

/// Names a version of one object; none where the object does not exist.
pub type Version = Option<String>;
/// By provider, a checkpoint as text.
pub type Contents = BTreeMap<String, String>;

/// The Lease as it was read or written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claim {
    /// Pod of the holder; empty: nobody.
    pub holder: String,
    /// How long the claim lasts after its last renewal, in seconds.
    pub seconds: u32,
    /// Number of renewals as the store counts them, or whatever else differs after each.
    pub renewal: String,
    /// How often it has changed hands.
    pub transitions: u32,
    /// Its version.
    pub version: Version,
}

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Somebody else has written meanwhile.
    #[error("somebody else has written it meanwhile")]
    Conflict,
    /// It is not known whether it was done.
    #[error("{0}")]
    Unclear(String),
}

/// The meeting place.
pub trait Store: Debug + Send + Sync + 'static {
    /// The Lease; none if there is none.
    fn claim(&self) -> BoxFuture<'_, Result<Option<Claim>, StoreError>>;

    /// Writes the Lease over `claim.version`, as renewed now; gives its new version.
    fn put_claim(&self, claim: Claim) -> BoxFuture<'_, Result<Claim, StoreError>>;

    /// The record.
    fn read(&self) -> BoxFuture<'_, Result<(Version, Contents), StoreError>>;

    /// Writes entries of the record over `version`, leaving others as they are; gives the new version.
    fn write(&self, version: Version, entries: Contents) -> BoxFuture<'_, Result<Version, StoreError>>;

    /// Where the record is, for people.
    fn place(&self) -> String {
        "the ConfigMap flotilla-quota".to_owned()
    }
}
