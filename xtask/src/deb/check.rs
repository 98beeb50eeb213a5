//! What a package must be before it goes to a box: looked at, installed into a scratch root, run there, and purged again.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::{Source, package};
use crate::workspace::output;

/// Every file of a package, besides its control files and the pages of the manual.
const FILES: &[&str] = &[
    "etc/scanside/device.toml.example",
    "lib/systemd/system/scanside.service",
    "usr/bin/scanside",
    "usr/lib/sysusers.d/scanside.conf",
    "usr/share/doc/scanside/CHANGELOG.md",
    "usr/share/doc/scanside/LIBRARIES.gz",
    "usr/share/doc/scanside/changelog.gz",
    "usr/share/doc/scanside/config.md",
    "usr/share/doc/scanside/copyright",
    "usr/share/doc/scanside/dicom.md",
    "usr/share/doc/scanside/operations.md",
    "usr/share/doc/scanside/results.md",
    "usr/share/doc/scanside/selection.md",
];

/// Tenths, of 100; what the sandbox leaves open is the network, which is the service's work.
const EXPOSURE: &str = "15";

/// The first systemd that judges a unit that is not installed.
const JUDGES: u32 = 250;

pub fn check(source: &Source, deb: &Path) -> Result<()> {
    look(source, deb)?;
    reproduce(source, deb)?;
    if !fs::metadata("/proc/self").is_ok_and(|data| data.uid() == 0) {
        println!("  not installed into a scratch root, since only root can do that");
        return Ok(());
    }
    let root = scratch_root(deb)?;
    let tried = install(source, deb, &root);
    fs::remove_dir_all(&root)?;
    tried
}

/// Owners, modes and names.
fn look(source: &Source, deb: &Path) -> Result<()> {
    let listed = output(Command::new("dpkg-deb").arg("--contents").arg(deb).env("LC_ALL", "C"))?;
    let mut found = Vec::new();
    for line in listed.lines() {
        let mut words = line.split_whitespace();
        let (mode, owner) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let name = line.split(" ./").nth(1).unwrap_or_default();
        ensure!(owner == "root/root", "{name} belongs to {owner}, expected root/root");
        let expected = match name {
            name if name.is_empty() || name.ends_with('/') => "drwxr-xr-x",
            "usr/bin/scanside" => "-rwxr-xr-x",
            _ => "-rw-r--r--",
        };
        ensure!(mode == expected, "{name} has the mode {mode}, expected {expected}");
        if !expected.starts_with('d') {
            found.push(name);
        }
    }
    let (manual, mut found): (Vec<&str>, Vec<&str>) =
        found.into_iter().partition(|name| name.starts_with("usr/share/man/man1/scanside"));
    ensure!(
        ["scanside.1.gz", "scanside-infer.1.gz", "scanside-config-check.1.gz"]
            .iter()
            .all(|page| manual.contains(&format!("usr/share/man/man1/{page}").as_str())),
        "the manual has only the pages {manual:?}"
    );
    found.sort_unstable();
    ensure!(found == FILES, "the package holds {found:?}, expected {FILES:?}");
    let field = |name: &str| output(Command::new("dpkg-deb").arg("--field").arg(deb).arg(name));
    ensure!(
        field("Architecture")?.trim() == source.architecture,
        "the package is for {}",
        field("Architecture")?
    );
    ensure!(
        field("Version")?.trim() == env!("CARGO_PKG_VERSION"),
        "the package has version {}",
        field("Version")?
    );
    Ok(())
}

/// The same bytes once more.
fn reproduce(source: &Source, deb: &Path) -> Result<()> {
    let again = deb.with_file_name("again");
    let second = package(source, &again)?;
    ensure!(fs::read(deb)? == fs::read(&second)?, "{} is another one when it is made again", deb.display());
    fs::remove_dir_all(again)?;
    Ok(())
}

/// An empty system with a package database.
fn scratch_root(deb: &Path) -> Result<PathBuf> {
    let root = deb.with_file_name("root");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    for folder in ["var/lib/dpkg/info", "var/lib/dpkg/updates", "etc"] {
        fs::create_dir_all(root.join(folder))?;
    }
    for file in ["var/lib/dpkg/status", "var/lib/dpkg/available", "etc/passwd", "etc/group"] {
        fs::write(root.join(file), "")?;
    }
    Ok(root.canonicalize()?)
}

/// dpkg with its database in the scratch root. Its scripts run here and are told the root, so that nothing need be in it.
fn dpkg(root: &Path) -> Command {
    let mut dpkg = Command::new("dpkg");
    dpkg.arg(format!("--root={}", root.display()))
        .args(["--force-script-chrootless", "--force-depends", "--force-architecture"])
        .env("DEBIAN_FRONTEND", "noninteractive");
    dpkg
}

fn install(source: &Source, deb: &Path, root: &Path) -> Result<()> {
    output(dpkg(root).arg("--install").arg(deb))?;
    let passwd = fs::read_to_string(root.join("etc/passwd"))?;
    let user =
        passwd.lines().find(|line| line.starts_with("scanside:")).context("there is no user scanside")?;
    let fields: Vec<&str> = user.split(':').collect();
    ensure!(fields.get(5) == Some(&"/var/lib/scanside"), "the user's home is not where its data is: {user}");
    ensure!(fields.get(6).is_some_and(|shell| shell.ends_with("/nologin")), "the user can log in: {user}");
    let settings = fs::metadata(root.join("etc/scanside"))?;
    let mode = settings.permissions().mode() & 0o7777;
    ensure!(mode == 0o750, "/etc/scanside has the mode {mode:o}, expected 750");
    ensure!(
        Some(settings.gid().to_string().as_str()) == fields.get(3).copied(),
        "/etc/scanside is not the service's group's"
    );
    let enabled = root.join("etc/systemd/system/multi-user.target.wants/scanside.service");
    ensure!(enabled.is_symlink(), "the unit is not enabled");
    ensure!(
        !root.join("etc/scanside/device.toml").exists(),
        "a configuration is there that nobody has written"
    );
    unit(root)?;

    let mut words = source.runner()?;
    words.push(root.join("usr/bin/scanside").display().to_string());
    let run = |arguments: &[&str]| output(Command::new(&words[0]).args(&words[1..]).args(arguments));
    let version = run(&["--version"])?;
    ensure!(
        version.trim() == format!("scanside {}", env!("CARGO_PKG_VERSION")),
        "the program says {version}"
    );
    let example = root.join("etc/scanside/device.toml.example");
    run(&["config", "check", "--config", example.to_str().unwrap_or_default()])?;

    // Disabled by its administrator, and installed again as an upgrade.
    fs::remove_file(&enabled)?;
    output(dpkg(root).arg("--install").arg(deb))?;
    ensure!(!enabled.is_symlink(), "an upgrade has enabled a unit that was disabled");

    fs::write(root.join("etc/scanside/device.toml"), "site = \"north\"\n")?;
    fs::create_dir_all(root.join("var/lib/scanside/store"))?;
    output(dpkg(root).args(["--remove", "scanside"]))?;
    ensure!(root.join("var/lib/scanside/store").exists(), "removing the package has removed the data");
    output(dpkg(root).args(["--purge", "scanside"]))?;
    for left in
        ["etc/scanside", "var/lib/scanside", "usr/bin/scanside", "lib/systemd/system/scanside.service"]
    {
        ensure!(!root.join(left).exists(), "{left} is left after a purge");
    }
    Ok(())
}

/// systemd's own opinion of the unit.
fn unit(root: &Path) -> Result<()> {
    let path = root.join("lib/systemd/system/scanside.service");
    let text = fs::read_to_string(&path)?;
    // The program is not installed on this machine: any that is there stands in for it.
    let checked = root.join("scanside.service");
    fs::write(&checked, text.replace("/usr/bin/scanside", "/bin/true"))?;
    let said = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&checked).output()?;
    let told = String::from_utf8_lossy(&said.stderr).into_owned();
    // Keys of newer versions are there on purpose, and older ones pass over them.
    let problems: Vec<&str> = told
        .lines()
        .filter(|line| line.contains("scanside.service"))
        .filter(|line| !["RestartSteps", "RestartMaxDelaySec"].iter().any(|key| line.contains(key)))
        .collect();
    if !said.status.success() || !problems.is_empty() {
        bail!("systemd-analyze finds fault with scanside.service: {}", problems.join("; "));
    }
    let version = output(Command::new("systemd-analyze").arg("--version"))?;
    let number = version.split_whitespace().nth(1).and_then(|n| n.split(['.', '~']).next()?.parse().ok());
    if number.is_none_or(|number: u32| number < JUDGES) {
        println!("  the unit's sandbox is not judged, since only systemd {JUDGES} and newer can do that");
        return Ok(());
    }
    output(
        Command::new("systemd-analyze")
            .args(["security", "--offline=true", "--no-pager", &format!("--threshold={EXPOSURE}")])
            .arg(&checked),
    )
    .context("the unit's sandbox leaves too much open")?;
    Ok(())
}
