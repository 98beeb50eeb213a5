//! `status`: what the devices say of themselves.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use clap::Args;
use firmware_config::{Desired, Reported, ReportedPlugin, ReportedTask, TaskState, TopicLevel};
use serde::Serialize;
use serde_json::Value;

use super::Common;
use crate::desired::DeviceName;
use crate::envelope::peek;
use crate::error::{Result, machine};
use crate::fleet::Fleet;
use crate::mqtt::{BrokerArgs, Connection};
use crate::table::{plain, table};

/// Flags of `status`.
#[derive(Args)]
pub struct Status {
    #[command(flatten)]
    broker: BrokerArgs,
    /// Only this site; may be given several times
    #[arg(long, value_name = "SITE")]
    site: Vec<TopicLevel>,
    /// Print once and end, instead of following
    #[arg(long)]
    once: bool,
    /// A JSON object a device and line
    #[arg(long)]
    json: bool,
}

/// A device, from its retained messages.
#[derive(Debug, Default, PartialEq, Serialize)]
struct Line {
    device: String,
    /// None where it never said.
    online: Option<bool>,
    /// Of the desired state at the broker.
    desired: Option<u64>,
    reported: Option<Reported>,
}

impl Status {
    /// Prints the table, again and again unless asked once.
    pub fn run(&self, common: &Common) -> Result<()> {
        let expected =
            if common.repository.exists() { Fleet::read(&common.repository)?.all() } else { Vec::new() };
        let mut connection = Connection::open(&self.broker)?;
        let mut messages = connection.retained(&self.filters())?;
        let live = !self.once && std::io::stdout().is_terminal();
        let mut shown = String::new();
        loop {
            let lines = lines(&messages, &expected, &self.site);
            let text = if self.json { json(&lines) } else { show(&lines) };
            if text != shown {
                // From the top left corner of an empty screen.
                let clear = if live && !self.json { "\x1b[H\x1b[2J" } else { "" };
                let mut out = std::io::stdout().lock();
                let told = write!(out, "{clear}{text}").and_then(|()| out.flush());
                match told {
                    Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
                    other => other.map_err(|error| machine(format!("stdout: {error}")))?,
                }
                shown = text;
            }
            if self.once {
                return Ok(());
            }
            for (topic, payload) in connection.listen(Instant::now() + Duration::from_secs(1))? {
                if payload.is_empty() {
                    messages.remove(&topic);
                } else {
                    messages.insert(topic, payload);
                }
            }
        }
    }

    fn filters(&self) -> Vec<String> {
        let sites: Vec<String> = if self.site.is_empty() {
            vec!["+".into()]
        } else {
            self.site.iter().map(ToString::to_string).collect()
        };
        let of = |site: &String| {
            ["reported", "state", "desired"].map(|what| format!("scanside/v1/{site}/+/{what}"))
        };
        sites.iter().flat_map(of).collect()
    }
}

/// Everything retained about devices, and the devices that should have said something.
fn lines(messages: &BTreeMap<String, Vec<u8>>, expected: &[DeviceName], sites: &[TopicLevel]) -> Vec<Line> {
    let mut all: BTreeMap<String, Line> = BTreeMap::new();
    for device in expected.iter().filter(|device| sites.is_empty() || sites.contains(&device.site)) {
        all.entry(device.to_string()).or_default();
    }
    for (topic, payload) in messages {
        let parts: Vec<&str> = topic.split('/').collect();
        let ["scanside", "v1", site, device, what] = parts[..] else { continue };
        let line = all.entry(format!("{site}/{device}")).or_default();
        match what {
            "reported" => line.reported = serde_json::from_slice(payload).ok(),
            "desired" => line.desired = peek::<Desired>(payload).map(|desired| desired.revision),
            "state" => {
                let state: Option<Value> = serde_json::from_slice(payload).ok();
                line.online = state.and_then(|state| state["online"].as_bool());
            }
            _ => {}
        }
    }
    all.into_iter().map(|(device, line)| Line { device, ..line }).collect()
}

fn json(lines: &[Line]) -> String {
    lines.iter().map(|line| serde_json::to_string(line).expect("plain data serialises") + "\n").collect()
}

fn show(lines: &[Line]) -> String {
    let mut rows = Vec::new();
    for line in lines {
        let online = line.online.map_or("?", |online| if online { "yes" } else { "no" });
        let followed = line.reported.as_ref().and_then(|r| r.revision);
        let number = |revision: Option<u64>| revision.map_or("-".into(), |r| r.to_string());
        let revision = if followed == line.desired {
            number(followed)
        } else {
            format!("{} of {}", number(followed), number(line.desired))
        };
        let refused = line.reported.as_ref().and_then(|r| r.refused.as_deref());
        let start = vec![plain(&line.device), online.into(), revision];
        let tasks = line.reported.iter().flat_map(|reported| &reported.tasks);
        let before = rows.len();
        for (name, task) in tasks {
            let first = if rows.len() == before { start.clone() } else { vec![String::new(); 3] };
            let note = task.failure.as_deref().or(refused).unwrap_or_default();
            let cells = [plain(name), version(task.active.as_ref()), work(task), plain(note)];
            rows.push(first.into_iter().chain(cells).collect());
        }
        if rows.len() == before {
            let note = refused.unwrap_or(if line.reported.is_some() {
                "runs nothing"
            } else {
                "has never reported"
            });
            rows.push(start.into_iter().chain(["-".into(), "-".into(), "-".into(), plain(note)]).collect());
        }
    }
    let count = format!(
        "{} devices, {} online\n",
        lines.len(),
        lines.iter().filter(|line| line.online == Some(true)).count()
    );
    table(&["DEVICE", "ONLINE", "REVISION", "TASK", "ACTIVE", "STATE", "NOTE"], &rows) + &count
}

fn version(plugin: Option<&ReportedPlugin>) -> String {
    plugin.map_or("-".into(), |plugin| {
        let unsigned = if plugin.target.is_none() { " unsigned" } else { "" };
        format!("{}{unsigned}", plain(&plugin.task.version))
    })
}

/// What is under way.
fn work(task: &ReportedTask) -> String {
    let candidate = version(task.candidate.as_ref());
    match task.state {
        TaskState::Active => "active".into(),
        TaskState::Fetching => {
            let part = task.progress.map_or(String::new(), |share| {
                let share = share.clamp(0.0, 1.0);
                let full = (share * 10.0) as usize;
                format!(" [{}{}] {:.0} %", "#".repeat(full), ".".repeat(10 - full), share * 100.0)
            });
            format!("fetching {candidate}{part}")
        }
        TaskState::Checking => format!("checking {candidate}"),
        TaskState::Shadow => {
            let part = task.shadow.map_or(String::new(), |s| {
                format!(" {} of {}, agree {:.0} %", s.results, s.of, s.agreement * 100.0)
            });
            format!("shadow {candidate}{part}")
        }
        TaskState::Failed => "failed".into(),
        TaskState::Down => "down".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_device_has_its_line() {
        let reported = r#"{"schema":"scanside.reported/1","site":"north","device":"ct-1","build":"scanside 0.1.0","at":"2026-11-26T18:44:04Z",
            "revision":3,"refused":null,"metadata":null,"tasks":{"lesion":{"state":"fetching",
            "active":{"task":{"name":"lesion","version":"1.0.0"},"sha256":"00","target":"north/lesion-1.0.0.plugin"},
            "candidate":{"task":{"name":"lesion","version":"1.1.0"},"sha256":"01","target":"north/lesion-1.1.0.plugin"},
            "previous":null,"progress":0.42,"failure":null,"shadow":null}}}"#;
        let messages = [
            ("scanside/v1/north/ct-1/reported", reported),
            (
                "scanside/v1/north/ct-1/state",
                r#"{"schema":"scanside.state/1","online":true,"build":"x","tasks":[],"since":null}"#,
            ),
            ("scanside/v1/north/ct-3/state", r#"{"online":false}"#),
            ("scanside/v1/north/x/reported", "no JSON \u{1b}[2J"),
        ];
        let messages =
            messages.map(|(topic, payload)| (topic.to_owned(), payload.as_bytes().to_vec())).into();
        let expected: Vec<DeviceName> = ["north/ct-2", "south/mr-1"].map(|name| name.parse().unwrap()).into();
        let lines = lines(&messages, &expected, &["north".parse().unwrap()]);
        let names: Vec<&str> = lines.iter().map(|line| line.device.as_str()).collect();
        assert_eq!(names, ["north/ct-1", "north/ct-2", "north/ct-3", "north/x"]);
        let shown = show(&lines);
        let rows: Vec<&str> = shown.lines().collect();
        for part in ["yes", "3 of -", "lesion", "1.0.0", "fetching 1.1.0 [####......] 42 %"] {
            assert!(rows[1].contains(part), "{shown}");
        }
        assert!(rows[2].contains("has never reported") && rows[3].contains("no"), "{shown}");
        assert!(shown.ends_with("4 devices, 1 online\n") && !shown.contains('\u{1b}'), "{shown}");
        assert_eq!(json(&lines).lines().count(), 4);
    }
}
