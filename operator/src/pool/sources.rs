//! What a revision is made from besides its spec: the prompt and the files.
//!
//! The operator watches the metadata of ConfigMaps only. Their bytes are read when the resourceVersion has moved since
//! they were hashed, and again when a snapshot has to be made of them; in steady state nothing is read at all. Memory
//! holds hashes, never bytes.

use std::collections::{BTreeMap, HashMap, HashSet};

use flotilla_core::revision::hash_source;
use flotilla_crds::agent_pool::Agent;
use k8s_openapi::api::core::v1::ConfigMap;
use parking_lot::Mutex;

use super::build::{pod, snapshot};
use crate::caches::ConfigMapMeta;
use crate::runtime::{Cache, Error, Key, Visit};

/// Most bytes of all sources of a revision together: what one ConfigMap may hold. An agent that needs more has it in
/// its image.
pub const MAX_BYTES: usize = 1 << 20;

/// Files by name.
pub type Files = BTreeMap<String, Vec<u8>>;

/// Where the bytes of a source come from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Origin {
    /// The spec itself.
    Text(String),
    /// One key of a ConfigMap.
    Key { config_map: String, key: String },
    /// All keys of a ConfigMap.
    All { config_map: String },
}

/// The sources of a spec, as far as they are there.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sources {
    /// Hash of each by name.
    pub hashes: BTreeMap<String, String>,
    /// Bytes of those that were read just now.
    pub files: BTreeMap<String, Files>,
    /// Bytes of all together.
    pub bytes: usize,
    /// A sentence for each that is missing.
    pub missing: Vec<String>,
    /// A sentence for each that is there and cannot be read.
    pub unread: Vec<String>,
}

#[derive(Clone, Debug)]
struct Hashed {
    uid: Option<String>,
    version: Option<String>,
    found: Result<(String, usize), String>,
}

/// Hashes of ConfigMaps by the pools that use them.
#[derive(Debug, Default)]
pub struct SourceReader {
    known: Mutex<HashMap<Key, HashMap<Origin, Hashed>>>,
    /// Pools of which a source could not be read at the last look.
    stumbled: Mutex<HashSet<Key>>,
}

impl SourceReader {
    /// Hashes the sources of an agent; reads what has changed since it was last hashed. `with_bytes`: reads what has no
    /// snapshot among `config_maps` as well, to make one.
    ///
    /// A ConfigMap that is not there is in [`Sources::missing`], one that cannot be read in [`Sources::unread`].
    ///
    /// # Errors
    /// Those of [`Visit::read`], once: what passes by the next try need not be told.
    pub async fn read(
        &self,
        visit: &Visit,
        agent: &Agent,
        config_maps: &Cache<ConfigMapMeta>,
        with_bytes: bool,
    ) -> Result<Sources, Error> {
        let pool = visit.key();
        let known = self.known.lock().get(pool).cloned().unwrap_or_default();
        let mut next = HashMap::new();
        let mut sources = Sources::default();
        let has_stumbled = self.stumbled.lock().remove(pool);
        for (name, origin) in origins(agent) {
            let (config_map, meta) = match &origin {
                Origin::Text(text) => {
                    let files = Files::from([(pod::PROMPT.to_owned(), text.clone().into_bytes())]);
                    sources.add(&name, hash(&files), size(&files));
                    sources.files.insert(name, files);
                    continue;
                }
                Origin::Key { config_map, .. } | Origin::All { config_map } => {
                    let key = Key::new(&pool.namespace, config_map);
                    let meta = config_maps.get(&key);
                    (key, meta)
                }
            };
            let Some(meta) = meta else {
                sources
                    .missing
                    .push(format!("ConfigMap {} does not exist; create it", config_map.name));
                continue;
            };
            let current = known.get(&origin).filter(|hashed| {
                hashed.uid == meta.metadata.uid && hashed.version == meta.metadata.resource_version
            });
            let has_snapshot = |hash: &str| {
                let name = snapshot::name(&pool.name, &name, hash);
                config_maps.get(&Key::new(&pool.namespace, name)).is_some()
            };
            let hashed = match current {
                Some(Hashed {
                    found: Ok((hash, bytes)),
                    ..
                }) if !with_bytes || has_snapshot(hash) => {
                    sources.add(&name, hash.clone(), *bytes);
                    current.cloned()
                }
                Some(Hashed {
                    found: Err(sentence), ..
                }) => {
                    sources.missing.push(sentence.clone());
                    current.cloned()
                }
                _ => match visit.read::<ConfigMap>(&config_map).await {
                    Ok(live) => live.map(|live| self.take_in(&mut sources, &name, &origin, live)),
                    Err(error) => {
                        self.stumbled.lock().insert(pool.clone());
                        if !has_stumbled {
                            return Err(error);
                        }
                        sources.unread.push(error.in_full());
                        continue;
                    }
                },
            };
            match hashed {
                Some(hashed) => drop(next.insert(origin, hashed)),
                None => sources
                    .missing
                    .push(format!("ConfigMap {} does not exist; create it", config_map.name)),
            }
        }
        self.known.lock().insert(pool.clone(), next);
        Ok(sources)
    }

    fn take_in(&self, sources: &mut Sources, name: &str, origin: &Origin, live: ConfigMap) -> Hashed {
        let (uid, version) = (live.metadata.uid.clone(), live.metadata.resource_version.clone());
        let found = select(origin, live).map(|files| {
            let (hash, bytes) = (hash(&files), size(&files));
            sources.add(name, hash.clone(), bytes);
            sources.files.insert(name.to_owned(), files);
            (hash, bytes)
        });
        if let Err(sentence) = &found {
            sources.missing.push(sentence.clone());
        }
        Hashed { uid, version, found }
    }

    /// Drops what is known for a pool that is gone.
    pub fn forget(&self, pool: &Key) {
        self.known.lock().remove(pool);
        self.stumbled.lock().remove(pool);
    }
}

impl Sources {
    fn add(&mut self, name: &str, hash: String, bytes: usize) {
        self.hashes.insert(name.to_owned(), hash);
        self.bytes += bytes;
    }
}

/// The names of ConfigMaps an agent refers to.
pub fn config_maps(agent: &Agent) -> impl Iterator<Item = &str> {
    let prompt = agent
        .prompt
        .iter()
        .filter_map(|prompt| prompt.config_map_key_ref.as_ref());
    let files = agent.files.iter().map(|file| file.config_map_ref.name.as_str());
    prompt.map(|reference| reference.name.as_str()).chain(files)
}

fn origins(agent: &Agent) -> Vec<(String, Origin)> {
    let prompt = agent
        .prompt
        .as_ref()
        .map(|prompt| match (&prompt.text, &prompt.config_map_key_ref) {
            (_, Some(reference)) => Origin::Key {
                config_map: reference.name.clone(),
                key: reference.key.clone(),
            },
            (text, None) => Origin::Text(text.clone().unwrap_or_default()),
        });
    let files = agent.files.iter().map(|file| {
        (
            pod::file_source(&file.name),
            Origin::All {
                config_map: file.config_map_ref.name.clone(),
            },
        )
    });
    prompt
        .map(|origin| (pod::PROMPT.to_owned(), origin))
        .into_iter()
        .chain(files)
        .collect()
}

/// The files a source takes from a ConfigMap.
fn select(origin: &Origin, config_map: ConfigMap) -> Result<Files, String> {
    let name = config_map.metadata.name.unwrap_or_default();
    let text = config_map
        .data
        .unwrap_or_default()
        .into_iter()
        .map(|(key, text)| (key, text.into_bytes()));
    let binary = config_map
        .binary_data
        .unwrap_or_default()
        .into_iter()
        .map(|(key, bytes)| (key, bytes.0));
    let mut files: Files = text.chain(binary).collect();
    match origin {
        Origin::Key { key, .. } => match files.remove(key) {
            Some(bytes) => Ok(Files::from([(pod::PROMPT.to_owned(), bytes)])),
            None => {
                let keys: Vec<_> = files.keys().map(String::as_str).collect();
                let there = if keys.is_empty() {
                    "none".to_owned()
                } else {
                    keys.join(", ")
                };
                Err(format!(
                    "ConfigMap {name} has no key {key}; add it (keys there: {there})"
                ))
            }
        },
        Origin::Text(_) | Origin::All { .. } => Ok(files),
    }
}

fn hash(files: &Files) -> String {
    hash_source(
        files
            .iter()
            .map(|(name, bytes)| (name.as_str(), bytes.as_slice())),
    )
}

fn size(files: &Files) -> usize {
    files.iter().map(|(name, bytes)| name.len() + bytes.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::super::build::fixtures::pool;
    use super::*;
    use k8s_openapi::ByteString;
    use serde_json::json;

    fn config_map() -> ConfigMap {
        let mut config_map: ConfigMap =
            serde_json::from_value(json!({"metadata": {"name": "c"}, "data": {"a": "1", "b": "2"}})).unwrap();
        config_map.binary_data = Some([("z".to_owned(), ByteString(vec![0xff]))].into());
        config_map
    }

    #[test]
    fn a_key_is_one_file_and_a_config_map_all_of_them() {
        let key = |key: &str| Origin::Key {
            config_map: "c".into(),
            key: key.into(),
        };
        assert_eq!(
            select(&key("a"), config_map()),
            Ok(Files::from([("prompt".into(), b"1".to_vec())]))
        );
        assert_eq!(
            select(&key("z"), config_map()),
            Ok(Files::from([("prompt".into(), vec![0xff])]))
        );
        assert_eq!(
            select(
                &Origin::All {
                    config_map: "c".into()
                },
                config_map()
            )
            .unwrap()
            .len(),
            3
        );
        let sentence = select(&key("x"), config_map()).unwrap_err();
        assert_eq!(sentence, "ConfigMap c has no key x; add it (keys there: a, b, z)");
    }

    #[test]
    fn a_pool_names_its_config_maps() {
        let pool = pool(json!({"agent": {
            "prompt": {"configMapKeyRef": {"name": "p", "key": "k"}},
            "files": [{"name": "prompt", "configMapRef": {"name": "f"}, "mountPath": "/x"}],
        }}));
        assert_eq!(config_maps(&pool.spec.agent).collect::<Vec<_>>(), ["p", "f"]);
        let names: Vec<_> = origins(&pool.spec.agent)
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(names, ["prompt", "file-prompt"]);
    }

    #[test]
    fn moving_a_prompt_into_a_config_map_is_no_change_of_bytes() {
        let text = Files::from([("prompt".into(), b"1".to_vec())]);
        let origin = Origin::Key {
            config_map: "c".into(),
            key: "a".into(),
        };
        assert_eq!(hash(&text), hash(&select(&origin, config_map()).unwrap()));
    }
}
