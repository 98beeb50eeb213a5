//! A broker's address, and names that stand in topics.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text is no address of a broker, or no level of a topic.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The address is none that can be used.
    #[error("the broker's address is {found:?}, expected mqtt://HOST:PORT or mqtts://HOST:PORT ({detail})")]
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
}

/// A broker's address, `mqtt://HOST:PORT`, or `mqtts://HOST:PORT` for TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broker {
    host: String,
    port: u16,
    tls: bool,
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

    /// The host without an IPv6 address's brackets, as certificates and resolvers take it.
    pub fn bare_host(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }

    /// Whether the connection is encrypted and the broker proves who it is.
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// Whether nobody on the way can read along: TLS, or the broker is on this machine.
    pub fn is_private(&self) -> bool {
        self.tls || self.is_loopback()
    }

    /// Whether what is sent stays on this machine.
    pub fn is_loopback(&self) -> bool {
        self.host.eq_ignore_ascii_case("localhost")
            || self.bare_host().parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

impl fmt::Display for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "mqtts" } else { "mqtt" };
        write!(f, "{scheme}://{}:{}", self.host, self.port)
    }
}

impl FromStr for Broker {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = |detail| {
            // What stands before an @ may be a password.
            let found = text.rsplit_once('@').map_or(text.to_owned(), |(_, host)| format!("…@{host}"));
            Err(NameError::Address { found, detail })
        };
        let Some((scheme, rest)) = text.split_once("://") else {
            return wrong("the scheme is missing");
        };
        let tls = scheme.eq_ignore_ascii_case("mqtts");
        if !tls && !scheme.eq_ignore_ascii_case("mqtt") {
            return wrong("another scheme than mqtt or mqtts");
        }
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains('@') {
            return wrong("user names and passwords are not taken from an address");
        }
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port),
            _ => (rest, if tls { "8883" } else { "1883" }),
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
        if sound {
            Ok(Self { host: host.into(), port, tls })
        } else {
            wrong("the host is no name or address")
        }
    }
}

/// A name that can stand as one level of a topic, such as a site's or a device's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
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

impl TryFrom<String> for TopicLevel {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<TopicLevel> for String {
    fn from(level: TopicLevel) -> Self {
        level.0
    }
}

impl FromStr for TopicLevel {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let forbidden = |c: char| "/+#".contains(c) || c.is_whitespace() || c.is_control();
        if text.is_empty() || text.chars().count() > 64 || text.contains(forbidden) {
            return Err(NameError::Level { found: text.into() });
        }
        Ok(Self(text.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broker(text: &str) -> Result<Broker, NameError> {
        text.parse()
    }

    #[test]
    fn addresses_are_read_or_refused_with_a_reason() {
        let display = |text: &str| broker(text).map(|b| b.to_string()).unwrap();
        assert_eq!(display("mqtt://broker.example:1884"), "mqtt://broker.example:1884");
        assert_eq!(display("MQTT://10.0.0.1/"), "mqtt://10.0.0.1:1883");
        assert_eq!(display("mqtt://[::1]:1999"), "mqtt://[::1]:1999");
        assert_eq!(display("mqtt://[::1]"), "mqtt://[::1]:1883");
        assert_eq!(display("mqtts://broker.example"), "mqtts://broker.example:8883");
        for bad in [
            "",
            "broker:1883",
            "http://broker:1883",
            "mqtt://",
            "mqtt://:1883",
            "mqtt://a:0",
            "mqtt://a:70000",
            "mqtt://a:x",
            "mqtt://a/b",
            "mqtt://a b",
            "mqtt://::1:1883",
            "mqtt://[::z]:1883",
        ] {
            let error = broker(bad).unwrap_err();
            assert!(error.to_string().contains("expected mqtt://HOST:PORT"), "{bad}: {error}");
        }
    }

    #[test]
    fn a_password_in_an_address_is_not_repeated() {
        let error = broker("mqtt://user:secret@host:1883").unwrap_err().to_string();
        assert!(error.contains("host:1883") && !error.contains("secret"), "{error}");
    }

    #[test]
    fn only_this_machine_is_loopback() {
        for here in ["mqtt://localhost", "mqtt://127.0.0.1:1", "mqtt://127.9.9.9", "mqtt://[::1]:5"] {
            assert!(broker(here).unwrap().is_loopback() && broker(here).unwrap().is_private(), "{here}");
        }
        for there in ["mqtt://localhost.example", "mqtt://10.0.0.1", "mqtt://[2001:db8::1]"] {
            assert!(!broker(there).unwrap().is_loopback() && !broker(there).unwrap().is_private(), "{there}");
        }
        assert!(broker("mqtts://10.0.0.1").unwrap().is_private());
    }

    #[test]
    fn names_that_would_change_the_topic_are_refused() {
        for good in ["north", "ct-2", "Größe", "a.b_c"] {
            assert_eq!(good.parse::<TopicLevel>().unwrap().as_str(), good);
        }
        for bad in ["", "a/b", "+", "#", "a b", "a\n", "\0", &"x".repeat(65)] {
            assert!(bad.parse::<TopicLevel>().is_err(), "{bad:?}");
        }
    }
}
