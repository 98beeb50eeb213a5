//! Results to an MQTT broker (3.1.1), acknowledged.
//!
//! rumqttc's types appear in this module only. It loses QoS 1 messages without a word when the broker comes back
//! without a session, so nothing is left to it: every message counts as unsent until its own PUBACK has arrived, and all
//! unsent ones are published again, over a fresh connection, after a failure. Duplicates are possible, losses are not;
//! consumers drop a `result_id` that they have seen.

mod names;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use rumqttc::{
    AsyncClient, ConnectReturnCode, ConnectionError, Event, EventLoop, MqttOptions, Outgoing, Packet, QoS,
};
use tokio::time::{Instant, sleep, timeout, timeout_at};

pub use names::{Broker, TopicLevel};

use crate::result::{Kind, TaskResult};

/// Largest payload that is published; pictures travel by DICOM or as files.
pub const MAX_PAYLOAD: usize = 128 << 10;

/// Largest packet either way: a payload and its topic. rumqttc's own default is 10 KiB.
const MAX_PACKET: usize = 256 << 10;

/// Unacknowledged messages at a time.
const IN_FLIGHT: u16 = 16;

/// The pause between connections grows no longer than this.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A message, to be published with QoS 1, not retained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The topic.
    pub topic: String,
    /// The payload.
    pub payload: Vec<u8>,
}

impl Message {
    /// A result under `scanside/v1/{site}/{device}/`, as JSON, without DICOM UIDs unless the broker is on this machine.
    pub fn result(result: &TaskResult, site: &TopicLevel, device: &TopicLevel, broker: &Broker) -> Self {
        let branch = match result.kind {
            Kind::Final => "result",
            other => other.as_str(),
        };
        let topic = format!("scanside/v1/{site}/{device}/{branch}/{}", result.task.name);
        let json = if broker.is_loopback() { result.to_json() } else { result.without_uids().to_json() };
        Self { topic, payload: json.into_bytes() }
    }
}

/// How long to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Connections tried, at least 1.
    pub attempts: u32,
    /// Time for a connection to stand, to the second.
    pub connect: Duration,
    /// Time for the next acknowledgement to come.
    pub acknowledge: Duration,
    /// Pause after the first failure; doubled after each further one.
    pub pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            attempts: 5,
            connect: Duration::from_secs(5),
            acknowledge: Duration::from_secs(10),
            pause: Duration::from_millis(500),
        }
    }
}

/// Why messages were not published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The address is none that can be used.
    #[error("the broker's address is {found:?}, expected mqtt://HOST:PORT ({detail})")]
    Address {
        /// What was given; without credentials.
        found: String,
        /// What is wrong.
        detail: &'static str,
    },
    /// A name cannot stand in a topic.
    #[error(
        "{found:?} cannot stand in an MQTT topic, expected 1 to 64 characters without '/', '+', '#', spaces or control characters"
    )]
    Level {
        /// The name.
        found: String,
    },
    /// A message is too large.
    #[error("the message for {topic} has {bytes} bytes, expected at most {MAX_PAYLOAD}")]
    TooLarge {
        /// Its topic.
        topic: String,
        /// Its payload.
        bytes: usize,
    },
    /// The broker does not want this client.
    #[error("the broker {broker} refused the connection ({reason}); see its log and access rules")]
    Refused {
        /// The broker.
        broker: Broker,
        /// The return code's name.
        reason: String,
    },
    /// All attempts failed.
    #[error(
        "{unsent} of {all} messages were not acknowledged by the broker {broker} after {attempts} connections \
         ({reason}); check that it runs and can be reached"
    )]
    Unacknowledged {
        /// The broker.
        broker: Broker,
        /// Messages without an acknowledgement.
        unsent: usize,
        /// Messages in all.
        all: usize,
        /// Connections tried.
        attempts: u32,
        /// What ended the last one.
        reason: String,
    },
}

impl PublishError {
    /// Whether the user's flag is at fault, not the machine or the network.
    pub fn is_bad_input(&self) -> bool {
        matches!(self, Self::Address { .. } | Self::Level { .. })
    }
}

/// Publishes all messages and returns when the broker has acknowledged each of them.
pub async fn publish(
    broker: &Broker,
    client_id: &str,
    messages: &[Message],
    patience: &Patience,
) -> Result<(), PublishError> {
    if let Some(m) = messages.iter().find(|m| m.payload.len() > MAX_PAYLOAD) {
        return Err(PublishError::TooLarge { topic: m.topic.clone(), bytes: m.payload.len() });
    }
    let mut unsent: BTreeSet<usize> = (0..messages.len()).collect();
    let mut pause = patience.pause;
    let mut attempts = 0;
    while !unsent.is_empty() {
        attempts += 1;
        let reason = match connection(broker, client_id, messages, &mut unsent, patience).await {
            Ok(()) => break,
            Err(End::Refused(reason)) => {
                return Err(PublishError::Refused { broker: broker.clone(), reason });
            }
            Err(End::Lost(reason)) => reason,
        };
        tracing::warn!(%broker, attempts, %reason, "publication interrupted");
        if attempts >= patience.attempts {
            let (broker, unsent, all) = (broker.clone(), unsent.len(), messages.len());
            return Err(PublishError::Unacknowledged { broker, unsent, all, attempts, reason });
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    Ok(())
}

/// Why a connection ended before its work was done.
enum End {
    /// Trying again is of no use.
    Refused(String),
    /// Trying again may help.
    Lost(String),
}

impl From<ConnectionError> for End {
    fn from(error: ConnectionError) -> Self {
        match error {
            ConnectionError::ConnectionRefused(code) if code != ConnectReturnCode::ServiceUnavailable => {
                Self::Refused(format!("{code:?}"))
            }
            other => Self::Lost(other.to_string()),
        }
    }
}

/// One connection: publishes what is unsent, in order, and takes off what is acknowledged.
async fn connection(
    broker: &Broker,
    client_id: &str,
    messages: &[Message],
    unsent: &mut BTreeSet<usize>,
    patience: &Patience,
) -> Result<(), End> {
    let mut options = MqttOptions::new(client_id, broker.host(), broker.port());
    options
        .set_clean_session(true)
        .set_keep_alive(Duration::from_secs(30))
        .set_inflight(IN_FLIGHT)
        .set_max_packet_size(MAX_PACKET, MAX_PACKET);
    let (client, mut events) = AsyncClient::new(options, unsent.len() + 1);
    let mut network = events.network_options();
    network.set_connection_timeout(patience.connect.as_secs().max(1));
    events.set_network_options(network);

    let mut queue: VecDeque<usize> = unsent.iter().copied().collect();
    for &i in &queue {
        let Message { topic, payload } = &messages[i];
        client
            .try_publish(topic, QoS::AtLeastOnce, false, payload.clone())
            .map_err(|e| End::Lost(e.to_string()))?;
    }
    // More than one a packet identifier: rumqttc tells of its reuse before it tells of the acknowledgement that freed it.
    let mut in_flight: HashMap<u16, VecDeque<usize>> = HashMap::new();
    let mut deadline = Instant::now() + patience.connect + patience.acknowledge;
    while !unsent.is_empty() {
        let event = timeout_at(deadline, events.poll())
            .await
            .map_err(|_| End::Lost(format!("no acknowledgement within {:?}", patience.acknowledge)))??;
        match event {
            // Packet identifiers are given out in the order in which messages were handed over.
            Event::Outgoing(Outgoing::Publish(id)) => {
                in_flight.entry(id).or_default().extend(queue.pop_front());
            }
            Event::Incoming(Packet::PubAck(ack)) => {
                if let Some(i) = in_flight.get_mut(&ack.pkid).and_then(VecDeque::pop_front) {
                    unsent.remove(&i);
                    deadline = Instant::now() + patience.acknowledge;
                }
            }
            _ => {}
        }
    }
    take_leave(&client, &mut events).await;
    Ok(())
}

/// Tells the broker that the connection ends on purpose. Everything is acknowledged, so a failure does not matter.
async fn take_leave(client: &AsyncClient, events: &mut EventLoop) {
    if client.try_disconnect().is_ok() {
        let said = async {
            while !matches!(events.poll().await, Ok(Event::Outgoing(Outgoing::Disconnect)) | Err(_)) {}
        };
        let _ = timeout(Duration::from_secs(2), said).await;
    }
}

#[cfg(test)]
mod tests;
