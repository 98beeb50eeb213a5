//! Starting the workspace's programs from a test, natively and under emulation.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A call of `scanside` or `scanside-train` as it was built together with the calling test.
///
/// `cargo xtask test` builds the programs first and runs the tests for aarch64 in QEMU's user mode; what these start needs QEMU as well,
/// so `SCANSIDE_RUNNER` holds the words of the command that runs an aarch64 program here, one a line.
pub fn program(name: &str) -> Command {
    let path = folder().join(name);
    assert!(
        path.is_file(),
        "{} is not built: run `cargo build --workspace --release --bins`",
        path.display()
    );
    started_with_runner(&path)
}

/// A call of the operator's `scanside-fleet`, which belongs on a desk and is always native: under emulation `SCANSIDE_NATIVE` is the
/// folder of this machine's programs.
///
/// # Panics
/// Where it is not built.
pub fn operator() -> Command {
    let Some(native) = std::env::var_os("SCANSIDE_NATIVE") else { return program("scanside-fleet") };
    let path = Path::new(&native).join("scanside-fleet");
    assert!(
        path.is_file(),
        "{} is not built: run `cargo build --workspace --release --bins`",
        path.display()
    );
    Command::new(path)
}

/// A call of the calling test program, for a test that needs a process of its own to be killed.
///
/// # Panics
/// Where its path is unknown.
pub fn itself() -> Command {
    started_with_runner(&own_path())
}

fn started_with_runner(path: &Path) -> Command {
    let runner = std::env::var("SCANSIDE_RUNNER").unwrap_or_default();
    let mut words = runner.lines();
    match words.next() {
        Some(emulator) => {
            let mut command = Command::new(emulator);
            command.args(words).arg(path);
            command
        }
        None => Command::new(path),
    }
}

/// `target/…/release`: programs lie there, tests in its `deps`.
fn folder() -> PathBuf {
    let own = own_path();
    let folder = own.parent().unwrap_or(&own);
    let folder = if folder.ends_with("deps") { folder.parent().unwrap_or(folder) } else { folder };
    folder.to_owned()
}

fn own_path() -> PathBuf {
    std::env::current_exe().unwrap_or_else(|error| panic!("the test's own path is unknown: {error}"))
}

/// How a program ended.
#[derive(Debug)]
pub struct Outcome {
    /// Its exit code; none where a signal ended it.
    pub code: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// What it told.
    pub stderr: String,
}

/// Runs a program to its end.
///
/// # Panics
/// Where it cannot be started, or prints what is no text.
pub fn run(command: &mut Command) -> Outcome {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?} cannot be started: {error}"));
    let text = |bytes| String::from_utf8(bytes).expect("a program's output is text");
    Outcome { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

impl Outcome {
    /// Checks that it succeeded.
    ///
    /// # Panics
    /// Where it did not.
    pub fn success(&self) {
        assert_eq!(self.code, Some(0), "{self:?}");
    }

    /// Checks that it refused its input: exit code 2, nothing on stdout, and one sentence on stderr that contains `part`.
    ///
    /// # Panics
    /// Where it did not.
    pub fn refused(&self, part: &str) {
        assert_eq!(self.code, Some(2), "{self:?}");
        assert!(self.stdout.is_empty(), "{self:?}");
        assert_eq!(self.stderr.trim_end().lines().count(), 1, "{self:?}");
        assert!(self.stderr.contains(part), "no {part:?} in {self:?}");
    }
}
