//! What Linux tells of memory in `/proc`.

use std::fs;
use std::path::Path;

/// In bytes what `key` has in a text such as `/proc/meminfo` or `/proc/self/status`, whose lines read `KEY: N kB`.
pub fn bytes(text: &str, key: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Bytes that this process may take yet: what Linux says is available, and what its control groups leave; none where neither is told.
pub fn memory_at_hand() -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok();
    let available = meminfo.and_then(|text| bytes(&text, "MemAvailable"));
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    // Version 2: one line, with the group's path below the mount.
    let group = own.lines().find_map(|line| line.strip_prefix("0::/")).map(Path::new);
    let groups = group.into_iter().flat_map(Path::ancestors);
    let read = |group: &Path, file: &str| -> Option<u64> {
        let path = Path::new("/sys/fs/cgroup").join(group).join(file);
        fs::read_to_string(path).ok()?.trim().parse().ok()
    };
    let left = |group: &Path| Some(read(group, "memory.max")?.saturating_sub(read(group, "memory.current")?));
    groups.filter_map(left).chain(available).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_found_by_its_whole_key() {
        let text =
            "MemTotal:       24689764 kB\nMemFree:          123 kB\nMemAvailable:   23001556 kB\nPages: 7\n";
        assert_eq!(bytes(text, "MemAvailable"), Some(23_001_556 * 1024));
        assert_eq!(bytes(text, "MemFree"), Some(123 * 1024));
        assert_eq!([bytes(text, "Mem"), bytes(text, "Pages"), bytes("", "MemFree")], [None; 3]);
        assert!(memory_at_hand().is_none_or(|bytes| bytes > 0));
    }
}
