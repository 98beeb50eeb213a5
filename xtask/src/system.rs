//! Programs that Debian's packages bring.

use std::process::Command;
use std::sync::Once;

use anyhow::{Result, bail};

use crate::workspace::{find, output, run};

/// `(program, package)`: what building the runtime calls beside a C++ compiler; CMake builds CharLS, the JPEG-LS decoder.
pub const FOR_BUILD: &[(&str, &str)] = &[("cmake", "cmake"), ("make", "make")];

/// `(program, package)`: what the tests call.
pub const FOR_TESTS: &[(&str, &str)] = &[
    ("mosquitto", "mosquitto"),
    ("mosquitto_sub", "mosquitto-clients"),
    ("storescu", "dcmtk"),
    ("faketime", "faketime"),
    ("qemu-aarch64-static", "qemu-user-static"),
    // For looking at the unit and making the service's user; nothing of it is started.
    ("systemd-analyze", "systemd"),
];

/// `(program, package)`: what counting instructions calls. The static QEMU that tests use loads no plugins.
pub const FOR_COUNT: &[(&str, &str)] =
    &[("qemu-aarch64", "qemu-user"), ("cc", "gcc"), ("readelf", "binutils")];

/// Makes sure that these programs are there: installs their packages as root, or says which ones to install.
pub fn ensure(programs: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<&str> =
        programs.iter().filter(|(program, _)| find(program).is_none()).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        println!("  {} are installed", list(programs.iter().map(|(program, _)| *program)));
        return Ok(());
    }
    if find("apt-get").is_none() || !is_root() {
        bail!("some programs are missing: install the packages {}", missing.join(" "));
    }
    println!("  installing {}", missing.join(" "));
    update()?;
    output(
        Command::new("apt-get")
            .args(["install", "--yes", "--no-install-recommends"])
            .args(&missing)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )?;
    Ok(())
}

/// Fetches apt's package lists if they do not know `package`, or in any case with `again`.
pub fn know(package: &str, again: bool) -> Result<()> {
    if find("apt-get").is_none() {
        bail!("package {package} is needed, but this machine has no apt-get: use Debian or Ubuntu");
    }
    let known = output(Command::new("apt-cache").args(["show", package])).is_ok_and(|text| !text.is_empty());
    if known && !again {
        return Ok(());
    }
    if is_root() {
        return update();
    }
    if !known {
        bail!("apt does not know package {package}: run `apt-get update` as root");
    }
    Ok(())
}

/// `apt-get update`, once a run.
fn update() -> Result<()> {
    static ONCE: Once = Once::new();
    let mut result = Ok(());
    ONCE.call_once(|| result = run(Command::new("apt-get").args(["update", "-qq"])));
    result
}

fn is_root() -> bool {
    output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0")
}

fn list<'a>(items: impl Iterator<Item = &'a str>) -> String {
    items.collect::<Vec<_>>().join(", ")
}
