//! Durations and sizes as people write them.

use std::fmt;
use std::time::Duration;

/// Milliseconds a unit, largest first.
const TIMES: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1000), ("ms", 1)];

/// Bytes a unit. Disks are sold in powers of 1000, memory in powers of 1024: both are taken.
const SIZES: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1000),
    ("B", 1),
];

/// A number of bytes, written with its unit: `"20GB"`, `"512 MiB"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// A whole number and its unit, with or without a space between them.
fn number(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = (text[..end].parse::<u64>().ok()?, text[end..].trim());
    let (_, each) = units.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?;
    number.checked_mul(*each)
}

/// In the largest unit that needs no fraction.
fn shown(value: u64, units: &[(&str, u64)]) -> String {
    let unit = units.iter().find(|(_, each)| value > 0 && value.is_multiple_of(*each));
    let (name, each) = unit.unwrap_or(&units[units.len() - 1]);
    format!("{}{name}", value / each)
}

/// `"90s"`, `"15 min"`, `"24h"`, `"30d"`, `"250ms"`.
pub(super) fn read_duration(text: &str) -> Option<Duration> {
    number(text, &TIMES).map(Duration::from_millis)
}

/// As it would be written in the file.
pub fn show_duration(duration: Duration) -> String {
    shown(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX), &TIMES)
}

pub(super) fn read_size(text: &str) -> Option<Size> {
    number(text, &SIZES).map(Size)
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&shown(self.0, &SIZES))
    }
}

/// For `docs/config.md`.
pub(super) fn help() -> String {
    let names = |units: &[(&str, u64)]| {
        units.iter().map(|(name, _)| format!("`{name}`")).collect::<Vec<_>>().join(", ")
    };
    format!(
        "A whole number and a unit, as text. Durations: {}. Sizes: {} (1 kB is 1000 bytes, 1 KiB is 1024).\n",
        names(&TIMES),
        names(&SIZES)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_have_units() {
        for (text, ms) in [("90s", 90_000), ("15 min", 900_000), ("2h", 7_200_000), ("30d", 2_592_000_000)] {
            assert_eq!(read_duration(text), Some(Duration::from_millis(ms)), "{text}");
        }
        for (text, bytes) in [("20GB", 20_000_000_000), ("1 GiB", 1 << 30), ("16kib", 16 << 10), ("7B", 7)] {
            assert_eq!(read_size(text), Some(Size(bytes)), "{text}");
        }
        for bad in
            ["", "s", "90", "-1s", "1.5s", "1w", "99999999999999999999s", "184467440737095516d", "1 s s"]
        {
            assert_eq!(read_duration(bad), None, "{bad}");
            assert_eq!(read_size(bad), None, "{bad}");
        }
    }

    #[test]
    fn they_are_shown_as_they_can_be_read() {
        for ms in [0, 1, 999, 1000, 61_000, 3_600_000, 86_400_000] {
            let duration = Duration::from_millis(ms);
            assert_eq!(read_duration(&show_duration(duration)), Some(duration));
        }
        for bytes in [0, 1, 1000, 1024, 20_000_000_000, 1 << 40, u64::MAX] {
            assert_eq!(read_size(&Size(bytes).to_string()), Some(Size(bytes)));
        }
        assert_eq!(show_duration(Duration::from_mins(15)), "15min");
    }
}
