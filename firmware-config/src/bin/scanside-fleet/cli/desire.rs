//! `desire`: one device's whole list.

use std::collections::{BTreeMap, BTreeSet};

use clap::{Args, ValueEnum};
use firmware_config::{Promote, Shadow, TopicLevel, Wanted};

use super::Common;
use crate::desired::{DeviceName, look, message, publish, state, utc};
use crate::error::{Result, input};
use crate::mqtt::{BrokerArgs, Connection};
use crate::repository::Repository;

/// Flags of `desire`.
#[derive(Args)]
pub struct Desire {
    #[command(flatten)]
    broker: BrokerArgs,
    /// The device's site
    #[arg(long, value_name = "SITE")]
    site: TopicLevel,
    /// The device
    #[arg(long, value_name = "DEVICE")]
    device: TopicLevel,
    /// A task and its published version; all that shall run must be named
    #[arg(long, value_name = "TASK=VERSION", required_unless_present = "nothing")]
    task: Vec<String>,
    /// Let nothing run
    #[arg(long, conflicts_with = "task")]
    nothing: bool,
    #[command(flatten)]
    shadow: ShadowArgs,
    /// For how many days the state may be acted on by a device that sees it late
    #[arg(long, default_value_t = 365, value_name = "DAYS", value_parser = clap::value_parser!(u16).range(1..=3650))]
    days: u16,
    /// Even if tasks that run now are not named and will be taken down
    #[arg(long)]
    take_down: bool,
}

/// How a new plugin runs beside the old one first.
#[derive(Debug, Clone, Copy, Args)]
pub struct ShadowArgs {
    /// Run each new plugin beside the active one first, for so many series
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    shadow: Option<u32>,
    /// Who promotes it then
    #[arg(long, value_enum, default_value_t = Who::Rule)]
    promote: Who,
    /// The rule: share of labels about which both agree, at least
    #[arg(long, default_value_t = 0.95, value_name = "SHARE")]
    min_agreement: f64,
    /// The rule: mean absolute difference of probabilities, at most
    #[arg(long, default_value_t = 0.05, value_name = "DIFFERENCE")]
    max_difference: f64,
}

/// Who promotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Who {
    /// The device, by the rule
    Rule,
    /// The operator, by a desired state without --shadow
    Operator,
}

impl ShadowArgs {
    /// As it stands in a desired state.
    pub fn shadow(&self) -> Option<Shadow> {
        let promote = if self.promote == Who::Rule { Promote::Rule } else { Promote::Operator };
        self.shadow.map(|results| Shadow {
            results,
            promote,
            min_agreement: self.min_agreement,
            max_difference: self.max_difference,
        })
    }
}

/// A task and its version.
pub fn task(text: &str) -> Result<(&str, &str)> {
    text.split_once('=')
        .filter(|(name, version)| !name.is_empty() && !version.is_empty())
        .ok_or_else(|| input(format!("--task is {text:?}, expected TASK=VERSION, for example lesion=1.1.0")))
}

impl Desire {
    /// Publishes the state.
    pub fn run(&self, common: &Common) -> Result<()> {
        let repository = common.open()?;
        let keys = common.keyring()?;
        let device = DeviceName { site: self.site.clone(), device: self.device.clone() };
        let tasks = self.tasks(&repository)?;
        // That keys are missing is said before the broker is asked.
        let now = jiff::Timestamp::now();
        let expires = now + jiff::SignedDuration::from_hours(24 * i64::from(self.days));
        message(state(&device, 1, utc(expires), tasks.clone()), &repository, &keys)?;

        let mut connection = Connection::open(&self.broker)?;
        let all = look(&mut connection, &repository, &BTreeSet::from([device.clone()]))?;
        let seen = all.get(&device).cloned().unwrap_or_default();
        if let Some(reason) = &seen.forged {
            eprintln!(
                "warning: the desired state of {device} at the broker has no force ({reason}) and is replaced"
            );
        }
        let down = seen.taken_down(&tasks);
        if !down.is_empty() && !self.take_down {
            return Err(input(format!(
                "{device} runs {} too, which a desired state without it takes down: name it with --task, or say --take-down",
                down.join(", ")
            )));
        }
        // The same again is not published, unless half of its time has gone by.
        let half = now + jiff::SignedDuration::from_hours(12 * i64::from(self.days));
        if let Some(desired) = seen.valid().filter(|d| d.tasks == tasks && d.expires >= utc(half)) {
            println!("{device}: revision {} wants this already", desired.revision);
            return Ok(());
        }
        let revision = seen.next_revision(0).map_err(input)?;
        let message = message(state(&device, revision, utc(expires), tasks), &repository, &keys)?;
        if !publish(&mut connection, std::slice::from_ref(&message))?.is_empty() {
            return Err(input(format!(
                "another operator told {device} something else at the same moment, and that stands now: look with `scanside-fleet status` and give the command again if yours shall"
            )));
        }
        println!("{device}: revision {revision}, until {}", utc(expires));
        Ok(())
    }

    fn tasks(&self, repository: &Repository) -> Result<BTreeMap<String, Wanted>> {
        let mut tasks = BTreeMap::new();
        for text in &self.task {
            let (name, version) = task(text)?;
            let target = repository.plugin(self.site.as_str(), name, version)?;
            let wanted = Wanted { target, shadow: self.shadow.shadow() };
            if tasks.insert(name.to_owned(), wanted).is_some() {
                return Err(input(format!("--task names {name} twice, expected one version of it")));
            }
        }
        Ok(tasks)
    }
}
