//! What `plugin.c` writes, as instructions a function.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::symbols::Symbols;

/// Bytes of an aarch64 instruction.
const INSTRUCTION: u64 = 4;

/// What ran between two reads of the standard input.
#[derive(Default)]
pub struct Stretch {
    blocks: Vec<Block>,
    maps: Vec<Map>,
}

#[derive(Debug, PartialEq, Eq)]
struct Block {
    at: u64,
    instructions: u64,
    runs: u64,
}

/// Where a file lies in memory.
#[derive(Debug, PartialEq, Eq)]
struct Map {
    from: u64,
    to: u64,
    offset: u64,
    file: PathBuf,
}

/// Executed instructions of a function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// Program or library.
    pub file: String,
    pub name: String,
    pub instructions: u64,
}

/// All stretches, from the program's start on.
pub fn parse(text: &str) -> Result<Vec<Stretch>> {
    let mut all = Vec::new();
    let mut stretch = Stretch::default();
    for line in text.lines() {
        let error = || format!("QEMU's plugin wrote {line:?}, expected a block, a map or `end`");
        if line == "end" {
            all.push(std::mem::take(&mut stretch));
        } else if let Some(map) = line.strip_prefix("map ") {
            stretch.maps.push(Map::parse(map).with_context(error)?);
        } else {
            stretch.blocks.push(Block::parse(line).with_context(error)?);
        }
    }
    Ok(all)
}

impl Block {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let mut word = || words.next();
        Some(Self {
            at: u64::from_str_radix(word()?, 16).ok()?,
            instructions: word()?.parse().ok()?,
            runs: word()?.parse().ok()?,
        })
    }
}

impl Map {
    /// A line of /proc/self/maps.
    fn parse(line: &str) -> Option<Self> {
        let hex = |text: &str| u64::from_str_radix(text, 16).ok();
        let mut words = line.split_whitespace();
        let (from, to) = words.next()?.split_once('-')?;
        let offset = hex(words.nth(1)?)?;
        Some(Self { from: hex(from)?, to: hex(to)?, offset, file: line[line.find('/')?..].trim_end().into() })
    }
}

impl Stretch {
    pub fn instructions(&self) -> u64 {
        self.blocks.iter().map(|block| block.instructions * block.runs).sum()
    }

    /// The functions that ran, the busiest first. `known` keeps what was read of files.
    pub fn functions(&self, known: &mut BTreeMap<PathBuf, Symbols>) -> Result<Vec<Function>> {
        let mut counts: BTreeMap<(String, String), u64> = BTreeMap::new();
        for block in &self.blocks {
            let Some(map) = self.maps.iter().find(|map| (map.from..map.to).contains(&block.at)) else {
                *counts.entry(("-".into(), "outside of any file".into())).or_default() +=
                    block.instructions * block.runs;
                continue;
            };
            if !known.contains_key(&map.file) {
                known.insert(map.file.clone(), Symbols::read(&map.file)?);
            }
            let symbols = &known[&map.file];
            let file = map.file.file_name().unwrap_or_default().to_string_lossy();
            let start = block.at - map.from + map.offset;
            for offset in (0..block.instructions).map(|n| start + n * INSTRUCTION) {
                *counts.entry((file.clone().into_owned(), symbols.at(offset))).or_default() += block.runs;
            }
        }
        let functions = counts.into_iter();
        let mut functions: Vec<Function> =
            functions.map(|((file, name), instructions)| Function { file, name, instructions }).collect();
        functions.sort_by_key(|function| std::cmp::Reverse(function.instructions));
        Ok(functions)
    }
}

impl Function {
    /// Whether it computes an exponential, a logarithm, an error function or a circular function a value at a time.
    pub fn is_scalar_transcendental(&self) -> bool {
        // The last three are tract's, for processors that it has no vector code for.
        const NAMES: [&str; 20] = [
            "exp", "exp2", "expm1", "erf", "erfc", "tanh", "sinh", "cosh", "pow", "log", "log2", "log1p",
            "log10", "sin", "cos", "tan", "atan", "serf", "stanh", "ssigmoid",
        ];
        let last = self.name.rsplit("::").next().unwrap_or_default().trim_start_matches('_');
        let last = last.split(['<', '(', '.']).next().unwrap_or_default();
        let is = |name: &str| last == name || last.strip_suffix('f').is_some_and(|last| last == name);
        let library = Path::new(&self.file).file_stem().unwrap_or_default().to_string_lossy();
        library == "libm.so"
            || library.starts_with("libm-")
            || self.name.starts_with("libm::")
            || NAMES.into_iter().any(is)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_are_read_as_the_plugin_writes_them() {
        let text = "5500001000 3 2\n\
                    map 5500000000-5500002000 r-xp 00001000 fe:00 12   /usr/lib/a b.so\n\
                    end\n5500001004 1 5\nend\n";
        let stretches = parse(text).unwrap();
        assert_eq!(stretches.iter().map(Stretch::instructions).collect::<Vec<_>>(), [6, 5]);
        let map = &stretches[0].maps[0];
        assert_eq!((map.offset, map.file.to_str()), (0x1000, Some("/usr/lib/a b.so")));
        assert!(parse("5500001000 3\n").err().unwrap().to_string().contains("expected a block"));
    }

    #[test]
    fn scalar_functions_are_told_from_others() {
        let is = |file: &str, name: &str| {
            Function { file: file.into(), name: name.into(), instructions: 1 }.is_scalar_transcendental()
        };
        for (file, name) in [
            ("libm.so.6", "+0x1200"),
            ("program", "expf"),
            ("program", "__tanhf"),
            ("program", "libm::math::k_sinf::k_sinf"),
            ("program", "tract_linalg::generic::erf::serf"),
            ("program", "core::f32::exp"),
        ] {
            assert!(is(file, name), "{file} {name}");
        }
        for name in ["blocks::math::export", "logits", "expand", "sincere", "runtime::exp::of"] {
            assert!(!is("program", name), "{name}");
        }
    }
}
