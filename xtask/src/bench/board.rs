//! A folder that times the encoder on another machine: this program and scanside's worker built for it, the backbone, and the peers'
//! scripts, laid out as in the workspace.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Result;

use super::encoder::WORKER;
use crate::assets::{self, Group};
use crate::cross;
use crate::workspace::{self, root, step};

/// What is started there.
const START: &str = r#"#!/bin/sh
# Times scanside's encoder beside onnxruntime and OpenVINO on this machine. Needs Python 3.11 to 3.14 with pip, and a network the first
# time. ./bench --help has the flags; PYTHON=python3.11 ./bench picks another Python.
unset CARGO_TARGET_DIR
SCANSIDE_BENCH=$(cd "$(dirname "$0")" && pwd)
export SCANSIDE_BENCH
exec "$SCANSIDE_BENCH/bin/xtask" bench --only encoder "$@"
"#;

/// Makes `target/board` anew.
pub fn pack() -> Result<()> {
    let place = workspace::target().join("board");
    if place.exists() {
        fs::remove_dir_all(&place)?;
    }
    step("Backbone", || assets::ensure(&[Group::Backbone]))?;
    step("Build for aarch64", || {
        copy(&cross::xtask()?, &place.join("bin/xtask"))?;
        copy(&cross::example("bench_worker")?, &place.join("target").join(WORKER))
    })?;
    // With its stamp, so that it counts as fetched.
    let backbone = workspace::assets().join("backbone");
    for folder in [(&backbone, "target/assets/backbone"), (&root().join("xtask/peers"), "xtask/peers")] {
        for file in fs::read_dir(folder.0)? {
            let file = file?;
            if file.file_type()?.is_file() {
                copy(&file.path(), &place.join(folder.1).join(file.file_name()))?;
            }
        }
    }
    let start = place.join("bench");
    fs::write(&start, START)?;
    fs::set_permissions(&start, fs::Permissions::from_mode(0o755))?;
    println!("\n{} is ready: copy it to the board and run ./bench there", place.display());
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to.parent().unwrap_or(Path::new(".")))?;
    fs::copy(from, to)?;
    Ok(())
}
