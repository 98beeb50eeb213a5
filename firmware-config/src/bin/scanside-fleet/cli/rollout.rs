//! `rollout`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use clap::{Args, Subcommand};
use jiff::{SignedDuration, Timestamp};

use super::Common;
use super::desire::{ShadowArgs, task};
use crate::desired::{DeviceName, look, message, publish, state, utc};
use crate::error::{Error, Result, input, machine};
use crate::fleet::Fleet;
use crate::keys::Keyring;
use crate::mqtt::{BrokerArgs, Connection};
use crate::repository::Repository;
use crate::rollout::{
    Rollout, SCHEMA, Status, Verdict, Waves, base, check_name, fractions, list, load, save, share, step,
};

/// Pause between two looks at the broker.
const PAUSE: Duration = Duration::from_secs(1);

/// Subcommands of `rollout`.
#[derive(Subcommand)]
pub enum Command {
    /// Plan a rollout and begin; it goes on until it is done, or stopped
    Start(Box<Start>),
    /// How far rollouts have come
    Status {
        /// The rollout; without it, all
        name: Option<String>,
    },
    /// Go on, after a pause, a stop or a crash
    Resume {
        /// The rollout
        name: String,
        #[command(flatten)]
        broker: BrokerArgs,
        /// Another threshold from now on
        #[arg(long, value_name = "SHARE", value_parser = share)]
        max_failures: Option<u32>,
        /// Decide once, do it and return, instead of going on until the end
        #[arg(long)]
        once: bool,
    },
    /// Tell no further devices
    Pause {
        /// The rollout
        name: String,
    },
    /// Put back what each device had before
    Abort {
        /// The rollout
        name: String,
        #[command(flatten)]
        broker: BrokerArgs,
    },
}

/// Flags of `rollout start`.
#[derive(Args)]
pub struct Start {
    /// Its name, for example lesion-1.1
    name: String,
    #[command(flatten)]
    broker: BrokerArgs,
    /// The task and its published version
    #[arg(long, value_name = "TASK=VERSION")]
    task: String,
    #[command(flatten)]
    whom: Whom,
    /// Shares of the devices at which waves end
    #[arg(long, value_name = "SHARES", default_value = "5%,25%,100%")]
    waves: String,
    /// Stop when more than this share of the devices told has failed
    #[arg(long, value_name = "SHARE", default_value = "10%", value_parser = share)]
    max_failures: u32,
    /// A wave's verdicts must stand this long before the next wave
    #[arg(long, value_name = "TIME", default_value = "10min", value_parser = seconds)]
    settle: u64,
    /// A device that is silent or not done after this counts as failed
    #[arg(long, value_name = "TIME", default_value = "30min", value_parser = seconds)]
    patience: u64,
    /// For how many days the desired states hold
    #[arg(long, default_value_t = 365, value_name = "DAYS", value_parser = clap::value_parser!(u16).range(1..=3650))]
    days: u16,
    #[command(flatten)]
    shadow: ShadowArgs,
    /// Tell the first wave and return; `rollout resume` goes on
    #[arg(long)]
    once: bool,
}

/// Which devices.
#[derive(Args)]
#[group(required = true, multiple = false)]
struct Whom {
    /// A group of fleet.toml
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
    /// These devices
    #[arg(long, value_name = "SITE/DEVICE,…", value_delimiter = ',')]
    devices: Vec<DeviceName>,
    /// All devices of fleet.toml
    #[arg(long)]
    all: bool,
    /// A wave of its own; given several times, instead of --waves
    #[arg(long, value_name = "SITE/DEVICE,…", conflicts_with = "waves")]
    wave: Vec<String>,
}

/// A duration such as `10min`, in seconds.
fn seconds(text: &str) -> std::result::Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let factor = match &text[digits..] {
        "s" => Some(1),
        "min" => Some(60),
        "h" => Some(3600),
        "d" => Some(86_400),
        _ => None,
    };
    let number = text[..digits].parse::<u64>().ok().zip(factor).and_then(|(n, factor)| n.checked_mul(factor));
    number
        .filter(|n| *n <= 366 * 86_400)
        .ok_or_else(|| format!("{text:?} is no time, expected for example 90s, 10min, 24h or 7d"))
}

impl Command {
    /// Does what is asked.
    pub fn run(&self, common: &Common) -> Result<()> {
        match self {
            Self::Start(start) => start.run(common),
            Self::Status { name } => status(common, name.as_deref()),
            Self::Resume { name, broker, max_failures, once } => {
                change(common, name, |rollout| {
                    if matches!(rollout.status, Status::Done | Status::Aborted) {
                        return Err(over(rollout));
                    }
                    if rollout.status != Status::Aborting {
                        rollout.status = Status::Running;
                    }
                    rollout.reason = None;
                    rollout.max_failures = max_failures.unwrap_or(rollout.max_failures);
                    Ok(())
                })?;
                drive(common, name, broker, *once)
            }
            Self::Pause { name } => {
                let rollout = change(common, name, |rollout| {
                    if rollout.status != Status::Running {
                        return Err(over(rollout));
                    }
                    (rollout.status, rollout.reason) = (Status::Paused, None);
                    Ok(())
                })?;
                println!("{name}: paused, {}", rollout.summary());
                Ok(())
            }
            Self::Abort { name, broker } => {
                change(common, name, |rollout| {
                    if rollout.status == Status::Aborted {
                        return Err(over(rollout));
                    }
                    (rollout.status, rollout.reason) = (Status::Aborting, None);
                    Ok(())
                })?;
                drive(common, name, broker, false)
            }
        }
    }
}

fn over(rollout: &Rollout) -> Error {
    input(format!(
        "the rollout {} is {}, there is nothing to change about that",
        rollout.name,
        label(rollout.status)
    ))
}

fn label(status: Status) -> &'static str {
    match status {
        Status::Running => "running",
        Status::Paused => "paused",
        Status::Stopped => "stopped",
        Status::Aborting => "aborting",
        Status::Aborted => "aborted",
        Status::Done => "done",
    }
}

fn there(repository: &Repository, name: &str) -> Result<Rollout> {
    load(repository, name)?
        .ok_or_else(|| input(format!("there is no rollout {name:?}: see `scanside-fleet rollout status`")))
}

/// Changes a rollout's file.
fn change(common: &Common, name: &str, edit: impl FnOnce(&mut Rollout) -> Result<()>) -> Result<Rollout> {
    let repository = common.open()?;
    let mut rollout = there(&repository, name)?;
    let before = rollout.clone();
    edit(&mut rollout)?;
    if rollout != before {
        rollout.serial += 1;
        save(&repository, &rollout, &common.keyring()?)?;
    }
    Ok(rollout)
}

impl Start {
    fn run(&self, common: &Common) -> Result<()> {
        check_name(&self.name)?;
        let (task, version) = task(&self.task)?;
        let repository = common.open()?;
        if load(&repository, &self.name)?.is_some() {
            return Err(input(format!(
                "there is a rollout {0:?} already: `scanside-fleet rollout resume {0}` goes on with it",
                self.name
            )));
        }
        let waves = self.waves(repository.folder())?;
        let devices: BTreeSet<DeviceName> = waves.iter().flatten().cloned().collect();
        if devices.len() != waves.iter().flatten().count() {
            return Err(input("a device stands in the plan twice, expected each device once"));
        }
        let mut targets = BTreeMap::new();
        for device in &devices {
            let site = device.site.as_str();
            if !targets.contains_key(site) {
                targets.insert(site.to_owned(), repository.plugin(site, task, version)?);
            }
        }
        let mut connection = Connection::open(&self.broker)?;
        for (device, seen) in look(&mut connection, &repository, &devices)? {
            base(&device, &seen).map_err(input)?;
        }
        let rollout = Rollout {
            schema: SCHEMA.into(),
            name: self.name.clone(),
            task: task.into(),
            version: version.into(),
            targets,
            shadow: self.shadow.shadow(),
            waves,
            max_failures: self.max_failures,
            settle: self.settle,
            patience: self.patience,
            days: self.days,
            created: utc(Timestamp::now()),
            serial: 1,
            status: Status::Running,
            reason: None,
            devices: BTreeMap::new(),
        };
        save(&repository, &rollout, &common.keyring()?)?;
        drop((repository, connection));
        let sizes: Vec<String> = rollout.waves.iter().map(|wave| wave.len().to_string()).collect();
        println!(
            "{}: {task} {version} to {} devices in waves of {}",
            self.name,
            devices.len(),
            sizes.join(", ")
        );
        drive(common, &self.name, &self.broker, self.once)
    }

    fn waves(&self, repository: &Path) -> Result<Waves> {
        let names = |text: &str| {
            text.split(',')
                .map(|name| name.trim().parse().map_err(input))
                .collect::<Result<Vec<DeviceName>>>()
        };
        if !self.whom.wave.is_empty() {
            return self.whom.wave.iter().map(|wave| names(wave)).collect();
        }
        let fleet = Fleet::read(repository)?;
        let devices = match &self.whom.group {
            Some(group) => fleet.group(group)?,
            None if self.whom.all => fleet.all(),
            None => self.whom.devices.clone(),
        };
        if devices.is_empty() {
            return Err(input("no device is meant: write them under [sites] in the repository's fleet.toml"));
        }
        fractions(&devices, &self.waves).map_err(|reason| input(format!("--waves: {reason}")))
    }
}

/// Looks, decides, writes down and tells, until the rollout ends or halts.
fn drive(common: &Common, name: &str, broker: &BrokerArgs, once: bool) -> Result<()> {
    let keys = common.keyring()?;
    let mut shown = String::new();
    let mut connection = Some(Connection::open(broker)?);
    let mut lost = 0;
    loop {
        let result = match &mut connection {
            Some(open) => tick(common, name, open, &keys),
            None => Connection::open(broker)
                .map(|open| connection.insert(open))
                .and_then(|open| tick(common, name, open, &keys)),
        };
        match result {
            Ok(rollout) => {
                lost = 0;
                let line = format!("{name}: {}, {}", label(rollout.status), rollout.summary());
                if line != shown {
                    println!("{line}");
                    shown = line;
                }
                match rollout.status {
                    Status::Running | Status::Aborting if !once => {}
                    Status::Stopped => return Err(stopped(&rollout)),
                    _ => return Ok(()),
                }
            }
            // The file and the broker hold everything: after a lost connection it goes on as after a crash.
            Err(Error::Machine(reason)) if lost < 30 && !once => {
                eprintln!("warning: {reason}");
                (connection, lost) = (None, lost + 1);
                sleep(Duration::from_secs(lost));
            }
            Err(error) => return Err(error),
        }
        sleep(PAUSE);
    }
}

fn stopped(rollout: &Rollout) -> Error {
    let failed = rollout.devices.iter().filter(|(_, device)| device.verdict == Verdict::Failed);
    let told = failed
        .take(5)
        .map(|(name, device)| format!("{name}: {}", device.reason.as_deref().unwrap_or("no reason")));
    machine(format!(
        "the rollout {0} stopped, {1} ({2}); `scanside-fleet rollout abort {0}` puts back what was, `rollout resume {0} --max-failures SHARE` goes on",
        rollout.name,
        rollout.reason.as_deref().unwrap_or("too many failed"),
        told.collect::<Vec<_>>().join("; "),
    ))
}

/// One look and what follows from it.
fn tick(common: &Common, name: &str, connection: &mut Connection, keys: &Keyring) -> Result<Rollout> {
    let repository = common.open()?;
    let before = there(&repository, name)?;
    let devices: BTreeSet<DeviceName> = before.all().cloned().collect();
    let seen = look(connection, &repository, &devices)?;
    let now = Timestamp::now();
    let (mut rollout, told) = step(&before, &seen, now.as_second() as u64);
    // Written down before anybody is told: what is told is known to whoever goes on.
    if rollout != before {
        rollout.serial += 1;
        save(&repository, &rollout, keys)?;
    }
    if !told.is_empty() {
        let expires = utc(now + SignedDuration::from_hours(24 * i64::from(rollout.days)));
        let messages = told
            .into_iter()
            .map(|told| {
                message(state(&told.device, told.revision, expires.clone(), told.tasks), &repository, keys)
            })
            .collect::<Result<Vec<_>>>()?;
        for topic in publish(connection, &messages)? {
            eprintln!(
                "warning: another operator told {topic} something else at the same moment, and that stands"
            );
        }
    }
    Ok(rollout)
}

fn status(common: &Common, name: Option<&str>) -> Result<()> {
    let repository = common.open()?;
    let names = match name {
        Some(name) => vec![name.to_owned()],
        None => list(&repository)?,
    };
    for name in &names {
        let rollout = there(&repository, name)?;
        println!(
            "{name}: {} {}, {}, {}",
            rollout.task,
            rollout.version,
            label(rollout.status),
            rollout.summary()
        );
        if let Some(reason) = &rollout.reason {
            println!("  {reason}");
        }
        for (device, progress) in &rollout.devices {
            if names.len() == 1 || progress.reason.is_some() {
                let verdict = format!("{:?}", progress.verdict).to_lowercase();
                println!("  {device:<24} {verdict:<10} {}", progress.reason.as_deref().unwrap_or_default());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        for (text, time) in [("0s", 0), ("90s", 90), ("10min", 600), ("24h", 86_400), ("7d", 604_800)] {
            assert_eq!(seconds(text), Ok(time));
        }
        for bad in ["", "10", "min", "-1s", "1.5h", "99999999999999999999d", "400d", "1 h", "1ü"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
