//! What kinds of value a key can have, and how each is read.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use toml::de::{DeTable, DeValue};

use super::units::{Size, read_duration, read_size};
use crate::{Broker, TopicLevel};

/// A value as it stands in a layer, before anybody knows what it should be.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Raw {
    Text(String),
    Integer(i64),
    Bool(bool),
    List(Vec<Raw>),
    /// What no key takes: floats, dates, tables; as written, for the message.
    Other(String),
}

impl Raw {
    pub fn of(value: &DeValue<'_>) -> Self {
        match value {
            DeValue::String(text) => Self::Text(text.to_string()),
            DeValue::Boolean(yes) => Self::Bool(*yes),
            DeValue::Integer(n) => match i64::from_str_radix(n.as_str(), n.radix()) {
                Ok(n) => Self::Integer(n),
                Err(_) => Self::Other(n.as_str().into()),
            },
            DeValue::Array(items) => Self::List(items.iter().map(|item| Self::of(item.get_ref())).collect()),
            DeValue::Float(x) => Self::Other(x.as_str().into()),
            DeValue::Datetime(at) => Self::Other(at.to_string()),
            DeValue::Table(_) => Self::Other("a table".into()),
        }
    }

    /// A value alone, as behind an equals sign.
    pub fn parse(toml: &str) -> Option<Self> {
        let line = format!("x = {toml}");
        let table = DeTable::parse(&line).ok()?.into_inner();
        match table.into_iter().collect::<Vec<_>>().as_slice() {
            [(_, value)] => Some(Self::of(value.get_ref())),
            _ => None,
        }
    }

    /// As it would be written in the file.
    pub fn shown(&self) -> String {
        match self {
            Self::Text(text) => format!("{text:?}"),
            Self::Integer(n) => n.to_string(),
            Self::Bool(yes) => yes.to_string(),
            Self::List(items) => {
                format!("[{}]", items.iter().map(Self::shown).collect::<Vec<_>>().join(", "))
            }
            Self::Other(text) => text.clone(),
        }
    }
}

/// A type that a key can have.
pub(super) trait Value: Sized {
    /// What is expected, as the end of a sentence.
    const EXPECTED: &'static str;

    /// The value of a key that is left out and has no default.
    const UNSET: Option<Self> = None;

    /// None where `raw` is no such value.
    fn read(raw: &Raw) -> Option<Self>;
}

/// Kinds that are written as text.
macro_rules! texts {
    ($($kind:ty, $expected:literal, $read:expr;)+) => {
        $(impl Value for $kind {
            const EXPECTED: &'static str = $expected;

            fn read(raw: &Raw) -> Option<Self> {
                let read: fn(&str) -> Option<Self> = $read;
                match raw {
                    Raw::Text(text) => read(text),
                    _ => None,
                }
            }
        })+
    };
}

texts! {
    String, "a text that is not empty", |text| (!text.trim().is_empty()).then(|| text.into());
    PathBuf, "a path", |text| (!text.is_empty()).then(|| text.into());
    TopicLevel, "1 to 64 characters without '/', '+', '#', spaces or control characters", |text| text.parse().ok();
    Broker, "mqtt://HOST:PORT or mqtts://HOST:PORT without user and password", |text| text.parse().ok();
    SocketAddr, "ADDRESS:PORT such as \"127.0.0.1:11112\"", |text| text.parse().ok();
    Duration, "a duration such as \"90s\", \"15min\", \"24h\" or \"30d\"", read_duration;
    Size, "a size such as \"512MB\", \"20GB\" or \"1GiB\"", read_size;
    AeTitle, "an AE title: 1 to 16 printable ASCII characters without backslash, not all spaces", AeTitle::new;
    Network, "an address or network such as \"10.1.2.3\", \"10.1.0.0/16\" or \"fd00::/8\"", Network::new;
    Listen, "ADDRESS:PORT such as \"127.0.0.1:9464\", or \"off\"", Listen::new;
    Source, "https://HOST/PATH, an absolute path of a folder, or \"mqtt\"", Source::new;
    Timeout, "a duration such as \"90s\", or \"off\"", Timeout::new;
    Uids, "\"plain\", \"hashed\" or \"auto\"", Uids::new;
    Precision, "\"f32\", \"bf16\" or \"int8\"", Precision::new;
    Weights, "\"merged\", \"shared\" or \"auto\"", Weights::new;
}

impl Value for bool {
    const EXPECTED: &'static str = "true or false";

    fn read(raw: &Raw) -> Option<Self> {
        if let Raw::Bool(yes) = raw { Some(*yes) } else { None }
    }
}

impl Value for u32 {
    const EXPECTED: &'static str = "a whole number of at least 1";

    fn read(raw: &Raw) -> Option<Self> {
        if let Raw::Integer(n) = raw { u32::try_from(*n).ok().filter(|&n| n > 0) } else { None }
    }
}

impl<T: Value> Value for Option<T> {
    const EXPECTED: &'static str = T::EXPECTED;
    const UNSET: Option<Self> = Some(None);

    fn read(raw: &Raw) -> Option<Self> {
        T::read(raw).map(Some)
    }
}

impl Value for Vec<AeTitle> {
    const EXPECTED: &'static str =
        "a list of AE titles, each 1 to 16 printable ASCII characters without backslash, not all spaces";

    fn read(raw: &Raw) -> Option<Self> {
        list(raw)
    }
}

impl Value for Vec<Network> {
    const EXPECTED: &'static str = "a list of addresses or networks such as [\"10.1.2.3\", \"10.1.0.0/16\"]";

    fn read(raw: &Raw) -> Option<Self> {
        list(raw)
    }
}

fn list<T: Value>(raw: &Raw) -> Option<Vec<T>> {
    if let Raw::List(items) = raw { items.iter().map(T::read).collect() } else { None }
}

/// The name of a DICOM application entity (PS3.5, section 6.2, VR AE), without leading and trailing spaces, which do not count.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct AeTitle(String);

impl AeTitle {
    /// None where `text` is no AE title.
    pub fn new(text: &str) -> Option<Self> {
        let trimmed = text.trim_matches(' ');
        let sound = (1..=16).contains(&trimmed.len())
            && trimmed.bytes().all(|b| (b.is_ascii_graphic() || b == b' ') && b != b'\\');
        sound.then(|| Self(trimmed.into()))
    }

    /// The title.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// An IP network: an address and how many of its leading bits count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u32,
}

impl Network {
    /// `ADDRESS` or `ADDRESS/BITS`; none where `text` is neither.
    pub fn new(text: &str) -> Option<Self> {
        let (address, bits) = text.split_once('/').map_or((text, None), |(a, b)| (a, Some(b)));
        let address: IpAddr = address.parse().ok()?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Some(most), |bits| bits.parse().ok().filter(|&bits| bits <= most))?;
        Some(Self { address, bits })
    }

    /// Whether `peer` belongs to it. An IPv4 address in IPv6 clothes (`::ffff:10.0.0.1`) counts as IPv4.
    pub fn contains(&self, peer: IpAddr) -> bool {
        match (self.address, peer.to_canonical()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                (u32::from(a) ^ u32::from(b)).checked_shr(32 - self.bits).unwrap_or(0) == 0
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                (u128::from(a) ^ u128::from(b)).checked_shr(128 - self.bits).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

/// Where something listens, if it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listen {
    /// Nowhere.
    Off,
    /// At this address.
    At(SocketAddr),
}

/// Where a signed repository is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A static file server: the address of the folder that holds `metadata` and `targets`, without a slash at its end.
    Https(String),
    /// A folder that holds `metadata` and `targets`.
    Folder(PathBuf),
    /// Retained messages of the device's own broker.
    Mqtt,
}

impl Source {
    /// None where the text names no repository.
    pub fn new(text: &str) -> Option<Self> {
        if text == "mqtt" {
            return Some(Self::Mqtt);
        }
        if let Some(rest) = text.strip_prefix("https://") {
            let host = rest.split('/').next().unwrap_or_default();
            let plain = !rest.contains(|c: char| c.is_whitespace() || c.is_control() || "?#@".contains(c));
            return (!host.is_empty() && plain).then(|| Self::Https(text.trim_end_matches('/').into()));
        }
        text.starts_with('/').then(|| Self::Folder(text.into()))
    }
}

impl Listen {
    fn new(text: &str) -> Option<Self> {
        if text == "off" { Some(Self::Off) } else { text.parse().ok().map(Self::At) }
    }
}

/// A time after which something happens, if ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timeout {
    /// Never.
    Off,
    /// After this time.
    After(Duration),
}

impl Timeout {
    fn new(text: &str) -> Option<Self> {
        if text == "off" { Some(Self::Off) } else { read_duration(text).map(Self::After) }
    }
}

/// How DICOM UIDs stand in what is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Uids {
    /// As they are.
    Plain,
    /// Hashed with this device's secret key.
    Hashed,
    /// Plain where nobody on the way can read along, hashed elsewhere.
    Auto,
}

impl Uids {
    fn new(text: &str) -> Option<Self> {
        match text {
            "plain" => Some(Self::Plain),
            "hashed" => Some(Self::Hashed),
            "auto" => Some(Self::Auto),
            _ => None,
        }
    }
}

/// Arithmetic of the products with a vision transformer's weights; all else is f32.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Single precision.
    #[default]
    F32,
    /// Factors rounded to 8 significant bits, sums in single precision.
    Bf16,
    /// Factors rounded to integers of eight bits, by a scale for each output and each token; sums exact.
    Int8,
}

impl Precision {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::F32, Self::Bf16, Self::Int8];

    /// As files, flags and results name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }

    /// The one of this name.
    pub fn new(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|precision| precision.as_str() == name)
    }
}

/// How tasks on the same backbone hold its weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weights {
    /// Each has weights of its own, its factors merged into them.
    Merged,
    /// They share them, and compute their factors beside them.
    Shared,
    /// Merged while there is memory for it.
    Auto,
}

impl Weights {
    fn new(text: &str) -> Option<Self> {
        match text {
            "merged" => Some(Self::Merged),
            "shared" => Some(Self::Shared),
            "auto" => Some(Self::Auto),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_hold_their_addresses_and_no_others() {
        let holds =
            |network: &str, peer: &str| Network::new(network).unwrap().contains(peer.parse().unwrap());
        assert!(holds("10.1.0.0/16", "10.1.255.255") && !holds("10.1.0.0/16", "10.2.0.0"));
        assert!(holds("10.1.2.3", "10.1.2.3") && !holds("10.1.2.3", "10.1.2.4"));
        assert!(holds("0.0.0.0/0", "192.0.2.1") && !holds("0.0.0.0/0", "2001:db8::1"));
        assert!(holds("10.0.0.0/8", "::ffff:10.9.9.9"));
        assert!(holds("2001:db8::/32", "2001:db8:1::1") && !holds("2001:db8::/32", "2001:db9::1"));
        assert!(holds("::/0", "::1") && holds("::1", "::1"));
        for bad in ["", "10.0.0.0/33", "10.0.0", "::/129", "10.0.0.0/", "10.0.0.0/-1", "host"] {
            assert_eq!(Network::new(bad), None, "{bad}");
        }
    }

    #[test]
    fn ae_titles_follow_the_standard() {
        assert_eq!(AeTitle::new(" CT 1 ").unwrap().as_str(), "CT 1");
        for bad in ["", "    ", "A\\B", "12345678901234567", "Ä", "A\n"] {
            assert_eq!(AeTitle::new(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_value_with_more_behind_it_is_none() {
        assert_eq!(Raw::parse("[\"a\", 1, true]").unwrap().shown(), "[\"a\", 1, true]");
        assert_eq!(Raw::parse("1\ny = 2"), None);
        assert_eq!(Raw::parse("north"), None);
    }
}
