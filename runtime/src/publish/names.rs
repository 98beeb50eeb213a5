//! A broker's address, and names that stand in topics.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use super::PublishError;

/// A broker's address, `mqtt://HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broker {
    host: String,
    port: u16,
}

impl Broker {
    /// Host name or address; an IPv6 address stands in brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// TCP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether what is sent stays on this machine.
    pub fn is_loopback(&self) -> bool {
        let bare = self.host.trim_start_matches('[').trim_end_matches(']');
        self.host.eq_ignore_ascii_case("localhost")
            || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

impl fmt::Display for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mqtt://{}:{}", self.host, self.port)
    }
}

impl FromStr for Broker {
    type Err = PublishError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = |detail| {
            // What stands before an @ may be a password.
            let found = text.rsplit_once('@').map_or(text.to_owned(), |(_, host)| format!("…@{host}"));
            Err(PublishError::Address { found, detail })
        };
        let Some((scheme, rest)) = text.split_once("://") else {
            return wrong("the scheme is missing");
        };
        if scheme.eq_ignore_ascii_case("mqtts") {
            return wrong("TLS is not supported yet: use a broker on this machine that bridges with TLS");
        }
        if !scheme.eq_ignore_ascii_case("mqtt") {
            return wrong("another scheme than mqtt");
        }
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains('@') {
            return wrong("user names and passwords are not taken from an address");
        }
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port),
            _ => (rest, "1883"),
        };
        let Some(port) = port.parse().ok().filter(|&port: &u16| port > 0) else {
            return wrong("the port must be a number from 1 to 65535");
        };
        let sound = if let Some(address) = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
            address.parse::<std::net::Ipv6Addr>().is_ok()
        } else {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
            !host.is_empty() && host.bytes().all(plain)
        };
        if sound { Ok(Self { host: host.into(), port }) } else { wrong("the host is no name or address") }
    }
}

/// A name that can stand as one level of a topic, such as a site's or a device's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicLevel(String);

impl TopicLevel {
    /// `local`, for what has no name.
    pub fn local() -> Self {
        Self("local".into())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TopicLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TopicLevel {
    type Err = PublishError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let forbidden = |c: char| "/+#".contains(c) || c.is_whitespace() || c.is_control();
        if text.is_empty() || text.chars().count() > 64 || text.contains(forbidden) {
            return Err(PublishError::Level { found: text.into() });
        }
        Ok(Self(text.into()))
    }
}
