//! What scanside is compared with: onnxruntime, in a Python environment of its own.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::workspace::{self, output, python, root};

/// Makes sure that `target/bench/venv` has the peers, and returns its Python.
///
/// The environment is made without pip, which Debian splits off from venv, and filled by the pip that is there.
pub fn ensure() -> Result<PathBuf> {
    let host = python()?;
    let requirements = root().join("xtask/peers/requirements.txt");
    let place = workspace::target().join("bench/venv");
    let interpreter = place.join("bin/python3");
    let stamp = format!("{}{}", output(Command::new(&host).arg("-VV"))?, fs::read_to_string(&requirements)?);
    if fs::read_to_string(place.join(".stamp")).is_ok_and(|found| found == stamp) {
        return Ok(interpreter);
    }
    println!("  fetching onnxruntime and numpy (pip, 45 MB)");
    if place.exists() {
        fs::remove_dir_all(&place)?;
    }
    fs::create_dir_all(&place)?;
    output(Command::new(&host).args(["-m", "venv", "--without-pip"]).arg(&place))?;
    let site = output(
        Command::new(&interpreter).args(["-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]),
    )?;
    output(
        Command::new(&host)
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"])
            .args(["--only-binary=:all:", "--require-hashes", "--target", site.trim(), "--requirement"])
            .arg(&requirements),
    )
    .context("onnxruntime could not be installed: its wheels are for CPython 3.11 to 3.14 on x86-64 Linux")?;
    fs::write(place.join(".stamp"), stamp)?;
    Ok(interpreter)
}
