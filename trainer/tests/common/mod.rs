//! What tests of the command line share.

use std::process::{Command, Output};

/// Runs `scanside-train` to its end.
pub fn train(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_scanside-train")).args(args).output().unwrap()
}

/// Runs it and gives what it prints.
#[track_caller]
pub fn succeed(args: &[&str]) -> String {
    let output = train(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
