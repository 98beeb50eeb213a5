//! `scanside manual`, which packages are made with.

use std::path::PathBuf;

use clap::{Args, Command};

use super::Fault;

/// Write the manual pages for man(1), one for each command.
#[derive(Args)]
pub struct Manual {
    /// A folder that is there.
    folder: PathBuf,
}

impl Manual {
    pub fn run(&self, command: Command) -> Result<(), Fault> {
        clap_mangen::generate_to(command, &self.folder).map_err(|source| Fault::write(&self.folder, source))
    }
}
