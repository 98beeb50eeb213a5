//! `scanside config`.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use firmware_config::device::{self, Device};

use super::{Fault, say};

#[derive(Subcommand)]
pub enum ConfigCommand {
    /// Print a device.toml with every key, commented.
    Example,
    /// Check a device.toml: exit code 0 if the service would start with it.
    Check {
        /// The configuration.
        #[arg(long, value_name = "device.toml")]
        config: PathBuf,
    },
    /// Print the documentation of every key (docs/config.md).
    #[command(hide = true)]
    Docs,
}

impl ConfigCommand {
    pub fn run(self) -> Result<(), Fault> {
        match self {
            Self::Example => say::line(device::example().trim_end()),
            Self::Docs => say::line(device::docs().trim_end()),
            Self::Check { config } => {
                let device = load(&config)?;
                for caution in device.cautions() {
                    say::message(&format!("scanside: caution: {caution}"));
                }
                say::line(&format!("{} is a valid configuration", config.display()))
            }
        }
    }
}

/// Reads a device.toml, with the environment over it.
pub fn load(path: &Path) -> Result<Device, Fault> {
    let text = fs::read_to_string(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::InvalidData => {
            Fault::File { path: path.into(), problem: "is no text in UTF-8".into() }
        }
        _ => Fault::Io { what: "read", path: path.into(), source },
    })?;
    // A variable that is no text cannot be one of ours.
    let environment =
        std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
    Device::parse(&text, environment)
        .map_err(|error| Fault::File { path: path.into(), problem: format!("cannot be used: {error}") })
}
