//! One connection to a broker: logged in, with every unacknowledged message known by its packet identifier.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{
    ConnAck, Connect, ConnectProperties, ConnectReturnCode, Disconnect, DisconnectReasonCode, Filter,
    LastWill, LastWillProperties, Login, Packet, PingReq, PubAck, PubAckReason, Publish, PublishProperties,
    Subscribe, SubscribeReasonCode, Unsubscribe,
};
use tokio::time::{Instant, sleep_until, timeout};

use super::error::End;
use super::wire::{MAX_INCOMING, Wire};
use super::{Endpoint, Message, Patience};

/// Unacknowledged messages at a time, unless the broker wants fewer. With it, memory is bounded.
const IN_FLIGHT: u16 = 16;

/// What all payloads are.
const CONTENT_TYPE: &str = "application/json";

/// How a client introduces itself.
pub(super) struct Hello {
    pub client_id: String,
    pub keep_alive: Duration,
    /// Retained, and published by the broker when the connection ends without a word.
    pub will: Option<Message>,
}

/// A message on its way.
struct Flight {
    /// The outbox's row, if it came from there.
    row: Option<u64>,
    sent: Instant,
}

/// What acknowledgements have said.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Settled {
    /// Rows that the broker has taken.
    pub delivered: Vec<u64>,
    /// How many of these nobody has subscribed to.
    pub unheard: u64,
    /// Rows that the broker does not want, and why.
    pub refused: Vec<(u64, String)>,
    /// What came on topics that were subscribed to.
    pub received: Vec<Message>,
    /// Topics that the broker does not let us subscribe to, and why.
    pub barred: Vec<(String, String)>,
}

/// What a wait came to.
pub(super) enum Happened<T> {
    Settled(Settled),
    /// The other future was ready first.
    Other(T),
    /// The time has come.
    Due,
}

pub(super) struct Link {
    wire: Wire,
    flights: BTreeMap<u16, Flight>,
    /// Subscriptions that the broker has not answered yet.
    subscribing: BTreeMap<u16, String>,
    /// Messages of QoS 1 that we have not acknowledged yet.
    unacknowledged: Vec<u16>,
    last_id: u16,
    window: usize,
    max_packet: u32,
    keep_alive: Duration,
    acknowledge: Duration,
    last_sent: Instant,
    pinged: Option<Instant>,
}

impl Link {
    /// Connects and logs in. The broker keeps no session for us: all that is unsent is in the outbox.
    pub async fn open(endpoint: &Endpoint, hello: &Hello, patience: &Patience) -> Result<Self, End> {
        let mut wire = Wire::open(endpoint, patience.connect, patience.acknowledge).await?;
        let login =
            endpoint.login.as_ref().map(|(user, password)| Login::new(user.clone(), password.clone()));
        let properties =
            ConnectProperties { max_packet_size: Some(MAX_INCOMING), ..ConnectProperties::new() };
        let connect = Connect {
            keep_alive: u16::try_from(hello.keep_alive.as_secs()).unwrap_or(u16::MAX),
            client_id: hello.client_id.clone(),
            clean_start: true,
            properties: Some(properties),
        };
        wire.send(&Packet::Connect(connect, hello.will.as_ref().map(will), login)).await?;
        let answer = match timeout(patience.connect, wire.receive()).await {
            Ok(packet) => packet?,
            Err(_) => {
                return Err(End::Lost(format!("the broker did not answer within {:?}", patience.connect)));
            }
        };
        let ack = welcome(answer)?;
        let given = ack.properties.as_ref();
        let window = given.and_then(|p| p.receive_max).unwrap_or(IN_FLIGHT).clamp(1, IN_FLIGHT);
        let keep_alive = given
            .and_then(|p| p.server_keep_alive)
            .map_or(hello.keep_alive, |s| Duration::from_secs(s.into()));
        Ok(Self {
            wire,
            flights: BTreeMap::new(),
            subscribing: BTreeMap::new(),
            unacknowledged: Vec::new(),
            last_id: 0,
            window: window.into(),
            max_packet: given.and_then(|p| p.max_packet_size).unwrap_or(u32::MAX),
            keep_alive: keep_alive.max(Duration::from_secs(1)),
            acknowledge: patience.acknowledge,
            last_sent: Instant::now(),
            pinged: None,
        })
    }

    /// How many more messages may be on their way.
    pub fn room(&self) -> usize {
        self.window.saturating_sub(self.flights.len())
    }

    /// Whether nothing is on its way.
    pub fn is_idle(&self) -> bool {
        self.flights.is_empty()
    }

    /// Whether this row is on its way.
    pub fn carries(&self, row: u64) -> bool {
        self.flights.values().any(|flight| flight.row == Some(row))
    }

    /// Whether the broker takes messages of this size: one that is too large would end the connection.
    pub fn fits(&self, message: &Message) -> bool {
        // Topic, payload, content type and what frames them.
        (message.topic.len() + message.payload.len() + 64) as u64 <= u64::from(self.max_packet)
    }

    /// Sends a message with QoS 1; there must be [`Self::room`]. Its acknowledgement comes out of [`Self::wait`].
    pub async fn publish(&mut self, row: Option<u64>, message: Message, retain: bool) -> Result<(), End> {
        let id = self.free_id();
        let publish = Publish { pkid: id, retain, ..packet(message, QoS::AtLeastOnce, None) };
        self.flights.insert(id, Flight { row, sent: Instant::now() });
        self.send(&Packet::Publish(publish)).await
    }

    /// Sends a message with QoS 0, which the broker drops when it cannot deliver it within `expiry`.
    pub async fn tell(&mut self, message: Message, expiry: Duration) -> Result<(), End> {
        let expiry = u32::try_from(expiry.as_secs()).unwrap_or(u32::MAX);
        self.send(&Packet::Publish(packet(message, QoS::AtMostOnce, Some(expiry)))).await
    }

    /// Subscribes to one topic; what is retained there and what is published from now on comes out of [`Self::wait`].
    pub async fn subscribe(&mut self, topic: &str) -> Result<(), End> {
        let id = self.free_id();
        self.subscribing.insert(id, topic.to_owned());
        let filters = vec![Filter::new(topic, QoS::AtLeastOnce)];
        self.send(&Packet::Subscribe(Subscribe { pkid: id, filters, properties: None })).await
    }

    /// Takes a subscription back; nobody waits for the answer.
    pub async fn unsubscribe(&mut self, topic: &str) -> Result<(), End> {
        let id = self.free_id();
        let filters = vec![topic.to_owned()];
        self.send(&Packet::Unsubscribe(Unsubscribe { pkid: id, filters, properties: None })).await
    }

    /// Waits for acknowledgements and messages, `other` or `until`, whichever is first, and keeps the connection alive meanwhile.
    pub async fn wait<T>(
        &mut self,
        other: impl Future<Output = T>,
        until: Instant,
    ) -> Result<Happened<T>, End> {
        tokio::pin!(other);
        loop {
            let due = self.next_duty().min(until);
            let packet = tokio::select! {
                biased;
                packet = self.wire.receive() => packet?,
                value = &mut other => return Ok(Happened::Other(value)),
                () = sleep_until(due) => {
                    self.duties().await?;
                    if Instant::now() >= until {
                        return Ok(Happened::Due);
                    }
                    continue;
                }
            };
            let mut settled = Settled::default();
            self.take(packet, &mut settled)?;
            // What has arrived together is settled together: one write to the disk for all.
            while let Some(packet) = self.wire.buffered()? {
                self.take(packet, &mut settled)?;
            }
            for id in std::mem::take(&mut self.unacknowledged) {
                self.send(&Packet::PubAck(PubAck::new(id, None))).await?;
            }
            return Ok(Happened::Settled(settled));
        }
    }

    /// Ends the connection on purpose, so that no Will is published. That this may fail does not matter.
    pub async fn leave(mut self) {
        let reason_code = DisconnectReasonCode::NormalDisconnection;
        if self.send(&Packet::Disconnect(Disconnect { reason_code, properties: None })).await.is_ok() {
            // Once the broker has read it, it closes.
            let _ =
                timeout(Duration::from_secs(2), async { while self.wire.receive().await.is_ok() {} }).await;
        }
    }

    fn take(&mut self, packet: Packet, settled: &mut Settled) -> Result<(), End> {
        match packet {
            Packet::PubAck(PubAck { pkid, reason, .. }) => {
                let Some(flight) = self.flights.remove(&pkid) else {
                    return Err(End::Lost("the broker acknowledged what was never sent".into()));
                };
                if flight.row.is_some() && reason == PubAckReason::NoMatchingSubscribers {
                    settled.unheard += 1;
                    tracing::warn!(
                        "nobody has subscribed: the broker took a result and has nobody to give it to"
                    );
                }
                match (flight.row, reason) {
                    (Some(row), PubAckReason::Success | PubAckReason::NoMatchingSubscribers) => {
                        settled.delivered.push(row);
                    }
                    (Some(row), reason) => settled.refused.push((row, format!("{reason:?}"))),
                    (None, PubAckReason::Success | PubAckReason::NoMatchingSubscribers) => {}
                    (None, reason) => tracing::warn!(?reason, "the broker does not take this device's state"),
                }
            }
            Packet::PingResp(_) => self.pinged = None,
            Packet::Publish(Publish { qos, topic, pkid, payload, .. }) => {
                if qos != QoS::AtMostOnce {
                    self.unacknowledged.push(pkid);
                }
                let topic = String::from_utf8_lossy(&topic).into_owned();
                settled.received.push(Message { topic, payload: payload.to_vec() });
            }
            Packet::SubAck(answer) => {
                let Some(topic) = self.subscribing.remove(&answer.pkid) else {
                    return Err(End::Lost(
                        "the broker answered a subscription that was never asked for".into(),
                    ));
                };
                match answer.return_codes.as_slice() {
                    [SubscribeReasonCode::Success(_)] => {}
                    other => settled.barred.push((topic, format!("{other:?}"))),
                }
            }
            Packet::UnsubAck(_) => {}
            Packet::Disconnect(Disconnect { reason_code, .. }) => {
                return Err(End::Lost(format!("the broker ended the connection, {reason_code:?}")));
            }
            other => tracing::debug!(?other, "a packet that nobody asked for"),
        }
        Ok(())
    }

    /// When something must be sent, or must have come.
    fn next_duty(&self) -> Instant {
        let ping = self.pinged.map_or(self.last_sent + self.keep_alive / 2, |at| at + self.acknowledge);
        self.flights.values().map(|flight| flight.sent + self.acknowledge).fold(ping, Instant::min)
    }

    async fn duties(&mut self) -> Result<(), End> {
        let now = Instant::now();
        let late = |since: Instant| now >= since + self.acknowledge;
        if self.flights.values().any(|flight| late(flight.sent)) || self.pinged.is_some_and(late) {
            return Err(End::Lost(format!("no acknowledgement within {:?}", self.acknowledge)));
        }
        if self.pinged.is_none() && now >= self.last_sent + self.keep_alive / 2 {
            self.pinged = Some(now);
            self.send(&Packet::PingReq(PingReq)).await?;
        }
        Ok(())
    }

    async fn send(&mut self, packet: &Packet) -> Result<(), End> {
        self.last_sent = Instant::now();
        self.wire.send(packet).await
    }

    /// The next packet identifier that is not in use. There are far more of them than messages in flight.
    fn free_id(&mut self) -> u16 {
        loop {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            if !self.flights.contains_key(&self.last_id) && !self.subscribing.contains_key(&self.last_id) {
                return self.last_id;
            }
        }
    }
}

/// Whether the broker lets us in.
fn welcome(answer: Packet) -> Result<ConnAck, End> {
    match answer {
        Packet::ConnAck(ack) => match ack.code {
            ConnectReturnCode::Success => Ok(ack),
            ConnectReturnCode::ServiceUnavailable
            | ConnectReturnCode::ServerUnavailable
            | ConnectReturnCode::ServerBusy
            | ConnectReturnCode::ConnectionRateExceeded => Err(End::Lost(format!("{:?}", ack.code))),
            code => Err(End::Refused(format!("{code:?}"))),
        },
        _ => Err(End::Lost("the broker's first packet is no CONNACK".into())),
    }
}

fn packet(message: Message, qos: QoS, expiry: Option<u32>) -> Publish {
    let properties = PublishProperties {
        // UTF-8.
        payload_format_indicator: Some(1),
        message_expiry_interval: expiry,
        content_type: Some(CONTENT_TYPE.into()),
        ..PublishProperties::default()
    };
    Publish {
        qos,
        topic: Bytes::from(message.topic.into_bytes()),
        payload: Bytes::from(message.payload),
        properties: Some(properties),
        ..Publish::default()
    }
}

fn will(message: &Message) -> LastWill {
    let properties = LastWillProperties {
        delay_interval: None,
        payload_format_indicator: Some(1),
        message_expiry_interval: None,
        content_type: Some(CONTENT_TYPE.into()),
        response_topic: None,
        correlation_data: None,
        user_properties: Vec::new(),
    };
    LastWill::new(message.topic.clone(), message.payload.clone(), QoS::AtLeastOnce, true, Some(properties))
}
