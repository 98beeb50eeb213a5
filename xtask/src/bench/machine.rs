//! What the figures were taken on; nothing that names the machine.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use serde_json::{Value, json};

use crate::workspace::output;

/// Instruction sets that a matrix product may use, as /proc/cpuinfo names them.
const ISA: &[&str] = &[
    "avx2",
    "fma",
    "f16c",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "asimd",
    "fphp",
    "asimdhp",
    "asimddp",
    "bf16",
    "i8mm",
    "sve",
];

/// The packages whose versions matter.
const PACKAGES: &[&str] = &["numpy", "onnxruntime", "openvino", "nibabel", "pydicom", "pyjpegls"];

/// Processor, cores, instruction sets, memory, load before the runs, versions; `python` has the peers, where any are timed.
pub fn describe(python: Option<&Path>) -> Result<Value> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
    let memory = fs::read_to_string("/proc/meminfo")?;
    let load = fs::read_to_string("/proc/loadavg")?;
    let mut versions = json!({ "scanside": env!("CARGO_PKG_VERSION") });
    if let Some(python) = python {
        let print = "import importlib.metadata as m, platform, sys\n\
                     print('python', platform.python_version())\n\
                     for name in sys.argv[1:]:\n\
                     \ttry: print(name, m.version(name))\n\
                     \texcept m.PackageNotFoundError: pass";
        for line in output(Command::new(python).args(["-c", print]).args(PACKAGES))?.lines() {
            if let Some((name, version)) = line.split_once(' ') {
                versions[name] = version.into();
            }
        }
    }
    Ok(json!({
        "processor": field(&cpuinfo, &["model name", "Model", "Hardware"]).or_else(board),
        "architecture": std::env::consts::ARCH,
        "cores": std::thread::available_parallelism()?.get(),
        "isa": isa(&cpuinfo),
        "memory_mb": field(&memory, &["MemTotal"]).and_then(|text| kib(&text)).map(|kib| kib * 1024 / 1_000_000),
        "load_before": load.split(' ').next(),
        "versions": versions,
    }))
}

/// What a board calls itself where /proc/cpuinfo does not.
fn board() -> Option<String> {
    let model = fs::read_to_string("/proc/device-tree/model").ok()?;
    Some(model.trim_end_matches('\0').trim().to_owned())
}

/// The value of the first of these fields that is there.
fn field(text: &str, names: &[&str]) -> Option<String> {
    names.iter().find_map(|name| {
        let lines = || text.lines().filter_map(|line| line.split_once(':'));
        lines().find(|(key, _)| key.trim() == *name).map(|(_, value)| value.trim().to_owned())
    })
}

fn kib(text: &str) -> Option<u64> {
    text.strip_suffix("kB")?.trim().parse().ok()
}

fn isa(cpuinfo: &str) -> Vec<&'static str> {
    let flags = field(cpuinfo, &["flags", "Features"]).unwrap_or_default();
    let has = |name: &&&str| flags.split(' ').any(|flag| flag == **name);
    ISA.iter().filter(has).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_both_architectures_are_found() {
        let x86 = "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx2 avx512f avx512_bf16\n";
        assert_eq!(field(x86, &["model name", "Model"]).as_deref(), Some("Some CPU"));
        assert_eq!(isa(x86), ["avx2", "avx512f", "avx512_bf16"]);
        let arm = "processor\t: 0\nFeatures\t: fp asimd asimdhp\n\nModel\t\t: Some Board\n";
        assert_eq!(field(arm, &["model name", "Model"]).as_deref(), Some("Some Board"));
        assert_eq!(isa(arm), ["asimd", "asimdhp"]);
        assert_eq!(kib("1024 kB"), Some(1024));
    }
}
