//! An embedded MQTT 5 broker, so that the demo needs no other program. It keeps nothing on disk.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};
use rumqttd::{Config, ConnectionSettings, RouterConfig, ServerSettings};

use crate::mosquitto::free_port;

/// A running broker. rumqttd has no way to be stopped: its threads end with the process.
pub struct Broker {
    /// The port of the loopback interface that it listens on.
    pub port: u16,
}

impl Broker {
    /// Starts a broker on a free port; returns once it accepts connections.
    pub fn start() -> Result<Self> {
        let port = free_port()?;
        let connections = ConnectionSettings {
            connection_timeout_ms: 10_000,
            max_payload_size: 1 << 20,
            max_inflight_count: 100,
            auth: None,
            external_auth: None,
            dynamic_filters: false,
        };
        let server = ServerSettings {
            name: "loopback".into(),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            tls: None,
            next_connection_delay_ms: 1,
            connections,
        };
        let router = RouterConfig {
            max_connections: 100,
            max_outgoing_packet_count: 200,
            max_segment_size: 10 << 20,
            max_segment_count: 10,
            ..RouterConfig::default()
        };
        let v5 = Some(HashMap::from([("loopback".to_owned(), server)]));
        let mut broker = rumqttd::Broker::new(Config { router, v5, ..Config::default() });
        thread::spawn(move || {
            if let Err(error) = broker.start() {
                eprintln!("the embedded broker failed: {error}");
            }
        });
        for _ in 0..200 {
            if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Ok(Self { port });
            }
            thread::sleep(Duration::from_millis(50));
        }
        bail!("the embedded broker does not listen on port {port}")
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("mqtt://127.0.0.1:{}", self.port)
    }
}
