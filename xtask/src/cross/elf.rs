//! What a program asks of the machine it runs on.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::workspace::output;

/// Shared libraries and the newest glibc symbol version that a program wants.
#[derive(Debug, PartialEq, Eq)]
pub struct Needs {
    pub machine: String,
    pub libraries: Vec<String>,
    pub glibc: (u32, u32),
}

/// Reads a program's header, dynamic section and symbol versions with binutils' readelf.
pub fn read(program: &Path) -> Result<Needs> {
    Ok(parse(&output(
        Command::new("readelf").args(["-h", "-d", "-V", "-W"]).arg(program).env("LC_ALL", "C"),
    )?))
}

fn parse(text: &str) -> Needs {
    let between = |line: &str, open: &str, close: char| {
        line.split_once(open)
            .and_then(|(_, rest)| rest.split_once(close))
            .map(|(inside, _)| inside.to_owned())
    };
    let machine =
        text.lines().find_map(|line| line.trim().strip_prefix("Machine:")).unwrap_or_default().trim();
    let libraries = text
        .lines()
        .filter(|line| line.contains("(NEEDED)"))
        .filter_map(|line| between(line, "[", ']'))
        .collect();
    let glibc = text
        .split("GLIBC_")
        .skip(1)
        .filter_map(|rest| {
            let version = rest.split(|c: char| !c.is_ascii_digit() && c != '.').next()?;
            let mut numbers = version.split('.').map(str::parse);
            Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
        })
        .max()
        .unwrap_or_default();
    Needs { machine: machine.to_owned(), libraries, glibc }
}

impl Needs {
    /// Fails if the program is for another machine, wants another library, or a newer glibc.
    pub fn check(&self, machine: &str, libraries: &[&str], glibc: (u32, u32)) -> Result<()> {
        if self.machine != machine {
            bail!("the program is for {}, expected {machine}", self.machine);
        }
        if let Some(other) = self.libraries.iter().find(|library| !libraries.contains(&library.as_str())) {
            bail!("the program needs {other}; it may need only {}", libraries.join(", "));
        }
        if self.glibc > glibc {
            bail!(
                "the program needs glibc {}.{}; it must run with {}.{}",
                self.glibc.0,
                self.glibc.1,
                glibc.0,
                glibc.1
            );
        }
        Ok(())
    }
}

impl std::fmt::Display for Needs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "needs glibc {}.{} and only {}", self.glibc.0, self.glibc.1, self.libraries.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "
  Class:                             ELF64
  Machine:                           AArch64
Dynamic section at offset 0x1 contains 2 entries:
 0x0000000000000001 (NEEDED)             Shared library: [libc.so.6]
 0x0000000000000001 (NEEDED)             Shared library: [libm.so.6]
Version needs section '.gnu.version_r' contains 1 entry:
  0x0010:   Name: GLIBC_2.17  Flags: none  Version: 9
  0x0020:   Name: GLIBC_2.4  Flags: none  Version: 8
  0x0030:   Name: GLIBC_2.30  Flags: none  Version: 7
";

    #[test]
    fn reads_libraries_and_the_newest_version() {
        let needs = parse(TEXT);
        assert_eq!(needs.libraries, ["libc.so.6", "libm.so.6"]);
        assert_eq!(needs.glibc, (2, 30));
        assert!(needs.check("AArch64", &["libc.so.6", "libm.so.6"], (2, 31)).is_ok());
    }

    #[test]
    fn refuses_what_a_device_may_lack() {
        let needs = parse(TEXT);
        let newer = needs.check("AArch64", &["libc.so.6", "libm.so.6"], (2, 29)).unwrap_err().to_string();
        assert_eq!(newer, "the program needs glibc 2.30; it must run with 2.29");
        let library = needs.check("AArch64", &["libc.so.6"], (2, 31)).unwrap_err().to_string();
        assert!(library.starts_with("the program needs libm.so.6;"), "{library}");
        let native = parse(&TEXT.replace("AArch64", "Advanced Micro Devices X86-64"));
        assert!(native.check("AArch64", &["libc.so.6", "libm.so.6"], (2, 31)).is_err());
    }
}
