//! Debian's rustc with the standard libraries of x86-64 (build scripts) and arm64, for machines where rustup cannot reach its server.
//! apt checks what it fetches against Debian's signed lists; nothing is installed, and the machine's own apt is left as it is.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::workspace::{self, find, output};

/// The compiler that tracks browsers' needs, hence new enough.
const COMPILER: &str = "rustc-web";
const LIBRARY: &str = "libstd-rust-web-dev";

/// Calls the unpacked compiler with its own libraries; the sysroot it finds by itself.
const WRAPPER: &str = r#"#!/bin/sh
root=$(dirname "$(readlink -f "$0")")
LD_LIBRARY_PATH=$root/usr/lib/x86_64-linux-gnu exec "$root/usr/bin/rustc" "$@"
"#;

/// The compiler, if it has been fetched.
pub fn ready() -> Option<PathBuf> {
    let rustc = folder().join("rustc");
    rustc.is_file().then_some(rustc)
}

/// Fetches the compiler into `target/assets/rust-aarch64` and returns its path.
pub fn fetch() -> Result<PathBuf> {
    if find("apt-get").is_none() {
        bail!(
            "no Rust for {}: make `rustup target add {}` work, or use Debian, whose packages have one",
            super::TARGET,
            super::TARGET
        );
    }
    let place = folder();
    let fresh = place.with_file_name(".rust-aarch64.new");
    if fresh.exists() {
        fs::remove_dir_all(&fresh)?;
    }
    let apt = Apt::new(&fresh.join("apt"))?;
    println!("  fetching {COMPILER} and {LIBRARY} for amd64 and arm64 (apt, 130 MB)");
    output(apt.command("apt-get").arg("update"))?;
    let shared = apt.dependency(LIBRARY, "libstd-rust")?;
    let llvm = apt.dependency(&shared, "libllvm")?;
    let libraries = ["amd64", "arm64"].map(|architecture| format!("{LIBRARY}:{architecture}"));
    let packages = [&[COMPILER.to_owned(), shared, llvm.clone()], &libraries[..]].concat();
    apt.unpack(&packages, &fresh)?;
    fs::remove_dir_all(&apt.state)?;
    let wrapper = fresh.join("rustc");
    fs::write(&wrapper, WRAPPER)?;
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
    output(Command::new(&wrapper).arg("--version")).with_context(|| {
        format!("Debian's rustc does not start: install the packages that {llvm} depends on (`apt-cache depends {llvm}`)")
    })?;
    fs::rename(&fresh, &place)?;
    Ok(place.join("rustc"))
}

fn folder() -> PathBuf {
    let assets = workspace::assets();
    assets.canonicalize().unwrap_or(assets).join("rust-aarch64")
}

/// apt with package lists of its own, which know arm64 too.
pub struct Apt {
    state: PathBuf,
}

impl Apt {
    /// Keeps its lists below this folder.
    pub fn new(state: &Path) -> Result<Self> {
        fs::create_dir_all(state.join("lists/partial"))?;
        fs::create_dir_all(state.join("cache/archives/partial"))?;
        Ok(Self { state: state.canonicalize()? })
    }

    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .arg("-o")
            .arg(format!("Dir::State::Lists={}", self.state.join("lists").display()))
            .arg("-o")
            .arg(format!("Dir::Cache={}", self.state.join("cache").display()))
            .args(["-o", "APT::Architectures::=amd64", "-o", "APT::Architectures::=arm64"])
            .args(["-o", "APT::Sandbox::User=root"]);
        command
    }

    /// The package whose name begins with `prefix` that `package` depends on.
    pub fn dependency(&self, package: &str, prefix: &str) -> Result<String> {
        self.dependencies(package, prefix)?.into_iter().next().with_context(|| {
            format!("Debian's {package} depends on no {prefix}…: this release is not usable here")
        })
    }

    /// The packages whose names begin with `prefix` that `package` depends on.
    pub fn dependencies(&self, package: &str, prefix: &str) -> Result<Vec<String>> {
        let text = output(self.command("apt-cache").args(["depends", package]))?;
        let depends = |line: &str| {
            let (kind, name) = line.trim().split_once("Depends: ")?;
            (["", "Pre"].contains(&kind) && name.starts_with(prefix)).then(|| name.to_owned())
        };
        Ok(text.lines().filter_map(depends).collect())
    }

    /// Downloads packages and unpacks them into `place`.
    pub fn unpack(&self, packages: &[String], place: &Path) -> Result<()> {
        let debs = self.state.join("debs");
        fs::create_dir_all(&debs)?;
        output(self.command("apt-get").arg("download").args(packages).current_dir(&debs))?;
        for deb in fs::read_dir(&debs)? {
            output(Command::new("dpkg-deb").arg("--extract").arg(deb?.path()).arg(place))?;
        }
        Ok(fs::remove_dir_all(&debs)?)
    }
}
