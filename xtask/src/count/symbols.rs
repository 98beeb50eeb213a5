//! Which function of a program or library an address belongs to.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::workspace::output;

/// Functions of one file, and how the file lies in memory.
pub struct Symbols {
    /// Offset in the file, address and size of what is loaded.
    segments: Vec<[u64; 3]>,
    functions: Vec<Function>,
}

struct Function {
    start: u64,
    end: u64,
    /// None where only the unwinding tables know it: a stripped file has no names.
    name: Option<String>,
}

impl Symbols {
    /// Reads them with binutils' readelf: names from the symbol tables, functions without a name from the unwinding tables.
    pub fn read(file: &Path) -> Result<Self> {
        let text = |flags: &[&str]| {
            output(Command::new("readelf").args(flags).arg("-W").arg(file).env("LC_ALL", "C"))
        };
        let tables = text(&["-l", "-s", "-C"])?;
        let frames = text(&["--debug-dump=frames"])?;
        Ok(Self::parse(&tables, &frames))
    }

    fn parse(tables: &str, frames: &str) -> Self {
        let hex = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok();
        let segment = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [kind, offset, address, _, size, ..] = words[..] else { return None };
            (kind == "LOAD").then_some([hex(offset)?, hex(address)?, hex(size)?])
        };
        let mut functions: Vec<Function> =
            tables.lines().filter_map(named).chain(frames.lines().filter_map(unnamed)).collect();
        // A name first where several begin at one address.
        functions.sort_by_key(|function| (function.start, function.name.is_none()));
        functions.dedup_by(|later, earlier| later.start == earlier.start);
        Self { segments: tables.lines().filter_map(segment).collect(), functions }
    }

    /// The function at this place of the file; where none has a name, the address at which it begins.
    pub fn at(&self, offset: u64) -> String {
        let segment = self.segments.iter().find(|[start, _, size]| (*start..start + size).contains(&offset));
        let address = segment.map_or(offset, |[start, address, _]| offset - start + address);
        let after = self.functions.partition_point(|function| function.start <= address);
        match after.checked_sub(1).map(|at| &self.functions[at]) {
            Some(Function { start, end, name }) if address < *end => {
                name.clone().unwrap_or_else(|| format!("+{start:#x}"))
            }
            // Between functions: assembly without tables.
            Some(Function { end, .. }) => format!("+{end:#x}"),
            None => "+0x0".into(),
        }
    }
}

/// `  12: 00000000000672a0   84 FUNC  GLOBAL DEFAULT   13 name@@VERSION`
fn named(line: &str) -> Option<Function> {
    let mut rest = line;
    let mut word = || {
        let (word, after) = rest.trim_start().split_once(' ')?;
        rest = after;
        Some(word)
    };
    let number = word()?;
    let (address, size, kind) = (word()?, word()?, word()?);
    let (_, _, section) = (word()?, word()?, word()?);
    if !number.ends_with(':') || !["FUNC", "IFUNC", "NOTYPE"].contains(&kind) || section == "UND" {
        return None;
    }
    let start = u64::from_str_radix(address, 16).ok()?;
    let size =
        size.strip_prefix("0x").map_or_else(|| size.parse().ok(), |hex| u64::from_str_radix(hex, 16).ok());
    let name = rest.trim();
    // Without a size it is a label: where code changes to data, for example.
    let size: u64 = size.filter(|size| *size > 0)?;
    Some(Function { start, end: start + size, name: Some(plain(name).to_owned()) })
}

/// Without a hash of Rust's and without a version.
fn plain(name: &str) -> &str {
    let name = name.split_once('@').map_or(name, |(name, _)| name);
    match name.rsplit_once("::h") {
        Some((name, hash)) if hash.len() == 16 && hash.bytes().all(|c| c.is_ascii_hexdigit()) => name,
        _ => name,
    }
}

/// `00000018 0000000000000014 0000001c FDE cie=00000000 pc=0000000000067ba0..0000000000067bb0`
fn unnamed(line: &str) -> Option<Function> {
    let (start, end) = line.split_once(" FDE ")?.1.split_once("pc=")?.1.split_once("..")?;
    let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end.trim(), 16).ok()?);
    Some(Function { start, end, name: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_found_by_name_by_table_and_by_what_is_between() {
        let tables = "\
  LOAD           0x000000 0x0000000000000000 0x0000000000000000 0x000800 0x000800 R   0x10000
  LOAD           0x000800 0x0000000000010800 0x0000000000010800 0x001000 0x001000 R E 0x10000
     1: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND memcpy@GLIBC_2.17 (2)
     2: 0000000000010800    32 FUNC    LOCAL  DEFAULT   13 runtime::engine::run::h0123456789abcdef
     3: 0000000000010820   0x20 FUNC    GLOBAL DEFAULT   13 expf@@GLIBC_2.27
     4: 0000000000010820     0 NOTYPE  LOCAL  DEFAULT   13 $x
";
        let frames = "00000018 0000000000000014 0000001c FDE cie=00000000 pc=0000000000010800..0000000000010820\n\
                      00000030 0000000000000014 0000001c FDE cie=00000000 pc=0000000000010880..00000000000108a0\n";
        let symbols = Symbols::parse(tables, frames);
        let found = [0x800, 0x81c, 0x820, 0x850, 0x880, 0x89c, 0x8a0].map(|offset| symbols.at(offset));
        let run = "runtime::engine::run";
        assert_eq!(found, [run, run, "expf", "+0x10840", "+0x10880", "+0x10880", "+0x108a0"]);
    }
}
