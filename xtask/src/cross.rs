//! `scanside` for devices, aarch64 and x86-64: built with Zig as linker and C++ compiler, so that it runs on any Linux with glibc
//! 2.31 or newer (JetPack 5, Debian 11) and brings its own C++ runtime.

pub mod debian;
pub mod elf;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::assets::{self, Group};
use crate::system;
use crate::workspace::{self, find, output, run, shown};

/// What a device's processor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machine {
    /// 64-bit ARM.
    Aarch64,
    /// As this machine.
    X86_64,
}

impl Machine {
    /// As Rust names it.
    pub fn target(self) -> &'static str {
        match self {
            Self::Aarch64 => TARGET,
            Self::X86_64 => "x86_64-unknown-linux-gnu",
        }
    }

    /// As Rust, and the folder below `target/cross`, name it.
    fn name(self) -> &'static str {
        match self {
            Self::Aarch64 => "aarch64",
            Self::X86_64 => "x86_64",
        }
    }

    /// As readelf names it.
    fn elf(self) -> &'static str {
        match self {
            Self::Aarch64 => "AArch64",
            Self::X86_64 => "Advanced Micro Devices X86-64",
        }
    }

    /// Where `cargo xtask cross` or `cargo xtask deb` puts the binary.
    pub fn binary(self) -> PathBuf {
        workspace::target().join("cross").join(self.name()).join("scanside")
    }
}

const TARGET: &str = "aarch64-unknown-linux-gnu";

/// The oldest glibc that the binary must run with.
const GLIBC: (u32, u32) = (2, 31);

/// The only libraries that the binary may load; all are part of glibc.
const LIBRARIES: &[&str] = &[
    "libc.so.6",
    "libm.so.6",
    "libpthread.so.0",
    "libdl.so.2",
    "ld-linux-aarch64.so.1",
    "ld-linux-x86-64.so.2",
];

/// Megabytes of the program that ships for the boards.
const MOST_MB: f64 = 15.0;

/// Which integration tests to build beside the binary.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Tests {
    None,
    All,
}

/// How much the compiler is to make of the program; Cargo.toml has both.
#[derive(Clone, Copy)]
enum Profile {
    /// What ships: small, and long to build.
    Device,
    /// What is tested and measured.
    Release,
}

impl Profile {
    /// As cargo and its folder name it.
    fn name(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Release => "release",
        }
    }
}

/// Builds the binary, checks what it asks of a device and puts it into `target/cross/aarch64/scanside`.
pub fn run_chore() -> Result<()> {
    build(Machine::Aarch64, Tests::None)?;
    Ok(())
}

/// As [`run_chore`]; returns the test programs built as well.
pub fn build(machine: Machine, tests: Tests) -> Result<Vec<PathBuf>> {
    // The same packages whatever is built of them: cargo then picks the same features, and nothing is compiled twice.
    let profile = match tests {
        Tests::None => Profile::Device,
        Tests::All => Profile::Release,
    };
    let mut command = zigbuild(machine, profile)?;
    command.args(["--package", "runtime", "--package", "tests", "--bin", "scanside"]);
    if tests == Tests::All {
        command.args(["--test", "*"]);
    }
    println!("  {}", shown(&command));
    run(&mut command)?;

    let built = target_dir()?.join(machine.target()).join(profile.name()).join("scanside");
    let needs = elf::read(&built)?;
    needs.check(machine.elf(), LIBRARIES, GLIBC).with_context(|| built.display().to_string())?;
    let place = machine.binary();
    fs::create_dir_all(place.parent().unwrap_or(Path::new(".")))?;
    fs::copy(&built, &place)?;
    let megabytes = fs::metadata(&place)?.len() as f64 / 1e6;
    println!("  {}: {megabytes:.1} MB, {needs}", place.display());
    let (shipped, board) = (matches!(profile, Profile::Device), matches!(machine, Machine::Aarch64));
    ensure!(
        !(shipped && board) || megabytes <= MOST_MB,
        "{} is {megabytes:.2} MB; a board's program may be {MOST_MB} MB: see docs/decisions/0010-size-of-the-program.md for what it is made of",
        place.display()
    );

    if tests == Tests::None { Ok(Vec::new()) } else { test_programs(&mut command) }
}

/// Builds the runtime's example of this name for aarch64, with its symbols, and returns its path.
pub fn example(name: &str) -> Result<PathBuf> {
    let mut command = zigbuild(Machine::Aarch64, Profile::Release)?;
    // Zig leaves out all symbols where cargo asks it to leave out what debuggers want.
    command.args(["--package", "runtime", "--package", "tests", "--example", name]);
    command.args(["--config", "profile.release.package.runtime.strip=\"none\""]);
    println!("  {}", shown(&command));
    run(&mut command)?;
    Ok(target_dir()?.join(TARGET).join("release/examples").join(name))
}

/// Builds the chores for aarch64 and returns the program's path.
pub fn xtask() -> Result<PathBuf> {
    let mut command = zigbuild(Machine::Aarch64, Profile::Release)?;
    command.args(["--package", "xtask"]);
    println!("  {}", shown(&command));
    run(&mut command)?;
    Ok(target_dir()?.join(TARGET).join("release/xtask"))
}

/// cargo-zigbuild with all that does not depend on what is built.
fn zigbuild(machine: Machine, profile: Profile) -> Result<Command> {
    assets::ensure(&[Group::Cross])?;
    system::ensure(system::FOR_BUILD)?;
    let rustc = rustc()?;
    let target_dir = target_dir()?;
    let zig = workspace::assets().canonicalize()?.join("zig");
    let mut command = Command::new(zig.join("bin/cargo-zigbuild"));
    workspace::as_from_the_shell(&mut command);
    command
        .args(["zigbuild", "--profile", profile.name(), "--target"])
        .arg(format!("{}.{}.{}", machine.target(), GLIBC.0, GLIBC.1))
        .arg("--target-dir")
        .arg(&target_dir)
        .env("CARGO_ZIGBUILD_ZIG_PATH", zig.join("zig/zig"))
        .env("CARGO_ZIGBUILD_CACHE_DIR", target_dir.join("zigbuild"))
        .env("ZIG_GLOBAL_CACHE_DIR", target_dir.join("zig"));
    if let Some(rustc) = rustc {
        command.env("RUSTC", rustc);
    }
    Ok(command)
}

/// What runs an aarch64 program here: QEMU's user mode with an aarch64 glibc.
pub fn runner() -> Result<Vec<String>> {
    assets::ensure(&[Group::Emulated])?;
    let sysroot = workspace::assets().canonicalize()?.join("aarch64-glibc");
    let qemu = find("qemu-aarch64-static").context("qemu-aarch64-static is not installed")?;
    let words = [qemu.as_path(), Path::new("-cpu"), Path::new("max"), Path::new("-L"), &sysroot];
    Ok(words.iter().map(|word| word.display().to_string()).collect())
}

/// Another compiler's build scripts and macros must not replace the native ones, hence a folder of its own. Its real path, since
/// C compilers' paths below it are part of what cargo compares.
fn target_dir() -> Result<PathBuf> {
    let folder = workspace::target().join("cross-build");
    fs::create_dir_all(&folder)?;
    Ok(folder.canonicalize()?)
}

/// A rustc that has the target's standard library, unless the present one has it or gets it from rustup.
fn rustc() -> Result<Option<PathBuf>> {
    let host = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let library = output(Command::new(host).args(["--print", "target-libdir", "--target", TARGET]))?;
    if Path::new(library.trim()).is_dir() {
        return Ok(None);
    }
    if let Some(rustc) = debian::ready() {
        return Ok(Some(rustc));
    }
    if find("rustup").is_some() {
        println!("  rustup target add {TARGET}");
        match output(Command::new("rustup").args(["target", "add", TARGET])) {
            Ok(_) => return Ok(None),
            Err(_) => println!("  rustup cannot get it: using Debian's rustc"),
        }
    }
    debian::fetch().map(Some)
}

/// Asks cargo, which has just built them, for the test programs' paths.
fn test_programs(build: &mut Command) -> Result<Vec<PathBuf>> {
    let messages = output(build.args(["--message-format", "json-render-diagnostics", "--quiet"]))?;
    let mut programs = Vec::new();
    for line in messages.lines() {
        let message: serde_json::Value = serde_json::from_str(line)?;
        if message["profile"]["test"] == true
            && let Some(path) = message["executable"].as_str()
        {
            programs.push(PathBuf::from(path));
        }
    }
    if programs.is_empty() {
        bail!("`{}` built no test program", shown(build));
    }
    Ok(programs)
}

/// Builds the integration tests for aarch64 and runs them under emulation.
pub fn test(long: bool) -> Result<()> {
    let programs = build(Machine::Aarch64, Tests::All)?;
    let runner = runner()?;
    for program in programs {
        println!("  {} {}", runner.join(" "), program.display());
        let mut command = Command::new(&runner[0]);
        command
            .args(&runner[1..])
            .arg(&program)
            // Where cargo would run it.
            .current_dir(workspace::root().join("tests"))
            // A test that starts `scanside` starts the one built beside it, in the same way.
            .env("SCANSIDE_RUNNER", runner.join("\n"))
            // The operator's tool stays on the desk.
            .env("SCANSIDE_NATIVE", workspace::target().join("release").canonicalize()?);
        if long {
            command.env("SCANSIDE_LONG", "1");
        }
        run(&mut command)?;
    }
    Ok(())
}
