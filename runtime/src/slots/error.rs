use std::io;
use std::path::PathBuf;

/// Why a slot could not be used.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// The task's folder or a file in it could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// What is said of a task's plugins cannot be read.
    #[error(
        "{} does not say which plugins the task has ({detail}); put back a copy of its folder, or remove the folder and \
         install the plugin again", path.display()
    )]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// A plugin's file is not there any more.
    #[error("{} is gone, which the task's slots name; check the disk, and install the plugin again", path.display())]
    Gone {
        /// The file.
        path: PathBuf,
    },
    /// A plugin's file has other bytes than it had.
    #[error(
        "{} has SHA-256 {found}, which is not the one that it is named by; check the disk, and install the plugin again",
        path.display()
    )]
    Altered {
        /// The file.
        path: PathBuf,
        /// SHA-256 of what is there.
        found: String,
    },
    /// There is nothing to activate.
    #[error("task {task} has no candidate plugin in {}; install one with `scanside plugin install FILE`", folder.display())]
    NoCandidate {
        /// The task's name, as given.
        task: String,
        /// The folder that was looked into.
        folder: PathBuf,
    },
    /// There is nothing to go back to.
    #[error("task {task} has no previous plugin in {}; install one with `scanside plugin install FILE`", folder.display())]
    NoPrevious {
        /// The task's name, as given.
        task: String,
        /// The folder that was looked into.
        folder: PathBuf,
    },
    /// Nothing runs.
    #[error("task {task} has no active plugin in {}; install one, and activate it", folder.display())]
    NoActive {
        /// The task's name, as given.
        task: String,
        /// The folder that was looked into.
        folder: PathBuf,
    },
    /// Another program has changed the slots meanwhile.
    #[error(
        "the plugins of task {task} were changed by another program meanwhile; see `scanside plugin list` and try again"
    )]
    Replaced {
        /// The task's name.
        task: String,
    },
    /// The plugin comes from no signed repository, and this device asks for that.
    #[error(
        "{what} is not signed, and updates.root is configured on this device; install it by its target name once the \
         repository publishes it"
    )]
    NotSigned {
        /// The file or plugin.
        what: String,
    },
    /// The plugin is not the file that was signed.
    #[error("{} has {found}, but the signed target {target} has {expected}; fetch it again", file.display())]
    NotTheTarget {
        /// The file.
        file: PathBuf,
        /// The target's name.
        target: String,
        /// What it has.
        found: String,
        /// What the target has.
        expected: String,
    },
}

impl SlotError {
    /// Whether the user's word is at fault, not the machine.
    pub fn is_bad_input(&self) -> bool {
        !matches!(
            self,
            Self::Io { .. }
                | Self::State { .. }
                | Self::Gone { .. }
                | Self::Altered { .. }
                | Self::Replaced { .. }
        )
    }
}
