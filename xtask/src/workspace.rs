//! Where things are, and how other programs are called.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Names the folder that `cargo xtask bench --for` has made, where this program runs in one.
const PACKED: &str = "SCANSIDE_BENCH";

/// The workspace's root folder, or the one that was packed for another machine.
pub fn root() -> &'static Path {
    static ROOT: LazyLock<PathBuf> = LazyLock::new(|| {
        let sources = || Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_owned();
        std::env::var_os(PACKED).map_or_else(sources, PathBuf::from)
    });
    &ROOT
}

/// Whether this program runs in a packed folder: everything is built, and there are no sources.
pub fn is_packed() -> bool {
    std::env::var_os(PACKED).is_some()
}

/// The target folder: `CARGO_TARGET_DIR`, or `target` in the root.
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// `target/assets`.
pub fn assets() -> PathBuf {
    target().join("assets")
}

/// The cargo that called us, in the workspace's root.
pub fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    as_from_the_shell(&mut cargo);
    cargo
}

/// Prepares a call of cargo as if it came from a shell in the root: what cargo told *this* program about itself would make other crates'
/// build scripts run again.
pub fn as_from_the_shell(cargo: &mut Command) {
    cargo.current_dir(root());
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(&name);
        }
    }
}

/// Finds a program on `PATH`.
pub fn find(program: &str) -> Option<PathBuf> {
    // Debian keeps daemons in sbin, which a plain user's PATH leaves out.
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// Python 3, a prerequisite: the one that `PYTHON` names, or `python3`.
pub fn python() -> Result<PathBuf> {
    let name = std::env::var("PYTHON").unwrap_or_else(|_| "python3".into());
    find(&name).with_context(|| format!("{name} is not on PATH: install Python 3 with pip"))
}

/// A command as one would type it.
pub fn shown(command: &Command) -> String {
    let word = |text: &OsStr| {
        let text = text.to_string_lossy();
        match Path::new(text.as_ref()).strip_prefix(root()) {
            Ok(short) if !short.as_os_str().is_empty() => short.display().to_string(),
            _ => text.into_owned(),
        }
    };
    std::iter::once(command.get_program()).chain(command.get_args()).map(word).collect::<Vec<_>>().join(" ")
}

/// Runs a command with its output shown; an error names it unless it succeeds.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("could not start `{}`", shown(command)))?;
    if !status.success() {
        bail!("`{}` failed with {status}", shown(command));
    }
    Ok(())
}

/// Runs a command quietly and gives its standard output; an error carries what it said.
pub fn output(command: &mut Command) -> Result<String> {
    let out = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("could not start `{}`", shown(command)))?;
    if !out.status.success() {
        bail!(
            "`{}` failed with {}:\n{}",
            shown(command),
            out.status,
            String::from_utf8_lossy(&out.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Prints a headline, does the work and returns how long it took.
pub fn step(title: &str, work: impl FnOnce() -> Result<()>) -> Result<Duration> {
    println!("\n== {title}");
    let start = Instant::now();
    work().with_context(|| format!("step failed: {title}"))?;
    let took = start.elapsed();
    println!("   {title}: {}", seconds(took));
    Ok(took)
}

/// `4.2 s` or `3 min 07 s`.
pub fn seconds(time: Duration) -> String {
    if time < Duration::from_secs(100) {
        format!("{:.1} s", time.as_secs_f64())
    } else {
        format!("{} min {:02} s", time.as_secs() / 60, time.as_secs() % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_readable() {
        assert_eq!(seconds(Duration::from_millis(4210)), "4.2 s");
        assert_eq!(seconds(Duration::from_secs(187)), "3 min 07 s");
    }

    #[test]
    fn a_failed_command_is_named_with_what_it_said() {
        let error =
            output(Command::new("sh").args(["-c", "echo no luck >&2; exit 3"])).unwrap_err().to_string();
        assert!(error.contains("exit 3") && error.contains("no luck"), "{error}");
    }
}
