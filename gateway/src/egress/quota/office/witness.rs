//! The witness of this gateway's own use is told of it, see [`flotilla_core::quota`].

use std::time::Duration;

use flotilla_core::quota::Vouch;
use tracing::debug;

use super::super::link::Word;
use super::Session;
use super::names::pod_of;

/// For a witness's word: shorter than the shortest lease.
const VOUCH_TIMEOUT: Duration = Duration::from_millis(200);

/// What a witness said.
pub(super) struct Said {
    provider: String,
    holder: String,
    seq: u64,
    agreed: bool,
}

impl Session<'_> {
    /// Tells a witness.
    pub(super) fn ask(&self, provider: &str, by: String, vouch: Vouch) {
        let (transport, provider) = (self.office.transport.clone(), provider.to_owned());
        let (holder, seq) = (vouch.holder.clone(), vouch.seq);
        self.witnesses.push(Box::pin(async move {
            let pod = pod_of(&by).unwrap_or_default().to_owned();
            let word = Word {
                provider: provider.clone(),
                by,
                vouch,
            };
            let told = tokio::time::timeout(VOUCH_TIMEOUT, transport.vouch(&pod, word)).await;
            let agreed = match told {
                Ok(Ok(())) => true,
                Ok(Err(error)) => {
                    debug!(provider, pod, %error, "a witness of this gateway's quota did not agree");
                    false
                }
                Err(_) => false,
            };
            Said {
                provider,
                holder,
                seq,
                agreed,
            }
        }));
    }

    pub(super) fn hear(&mut self, said: Said) {
        let now = self.office.clock.now();
        let Some(desk) = self.desks.get_mut(&said.provider) else {
            return;
        };
        let actions = if said.agreed {
            desk.allocator.vouched(&said.holder, said.seq)
        } else {
            // It has no answer to wait for, and reports again.
            desk.waiting.remove(&said.holder);
            desk.allocator.not_vouched(&said.holder, said.seq, now)
        };
        self.act(&said.provider, actions);
    }
}
