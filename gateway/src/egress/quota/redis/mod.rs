//! Quotas that gateways of several namespaces or clusters hold together: they meet in Redis or Valkey.
//!
//! The protocol is that of one namespace ([`flotilla_core::quota`]); the meeting place and the way of messages are others,
//! because gateways of another namespace or cluster have no address here and no object in common.
//!
//! | in a namespace | in a group |
//! |---|---|
//! | Lease `flotilla-quota` | hash `flotilla:{<group>}:claim`, compare-and-set by a script ([`store`]) |
//! | ConfigMap `flotilla-quota` | hash `flotilla:{<group>}:record`, the same |
//! | `POST` to the admin port | list `flotilla:{<group>}:to:<gateway>`, from which that one takes ([`wire`]) |
//!
//! A report, the write and the answer are three round trips to Redis one after the other. No request waits for them: leases
//! are renewed ahead. Without Redis a gateway uses its lease up, and then its requests wait.
//!
//! Who has ended cannot be told from who is cut off, as it can where the API server knows every pod. So nobody's lease ends
//! before its time, and quotas of a group have no floor. Whoever has Redis's password is trusted with the group's quotas.

pub mod store;
pub mod wire;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _,
    RedisError, RedisResult, TlsCertificates,
};
use tokio::sync::Mutex;

pub use store::Place;
pub use wire::Wire;

/// For a connection, and for one call.
const CALL_TIMEOUT: Duration = Duration::from_secs(1);
/// Files of the mounted Secret, all optional.
const USERNAME: &str = "username";
const PASSWORD: &str = "password";
/// The authorities that the server's certificate may come from, as PEM; without it those that Mozilla trusts.
const AUTHORITY: &str = "ca.crt";
/// What the gateway shows to a server that asks for a certificate, as PEM; the key is that of the certificate.
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";

/// A server. Connections are made when they are needed, with the credentials of that moment.
pub struct Server {
    address: ConnectionInfo,
    secret: PathBuf,
    /// The one for everything that does not block.
    shared: Mutex<Option<MultiplexedConnection>>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Redis at {}", self.address.addr())
    }
}

impl Server {
    /// The server at `address` (`redis://host:port/database`, or `rediss://` for TLS), with the user name, the password, the
    /// certificate's authority and the own certificate from files in `secret`.
    ///
    /// # Errors
    /// With a sentence, when `address` is none, has a password in it or asks for certificates not to be looked at.
    pub fn new(address: &str, secret: &Path) -> Result<Self, String> {
        let example = "write for example rediss://redis.tools.svc:6379";
        if !["redis://", "rediss://"]
            .iter()
            .any(|scheme| address.starts_with(scheme))
        {
            return Err(format!(
                "the address of Redis must begin with rediss:// (TLS) or redis://; {example}"
            ));
        }
        // Neither error nor log may show what is in front of the host.
        let address = address
            .into_connection_info()
            .map_err(|_| format!("the address of Redis cannot be read; {example}"))?;
        let settings = address.redis_settings();
        if settings.username().is_some() || settings.password().is_some() {
            return Err(format!(
                "the address of Redis has credentials in it; put them into a Secret, and {example}"
            ));
        }
        if let ConnectionAddr::TcpTls { insecure, .. } = address.addr() {
            if *insecure {
                return Err(format!(
                    "the certificate of Redis is always looked at; put its authority into {AUTHORITY} of the Secret, and {example}"
                ));
            }
            // The client takes the process's. An error says that there is one, and there is no other than this.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        Ok(Self {
            address,
            secret: secret.to_owned(),
            shared: Mutex::default(),
        })
    }

    /// A connection of its own, whose calls may take `longest`.
    async fn connect(&self, longest: Duration) -> RedisResult<MultiplexedConnection> {
        let mut settings = self.address.redis_settings().clone();
        if let Some(username) = self.secret(USERNAME).await {
            settings = settings.set_username(username);
        }
        if let Some(password) = self.secret(PASSWORD).await {
            settings = settings.set_password(password);
        }
        let address = self.address.clone().set_redis_settings(settings);
        let client = if matches!(address.addr(), ConnectionAddr::TcpTls { .. }) {
            let pair = self.secret(CERTIFICATE).await.zip(self.secret(KEY).await);
            let certificates = TlsCertificates {
                client_tls: pair.map(|(certificate, key)| ClientTlsConfig {
                    client_cert: certificate.into_bytes(),
                    client_key: key.into_bytes(),
                }),
                root_cert: self.secret(AUTHORITY).await.map(String::into_bytes),
            };
            Client::build_with_tls(address, certificates)?
        } else {
            Client::open(address)?
        };
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CALL_TIMEOUT))
            .set_response_timeout(Some(longest));
        client.get_multiplexed_async_connection_with_config(&config).await
    }

    async fn secret(&self, file: &str) -> Option<String> {
        let text = tokio::fs::read_to_string(self.secret.join(file)).await.ok()?;
        let text = text.trim();
        (!text.is_empty()).then(|| text.to_owned())
    }

    /// Does `call` on the shared connection. One that failed is not used again: the server, or its password, is another.
    async fn call<T>(
        &self,
        call: impl AsyncFnOnce(&mut MultiplexedConnection) -> RedisResult<T>,
    ) -> RedisResult<T> {
        let known = self.shared.lock().await.clone();
        let mut connection = match known {
            Some(connection) => connection,
            None => {
                let fresh = self.connect(CALL_TIMEOUT).await?;
                *self.shared.lock().await = Some(fresh.clone());
                fresh
            }
        };
        let result = call(&mut connection).await;
        if result.is_err() {
            *self.shared.lock().await = None;
        }
        result
    }
}

/// The key of `what` in a group. What is in braces decides where a cluster of servers keeps it.
fn key(group: &str, what: &str) -> String {
    format!("flotilla:{{{group}}}:{what}")
}

/// An error in words, without what was sent.
fn words(error: &RedisError) -> String {
    match error.code() {
        Some(code) => format!("Redis answered {code}"),
        None => format!("Redis: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_and_nothing_secret_is_repeated() {
        let new = |address: &str| Server::new(address, Path::new("/nowhere"));
        for address in [
            "redis://redis.tools.svc:6380/2",
            "rediss://redis.tools.svc:6380/2",
        ] {
            let shown = new(address).map(|server| format!("{server:?}"));
            assert_eq!(shown, Ok("Redis at redis.tools.svc:6380".to_owned()), "{address}");
        }
        for wrong in [
            "redis.tools.svc:6379",
            "http://redis",
            "redis://:hunter2@redis",
            "redis://bob:hunter2@redis/1",
            "redis://hunter2:x:y@/",
            "rediss://:hunter2@redis",
            "rediss://redis:6379/#insecure",
        ] {
            let sentence = new(wrong).expect_err(wrong);
            assert!(
                sentence.contains("rediss://redis.tools.svc:6379") && !sentence.contains("hunter2"),
                "{sentence}"
            );
        }
    }
}
