//! Telling devices what to run: a desired state, signed, retained, with a revision that counts up.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::time::Instant;

use firmware_config::{DESIRED_SCHEMA, Desired, Reported, TopicLevel, Utc, Wanted};
use serde::{Deserialize, Serialize};

use crate::envelope::{open, peek, seal, to_bytes};
use crate::error::{Result, input, machine};
use crate::keys::Keyring;
use crate::mqtt::{Connection, Message, SILENCE};
use crate::repository::Repository;

/// Revisions above this are nobody's counting: they would not come through every JSON reader unharmed.
const HIGHEST: u64 = 1 << 53;

/// A device of a site, `SITE/DEVICE`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DeviceName {
    /// The site.
    pub site: TopicLevel,
    /// The device.
    pub device: TopicLevel,
}

impl DeviceName {
    /// A topic of the device.
    pub fn topic(&self, rest: &str) -> String {
        format!("scanside/v1/{}/{}/{rest}", self.site, self.device)
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.site, self.device)
    }
}

impl FromStr for DeviceName {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let wrong = |detail: String| format!("the device is {text:?}, expected SITE/DEVICE ({detail})");
        let (site, device) = text.split_once('/').ok_or_else(|| wrong("there is no '/'".into()))?;
        let level = |name: &str| name.parse::<TopicLevel>().map_err(|error| wrong(error.to_string()));
        Ok(Self { site: level(site)?, device: level(device)? })
    }
}

impl TryFrom<String> for DeviceName {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        text.parse()
    }
}

impl From<DeviceName> for String {
    fn from(name: DeviceName) -> Self {
        name.to_string()
    }
}

/// What the broker keeps about a device.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Seen {
    /// Its desired state, whoever signed it.
    pub desired: Option<Desired>,
    /// Why that state has no force: its signatures are not enough.
    pub forged: Option<String>,
    /// What it says of itself.
    pub reported: Option<Reported>,
}

impl Seen {
    /// The next revision: above all that was ever seen. A state that nobody signed for counts too, since keys change and counting up
    /// does no harm.
    pub fn next_revision(&self, known: u64) -> std::result::Result<u64, String> {
        let desired = self.desired.as_ref().map_or(0, |d| d.revision);
        let reported = self.reported.as_ref().and_then(|r| r.revision).unwrap_or(0);
        let highest = desired.max(reported).max(known);
        if highest >= HIGHEST {
            return Err(format!(
                "a revision of {highest} stands at the broker, which nobody counted up to: find out who published it and clear that message"
            ));
        }
        Ok(highest + 1)
    }

    /// The desired state that has force.
    pub fn valid(&self) -> Option<&Desired> {
        self.desired.as_ref().filter(|_| self.forged.is_none())
    }

    /// Tasks that run now and would be taken down by a desired state of these.
    pub fn taken_down<'a>(&'a self, tasks: &BTreeMap<String, Wanted>) -> Vec<&'a str> {
        let Some(reported) = &self.reported else { return Vec::new() };
        let runs = reported.tasks.iter().filter(|(_, task)| task.active.is_some());
        runs.map(|(name, _)| name.as_str()).filter(|name| !tasks.contains_key(*name)).collect()
    }
}

/// What the broker keeps about these devices.
pub fn look(
    connection: &mut Connection,
    repository: &Repository,
    devices: &BTreeSet<DeviceName>,
) -> Result<BTreeMap<DeviceName, Seen>> {
    let topics = devices.iter().flat_map(|device| [device.topic("desired"), device.topic("reported")]);
    let retained = connection.kept(&topics.collect::<Vec<_>>())?;
    Ok(devices.iter().map(|device| (device.clone(), seen(device, &retained, repository))).collect())
}

/// What these retained messages say about a device.
pub fn seen(device: &DeviceName, retained: &BTreeMap<String, Vec<u8>>, repository: &Repository) -> Seen {
    let mut seen = Seen::default();
    if let Some(bytes) = retained.get(&device.topic("desired")) {
        seen.desired = peek(bytes);
        seen.forged = verified(bytes, device, repository).err();
    }
    if let Some(bytes) = retained.get(&device.topic("reported")) {
        seen.reported = serde_json::from_slice(bytes).ok();
    }
    seen
}

fn verified(
    bytes: &[u8],
    device: &DeviceName,
    repository: &Repository,
) -> std::result::Result<Desired, String> {
    let desired: Desired = open(bytes, &repository.delegations(), device.site.as_str())?;
    desired.validate().map_err(|invalid| invalid.to_string())?;
    if desired.site != device.site || desired.device != device.device {
        return Err(format!("it was signed for {}/{}", desired.site, desired.device));
    }
    Ok(desired)
}

/// Signs a desired state and gives its message.
pub fn message(desired: Desired, repository: &Repository, keys: &Keyring) -> Result<Message> {
    desired.validate().map_err(|invalid| input(invalid.to_string()))?;
    let device = DeviceName { site: desired.site.clone(), device: desired.device.clone() };
    let (ids, threshold) = repository.site_keys(device.site.as_str())?;
    let signers = keys.of(device.site.as_str(), &ids, threshold)?;
    Ok(Message::json(device.topic("desired"), to_bytes(&seal(desired, &signers))))
}

/// A desired state for a device.
pub fn state(device: &DeviceName, revision: u64, expires: Utc, tasks: BTreeMap<String, Wanted>) -> Desired {
    Desired {
        schema: DESIRED_SCHEMA.into(),
        site: device.site.clone(),
        device: device.device.clone(),
        revision,
        expires,
        tasks,
    }
}

/// Publishes desired states and reads back what is retained then; names the devices for which another operator's came between.
pub fn publish(connection: &mut Connection, messages: &[Message]) -> Result<Vec<String>> {
    connection.publish(messages.iter().cloned(), |_| ())?;
    // Another operator, who looked before this was there, publishes within the moment between a look and its answer.
    connection.listen(Instant::now() + SILENCE)?;
    let topics: Vec<String> = messages.iter().map(|message| message.topic.clone()).collect();
    let kept = connection.kept(&topics)?;
    let mut overtaken = Vec::new();
    for message in messages {
        match kept.get(&message.topic) {
            Some(payload) if *payload == message.payload => {}
            Some(_) => overtaken.push(message.topic.clone()),
            None => {
                return Err(machine(format!(
                    "the broker took the message for {} and does not keep it: allow it to retain messages",
                    message.topic
                )));
            }
        }
    }
    Ok(overtaken)
}

/// An instant, to the second.
pub fn utc(at: jiff::Timestamp) -> Utc {
    let seconds = jiff::Timestamp::from_second(at.as_second()).unwrap_or(at);
    seconds.to_string().parse().expect("an instant in UTC")
}
