//! aarch64 under QEMU's user mode, counted: a C library, CPython and onnxruntime's wheel for it, and the plugin that counts.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::cross::debian::Apt;
use crate::peers;
use crate::workspace::{self, find, output, root, run};

/// The processor of a Raspberry Pi 5, and nearly that of a Jetson Orin (A78AE). QEMU's `max` would have SVE, bf16 and i8mm, for which
/// programs have kernels that no such board runs.
pub const CPU: &str = "cortex-a76";

/// A CPU as Linux describes it on a Cortex-A76. Without it onnxruntime would see this machine's, and crash.
const CPUINFO: &str = "BogoMIPS\t: 108.00\n\
     Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp\n\
     CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x4\nCPU part\t: 0xd0b\nCPU revision\t: 1\n\n";

pub struct Emulated {
    qemu: PathBuf,
    plugin: PathBuf,
    /// Where aarch64's libraries lie as in `/`.
    root: PathBuf,
    /// `3.11`.
    pub python: String,
    /// As QEMU says it.
    pub version: String,
}

/// Fetches what is lacking, and compiles the plugin into `folder`.
pub fn ensure(folder: &Path) -> Result<Emulated> {
    let root = workspace::assets().canonicalize()?.join("aarch64-python");
    let python = fetch(&root)?;
    let mut cpuinfo = String::new();
    for n in 0..std::thread::available_parallelism()?.get() {
        write!(cpuinfo, "processor\t: {n}\n{CPUINFO}")?;
    }
    // QEMU prefers what lies below its root to what lies here.
    fs::create_dir_all(root.join("proc"))?;
    fs::write(root.join("proc/cpuinfo"), cpuinfo)?;

    let qemu =
        find("qemu-aarch64").context("qemu-aarch64 is not installed: install the package qemu-user")?;
    let version = output(Command::new(&qemu).arg("--version"))?;
    let version = version.lines().next().unwrap_or_default().to_owned();
    let plugin = folder.join("count.so");
    run(Command::new("cc")
        .args(["-O2", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"])
        .arg(format!("-DINTERFACE={}", interface(&version)))
        .arg("-o")
        .arg(&plugin)
        .arg(workspace::root().join("xtask/src/count/plugin.c")))?;
    Ok(Emulated { qemu, plugin, root, python, version })
}

/// The version of the plugin interface that a QEMU takes: from 9.0 on no longer the first.
fn interface(version: &str) -> u32 {
    let major = version.split("version ").nth(1).and_then(|rest| rest.split('.').next());
    if major.and_then(|major| major.parse::<u32>().ok()).is_some_and(|major| major >= 9) { 2 } else { 1 }
}

/// Debian's aarch64 CPython and C library with pip's wheels, below `place`. Returns CPython's version.
fn fetch(place: &Path) -> Result<String> {
    let stamp = fs::read_to_string(root().join("xtask/peers/requirements.txt"))?;
    if let Ok(found) = fs::read_to_string(place.join(".stamp"))
        && let Some((python, rest)) = found.split_once('\n')
        && rest == stamp
    {
        return Ok(python.to_owned());
    }
    let fresh = place.with_file_name(".aarch64-python.new");
    if fresh.exists() {
        fs::remove_dir_all(&fresh)?;
    }
    let apt = Apt::new(&fresh.join("apt"))?;
    println!("  fetching CPython for arm64 (apt, 35 MB)");
    output(apt.command("apt-get").arg("update"))?;
    let minimal = apt.dependency("python3-minimal:arm64", "python3.")?;
    let minimal = minimal.split(':').next().unwrap_or_default().to_owned();
    let python = minimal.trim_start_matches("python").trim_end_matches("-minimal").to_owned();
    let named = |names: &[&str]| names.iter().map(|name| format!("{name}:arm64")).collect::<Vec<_>>();
    let library = |part: &str| format!("libpython{python}-{part}");
    let mut packages =
        named(&[&minimal, &library("minimal"), &library("stdlib"), "libc6", "libgcc-s1", "libstdc++6"]);
    for package in packages.clone() {
        packages.extend(apt.dependencies(&package, "lib")?);
    }
    packages.push("zlib1g:arm64".into());
    packages.sort();
    packages.dedup();
    apt.unpack(&packages, &fresh)?;
    fs::remove_dir_all(fresh.join("apt"))?;
    // Newer packages leave the link to the machine.
    if !fresh.join("lib").exists() {
        std::os::unix::fs::symlink("usr/lib", fresh.join("lib"))?;
    }
    peers::fetch_for_aarch64(&python, &fresh.join("site"))?;
    fs::write(fresh.join(".stamp"), format!("{python}\n{stamp}"))?;
    if place.exists() {
        fs::remove_dir_all(place)?;
    }
    fs::rename(&fresh, place)?;
    Ok(python)
}

impl Emulated {
    /// Runs a program, its counts going to a file.
    pub fn command(&self, program: &Path, counts: &Path) -> Command {
        let mut command = Command::new(&self.qemu);
        command.args(["-cpu", CPU, "-L"]).arg(&self.root).arg("-plugin");
        let mut plugin = self.plugin.clone().into_os_string();
        plugin.push(",out=");
        plugin.push(counts);
        command.arg(plugin).arg(program);
        command
    }

    /// As [`Self::command`], of CPython with the wheels.
    pub fn python(&self, counts: &Path) -> Command {
        let program = self.root.join("usr/bin").join(format!("python{}", self.python));
        let mut command = self.command(&program, counts);
        command.env("PYTHONPATH", self.root.join("site"));
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interface_follows_qemu() {
        assert_eq!(interface("qemu-aarch64 version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)"), 1);
        assert_eq!(interface("qemu-aarch64 version 10.0.2"), 2);
    }
}
