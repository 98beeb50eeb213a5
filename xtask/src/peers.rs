//! What scanside is compared with, in Python environments of their own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::workspace::{self, output, python, root};

/// Makes sure that `target/bench/venv` has onnxruntime, which tests compare with, and returns its Python.
pub fn ensure() -> Result<PathBuf> {
    environment("venv", &["requirements.txt"], "onnxruntime and numpy (pip, 45 MB)")
}

/// Makes sure that `target/bench/venv-bench` has all that the bench compares with, and returns its Python.
pub fn ensure_for_bench() -> Result<PathBuf> {
    let files = ["requirements.txt", "requirements-bench.txt"];
    environment("venv-bench", &files, "onnxruntime, OpenVINO, nibabel and pydicom (pip, 115 MB)")
}

/// Puts the wheels that tests compare with, those for aarch64 and this version of CPython (`3.11`), into a folder.
pub fn fetch_for_aarch64(version: &str, place: &Path) -> Result<()> {
    println!("  fetching onnxruntime and numpy for aarch64 (pip, 40 MB)");
    let mut install = Command::new(python()?);
    install
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"])
        .args(["--only-binary=:all:", "--require-hashes", "--implementation=cp"])
        .args(["--platform=manylinux_2_28_aarch64", "--platform=manylinux_2_27_aarch64"])
        .arg(format!("--python-version={version}"))
        .arg(format!("--abi=cp{}", version.replace('.', "")))
        .arg("--requirement")
        .arg(root().join("xtask/peers/requirements.txt"))
        .arg("--target")
        .arg(place);
    output(&mut install).with_context(|| {
        format!("onnxruntime could not be fetched for CPython {version}: the wheels are for 3.11 to 3.14")
    })?;
    Ok(())
}

/// The environment is made without pip, which Debian splits off from venv, and filled by the pip that is there.
fn environment(name: &str, requirements: &[&str], what: &str) -> Result<PathBuf> {
    let host = python()?;
    let place = workspace::target().join("bench").join(name);
    let interpreter = place.join("bin/python3");
    let mut install = Command::new(&host);
    install
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"])
        .args(["--only-binary=:all:", "--require-hashes"]);
    let mut stamp = output(Command::new(&host).arg("-VV"))?;
    for file in requirements {
        let file = root().join("xtask/peers").join(file);
        stamp += &fs::read_to_string(&file)?;
        install.arg("--requirement").arg(file);
    }
    if fs::read_to_string(place.join(".stamp")).is_ok_and(|found| found == stamp) {
        return Ok(interpreter);
    }
    println!("  fetching {what}");
    if place.exists() {
        fs::remove_dir_all(&place)?;
    }
    fs::create_dir_all(&place)?;
    output(Command::new(&host).args(["-m", "venv", "--without-pip"]).arg(&place))?;
    let site = output(
        Command::new(&interpreter).args(["-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]),
    )?;
    output(install.arg("--target").arg(site.trim())).with_context(|| {
        format!("{what} could not be installed: the wheels are for CPython 3.11 to 3.14 on x86-64 and aarch64 Linux; PYTHON=python3.11 picks another one")
    })?;
    fs::write(place.join(".stamp"), stamp)?;
    Ok(interpreter)
}
