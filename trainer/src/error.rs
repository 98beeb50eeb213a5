use std::path::PathBuf;

/// What can go wrong while fitting and exporting.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The task file cannot be read or breaks a rule.
    #[error("the task file {path} cannot be used: {problem}")]
    Task {
        /// The file.
        path: PathBuf,
        /// What was found and what is expected.
        problem: String,
    },
    /// The data table as a whole cannot be used.
    #[error("the data table {path} cannot be used: {problem}")]
    Table {
        /// The file.
        path: PathBuf,
        /// What was found and what is expected.
        problem: String,
    },
    /// A row of the data table is wrong.
    #[error("row {row} of {path} is wrong: {problem}")]
    Row {
        /// The table.
        path: PathBuf,
        /// Line in the file; the header is line 1.
        row: u64,
        /// What was found and what is expected.
        problem: String,
    },
    /// A scan of the data table cannot be used.
    #[error("the scan of `{id}` (row {row} of {table}) cannot be used: {source}")]
    Scan {
        /// The row's id.
        id: String,
        /// Line in the table's file; the header is line 1.
        row: u64,
        /// The table.
        table: PathBuf,
        /// Why.
        source: Box<runtime::Error>,
    },
    /// A data set to be imported is not laid out as expected.
    #[error("{path} cannot be imported: {problem}")]
    Import {
        /// The file.
        path: PathBuf,
        /// What was found and what is expected.
        problem: String,
    },
    /// The backbone does not go with the task or the run.
    #[error("the backbone {path} cannot be used: {problem}")]
    Backbone {
        /// The file.
        path: PathBuf,
        /// What was found and what is expected.
        problem: String,
    },
    /// A run folder or a checkpoint cannot be used.
    #[error("the run folder {path} cannot be used: {problem}")]
    Run {
        /// The folder or a file in it.
        path: PathBuf,
        /// What was found and what is expected.
        problem: String,
    },
    /// A PEFT adapter cannot be read or written.
    #[error("the adapter {path} cannot be used: {problem}")]
    Adapter {
        /// The folder or a file in it.
        path: PathBuf,
        /// What was found and what is expected.
        problem: String,
    },
    /// `--device` names something that is not there.
    #[error("the device `{device}` cannot be used: {problem}")]
    Device {
        /// As given.
        device: String,
        /// What is missing.
        problem: String,
    },
    /// The loss or a gradient is not a finite number any more.
    #[error(
        "the {what} became {value} in epoch {epoch} at step {step} with the volumes {volumes}; the checkpoint of epoch {kept} was kept; \
         lower train.lr_lora or train.lr_head and start again in a new folder"
    )]
    Diverged {
        /// `loss` or `gradient norm`.
        what: &'static str,
        /// Its value.
        value: f64,
        /// Epoch, from 1.
        epoch: usize,
        /// Optimiser step, from 1.
        step: u64,
        /// The ids of the step's volumes.
        volumes: String,
        /// The last epoch whose checkpoint stands; 0 means that there is none.
        kept: usize,
    },
    /// A method does not go with the task that it is to be compared on.
    #[error("the method `{method}` cannot be compared: {problem}")]
    Rival {
        /// Its name.
        method: &'static str,
        /// What was found and what is expected.
        problem: String,
    },
    /// The loss or a gradient of a method that is compared with is not a finite number any more.
    #[error(
        "the {what} of the method `{method}` became {value} in epoch {epoch} at step {step} with the volumes {volumes}; \
         lower its learning rate, which is {lr}, and start again"
    )]
    Unstable {
        /// The method's name.
        method: &'static str,
        /// `loss` or `gradient norm`.
        what: &'static str,
        /// Its value.
        value: f64,
        /// Epoch, from 1.
        epoch: usize,
        /// Optimiser step, from 1.
        step: u64,
        /// The ids of the step's volumes.
        volumes: String,
        /// The learning rate before warm-up and decay.
        lr: f64,
    },
    /// A flag's value does not go with the rest.
    #[error("{flag} cannot be used: {problem}")]
    Flag {
        /// Its name.
        flag: &'static str,
        /// What was found and what is expected.
        problem: String,
    },
    /// The exported graph does not reproduce libtorch.
    #[error(
        "the exported graph differs from libtorch by {found:.2e} in {what}, at most {limit:.0e} is allowed; nothing was written"
    )]
    Parity {
        /// Which output.
        what: String,
        /// The largest difference.
        found: f64,
        /// What is allowed.
        limit: f64,
    },
    /// A file cannot be written or read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// libtorch refused an operation, for example for want of memory.
    #[error("libtorch failed: {}", torch(.0))]
    Torch(#[from] tch::TchError),
    /// The runtime refused an input.
    #[error(transparent)]
    Runtime(#[from] runtime::Error),
}

/// The first line of libtorch's message, and what helps where memory ran out.
fn torch(error: &tch::TchError) -> String {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    if ["out of memory", "can't allocate memory"].iter().any(|words| line.contains(words)) {
        format!("{line}; lower train.chunk, the number of slices that go through the network at a time")
    } else {
        line.to_owned()
    }
}

impl Error {
    /// Whether the user's file or flag is wrong (exit code 2), rather than the machine at fault (1).
    pub fn is_bad_input(&self) -> bool {
        match self {
            Self::Task { .. }
            | Self::Table { .. }
            | Self::Row { .. }
            | Self::Import { .. }
            | Self::Backbone { .. }
            | Self::Run { .. }
            | Self::Adapter { .. }
            | Self::Device { .. }
            | Self::Rival { .. }
            | Self::Flag { .. } => true,
            Self::Io { source, .. } => source.kind() == std::io::ErrorKind::NotFound,
            Self::Scan { source, .. } => source.is_bad_input(),
            Self::Runtime(error) => error.is_bad_input(),
            Self::Diverged { .. } | Self::Unstable { .. } | Self::Parity { .. } | Self::Torch(_) => false,
        }
    }

    /// Whether it is what a scan holds that is at fault, which stays so however often it is read; not the disk that it is on,
    /// nor a want of memory.
    pub fn is_unreadable_scan(&self) -> bool {
        use runtime::volume::VolumeError::{Io, Memory, Write};
        let Self::Scan { source, .. } = self else { return false };
        match source.as_ref() {
            runtime::Error::Volume(e) => !matches!(e, Io { .. } | Memory { .. } | Write { .. }),
            runtime::Error::Recipe(_) => true,
            _ => false,
        }
    }

    /// Wraps a file's error.
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn want_of_memory_names_the_setting_to_lower() {
        let of = |text: &str| Error::Torch(tch::TchError::Torch(text.into())).to_string();
        let told = of("CUDA out of memory. Tried to allocate 2.00 GiB.\nException raised from malloc");
        assert!(told.contains("2.00 GiB.; lower train.chunk") && !told.contains('\n'), "{told}");
        // What libtorch says on a CPU.
        let error = tch::Tensor::f_zeros([1 << 50], (tch::Kind::Float, tch::Device::Cpu)).unwrap_err();
        let told = Error::Torch(error).to_string();
        assert!(told.contains("lower train.chunk") && !told.contains('\n'), "{told}");
        assert!(!of("expected a scalar\nmore").contains("train.chunk"));
    }
}
