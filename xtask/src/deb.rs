//! Debian packages of `scanside`, put together from `runtime/debian` and what the program says of itself. The same program and the
//! same commit give the same bytes.

mod check;
mod libraries;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cross::{self, Machine, Tests, elf};
use crate::system;
use crate::workspace::{self, output};

/// The programs that packages are made with.
const FOR_PACKAGES: &[(&str, &str)] =
    &[("dpkg-deb", "dpkg"), ("gzip", "gzip"), ("md5sum", "coreutils"), ("readelf", "binutils")];

/// A package's architecture, and where its program comes from.
struct Source {
    /// As Debian names it.
    architecture: &'static str,
    machine: Machine,
    program: PathBuf,
}

impl Source {
    fn new(machine: Machine, program: PathBuf) -> Self {
        let architecture = match machine {
            Machine::Aarch64 => "arm64",
            Machine::X86_64 => "amd64",
        };
        Self { architecture, machine, program }
    }

    /// Words to be put in front of the program so that it runs here.
    fn runner(&self) -> Result<Vec<String>> {
        match self.machine {
            Machine::Aarch64 => cross::runner(),
            Machine::X86_64 => Ok(Vec::new()),
        }
    }
}

/// Makes both packages into `target/deb`, each from a program built for glibc 2.31.
pub fn run_chore() -> Result<()> {
    system::ensure(FOR_PACKAGES)?;
    system::ensure(system::FOR_TESTS)?;
    let mut sources = Vec::new();
    for machine in [Machine::X86_64, Machine::Aarch64] {
        cross::build(machine, Tests::None)?;
        sources.push(Source::new(machine, machine.binary()));
    }
    make(&sources, &workspace::target().join("deb"))
}

/// Makes and checks both packages from programs that are there already.
pub fn test() -> Result<()> {
    system::ensure(FOR_PACKAGES)?;
    let native = workspace::target().join("release/scanside");
    let sources =
        [Source::new(Machine::X86_64, native), Source::new(Machine::Aarch64, Machine::Aarch64.binary())];
    make(&sources, &workspace::target().join("deb-test"))
}

fn make(sources: &[Source], folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    for source in sources {
        let package = package(source, folder)?;
        check::check(source, &package)?;
        println!("  {}: {:.1} MB", package.display(), fs::metadata(&package)?.len() as f64 / 1e6);
    }
    Ok(())
}

/// Puts one package together.
fn package(source: &Source, folder: &Path) -> Result<PathBuf> {
    let version = env!("CARGO_PKG_VERSION");
    let stage = Stage::new(folder.join(format!("stage-{}", source.architecture)))?;
    let ours = workspace::root().join("runtime/debian");
    stage.copy(&source.program, "usr/bin/scanside", 0o755)?;
    stage.copy(&ours.join("scanside.service"), "lib/systemd/system/scanside.service", 0o644)?;
    stage.copy(&ours.join("sysusers.conf"), "usr/lib/sysusers.d/scanside.conf", 0o644)?;
    stage.write("etc/scanside/device.toml.example", &source.says(&["config", "example"])?, 0o644)?;
    let doc = "usr/share/doc/scanside";
    stage.copy(&ours.join("copyright"), &format!("{doc}/copyright"), 0o644)?;
    for page in
        ["docs/operations.md", "docs/config.md", "docs/results.md", "docs/selection.md", "docs/dicom.md"]
    {
        let path = workspace::root().join(page);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        stage.copy(&path, &format!("{doc}/{name}"), 0o644)?;
    }
    stage.copy(&workspace::root().join("CHANGELOG.md"), &format!("{doc}/CHANGELOG.md"), 0o644)?;
    stage.compressed(&format!("{doc}/LIBRARIES"), &libraries::list(source.machine.target())?)?;
    stage.compressed(&format!("{doc}/changelog"), &changelog(version)?)?;
    let pages = folder.join("manual");
    fs::create_dir_all(&pages)?;
    source.says(&["manual", &pages.display().to_string()])?;
    for page in fs::read_dir(&pages)? {
        let page = page?;
        let text = fs::read_to_string(page.path())?;
        stage.compressed(&format!("usr/share/man/man1/{}", page.file_name().display()), &text)?;
    }
    fs::remove_dir_all(&pages)?;

    let bytes = stage.seal()?;
    let control = fs::read_to_string(ours.join("control"))?
        .replace("{version}", version)
        .replace("{architecture}", source.architecture)
        .replace("{kilobytes}", &bytes.div_ceil(1024).to_string())
        .replace("{depends}", &depends(&elf::read(&source.program)?)?);
    stage.write("DEBIAN/control", &control, 0o644)?;
    stage.copy(&ours.join("conffiles"), "DEBIAN/conffiles", 0o644)?;
    for script in ["postinst", "prerm", "postrm"] {
        stage.copy(&ours.join(script), &format!("DEBIAN/{script}"), 0o755)?;
    }
    let package = folder.join(format!("scanside_{version}_{}.deb", source.architecture));
    stage.build(&package)?;
    Ok(package)
}

impl Source {
    /// What the program prints.
    fn says(&self, arguments: &[&str]) -> Result<String> {
        let runner = self.runner()?;
        let mut words = runner.iter().map(String::as_str).chain([self.program.to_str().unwrap_or_default()]);
        let mut command = Command::new(words.next().unwrap_or_default());
        output(command.args(words).args(arguments).env("COLUMNS", "100"))
    }
}

/// Packages that bring the libraries, and what the maintainer scripts call.
fn depends(needs: &elf::Needs) -> Result<String> {
    let mut all = vec![format!("libc6 (>= {}.{})", needs.glibc.0, needs.glibc.1)];
    for library in &needs.libraries {
        let package = match library.as_str() {
            "libstdc++.so.6" => "libstdc++6",
            "libgcc_s.so.1" => "libgcc-s1",
            name if ["libc.", "libm.", "libpthread.", "libdl.", "ld-linux"]
                .iter()
                .any(|l| name.starts_with(l)) =>
            {
                continue;
            }
            other => bail!("the program needs {other}, and no Debian package is known that brings it"),
        };
        all.push(package.into());
    }
    // What else they call is on every Debian.
    all.push("systemd | systemd-standalone-sysusers".into());
    Ok(all.join(", "))
}

/// Debian's form of it; what changed stands in CHANGELOG.md.
fn changelog(version: &str) -> Result<String> {
    let date = output(Command::new("date").args(["--utc", "--rfc-email", &format!("--date=@{}", epoch())]))?;
    Ok(format!(
        "scanside ({version}) stable; urgency=medium\n\n  * See /usr/share/doc/scanside/CHANGELOG.md.\n\n \
         -- scanside <scanside@localhost>  {}\n",
        date.trim()
    ))
}

/// The time that everything in the package bears: `SOURCE_DATE_EPOCH`, or the last commit's.
fn epoch() -> String {
    if let Ok(given) = std::env::var("SOURCE_DATE_EPOCH") {
        return given;
    }
    let commit =
        Command::new("git").args(["log", "-1", "--format=%ct"]).current_dir(workspace::root()).output();
    match commit {
        Ok(out) if out.status.success() => String::from_utf8_lossy(&out.stdout).trim().to_owned(),
        // Outside of a git repository.
        _ => "1767225600".into(),
    }
}

/// The folder that becomes the package.
struct Stage {
    root: PathBuf,
}

impl Stage {
    fn new(root: PathBuf) -> Result<Self> {
        if root.exists() {
            fs::remove_dir_all(&root)?;
        }
        fs::create_dir_all(&root)?;
        Ok(Self { root })
    }

    fn write(&self, path: &str, text: &str, mode: u32) -> Result<()> {
        self.bytes(path, text.as_bytes(), mode)
    }

    fn copy(&self, from: &Path, path: &str, mode: u32) -> Result<()> {
        let bytes = fs::read(from).with_context(|| format!("{} cannot be read", from.display()))?;
        self.bytes(path, &bytes, mode)
    }

    fn bytes(&self, path: &str, bytes: &[u8], mode: u32) -> Result<()> {
        let place = self.root.join(path);
        // Whatever the umask here, folders are as everywhere.
        let mut folder = self.root.clone();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))?;
        for part in Path::new(path).parent().into_iter().flat_map(Path::iter) {
            folder.push(part);
            if !folder.is_dir() {
                fs::create_dir(&folder)?;
                fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))?;
            }
        }
        fs::write(&place, bytes)?;
        fs::set_permissions(&place, fs::Permissions::from_mode(mode))?;
        Ok(())
    }

    /// As `PATH.gz`, without name and time in it.
    fn compressed(&self, path: &str, text: &str) -> Result<()> {
        self.write(path, text, 0o644)?;
        output(Command::new("gzip").args(["-9", "--no-name"]).arg(self.root.join(path)))?;
        Ok(())
    }

    /// Writes the checksums that `dpkg --verify` compares; returns the bytes of all files.
    fn seal(&self) -> Result<u64> {
        let mut names = Vec::new();
        files(&self.root, &mut names)?;
        names.sort();
        let relative: Vec<&Path> =
            names.iter().filter_map(|name| name.strip_prefix(&self.root).ok()).collect();
        let sums = output(Command::new("md5sum").args(&relative).current_dir(&self.root))?;
        let bytes = names
            .iter()
            .map(|name| fs::metadata(name).map(|data| data.len()))
            .sum::<std::io::Result<u64>>()?;
        self.write("DEBIAN/md5sums", &sums, 0o644)?;
        Ok(bytes)
    }

    /// xz, since older dpkg know no zstd, which Ubuntu's takes by default.
    fn build(&self, package: &Path) -> Result<()> {
        output(
            Command::new("dpkg-deb")
                .args(["--root-owner-group", "-Zxz", "--build"])
                .arg(&self.root)
                .arg(package)
                .env("SOURCE_DATE_EPOCH", epoch()),
        )?;
        Ok(())
    }
}

fn files(folder: &Path, out: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { files(&path, out)? } else { out.push(path) }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needs(libraries: &[&str]) -> elf::Needs {
        let libraries = libraries.iter().map(|&name| name.to_owned()).collect();
        elf::Needs { machine: "AArch64".into(), libraries, glibc: (2, 31) }
    }

    #[test]
    fn dependencies_follow_the_program() {
        let tail = "systemd | systemd-standalone-sysusers";
        let plain = depends(&needs(&["libc.so.6", "libm.so.6", "ld-linux-aarch64.so.1"])).unwrap();
        assert_eq!(plain, format!("libc6 (>= 2.31), {tail}"));
        let native = depends(&needs(&["libstdc++.so.6", "libgcc_s.so.1", "libc.so.6"])).unwrap();
        assert_eq!(native, format!("libc6 (>= 2.31), libstdc++6, libgcc-s1, {tail}"));
        assert!(depends(&needs(&["libtorch.so"])).unwrap_err().to_string().contains("libtorch.so"));
    }

    #[test]
    fn a_staged_folder_has_the_modes_of_a_package() {
        let folder = tempfile::tempdir().unwrap();
        let stage = Stage::new(folder.path().join("stage")).unwrap();
        stage.write("usr/bin/x", "#!/bin/sh\n", 0o755).unwrap();
        stage.compressed("usr/share/doc/x/text", "text\n").unwrap();
        let mode = |path: &str| fs::metadata(stage.root.join(path)).unwrap().permissions().mode() & 0o7777;
        assert_eq!([mode("usr"), mode("usr/bin"), mode("usr/bin/x")], [0o755; 3]);
        assert_eq!(mode("usr/share/doc/x/text.gz"), 0o644);
        assert!(stage.seal().unwrap() > 10);
        let sums = fs::read_to_string(stage.root.join("DEBIAN/md5sums")).unwrap();
        let names: Vec<&str> = sums.lines().filter_map(|line| line.split("  ").nth(1)).collect();
        assert_eq!(names, ["usr/bin/x", "usr/share/doc/x/text.gz"]);
    }
}
