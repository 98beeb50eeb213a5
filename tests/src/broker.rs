//! The MQTT broker that the demo starts inside itself; tests also use a real mosquitto.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rumqttd::{Broker, Config, ConnectionSettings, RouterConfig, ServerSettings};

/// A broker on a free loopback port; it lives until the process ends and keeps nothing on disk.
#[derive(Debug, Clone, Copy)]
pub struct EmbeddedBroker {
    address: SocketAddr,
}

impl EmbeddedBroker {
    /// Starts it and waits until it takes connections.
    pub fn start() -> Result<Self> {
        let address = free_address()?;
        let connections = ConnectionSettings {
            connection_timeout_ms: 5000,
            max_payload_size: 256 << 10,
            max_inflight_count: 100,
            auth: None,
            external_auth: None,
            dynamic_filters: true,
        };
        let server = ServerSettings {
            name: "demo".into(),
            listen: address,
            tls: None,
            next_connection_delay_ms: 1,
            connections,
        };
        let router = RouterConfig {
            max_connections: 100,
            max_outgoing_packet_count: 200,
            max_segment_size: 1 << 20,
            max_segment_count: 10,
            ..Default::default()
        };
        let config =
            Config { router, v4: Some(HashMap::from([("demo".into(), server)])), ..Default::default() };
        let mut broker = Broker::new(config);
        std::thread::Builder::new().name("broker".into()).spawn(move || broker.start())?;
        wait_until_open(address)?;
        Ok(Self { address })
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.address.port()
    }
}

/// A loopback address that nobody listened on a moment ago.
pub fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// Waits until something takes connections there.
pub fn wait_until_open(address: SocketAddr) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while let Err(error) = TcpStream::connect(address) {
        if Instant::now() > deadline {
            bail!("nothing listens on {address} after 20 s ({error})");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    TcpStream::connect(address).map(drop).context("it listened a moment ago")
}
