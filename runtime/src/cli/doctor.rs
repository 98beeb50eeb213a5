//! `scanside doctor`.

use std::path::PathBuf;
use std::time::SystemTime;

use clap::Args;
use runtime::doctor::{Check, Grade, examine};
use serde_json::json;

use super::{Fault, config, say};

/// Check this box and say what to mend.
///
/// Without a configuration, the box itself; with one, also disk, backbone, plugins, ports and broker. One line a check: ok, warn or
/// fail, what was found, and what to do. Exit code 1 if a check failed. Run it as the service's user.
#[derive(Args)]
pub struct Doctor {
    /// The service's configuration.
    #[arg(long, value_name = "device.toml")]
    config: Option<PathBuf>,
    /// Print the checks as one JSON object.
    #[arg(long)]
    json: bool,
}

impl Doctor {
    pub fn run(self) -> Result<(), Fault> {
        let device = self.config.as_deref().map(config::load);
        // A configuration that cannot be read is what this command is for: it is one check among the others.
        let config = device.as_ref().map(|device| device.as_ref().map_err(Fault::sentence));
        let checks = examine(config, SystemTime::now());
        let failed = checks.iter().filter(|check| check.grade == Grade::Fail).count();
        if self.json {
            let report = json!({ "schema": "scanside.doctor/1", "ok": failed == 0, "checks": checks });
            say::line(&report.to_string())?;
        } else {
            checks.iter().try_for_each(|check| say::line(&line(check)))?;
        }
        match failed {
            0 => Ok(()),
            1 => Err(Fault::Differs(format!("1 of {} checks failed", checks.len()))),
            n => Err(Fault::Differs(format!("{n} of {} checks failed", checks.len()))),
        }
    }
}

fn line(check: &Check) -> String {
    let Check { name, grade, finding, remedy } = check;
    let remedy = remedy.as_ref().map(|remedy| format!("; {remedy}")).unwrap_or_default();
    format!("{:<4}  {name:<8}  {finding}{remedy}", grade.as_str())
}
