//! Processor, memory and heat.

use std::fs;

use super::{Check, shown};
use crate::engine::default_threads;
use crate::proc::bytes;
use crate::service::machine::Temperature;

/// Processors throttle somewhere above, and are then slower than they were measured to be.
const HOT: f64 = 85.0;

/// Cores that this process may use.
pub(super) fn cores() -> usize {
    default_threads()
}

pub(super) fn meminfo() -> String {
    fs::read_to_string("/proc/meminfo").unwrap_or_default()
}

/// `isa` as results name it: the architecture and what the kernels can use of it.
pub(super) fn cpu(isa: &str, cores: usize, threads: Option<u32>) -> Check {
    let finding = format!("{isa}, {cores} core{}", if cores == 1 { "" } else { "s" });
    let (architecture, extensions) = isa.split_once('+').unwrap_or((isa, ""));
    if extensions.is_empty() {
        let wanted = if architecture == "x86_64" { "AVX2 and FMA" } else { "NEON" };
        let remedy = format!(
            "use a machine with {wanted}, or switch them on in the virtual machine: without them inference takes several times as long"
        );
        return Check::warn("cpu", finding, remedy);
    }
    match threads {
        Some(threads) if threads as usize > cores => Check::warn(
            "cpu",
            format!("{finding}, but `threads` is {threads}"),
            format!("set `threads` to {cores} at most, or leave it out"),
        ),
        _ => Check::ok("cpu", finding),
    }
}

/// `meminfo` as in /proc; `need` is what the tasks of this box take.
pub(super) fn memory(meminfo: &str, need: Option<u64>) -> Check {
    let value = |key| bytes(meminfo, key);
    let (Some(total), Some(available)) = (value("MemTotal"), value("MemAvailable")) else {
        let remedy = "see whether /proc is mounted";
        return Check::warn("memory", "Linux does not tell how much there is", remedy);
    };
    let there = format!("{}, {} available", shown(total), shown(available));
    let Some(need) = need else { return Check::ok("memory", there) };
    let finding = format!("{there}; the tasks need about {}", shown(need));
    if need > total {
        Check::fail("memory", finding, "take a smaller backbone or fewer tasks, or a box with more memory")
    } else if need > available {
        let remedy = "that is well if the service is running; if not, see with `ps aux --sort=-rss | head` what takes it";
        Check::warn("memory", finding, remedy)
    } else {
        Check::ok("memory", finding)
    }
}

/// Nothing where the machine has no thermometer.
pub(super) fn heat(temperatures: &[Temperature]) -> Option<Check> {
    let hottest = temperatures.iter().max_by(|a, b| a.celsius.total_cmp(&b.celsius))?;
    let finding = format!("{} has {:.0} °C", hottest.zone, hottest.celsius);
    Some(if hottest.celsius > HOT {
        Check::warn("heat", finding, "look at fan, dust and the air around the box")
    } else {
        Check::ok("heat", finding)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Grade;

    #[test]
    fn a_processor_is_judged_by_what_the_kernels_use() {
        for isa in ["x86_64+avx2+fma", "x86_64+avx512f", "aarch64+neon", "aarch64+neon+fp16"] {
            assert_eq!(cpu(isa, 4, None), Check::ok("cpu", format!("{isa}, 4 cores")));
        }
        assert_eq!(cpu("aarch64+neon", 1, Some(1)).finding, "aarch64+neon, 1 core");
        let old = cpu("x86_64", 4, None);
        assert!(old.grade == Grade::Warn && old.remedy.unwrap().contains("AVX2 and FMA"));
        assert!(cpu("aarch64", 4, None).remedy.unwrap().contains("NEON"));
        let greedy = cpu("aarch64+neon", 4, Some(8));
        assert!(greedy.grade == Grade::Warn && greedy.remedy.unwrap().contains("to 4 at most"));
    }

    #[test]
    fn memory_is_held_against_what_the_tasks_need() {
        let text = "MemTotal:        4000000 kB\nMemFree:  1 kB\nMemAvailable:    1000000 kB\n";
        let grade = |need| memory(text, need).grade;
        assert_eq!(memory(text, None).finding, "4.1 GB, 1.0 GB available");
        assert_eq!(grade(Some(1_000_000_000)), Grade::Ok);
        assert_eq!(grade(Some(1_100_000_000)), Grade::Warn);
        assert_eq!(grade(Some(4_100_000_000)), Grade::Fail);
        assert_eq!(memory("", Some(1)).grade, Grade::Warn);
        assert_ne!(memory(&meminfo(), None).grade, Grade::Fail);
    }

    #[test]
    fn the_hottest_place_counts() {
        let at = |zone: &str, celsius| Temperature { zone: zone.into(), celsius };
        assert_eq!(heat(&[]), None);
        assert_eq!(heat(&[at("a", 40.0), at("b", 60.4), at("c", 50.0)]).unwrap().finding, "b has 60 °C");
        assert_eq!(heat(&[at("a", 85.1), at("b", 60.0)]).unwrap().grade, Grade::Warn);
    }
}
