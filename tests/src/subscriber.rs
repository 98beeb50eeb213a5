//! A subscriber that keeps what arrives.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rumqttc::{Client, Connection, Event, MqttOptions, Packet, QoS};

/// An MQTT client on a topic filter.
pub struct Subscriber {
    client: Client,
    messages: Receiver<(String, Vec<u8>)>,
}

impl Subscriber {
    /// Subscribes with QoS 1 at the broker on that loopback port; returns once the broker has confirmed it.
    pub fn connect(port: u16, filter: &str) -> Result<Self> {
        let mut options =
            MqttOptions::new(format!("subscriber-{}-{port}", std::process::id()), "127.0.0.1", port);
        options.set_max_packet_size(1 << 20, 1 << 20).set_keep_alive(Duration::from_secs(30));
        let (client, connection) = Client::new(options, 16);
        client.subscribe(filter, QoS::AtLeastOnce)?;
        let (messages_in, messages) = channel();
        let (confirmed_in, confirmed) = channel();
        std::thread::Builder::new()
            .name("subscriber".into())
            .spawn(move || listen(connection, &messages_in, &confirmed_in))?;
        confirmed
            .recv_timeout(Duration::from_secs(20))
            .context("the broker did not confirm the subscription")?;
        Ok(Self { client, messages })
    }

    /// The next message, topic and payload.
    pub fn next(&mut self, patience: Duration) -> Result<(String, Vec<u8>)> {
        match self.messages.recv_timeout(patience) {
            Ok(message) => Ok(message),
            Err(RecvTimeoutError::Timeout) => bail!("no message within {patience:?}"),
            Err(RecvTimeoutError::Disconnected) => bail!("the connection to the broker is gone"),
        }
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        // The listening thread ends with the connection; a failure means that it has ended already.
        let _ = self.client.disconnect();
    }
}

fn listen(mut connection: Connection, messages: &Sender<(String, Vec<u8>)>, confirmed: &Sender<()>) {
    for event in connection.iter() {
        match event {
            Ok(Event::Incoming(Packet::SubAck(_))) => {
                // Nobody waits for a second confirmation.
                let _ = confirmed.send(());
            }
            Ok(Event::Incoming(Packet::Publish(publish))) => {
                if messages.send((publish.topic, publish.payload.to_vec())).is_err() {
                    return;
                }
            }
            Ok(_) => {}
            Err(_) => return,
        }
    }
}
