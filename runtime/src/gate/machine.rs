//! What Linux tells the gate.

use std::fs;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

use super::{Identity, Machine, Memory};
use crate::engine::isa;
use crate::infer::BUILD;
use crate::proc::bytes;

/// The machine that this runs on, and this process.
#[derive(Debug, Clone, Copy)]
pub struct ThisMachine;

impl Machine for ThisMachine {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn monotonic(&self) -> Duration {
        static START: OnceLock<Instant> = OnceLock::new();
        START.get_or_init(Instant::now).elapsed()
    }

    fn memory(&self) -> Option<Memory> {
        memory(&fs::read_to_string("/proc/self/status").ok()?)
    }

    fn reset_peak(&self) -> bool {
        // proc(5): 5 sets the peak resident set size to the current one.
        fs::write("/proc/self/clear_refs", "5").is_ok()
    }

    fn identity(&self) -> Identity {
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Identity {
            build: BUILD.into(),
            kernel: kernel.trim().into(),
            cpu: format!("{} {}", isa(), cpu(&cpuinfo)).trim().into(),
        }
    }
}

/// `status` as in /proc/self.
fn memory(status: &str) -> Option<Memory> {
    Some(Memory { now: bytes(status, "VmRSS")?, peak: bytes(status, "VmHWM")? })
}

/// The processor in /proc/cpuinfo: its name, or on ARM the numbers that stand for one. Of several kinds of cores all.
fn cpu(cpuinfo: &str) -> String {
    let keys = ["model name", "CPU implementer", "CPU part", "CPU revision"];
    let mut found: Vec<&str> = Vec::new();
    for line in cpuinfo.lines() {
        let Some((key, value)) = line.split_once(':') else { continue };
        if keys.contains(&key.trim()) && !found.contains(&value.trim()) {
            found.push(value.trim());
        }
    }
    found.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_processor_are_read() {
        let status = "Name:\tx\nVmHWM:\t   200 kB\nVmRSS:\t   100 kB\n";
        assert_eq!(memory(status), Some(Memory { now: 102_400, peak: 204_800 }));
        assert_eq!(memory("VmRSS: 1 kB\n"), None);
        let x86 = "processor\t: 0\nmodel name\t: Xeon 8\n\nprocessor\t: 1\nmodel name\t: Xeon 8\n";
        assert_eq!(cpu(x86), "Xeon 8");
        let arm =
            "CPU implementer\t: 0x41\nCPU part\t: 0xd08\n\nCPU implementer\t: 0x41\nCPU part\t: 0xd03\n";
        assert_eq!(cpu(arm), "0x41 0xd08 0xd03");
        let here = ThisMachine;
        assert!(!here.identity().build.is_empty());
        assert!(here.memory().is_none_or(|memory| memory.peak >= memory.now / 2));
        assert!(here.monotonic() <= here.monotonic());
    }
}
