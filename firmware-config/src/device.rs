//! `device.toml`: how a box is set up.
//!
//! Every key is declared once, in `device/keys.rs`, with type, default, example and documentation; reading, `docs/config.md`,
//! `scanside config example` and what can be changed without a restart all come from there. Values come in three layers, each
//! over the one before: defaults, file, environment. An unknown key is an error that names the nearest one.
//!
//! ```
//! use firmware_config::device::Device;
//! let device = Device::parse(r#"
//!     site = "north"
//!     device = "ct-2"
//!     data_dir = "/var/lib/scanside"
//!     backbone = "/var/lib/scanside/backbone.safetensors"
//!     [dicom]
//!     ae_title = "SCANSIDE"
//!     listen = "127.0.0.1:11112"
//!     [mqtt]
//!     url = "mqtt://127.0.0.1:1883"
//! "#, [("SCANSIDE_SERIES__IDLE".into(), "90s".into())])?;
//! assert_eq!(device.dicom.ae_title.as_str(), "SCANSIDE");
//! # Ok::<(), firmware_config::device::ConfigError>(())
//! ```

mod error;
mod keys;
mod layers;
mod pages;
mod schema;
mod tasks;
mod units;
mod value;

pub use error::{ConfigError, Origin};
pub use keys::{Dicom, DicomTls, Gate, Http, Infer, Keys, Mqtt, Series, Store, Updates};
pub use pages::{docs, example};
pub use schema::{Key, Section};
pub use tasks::TaskRules;
pub use units::{Size, show_duration};
pub use value::{AeTitle, Listen, Network, Precision, Source, Timeout, Uids, Weights};

use std::ops::Deref;
use std::time::Duration;

use layers::Layers;

/// The array of tables that says which series go to which task.
const TASKS: &str = "task";

/// A box's configuration; its keys are those of [`Keys`].
#[derive(Debug, Clone, PartialEq)]
pub struct Device {
    keys: Keys,
    /// `[[task]]`: a task without a table gets every series that its plugin accepts.
    pub tasks: Vec<TaskRules>,
}

impl Deref for Device {
    type Target = Keys;

    fn deref(&self) -> &Keys {
        &self.keys
    }
}

/// Keys whose values differ between two configurations.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// A running service takes these over.
    pub now: Vec<&'static str>,
    /// These wait for a restart.
    pub restart: Vec<&'static str>,
}

impl Device {
    /// Reads the file's text and the environment's variables, of which only those that begin with `SCANSIDE_` count:
    /// `SCANSIDE_DICOM__AE_TITLE` is `dicom.ae_title`.
    pub fn parse(
        text: &str,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let all: Vec<Key> = sections().iter().flat_map(|section| section.keys).copied().collect();
        let mut layers = Layers::new(text, environment, &all)?;
        let keys = Keys::take(&mut layers)?;
        validate(&keys, &layers)?;
        Ok(Self { keys, tasks: tasks::read(text)? })
    }

    /// What a service that runs with `old` does about `new`.
    pub fn changes(old: &Self, new: &Self) -> Changes {
        let mut differing = Vec::new();
        old.keys.differing(&new.keys, &mut differing);
        let mut changes = Changes::default();
        for key in differing {
            if key.reloadable { changes.now.push(key.path) } else { changes.restart.push(key.path) }
        }
        if old.tasks != new.tasks {
            changes.now.push(TASKS);
        }
        changes
    }

    /// Takes over what needs no restart, as a running service does; what differs still differs afterwards.
    pub fn reload(&mut self, new: &Self) {
        self.keys.reload(&new.keys);
        self.tasks.clone_from(&new.tasks);
    }

    /// Whether DICOM UIDs are published as they are.
    pub fn publishes_plain_uids(&self) -> bool {
        match self.mqtt.uids {
            Uids::Plain => true,
            Uids::Hashed => false,
            Uids::Auto => self.mqtt.url.is_private(),
        }
    }

    /// Whether it follows a signed repository, which may also bring the backbones that plugins need.
    pub fn follows_repository(&self) -> bool {
        self.updates.root.is_some() && self.updates.source.is_some()
    }

    /// What is allowed and yet seldom wise, a sentence each.
    pub fn cautions(&self) -> Vec<String> {
        let mut out = Vec::new();
        let mut caution = |holds: bool, sentence: &str| {
            if holds {
                out.push(sentence.to_owned());
            }
        };
        let open = !self.dicom.listen.ip().is_loopback();
        caution(
            open && self.dicom.peers.is_empty() && self.dicom.tls.client_ca.is_none(),
            "`dicom.listen` is open to the network and `dicom.peers` is empty: any address may send",
        );
        caution(
            self.mqtt.password_file.is_some() && !self.mqtt.url.is_private(),
            "`mqtt.password_file` goes over the network in the clear: use mqtts in `mqtt.url`",
        );
        caution(
            matches!(self.http.listen, Listen::At(address) if !address.ip().is_loopback()),
            "`http.listen` is open to the network, and asks nobody for a password",
        );
        out
    }
}

/// Every table of `device.toml` whose keys are declared here.
pub fn sections() -> Vec<Section> {
    let mut all = Vec::new();
    Keys::sections(&mut all);
    all
}

/// What types cannot state.
fn validate(keys: &Keys, layers: &Layers) -> Result<(), ConfigError> {
    let (dicom, mqtt, series) = (&keys.dicom, &keys.mqtt, &keys.series);
    let (second, day) = (Duration::from_secs(1), Duration::from_hours(24));
    let idle = match series.idle {
        Timeout::Off => second,
        Timeout::After(time) => time,
    };
    for (path, time, least, most) in [
        ("dicom.association_deadline", dicom.association_deadline, second, day),
        ("dicom.idle_timeout", dicom.idle_timeout, second, day),
        ("series.idle", idle, second, day),
        ("series.max_age", series.max_age, second, 7 * day),
        ("mqtt.keep_alive", mqtt.keep_alive, second, Duration::from_hours(12)),
        ("mqtt.health_interval", mqtt.health_interval, second, day),
        ("mqtt.health_expiry", mqtt.health_expiry, second, 30 * day),
        ("updates.interval", keys.updates.interval, second, 30 * day),
        ("gate.time", keys.gate.time, second, day),
        ("gate.interval", keys.gate.interval, Duration::from_mins(1), 365 * day),
        ("store.retention", keys.store.retention, Duration::from_mins(1), 3650 * day),
    ] {
        if time < least || time > most {
            let (least, most) = (show_duration(least), show_duration(most));
            return Err(layers.value_error(path, &format!("a duration from \"{least}\" to \"{most}\"")));
        }
    }
    for (path, size, least, most) in [
        ("dicom.max_pdu", dicom.max_pdu, Size(4 << 10), Size(1 << 20)),
        ("dicom.max_instance", dicom.max_instance, Size(1 << 20), Size(1 << 40)),
        ("gate.memory", keys.gate.memory, Size(16 << 20), Size(1 << 50)),
        ("store.max_size", keys.store.max_size, Size(100_000_000), Size(u64::MAX)),
    ] {
        if size < least || size > most {
            return Err(layers.value_error(path, &format!("a size from \"{least}\" to \"{most}\"")));
        }
    }
    for (path, number, most) in [
        ("threads", keys.threads.unwrap_or(1), 1024),
        ("dicom.max_associations", dicom.max_associations, 1024),
        ("store.max_tries", keys.store.max_tries, 100),
    ] {
        if number > most {
            return Err(layers.value_error(path, &format!("a whole number from 1 to {most}")));
        }
    }
    let (tls, updates) = (&dicom.tls, &keys.updates);
    let https = matches!(updates.source, Some(Source::Https(_)));
    for (path, wrong, problem) in [
        ("dicom.tls.cert", tls.cert.is_some() && tls.key.is_none(), "needs `dicom.tls.key`"),
        ("dicom.tls.key", tls.key.is_some() && tls.cert.is_none(), "needs `dicom.tls.cert`"),
        (
            "dicom.tls.client_ca",
            tls.client_ca.is_some() && tls.cert.is_none(),
            "needs `dicom.tls.cert` and `dicom.tls.key`",
        ),
        ("updates.source", updates.source.is_some() && updates.root.is_none(), "needs `updates.root`"),
        ("updates.source", https && updates.ca.is_none(), "is https and needs `updates.ca`"),
        ("updates.ca", updates.ca.is_some() && !https, "is given, but `updates.source` is not https"),
        ("mqtt.url", mqtt.url.is_tls() && mqtt.ca.is_none(), "is mqtts and needs `mqtt.ca`"),
        ("mqtt.ca", mqtt.ca.is_some() && !mqtt.url.is_tls(), "is given, but `mqtt.url` is not mqtts"),
        ("mqtt.cert", mqtt.cert.is_some() && mqtt.key.is_none(), "needs `mqtt.key`"),
        ("mqtt.key", mqtt.key.is_some() && mqtt.cert.is_none(), "needs `mqtt.cert`"),
        ("mqtt.cert", mqtt.cert.is_some() && !mqtt.url.is_tls(), "is given, but `mqtt.url` is not mqtts"),
        ("mqtt.password_file", mqtt.password_file.is_some() && mqtt.user.is_none(), "needs `mqtt.user`"),
        (
            "mqtt.uids",
            mqtt.uids == Uids::Plain && !mqtt.url.is_private(),
            "is \"plain\", but others could read along: use mqtts in `mqtt.url`, or \"hashed\"",
        ),
    ] {
        if wrong {
            return Err(layers.conflict(path, problem));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
