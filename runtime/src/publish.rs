//! Results to an MQTT 5 broker, acknowledged.
//!
//! Every message counts as unsent until its own PUBACK has arrived with a reason that means success, and all unsent ones
//! are published again, over a fresh connection, after a failure. Duplicates are possible, losses are not; consumers drop
//! a `result_id` that they have seen. [`session`] is the service's one long-running connection; [`publish`] hands over a few
//! messages and returns.
//!
//! MQTT 3.1.1 is refused: its PUBACK cannot say that the broker's access rules dropped the message. rumqttc's packets are
//! used, and nothing of its event loop, which loses messages without a word when the broker comes back without a session
//! (`docs/decisions/0003-mqtt-client.md`). Its types appear below this module only.

mod endpoint;
mod error;
pub mod follow;
mod key;
mod link;
mod outbox;
pub mod session;
mod state;
mod tls;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use firmware_config::device::Mqtt;
pub use firmware_config::{Broker, NameError, TopicLevel};
use tokio::time::{Instant, sleep};

pub use endpoint::{Credentials, Endpoint};
pub use error::PublishError;
pub use key::device_key;
pub use outbox::{Outbox, OutboxError};
pub use state::{Presence, State};

use crate::result::{Kind, TaskResult, UidForm};
use error::End;
use link::{Happened, Hello, Link};
use outbox::{Drain, Few};

/// Largest payload that is published; pictures travel by DICOM or as files.
pub const MAX_PAYLOAD: usize = 128 << 10;

/// The pause between connections grows no longer than this.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What stands in front of the names of site and device in every topic.
const ROOT: &str = "scanside/v1";

/// A message with JSON in it, to be published with QoS 1, not retained.
pub use crate::store::OutboxMessage as Message;

impl Message {
    /// A result under `scanside/v1/{site}/{device}/`, as JSON.
    pub fn result(result: &TaskResult, site: &TopicLevel, device: &TopicLevel, uids: UidForm<'_>) -> Self {
        let branch = match result.kind {
            Kind::Final => "result",
            other => other.as_str(),
        };
        let topic = topic(site, device, &format!("{branch}/{}", result.task.name));
        Self { topic, payload: result.with_uids(uids).to_json().into_bytes() }
    }
}

/// `scanside/v1/{site}/{device}/{rest}`.
pub fn topic(site: &TopicLevel, device: &TopicLevel, rest: &str) -> String {
    format!("{ROOT}/{site}/{device}/{rest}")
}

/// How long to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Connections tried by [`publish`], at least 1; a session tries for ever.
    pub attempts: u32,
    /// Time for a connection to stand.
    pub connect: Duration,
    /// Time for an acknowledgement to come.
    pub acknowledge: Duration,
    /// Pause after the first failure; doubled after each further one.
    pub pause: Duration,
    /// The pause grows no longer than this.
    pub longest_pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            attempts: 5,
            connect: Duration::from_secs(5),
            acknowledge: Duration::from_secs(10),
            pause: Duration::from_millis(500),
            longest_pause: LONGEST_PAUSE,
        }
    }
}

/// Publishes all messages and returns when the broker has acknowledged each of them.
pub async fn publish(
    endpoint: &Endpoint,
    client_id: &str,
    messages: &[Message],
    patience: &Patience,
) -> Result<(), PublishError> {
    if let Some(m) = messages.iter().find(|m| m.payload.len() > MAX_PAYLOAD) {
        return Err(PublishError::TooLarge { topic: m.topic.clone(), bytes: m.payload.len() });
    }
    let hello = Hello { client_id: client_id.into(), keep_alive: Duration::from_secs(30), will: None };
    let unsent = Arc::new(Few::new(messages));
    let broker = &endpoint.broker;
    let mut pause = patience.pause;
    let mut attempts = 0;
    while !unsent.is_empty() {
        attempts += 1;
        let reason = match hand_over(endpoint, &hello, &unsent, patience).await {
            Ok(()) => break,
            Err(End::Refused(reason)) => {
                return Err(PublishError::Refused { broker: broker.clone(), reason });
            }
            Err(End::Untrusted(reason)) => {
                return Err(PublishError::Untrusted { broker: broker.clone(), reason });
            }
            Err(End::Lost(reason)) => reason,
        };
        tracing::warn!(%broker, attempts, %reason, "publication interrupted");
        if attempts >= patience.attempts {
            let (unsent, all) = (unsent.len(), messages.len());
            return Err(PublishError::Unacknowledged {
                broker: broker.clone(),
                unsent,
                all,
                attempts,
                reason,
            });
        }
        sleep(pause).await;
        pause = (pause * 2).min(patience.longest_pause);
    }
    Ok(())
}

/// Connects, logs in and takes leave: whether the broker lets this device in.
pub async fn probe(endpoint: &Endpoint, client_id: &str, patience: &Patience) -> Result<(), PublishError> {
    let hello = Hello { client_id: client_id.into(), keep_alive: Duration::from_secs(30), will: None };
    let broker = endpoint.broker.clone();
    match Link::open(endpoint, &hello, patience).await {
        Ok(link) => {
            link.leave().await;
            Ok(())
        }
        Err(End::Refused(reason)) => Err(PublishError::Refused { broker, reason }),
        Err(End::Untrusted(reason)) => Err(PublishError::Untrusted { broker, reason }),
        Err(End::Lost(reason)) => Err(PublishError::Unreachable { broker, reason }),
    }
}

/// One connection, until everything is acknowledged.
async fn hand_over(
    endpoint: &Endpoint,
    hello: &Hello,
    unsent: &Arc<Few>,
    patience: &Patience,
) -> Result<(), End> {
    let mut link = Link::open(endpoint, hello, patience).await?;
    let mut drain = Drain::new(unsent.clone());
    loop {
        drain.fill(&mut link).await?;
        if let Some(reason) = drain.refusal() {
            return Err(End::Refused(reason.into()));
        }
        if unsent.is_empty() {
            link.leave().await;
            return Ok(());
        }
        let never = std::future::pending::<()>();
        // The link itself gives up on an acknowledgement that does not come.
        let far = Instant::now() + patience.acknowledge * 2;
        if let Happened::Settled(settled) = link.wait(never, far).await? {
            drain.settle(settled).await?;
        }
    }
}

/// The endpoint that `[mqtt]` describes, with its files read.
pub fn endpoint(mqtt: &Mqtt) -> Result<Endpoint, PublishError> {
    let credentials = Credentials {
        ca: mqtt.ca.as_deref(),
        identity: mqtt.cert.as_deref().zip(mqtt.key.as_deref()),
        user: mqtt.user.as_deref(),
        password_file: mqtt.password_file.as_deref(),
    };
    Endpoint::new(mqtt.url.clone(), &credentials)
}

#[cfg(test)]
mod tests;
