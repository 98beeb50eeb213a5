//! Which devices there are: `fleet.toml`, beside the repository's metadata, written by hand.
//!
//! ```toml
//! [sites]
//! north = ["ct-1", "ct-2"]
//!
//! [groups]
//! early = ["north/ct-1"]
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use firmware_config::TopicLevel;
use serde::Deserialize;

use crate::desired::DeviceName;
use crate::error::{Result, input, malformed};
use crate::files;

/// The file's name.
pub const FILE: &str = "fleet.toml";

/// The devices and their groups.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fleet {
    #[serde(default)]
    sites: BTreeMap<TopicLevel, Vec<TopicLevel>>,
    #[serde(default)]
    groups: BTreeMap<String, Vec<DeviceName>>,
}

impl Fleet {
    /// Reads the file of a repository; none is a fleet that nobody has written down.
    pub fn read(repository: &Path) -> Result<Self> {
        let path = repository.join(FILE);
        let Some(bytes) = files::read_if_there(&path)? else { return Ok(Self::default()) };
        let expected = "[sites] with SITE = [\"DEVICE\", …] and [groups] with NAME = [\"SITE/DEVICE\", …]";
        let text = String::from_utf8(bytes).map_err(|error| malformed(&path, error, expected))?;
        let fleet: Self = toml::from_str(&text).map_err(|error| {
            let line = error.span().map_or(0, |span| text[..span.start].lines().count().max(1));
            malformed(&path, format!("wrong in line {line} ({})", error.message()), expected)
        })?;
        let all: BTreeSet<DeviceName> = fleet.all().into_iter().collect();
        for (group, devices) in &fleet.groups {
            if let Some(stranger) = devices.iter().find(|device| !all.contains(device)) {
                return Err(malformed(
                    &path,
                    format!("unclear: the group {group} has {stranger}, which no site has"),
                    "each device under [sites] first",
                ));
            }
        }
        Ok(fleet)
    }

    /// All devices, site by site.
    pub fn all(&self) -> Vec<DeviceName> {
        let of = |(site, devices): (&TopicLevel, &Vec<TopicLevel>)| -> Vec<DeviceName> {
            devices.iter().map(|device| DeviceName { site: site.clone(), device: device.clone() }).collect()
        };
        self.sites.iter().flat_map(of).collect()
    }

    /// The devices of a group, in the file's order.
    pub fn group(&self, name: &str) -> Result<Vec<DeviceName>> {
        self.groups.get(name).cloned().ok_or_else(|| {
            let known: Vec<&str> = self.groups.keys().map(String::as_str).collect();
            let known = if known.is_empty() { "none".into() } else { known.join(", ") };
            input(format!(
                "the fleet has no group {name:?} (it has {known}): write it under [groups] in {FILE}"
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_read_or_refused_with_a_reason() {
        let folder = tempfile::tempdir().unwrap();
        let read = |text: &str| {
            std::fs::write(folder.path().join(FILE), text).unwrap();
            Fleet::read(folder.path()).map_err(|error| error.to_string())
        };
        assert!(Fleet::read(folder.path()).unwrap().all().is_empty());
        let fleet = read("[sites]\nnorth = [\"ct-1\", \"ct-2\"]\nsouth = [\"mr-1\"]\n[groups]\nearly = [\"south/mr-1\", \"north/ct-2\"]\n").unwrap();
        let names = |all: Vec<DeviceName>| all.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(names(fleet.all()), ["north/ct-1", "north/ct-2", "south/mr-1"]);
        assert_eq!(names(fleet.group("early").unwrap()), ["south/mr-1", "north/ct-2"]);
        assert!(fleet.group("late").unwrap_err().to_string().contains("it has early"));
        for (bad, part) in [
            ("[sites]\nnorth = [\"a/b\"]\n", "line 2"),
            ("[groups]\nearly = [\"north/ct-1\"]\n", "which no site has"),
            ("[groups]\nearly = [\"ct-1\"]\n", "expected SITE/DEVICE"),
            ("[site]\n", "unknown field"),
        ] {
            let told = read(bad).unwrap_err();
            assert!(told.contains(part), "{told}");
        }
    }
}
