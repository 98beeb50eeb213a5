//! MQTT packets over a stream of bytes, plain or TLS. The packets are rumqttc's.

use std::time::Duration;

use bytes::BytesMut;
use rumqttc::v5::mqttbytes::Error;
use rumqttc::v5::mqttbytes::v5::Packet;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use super::Endpoint;
use super::error::End;
use super::tls;

/// Largest packet taken from a broker; it has nothing large to say to us.
pub(super) const MAX_INCOMING: u32 = 256 << 10;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

pub(super) struct Wire {
    stream: Box<dyn Stream>,
    received: BytesMut,
    patience: Duration,
}

impl Wire {
    /// Connects within `connect`. Later on no write may take longer than `patience`.
    pub async fn open(endpoint: &Endpoint, connect: Duration, patience: Duration) -> Result<Self, End> {
        match timeout(connect, Self::connect(endpoint)).await {
            Ok(stream) => Ok(Self { stream: stream?, received: BytesMut::new(), patience }),
            Err(_) => Err(End::Lost(format!("no connection within {connect:?}"))),
        }
    }

    async fn connect(endpoint: &Endpoint) -> Result<Box<dyn Stream>, End> {
        let lost = |error: std::io::Error| End::Lost(error.to_string());
        let host = endpoint.broker.bare_host();
        let tcp = TcpStream::connect((host, endpoint.broker.port())).await.map_err(lost)?;
        tcp.set_nodelay(true).map_err(lost)?;
        let Some(config) = &endpoint.tls else { return Ok(Box::new(tcp)) };
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| End::Untrusted(format!("{host} cannot stand in a certificate")))?;
        let stream = TlsConnector::from(config.clone()).connect(name, tcp).await.map_err(|e| tls::end(&e))?;
        Ok(Box::new(stream))
    }

    /// Writes a packet and sees it off. Not to be dropped half-way: the stream would be torn.
    pub async fn send(&mut self, packet: &Packet) -> Result<(), End> {
        let mut bytes = BytesMut::new();
        packet.write(&mut bytes, None).map_err(|error| End::Lost(error.to_string()))?;
        let write = async {
            self.stream.write_all(&bytes).await?;
            self.stream.flush().await
        };
        match timeout(self.patience, write).await {
            Ok(done) => done.map_err(|error| tls::end(&error)),
            Err(_) => Err(End::Lost(format!("the broker took nothing within {:?}", self.patience))),
        }
    }

    /// The next packet. Nothing is lost when the future is dropped before it is ready.
    pub async fn receive(&mut self) -> Result<Packet, End> {
        loop {
            if let Some(packet) = self.buffered()? {
                return Ok(packet);
            }
            match self.stream.read_buf(&mut self.received).await {
                Ok(0) => return Err(End::Lost("the broker closed the connection".into())),
                Ok(_) => {}
                Err(error) => return Err(tls::end(&error)),
            }
        }
    }

    /// A packet that has already arrived, if one has.
    pub fn buffered(&mut self) -> Result<Option<Packet>, End> {
        let held = self.received.len();
        match Packet::read(&mut self.received, Some(MAX_INCOMING)) {
            Ok(packet) => Ok(Some(packet)),
            // Only where nothing was taken is it the rest of the packet that is awaited; otherwise the packet contradicts itself.
            Err(Error::InsufficientBytes(_)) if self.received.len() == held => Ok(None),
            Err(error) => Err(End::Lost(format!("the broker sent what is no MQTT 5 ({error})"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rumqttc::v5::mqttbytes::v5::PubAck;

    use super::*;

    fn wire(bytes: &[u8]) -> Wire {
        Wire { stream: Box::new(tokio::io::empty()), received: bytes.into(), patience: Duration::ZERO }
    }

    #[test]
    fn a_packet_in_pieces_is_waited_for() {
        let mut whole = BytesMut::new();
        Packet::PubAck(PubAck::new(7, None)).write(&mut whole, None).unwrap();
        for end in 0..whole.len() {
            assert_eq!(wire(&whole[..end]).buffered(), Ok(None));
        }
        assert!(matches!(wire(&whole).buffered(), Ok(Some(Packet::PubAck(ack))) if ack.pkid == 7));
    }

    #[test]
    fn what_an_older_broker_answers_is_an_error_at_once() {
        // CONNACK of MQTT 3.1.1, "unacceptable protocol version": it lacks the properties of MQTT 5.
        let end = wire(&[0x20, 2, 0, 1]).buffered().unwrap_err();
        assert!(end.to_string().contains("no MQTT 5"), "{end}");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn whatever_a_broker_sends_is_read_or_refused(kind in 0u8..16, flags in 0u8..16, body in proptest::collection::vec(any::<u8>(), 0..60)) {
            let mut bytes = vec![kind << 4 | flags, body.len() as u8];
            bytes.extend(&body);
            for sent in [bytes, body] {
                let mut wire = wire(&sent);
                while let Ok(Some(_)) = wire.buffered() {}
            }
        }
    }
}
