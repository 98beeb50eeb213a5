//! Downloading a package with its registry's own client, watched by a progress bar.

use std::fs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::table::{Group, Part, Source};
use crate::system;
use crate::workspace::{find, output, python, shown};

/// How often a download is tried before it is given up.
const TRIES: u32 = 3;

/// Downloads `part`'s package into the empty folder `scratch` and returns the archive to unpack: a file, or for a Debian package the
/// folder of its files.
pub fn fetch(part: &Part, scratch: &Path) -> Result<PathBuf> {
    let bar = bar(part);
    let mut attempt = 1;
    let file = loop {
        match download(part, scratch, attempt, &bar) {
            Ok(file) => break file,
            Err(error) if attempt == TRIES => {
                return Err(error.context(format!("{} could not be fetched in {TRIES} tries", part.source)));
            }
            Err(_) => {
                attempt += 1;
                say(&bar, format!("  {}: try {attempt} of {TRIES}", part.source));
                std::thread::sleep(Duration::from_secs(2));
            }
        }
    };
    bar.finish_and_clear();
    let Source::Apt { archive, .. } = &part.source else { return Ok(file) };
    let tree = scratch.join("files");
    output(Command::new("dpkg-deb").arg("--extract").arg(&file).arg(&tree))?;
    fs::remove_file(&file)?;
    Ok(archive.map_or(tree.clone(), |inner| tree.join(inner)))
}

/// One try. The client works below `scratch` only, so that the bytes there tell how far it is.
fn download(part: &Part, scratch: &Path, attempt: u32, bar: &ProgressBar) -> Result<PathBuf> {
    if scratch.exists() {
        fs::remove_dir_all(scratch)?;
    }
    let files = scratch.join("download");
    let work = scratch.join("work");
    fs::create_dir_all(&files)?;
    fs::create_dir_all(&work)?;
    let mut command = client(&part.source, &files, &work, attempt)?;
    let log = fs::File::create(scratch.join("log"))?;
    let mut child = command
        .env("TMPDIR", &work)
        .current_dir(&files)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("could not start `{}`", shown(&command)))?;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        // The client may hold the file twice while it moves it.
        bar.set_position(bytes_below(scratch).min(part.bytes));
        std::thread::sleep(Duration::from_millis(100));
    };
    if !status.success() {
        let said = fs::read_to_string(scratch.join("log")).unwrap_or_default();
        bail!("`{}` failed with {status}:\n{}", shown(&command), said.trim());
    }
    fs::remove_dir_all(&work)?;
    let mut found =
        fs::read_dir(&files)?.map(|entry| entry.map(|e| e.path())).collect::<Result<Vec<_>, _>>()?;
    match (found.pop(), found.pop()) {
        (Some(file), None) => Ok(file),
        _ => Err(anyhow!("`{}` left no single file", shown(&command))),
    }
}

fn client(source: &Source, files: &Path, work: &Path, attempt: u32) -> Result<Command> {
    let command = match source {
        Source::Pip { package, version, platform } => {
            let mut pip = Command::new(python()?);
            pip.args(["-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir"])
                .args(["--disable-pip-version-check", "--only-binary=:all:", "--implementation=cp"])
                .args(["--python-version=3.11", "--abi=cp311", &format!("--platform={platform}")])
                .arg("--dest")
                .arg(files)
                .arg(format!("{package}=={version}"));
            pip
        }
        Source::Npm { package, version } => {
            let mut npm = npm()?;
            npm.args(["pack", "--silent", "--cache"])
                .arg(work)
                .arg("--pack-destination")
                .arg(files)
                .arg(format!("{package}@{version}"));
            npm
        }
        Source::Apt { package, .. } => {
            system::know(package, attempt > 1)?;
            let mut apt = Command::new("apt-get");
            // As root apt would hand the download to a user who may not write here.
            apt.args(["-o", "APT::Sandbox::User=root", "download", "--quiet", package]);
            apt
        }
    };
    Ok(command)
}

/// The machine's npm, or else one from a Python package.
fn npm() -> Result<Command> {
    if let Some(npm) = find("npm") {
        return Ok(Command::new(npm));
    }
    super::ensure(&[Group::Npm])?;
    let folder = crate::workspace::assets().join("npm");
    let mut node = Command::new(folder.join("bin/node"));
    node.arg(folder.join("lib/node_modules/npm/bin/npm-cli.js"));
    Ok(node)
}

fn bar(part: &Part) -> ProgressBar {
    let bar = ProgressBar::new(part.bytes);
    if std::io::stderr().is_terminal() {
        if let Ok(style) =
            ProgressStyle::with_template("  {msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}")
        {
            bar.set_style(style);
        }
        bar.set_message(part.source.to_string());
    } else {
        bar.set_draw_target(ProgressDrawTarget::hidden());
        say(&bar, format!("  fetching {} ({:.0} MB)", part.source, part.bytes as f64 / 1e6));
    }
    bar
}

fn say(bar: &ProgressBar, line: String) {
    if bar.is_hidden() {
        println!("{line}");
    } else {
        bar.println(line);
    }
}

/// Size of all files below a folder that is being written to: what vanishes meanwhile counts nothing.
fn bytes_below(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(data) if data.is_dir() => bytes_below(&entry.path()),
            Ok(data) => data.len(),
            Err(_) => 0,
        })
        .sum()
}
