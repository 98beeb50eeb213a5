//! Starting the workspace's programs from a test, natively and under emulation.

use std::path::PathBuf;
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

/// `target/…/release`: a test lies in its `deps`.
fn folder() -> PathBuf {
    let test =
        std::env::current_exe().unwrap_or_else(|error| panic!("the test's own path is unknown: {error}"));
    test.ancestors().nth(2).unwrap_or(&test).to_owned()
}
