//! What Linux tells of this machine: temperatures, and the memory of this process.

use std::fs;
use std::path::Path;

use crate::proc::bytes;

/// Where Linux keeps its thermometers.
pub const THERMAL: &str = "/sys/class/thermal";

/// What Linux tells of this process.
pub const STATUS: &str = "/proc/self/status";

/// What a thermometer says.
#[derive(Debug, Clone, PartialEq)]
pub struct Temperature {
    /// What it measures, as the driver calls it; a number is put behind a name that several have.
    pub zone: String,
    /// In degrees Celsius.
    pub celsius: f64,
}

/// Every thermometer below `folder` (see [`THERMAL`]) that can be read, in the order of their numbers. Some machines have none.
pub fn temperatures(folder: &Path) -> Vec<Temperature> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut zones: Vec<(u32, Temperature)> = entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let number = path.file_name()?.to_str()?.strip_prefix("thermal_zone")?.parse().ok()?;
            Some((number, temperature(&path)?))
        })
        .collect();
    zones.sort_by_key(|(number, _)| *number);
    let names: Vec<String> = zones.iter().map(|(_, t)| t.zone.clone()).collect();
    let unique = |name: &String| names.iter().filter(|other| *other == name).count() == 1;
    zones
        .into_iter()
        .map(|(number, t)| {
            let zone = if unique(&t.zone) { t.zone } else { format!("{}-{number}", t.zone) };
            Temperature { zone, ..t }
        })
        .collect()
}

/// A zone that is switched off cannot be read, or tells a temperature that no machine has.
fn temperature(zone: &Path) -> Option<Temperature> {
    let name = fs::read_to_string(zone.join("type")).ok()?;
    let millidegrees: f64 = fs::read_to_string(zone.join("temp")).ok()?.trim().parse().ok()?;
    let celsius = millidegrees / 1000.0;
    (-100.0..250.0).contains(&celsius).then(|| Temperature { zone: name.trim().into(), celsius })
}

/// Bytes of memory in use by the process that `status` (see [`STATUS`]) is about. Not from `statm`, whose pages have another
/// size on some ARM kernels.
pub fn resident_memory(status: &Path) -> Option<u64> {
    bytes(&fs::read_to_string(status).ok()?, "VmRSS")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thermometers_are_read_in_order_and_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let zone = |number: u32, name: &str, temp: &str| {
            let path = folder.path().join(format!("thermal_zone{number}"));
            fs::create_dir(&path).unwrap();
            fs::write(path.join("type"), name).unwrap();
            fs::write(path.join("temp"), temp).unwrap();
        };
        zone(10, "soc-thermal\n", "-5500\n");
        zone(2, "cpu-thermal\n", "48321\n");
        zone(3, "cpu-thermal\n", "50000\n");
        zone(4, "gpu-thermal\n", "-274000\n");
        zone(5, "broken\n", "\n");
        fs::create_dir(folder.path().join("cooling_device0")).unwrap();
        fs::create_dir(folder.path().join("thermal_zone6")).unwrap();
        let found = temperatures(folder.path());
        let told: Vec<(&str, f64)> = found.iter().map(|t| (t.zone.as_str(), t.celsius)).collect();
        assert_eq!(told, [("cpu-thermal-2", 48.321), ("cpu-thermal-3", 50.0), ("soc-thermal", -5.5)]);
        assert!(temperatures(&folder.path().join("none")).is_empty());
    }

    #[test]
    fn memory_is_that_of_the_process() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("status");
        fs::write(&path, "Name:\tscanside\nVmHWM:\t   20000 kB\nVmRSS:\t   12345 kB\nThreads:\t9\n").unwrap();
        assert_eq!(resident_memory(&path), Some(12345 * 1024));
        for text in ["", "VmRSS:\t12\n", "VmRSS: much kB\n", "VmRSS: 18446744073709551615 kB\n"] {
            fs::write(&path, text).unwrap();
            assert_eq!(resident_memory(&path), None, "{text:?}");
        }
        // The page size is 4 KiB at least, and no test takes a terabyte.
        let here = resident_memory(Path::new(STATUS)).unwrap();
        assert!((1 << 20..1 << 40).contains(&here), "{here}");
    }
}
