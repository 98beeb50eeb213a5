//! What arrives at a broker.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, Publish};
use rumqttc::v5::{Client, Event, MqttOptions};

/// A message as a subscriber gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// Its topic.
    pub topic: String,
    /// Its payload.
    pub payload: Vec<u8>,
    /// The quality of service with which it came.
    pub qos: u8,
    /// Whether the broker had kept it.
    pub retained: bool,
    /// What the payload is said to be.
    pub content_type: Option<String>,
    /// After how many seconds the broker would have dropped it.
    pub expiry: Option<u32>,
}

/// Collects the messages of a subscription in the background until it is dropped.
pub struct Subscriber {
    client: Client,
    messages: Receiver<Received>,
}

impl Subscriber {
    /// Subscribes with QoS 1 at a broker on this machine; returns once the broker has acknowledged it.
    pub fn new(port: u16, filter: &str) -> Result<Self> {
        Self::with(port, filter, QoS::AtLeastOnce)
    }

    /// As [`Self::new`], with QoS 0: it acknowledges nothing, so that a broker that is killed while an acknowledgement is on
    /// its way does not tear down the connection before what it has sent is read.
    pub fn silent(port: u16, filter: &str) -> Result<Self> {
        Self::with(port, filter, QoS::AtMostOnce)
    }

    fn with(port: u16, filter: &str, qos: QoS) -> Result<Self> {
        // A broker throws out the elder of two clients of one name.
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("subscriber-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let mut options = MqttOptions::new(name, "127.0.0.1", port);
        options.set_max_packet_size(Some(1 << 20)).set_keep_alive(Duration::from_secs(30));
        let (client, mut connection) = Client::new(options, 16);
        client.subscribe(filter, qos)?;
        let (tell, messages) = channel();
        let (ready, subscribed) = channel();
        thread::spawn(move || {
            let take = |event| match event {
                Event::Incoming(Packet::SubAck(_)) => _ = ready.send(()),
                Event::Incoming(Packet::Publish(p)) => _ = tell.send(received(p)),
                _ => {}
            };
            while let Some(Ok(event)) = connection.iter().next() {
                take(event);
            }
            // What came together with the end: rumqttc tells of the end first.
            connection.eventloop.state.events.drain(..).for_each(take);
        });
        subscribed
            .recv_timeout(Duration::from_secs(20))
            .with_context(|| format!("the broker on port {port} does not answer"))?;
        Ok(Self { client, messages })
    }

    /// The next message, which must come within `patience`.
    pub fn next(&self, patience: Duration) -> Result<Received> {
        match self.messages.recv_timeout(patience) {
            Ok(message) => Ok(message),
            Err(_) => bail!("no message arrived within {patience:?}"),
        }
    }

    /// What has arrived and was not asked for yet.
    pub fn arrived(&self) -> Vec<Received> {
        self.messages.try_iter().collect()
    }

    /// Everything up to the end of the connection, which somebody else must bring about.
    pub fn rest(&self) -> Vec<Received> {
        self.messages.iter().collect()
    }
}

/// Publishes messages that the broker on `port` keeps; returns once it has acknowledged all.
///
/// # Errors
/// Where it does not.
pub fn retain(port: u16, messages: &[(String, Vec<u8>)]) -> Result<()> {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let name = format!("publisher-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let mut options = MqttOptions::new(name, "127.0.0.1", port);
    options.set_max_packet_size(Some(1 << 20));
    let (client, mut connection) = Client::new(options, messages.len() + 1);
    for (topic, payload) in messages {
        client.publish(topic.as_str(), QoS::AtLeastOnce, true, payload.clone())?;
    }
    let mut acknowledged = 0;
    for event in connection.iter() {
        if matches!(event?, Event::Incoming(Packet::PubAck(_))) {
            acknowledged += 1;
        }
        if acknowledged == messages.len() {
            break;
        }
    }
    client.disconnect()?;
    Ok(())
}

fn received(publish: Publish) -> Received {
    let properties = publish.properties.unwrap_or_default();
    Received {
        topic: String::from_utf8_lossy(&publish.topic).into_owned(),
        payload: publish.payload.to_vec(),
        qos: publish.qos as u8,
        retained: publish.retain,
        content_type: properties.content_type,
        expiry: properties.message_expiry_interval,
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        // Ends the thread, too.
        let _ = self.client.disconnect();
    }
}
