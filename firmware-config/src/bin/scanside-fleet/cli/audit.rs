//! `audit`: who signed what until when, and which device runs what.

use std::collections::BTreeSet;

use clap::Args;
use firmware_config::Reported;
use jiff::Timestamp;
use serde::Serialize;
use tough::schema::decoded::{Decoded, Hex};
use tough::schema::{RoleType, Signature};

use super::{Common, size};
use crate::desired::{DeviceName, Seen, seen, utc};
use crate::error::{Result, input};
use crate::fleet::Fleet;
use crate::keys::{hex, short};
use crate::mqtt::{BrokerArgs, Connection};
use crate::repository::Repository;
use crate::rollout::{list, load};
use crate::table::{plain, table};

/// Flags of `audit`.
#[derive(Args)]
pub struct Audit {
    #[command(flatten)]
    broker: Option<BrokerArgs>,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

/// All that was looked at.
#[derive(Debug, Serialize)]
struct Report {
    roles: Vec<Role>,
    targets: Vec<Target>,
    devices: Vec<Runs>,
    /// What somebody should look at.
    findings: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Role {
    name: String,
    version: u64,
    expires: String,
    threshold: u64,
    keys: Vec<String>,
    signed_by: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Target {
    name: String,
    length: u64,
    sha256: String,
    signed_by: String,
}

#[derive(Debug, PartialEq, Serialize)]
struct Runs {
    device: String,
    task: String,
    version: String,
    sha256: String,
    /// The signed target that it is, `unsigned`, or `unknown`.
    target: String,
}

impl Audit {
    /// Looks at everything and says what it found.
    pub fn run(&self, common: &Common) -> Result<()> {
        let repository = common.open()?;
        let mut all = Report {
            roles: roles(&repository)?,
            targets: Vec::new(),
            devices: Vec::new(),
            findings: Vec::new(),
        };
        let now = utc(Timestamp::now());
        for role in &all.roles {
            if role.expires.as_str() < now.as_str() {
                let refresh =
                    if role.name == "snapshot" || role.name == "timestamp" { "" } else { role.name.as_str() };
                all.findings.push(format!(
                    "{} expired at {}, and devices take nothing new: `scanside-fleet refresh {refresh}`",
                    role.name, role.expires
                ));
            }
        }
        let sites = std::iter::once(None).chain(repository.sites().keys().map(|site| Some(site.as_str())));
        for site in sites {
            for blob in repository.blobs(site)? {
                if let Err(error) = blob.read() {
                    all.findings.push(error.to_string());
                }
                let (length, signed_by) = (blob.target.length, site.unwrap_or("targets").to_owned());
                all.targets.push(Target {
                    name: blob.target.name,
                    length,
                    sha256: blob.target.sha256,
                    signed_by,
                });
            }
        }
        for name in list(&repository)? {
            if let Err(error) = load(&repository, &name) {
                all.findings.push(error.to_string());
            }
        }
        if let Some(broker) = &self.broker {
            devices(&mut all, &repository, &mut Connection::open(broker)?, common)?;
        }
        if self.json {
            println!("{}", serde_json::to_string_pretty(&all).expect("plain data serialises"));
        } else {
            print!("{}", show(&all, self.broker.is_some()));
        }
        match all.findings.len() {
            0 => Ok(()),
            count => {
                Err(input(format!("{count} findings, expected none: see above for each and what to do")))
            }
        }
    }
}

fn roles(repository: &Repository) -> Result<Vec<Role>> {
    let entry = |name: &str,
                 version: u64,
                 expires: Timestamp,
                 (ids, threshold): (Vec<Decoded<Hex>>, u64),
                 signatures: &[Signature]| Role {
        name: name.into(),
        version,
        expires: utc(expires).to_string(),
        threshold,
        keys: ids.iter().map(|id| hex(id)).collect(),
        // Opening has verified that enough of these are valid; others' signatures are not counted.
        signed_by: signatures
            .iter()
            .map(|s| &s.keyid)
            .filter(|id| ids.contains(id))
            .map(|id| hex(id))
            .collect(),
    };
    let (root, targets) = (repository.root(), repository.targets());
    let (snapshot, timestamp) = (repository.snapshot(), repository.timestamp());
    let keys = |role| repository.role_keys(role);
    let mut all = vec![
        entry("root", root.signed.version.get(), root.signed.expires, keys(RoleType::Root), &root.signatures),
        entry(
            "targets",
            targets.signed.version.get(),
            targets.signed.expires,
            keys(RoleType::Targets),
            &targets.signatures,
        ),
        entry(
            "snapshot",
            snapshot.signed.version.get(),
            snapshot.signed.expires,
            keys(RoleType::Snapshot),
            &snapshot.signatures,
        ),
        entry(
            "timestamp",
            timestamp.signed.version.get(),
            timestamp.signed.expires,
            keys(RoleType::Timestamp),
            &timestamp.signatures,
        ),
    ];
    for (name, site) in repository.sites() {
        all.push(entry(
            name,
            site.signed.version.get(),
            site.signed.expires,
            repository.site_keys(name)?,
            &site.signatures,
        ));
    }
    Ok(all)
}

/// What the devices say, held against what is signed.
fn devices(
    all: &mut Report,
    repository: &Repository,
    connection: &mut Connection,
    common: &Common,
) -> Result<()> {
    let filters = ["reported", "desired"].map(|what| format!("scanside/v1/+/+/{what}"));
    let retained = connection.retained(&filters)?;
    let mut names: BTreeSet<DeviceName> = retained
        .keys()
        .filter_map(|topic| match topic.split('/').collect::<Vec<_>>()[..] {
            ["scanside", "v1", site, device, _] => format!("{site}/{device}").parse().ok(),
            _ => None,
        })
        .collect();
    names.extend(Fleet::read(&common.repository)?.all());
    for device in &names {
        let seen = seen(device, &retained, repository);
        judge(device, &seen, all);
        if retained.contains_key(&device.topic("reported")) && seen.reported.is_none() {
            all.findings
                .push(format!("{device} reports what this tool does not understand: is one of them newer?"));
        }
    }
    Ok(())
}

fn judge(device: &DeviceName, seen: &Seen, all: &mut Report) {
    if let Some(reason) = &seen.forged {
        all.findings.push(format!("the desired state of {device} at the broker has no force ({}): sign it again with `scanside-fleet desire`", plain(reason)));
    }
    let Some(reported) = &seen.reported else {
        if seen.forged.is_none() {
            all.findings
                .push(format!("{device} has never reported: is it switched on, and its broker this one?"));
        }
        return;
    };
    let Reported { tasks, refused, .. } = reported;
    if let Some(refused) = refused {
        all.findings.push(format!("{device} refuses its desired state: {}", plain(refused)));
    }
    for (name, task) in tasks {
        let Some(active) = &task.active else { continue };
        // A hash is what it is, whatever the device calls it.
        let site = device.site.as_str();
        let known = all
            .targets
            .iter()
            .find(|t| t.sha256 == active.sha256 && t.signed_by == site)
            .map(|t| t.name.clone());
        let target = known
            .unwrap_or_else(|| if active.target.is_none() { "unsigned".into() } else { "unknown".into() });
        if target == "unsigned" || target == "unknown" {
            all.findings.push(format!(
                "{device} runs {} {}, which is {target} ({}…): nothing published for {site} has this hash",
                plain(name),
                plain(&active.task.version),
                plain(short(&active.sha256))
            ));
        }
        all.devices.push(Runs {
            device: device.to_string(),
            task: plain(name),
            version: plain(&active.task.version),
            sha256: plain(&active.sha256),
            target,
        });
    }
}

fn show(all: &Report, with_devices: bool) -> String {
    let ids = |ids: &[String]| ids.iter().map(|id| short(id)).collect::<Vec<_>>().join(" ");
    let roles = all.roles.iter().map(|role| {
        let threshold = format!("{} of {}", role.threshold, role.keys.len());
        vec![
            role.name.clone(),
            role.version.to_string(),
            role.expires.clone(),
            threshold,
            ids(&role.signed_by),
        ]
    });
    let mut text = table(&["ROLE", "VERSION", "UNTIL", "KEYS", "SIGNED BY"], &roles.collect::<Vec<_>>());
    let targets = all
        .targets
        .iter()
        .map(|t| vec![t.name.clone(), size(t.length), t.signed_by.clone(), t.sha256.clone()]);
    text += "\n";
    text += &table(&["TARGET", "SIZE", "SIGNED BY", "SHA-256"], &targets.collect::<Vec<_>>());
    if with_devices {
        let devices = all
            .devices
            .iter()
            .map(|d| vec![d.device.clone(), d.task.clone(), d.version.clone(), d.target.clone()]);
        text += "\n";
        text += &table(&["DEVICE", "TASK", "RUNS", "TARGET"], &devices.collect::<Vec<_>>());
    }
    for finding in &all.findings {
        text += &format!("\n! {finding}");
    }
    if !all.findings.is_empty() {
        text += "\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_unsigned_or_unknown_is_told() {
        let report = |sha256: &str, target: &str| {
            format!(
                r#"{{"schema":"scanside.reported/1","site":"north","device":"d","build":"b","at":"2026-11-26T18:44:04Z","revision":1,
                "refused":null,"metadata":null,"tasks":{{"lesion":{{"state":"active","active":{{"task":{{"name":"lesion","version":"1.0.0"}},
                "sha256":"{sha256}","target":{target}}},"candidate":null,"previous":null,"progress":null,"failure":null,"shadow":null}}}}}}"#
            )
        };
        let judged = |site: &str, sha256: &str, target: &str| {
            let signed = Target {
                name: "north/lesion-1.0.0.plugin".into(),
                length: 1,
                sha256: "aa".into(),
                signed_by: "north".into(),
            };
            let mut all = Report {
                roles: Vec::new(),
                targets: vec![signed],
                devices: Vec::new(),
                findings: Vec::new(),
            };
            let seen =
                Seen { reported: serde_json::from_str(&report(sha256, target)).unwrap(), ..Seen::default() };
            judge(&format!("{site}/d").parse().unwrap(), &seen, &mut all);
            (all.devices[0].target.clone(), all.findings.len())
        };
        assert_eq!(judged("north", "aa", "null"), ("north/lesion-1.0.0.plugin".into(), 0));
        assert_eq!(judged("north", "bb", "null"), ("unsigned".into(), 1));
        assert_eq!(judged("north", "bb", "\"north/lesion-1.0.0.plugin\""), ("unknown".into(), 1));
        assert_eq!(
            judged("south", "aa", "\"north/lesion-1.0.0.plugin\""),
            ("unknown".into(), 1),
            "another site's"
        );
    }
}
