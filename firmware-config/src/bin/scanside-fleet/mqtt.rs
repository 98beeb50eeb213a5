//! One connection to an MQTT 5 broker: publish and have it acknowledged, read what is retained.
//!
//! rumqttc's packets over a blocking stream, without its event loop, which loses messages when a broker comes back without a session.
//! Here a lost connection is an error, and every command can be given again.

mod stream;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use firmware_config::Broker;
use rumqttc::v5::mqttbytes::v5::{
    ConnAck, Connect, ConnectProperties, ConnectReturnCode, Disconnect, DisconnectReasonCode, Filter, Login,
    Packet, PingReq, PubAck, PubAckReason, Publish, PublishProperties, Subscribe, SubscribeReasonCode,
};
use rumqttc::v5::mqttbytes::{self, QoS};

use crate::error::{Result, machine};
use stream::Stream;

/// Time for an answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// After this long without a message, all that was retained has come. Brokers of a cluster answer a ping before they have sent it all.
pub const SILENCE: Duration = Duration::from_millis(500);

/// Largest packet taken from a broker; blocks of the repository are far smaller.
const MAX_INCOMING: u32 = 1 << 20;

/// Topics asked for at a time.
const AT_ONCE: usize = 200;

/// Unacknowledged messages at a time, unless the broker wants fewer.
const IN_FLIGHT: usize = 64;

/// Where the broker is and how to log in.
#[derive(Debug, Clone, clap::Args)]
pub struct BrokerArgs {
    /// The broker: mqtt://HOST:PORT, or mqtts://HOST:PORT for TLS
    #[arg(long, visible_alias = "to", value_name = "URL")]
    pub broker: Broker,
    /// The authority that the broker's certificate comes from, PEM; needed for mqtts
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Your certificate chain, PEM
    #[arg(long, value_name = "FILE", requires = "client_key")]
    pub client_cert: Option<PathBuf>,
    /// The private key of your certificate, PEM
    #[arg(long, value_name = "FILE", requires = "client_cert")]
    pub client_key: Option<PathBuf>,
    /// Your name at the broker
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
    /// A file with your password on its first line
    #[arg(long, value_name = "FILE", requires = "user")]
    pub password_file: Option<PathBuf>,
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Its topic.
    pub topic: String,
    /// Its payload.
    pub payload: Vec<u8>,
    /// What the payload is; none for bytes.
    pub content_type: Option<&'static str>,
}

impl Message {
    /// JSON.
    pub fn json(topic: String, payload: Vec<u8>) -> Self {
        Self { topic, payload, content_type: Some("application/json") }
    }
}

/// A connection.
pub struct Connection {
    broker: Broker,
    stream: Stream,
    received: BytesMut,
    window: usize,
    last_id: u16,
    sent: Instant,
    /// Messages that came while something else was waited for.
    early: Vec<(String, Vec<u8>)>,
}

impl Connection {
    /// Connects and logs in.
    pub fn open(to: &BrokerArgs) -> Result<Self> {
        let stream = Stream::open(to)?;
        let password = to.password_file.as_deref().map(stream::password).transpose()?.unwrap_or_default();
        let login = to.user.as_ref().map(|user| Login::new(user.clone(), password));
        let mut this = Self {
            broker: to.broker.clone(),
            stream,
            received: BytesMut::new(),
            window: IN_FLIGHT,
            last_id: 0,
            sent: Instant::now(),
            early: Vec::new(),
        };
        let properties =
            ConnectProperties { max_packet_size: Some(MAX_INCOMING), ..ConnectProperties::new() };
        let connect = Connect {
            keep_alive: 60,
            client_id: client_id(),
            clean_start: true,
            properties: Some(properties),
        };
        this.send(&Packet::Connect(connect, None, login))?;
        match this.receive(Instant::now() + PATIENCE)? {
            Some(Packet::ConnAck(ConnAck { code: ConnectReturnCode::Success, properties, .. })) => {
                let given = properties.and_then(|p| p.receive_max).map_or(IN_FLIGHT, usize::from);
                this.window = given.clamp(1, IN_FLIGHT);
                Ok(this)
            }
            Some(Packet::ConnAck(ack)) => Err(machine(format!(
                "the broker {} refused ({:?}); see its log and access rules",
                to.broker, ack.code
            ))),
            Some(_) => Err(this.lost("its first packet is no CONNACK")),
            None => Err(this.lost("it does not answer")),
        }
    }

    /// Publishes all, retained and with QoS 1; returns when each is acknowledged.
    pub fn publish(
        &mut self,
        messages: impl IntoIterator<Item = Message>,
        mut each: impl FnMut(usize),
    ) -> Result<()> {
        let mut messages = messages.into_iter().peekable();
        let mut flights: BTreeMap<u16, String> = BTreeMap::new();
        let mut done = 0;
        while messages.peek().is_some() || !flights.is_empty() {
            while flights.len() < self.window
                && let Some(message) = messages.next()
            {
                let id = self.next_id();
                flights.insert(id, message.topic.clone());
                self.send(&Packet::Publish(publish(message, id)))?;
            }
            match self.receive(Instant::now() + PATIENCE)? {
                Some(Packet::PubAck(PubAck { pkid, reason, .. })) => {
                    let Some(topic) = flights.remove(&pkid) else {
                        return Err(self.lost("it acknowledged what was never sent"));
                    };
                    if !matches!(reason, PubAckReason::Success | PubAckReason::NoMatchingSubscribers) {
                        return Err(machine(format!(
                            "the broker {} refused the message for {topic} ({reason:?}); see its access rules",
                            self.broker
                        )));
                    }
                    done += 1;
                    each(done);
                }
                Some(_) => {}
                None => return Err(self.lost("no acknowledgement came")),
            }
        }
        Ok(())
    }

    /// Everything that is retained under these filters, and what came meanwhile: the last message of each topic that is not empty.
    ///
    /// Brokers hold back some thousand messages for a client and drop the rest: where topics are known, [`Self::kept`] asks for them.
    pub fn retained(&mut self, filters: &[String]) -> Result<BTreeMap<String, Vec<u8>>> {
        self.subscribe(filters)?;
        self.collect(|_| false)
    }

    /// What is retained under these topics, however many they are; topics without a message take a moment longer.
    pub fn kept(&mut self, topics: &[String]) -> Result<BTreeMap<String, Vec<u8>>> {
        let mut all = BTreeMap::new();
        for topics in topics.chunks(AT_ONCE) {
            self.subscribe(topics)?;
            all.extend(self.collect(|all| topics.iter().all(|topic| all.contains_key(topic)))?);
        }
        Ok(all)
    }

    /// Takes messages until all have come, or none comes any more.
    fn collect(
        &mut self,
        done: impl Fn(&BTreeMap<String, Vec<u8>>) -> bool,
    ) -> Result<BTreeMap<String, Vec<u8>>> {
        let mut all = BTreeMap::new();
        let mut quiet = Instant::now() + SILENCE;
        loop {
            for (topic, payload) in self.early.drain(..) {
                if payload.is_empty() {
                    all.remove(&topic);
                } else {
                    all.insert(topic, payload);
                }
            }
            if done(&all) {
                return Ok(all);
            }
            match self.receive(quiet)? {
                Some(_) => quiet = Instant::now() + SILENCE,
                None => return Ok(all),
            }
        }
    }

    /// Subscribes; what is retained comes (again). With QoS 0, of which brokers hold back less than of what must be acknowledged.
    pub fn subscribe(&mut self, filters: &[String]) -> Result<()> {
        let id = self.next_id();
        let all = filters.iter().map(|filter| Filter::new(filter, QoS::AtMostOnce));
        let subscribe = Subscribe { pkid: id, filters: all.collect(), properties: None };
        self.send(&Packet::Subscribe(subscribe))?;
        let until = Instant::now() + PATIENCE;
        loop {
            match self.receive(until)? {
                Some(Packet::SubAck(ack)) if ack.pkid == id => {
                    let granted =
                        |code: &SubscribeReasonCode| matches!(code, SubscribeReasonCode::Success(_));
                    if ack.return_codes.iter().all(granted) {
                        return Ok(());
                    }
                    let rules = filters.join(", ");
                    return Err(machine(format!(
                        "the broker {} does not let you read {rules} ({:?}); see its access rules",
                        self.broker, ack.return_codes
                    )));
                }
                Some(_) => {}
                None => return Err(self.lost("a subscription was not answered")),
            }
        }
    }

    /// Messages that come until then.
    pub fn listen(&mut self, until: Instant) -> Result<Vec<(String, Vec<u8>)>> {
        while self.receive(until)?.is_some() {}
        Ok(std::mem::take(&mut self.early))
    }

    fn next_id(&mut self) -> u16 {
        self.last_id = self.last_id.checked_add(1).unwrap_or(1);
        self.last_id
    }

    /// The next packet, none when the time has come; messages are acknowledged and put aside.
    fn receive(&mut self, until: Instant) -> Result<Option<Packet>> {
        loop {
            let held = self.received.len();
            match Packet::read(&mut self.received, Some(MAX_INCOMING)) {
                Ok(Packet::Publish(message)) => {
                    if message.qos == QoS::AtLeastOnce {
                        self.send(&Packet::PubAck(PubAck::new(message.pkid, None)))?;
                    }
                    let topic = String::from_utf8_lossy(&message.topic).into_owned();
                    self.early.push((topic, message.payload.to_vec()));
                    return Ok(Some(Packet::PingReq(PingReq)));
                }
                Ok(Packet::Disconnect(Disconnect { reason_code, .. })) => {
                    return Err(self.lost(&format!("it ended the connection, {reason_code:?}")));
                }
                Ok(Packet::PingResp(_)) => {}
                Ok(packet) => return Ok(Some(packet)),
                // Only where nothing was taken is it the rest of the packet that is awaited.
                Err(mqttbytes::Error::InsufficientBytes(_)) if self.received.len() == held => {
                    let now = Instant::now();
                    if now >= until {
                        return Ok(None);
                    }
                    if now > self.sent + PATIENCE {
                        self.send(&Packet::PingReq(PingReq))?;
                    }
                    let wait = (until - now).min(Duration::from_secs(1));
                    match self.stream.read(&mut self.received, wait) {
                        Ok(true) => {}
                        Ok(false) => return Err(self.lost("it closed the connection")),
                        Err(error) if stream::is_timeout(&error) => {}
                        Err(error) => return Err(self.lost(&error.to_string())),
                    }
                }
                Err(error) => return Err(self.lost(&format!("it sent what is no MQTT 5, {error}"))),
            }
        }
    }

    fn send(&mut self, packet: &Packet) -> Result<()> {
        let mut bytes = BytesMut::new();
        packet.write(&mut bytes, None).map_err(|error| self.lost(&error.to_string()))?;
        self.sent = Instant::now();
        self.stream.write(&bytes, PATIENCE).map_err(|error| self.lost(&error.to_string()))
    }

    fn lost(&self, reason: &str) -> crate::error::Error {
        machine(format!(
            "the connection to the broker {} was lost ({reason}); give the command again",
            self.broker
        ))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let reason_code = DisconnectReasonCode::NormalDisconnection;
        // That this may fail does not matter.
        let _ = self.send(&Packet::Disconnect(Disconnect { reason_code, properties: None }));
    }
}

fn publish(message: Message, pkid: u16) -> Publish {
    let properties = message.content_type.map(|kind| PublishProperties {
        payload_format_indicator: Some(1),
        content_type: Some(kind.into()),
        ..PublishProperties::default()
    });
    Publish {
        qos: QoS::AtLeastOnce,
        retain: true,
        pkid,
        topic: Bytes::from(message.topic.into_bytes()),
        payload: Bytes::from(message.payload),
        properties,
        ..Publish::default()
    }
}

/// A broker throws out the elder of two clients of one name.
fn client_id() -> String {
    use std::hash::{BuildHasher, RandomState};
    format!("scanside-fleet-{:016x}", RandomState::new().hash_one(std::process::id()))
}
