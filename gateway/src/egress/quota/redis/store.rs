//! The meeting place in Redis: two hashes, each written by a script that compares the version first.

use std::sync::{Arc, LazyLock};

use futures::future::BoxFuture;
use redis::{AsyncCommands as _, RedisError, Script};
use uuid::Uuid;

use super::super::store::{Claim, Contents, Store, StoreError, Version};
use super::{Server, key, words};

/// Field with the version, in both hashes.
const VERSION: &str = "version";
/// What fields of the record begin with.
const ENTRY: &str = "entry:";
/// Seconds after which a record that nobody writes is forgotten: longer than any window.
const FORGOTTEN: u64 = 62 * 86_400;

/// KEYS: the hash. ARGV: the version it must have, empty for none; seconds to keep it; fields and values.
static WRITE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "if (redis.call('HGET', KEYS[1], 'version') or '') ~= ARGV[1] then return 0 end
         redis.call('HSET', KEYS[1], unpack(ARGV, 3))
         redis.call('EXPIRE', KEYS[1], ARGV[2])
         return 1",
    )
});

/// Claim and record of one group.
#[derive(Debug)]
pub struct Place {
    server: Arc<Server>,
    claim: String,
    record: String,
}

impl Place {
    /// Those of `group`.
    pub fn new(server: Arc<Server>, group: &str) -> Self {
        Self {
            server,
            claim: key(group, "claim"),
            record: key(group, "record"),
        }
    }

    /// Writes fields over `version`; gives the new one.
    async fn write(
        &self,
        hash: &str,
        version: &Version,
        fields: Vec<(String, String)>,
    ) -> Result<String, StoreError> {
        // Not a number: after a server has lost its data a version must not come again.
        let next = Uuid::new_v4().to_string();
        let mut script = WRITE.key(hash);
        script
            .arg(version.as_deref().unwrap_or_default())
            .arg(FORGOTTEN)
            .arg(VERSION)
            .arg(&next);
        for (field, value) in &fields {
            script.arg(field).arg(value);
        }
        let written = self
            .server
            .call(async |connection| script.invoke_async::<bool>(connection).await);
        match written.await {
            Ok(true) => Ok(next),
            Ok(false) => Err(StoreError::Conflict),
            Err(error) => Err(unclear(&error)),
        }
    }

    async fn all(&self, hash: &str) -> Result<Contents, StoreError> {
        self.server
            .call(async |connection| connection.hgetall::<_, Contents>(hash).await)
            .await
            .map_err(|error| unclear(&error))
    }
}

fn unclear(error: &RedisError) -> StoreError {
    StoreError::Unclear(words(error))
}

impl Store for Place {
    fn claim(&self) -> BoxFuture<'_, Result<Option<Claim>, StoreError>> {
        Box::pin(async {
            let mut fields = self.all(&self.claim).await?;
            let version = fields.remove(VERSION);
            let number = |field: &str| fields.get(field).and_then(|text| text.parse().ok()).unwrap_or(0);
            let (seconds, transitions) = (number("seconds"), number("transitions"));
            Ok(version.map(|version| Claim {
                holder: fields.remove("holder").unwrap_or_default(),
                seconds,
                renewal: version.clone(),
                transitions,
                version: Some(version),
            }))
        })
    }

    fn put_claim(&self, claim: Claim) -> BoxFuture<'_, Result<Claim, StoreError>> {
        Box::pin(async move {
            let fields = [
                ("holder", claim.holder.clone()),
                ("seconds", claim.seconds.to_string()),
                ("transitions", claim.transitions.to_string()),
            ];
            let fields = fields.map(|(field, value)| (field.to_owned(), value)).into();
            let version = self.write(&self.claim, &claim.version, fields).await?;
            Ok(Claim {
                renewal: version.clone(),
                version: Some(version),
                ..claim
            })
        })
    }

    fn read(&self) -> BoxFuture<'_, Result<(Version, Contents), StoreError>> {
        Box::pin(async {
            let mut fields = self.all(&self.record).await?;
            let version = fields.remove(VERSION);
            let entries = fields
                .into_iter()
                .filter_map(|(field, text)| Some((field.strip_prefix(ENTRY)?.to_owned(), text)));
            Ok((version, entries.collect()))
        })
    }

    fn write(&self, version: Version, entries: Contents) -> BoxFuture<'_, Result<Version, StoreError>> {
        Box::pin(async move {
            let fields = entries
                .into_iter()
                .map(|(entry, text)| (format!("{ENTRY}{entry}"), text))
                .collect();
            Self::write(self, &self.record, &version, fields).await.map(Some)
        })
    }

    fn place(&self) -> String {
        format!("the hash {} in Redis", self.record)
    }
}
