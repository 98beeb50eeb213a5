//! The clock. A wrong one makes certificates invalid and results' times worthless; one that goes backwards is a box without a
//! battery that has not yet heard from a time server.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use super::Check;

/// 2026-01-01, before this program was written.
const EARLIEST: Duration = Duration::from_hours(24 * 20_454);

/// 2100-01-01: nobody runs this build so long, so what is later is a clock that was never set.
const LATEST: Duration = Duration::from_hours(24 * 47_482);

/// How far a file may seem to be in the future: a time server has just set the clock back a little.
const SLACK: Duration = Duration::from_mins(1);

const REMEDY: &str = "set the clock: `timedatectl set-ntp true`, and name the hospital's time server in /etc/systemd/timesyncd.conf";

/// `newest` is the store's newest file; `synchronised` what the machine says of its time server, if it says anything.
pub(super) fn clock(
    now: SystemTime,
    newest: Option<&(PathBuf, SystemTime)>,
    synchronised: Option<bool>,
) -> Check {
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let told = time::OffsetDateTime::from(now).format(&time::format_description::well_known::Rfc3339);
    let told = told.unwrap_or_default();
    // Fractions of a second are nobody's concern here.
    let told = told.split('.').next().unwrap_or_default().trim_end_matches('Z');
    if since < EARLIEST || since > LATEST {
        return Check::fail("clock", format!("it says {told} UTC, which cannot be"), REMEDY);
    }
    if let Some((path, at)) = newest
        && let Ok(ahead) = at.duration_since(now)
        && ahead > SLACK
    {
        let finding = format!(
            "it says {told} UTC, but {} was written {} s later: it has gone back",
            path.display(),
            ahead.as_secs()
        );
        return Check::fail("clock", finding, REMEDY);
    }
    match synchronised {
        Some(true) => Check::ok("clock", format!("{told} UTC, kept by a time server")),
        Some(false) => Check::warn("clock", format!("{told} UTC, without a time server"), REMEDY),
        None => Check::warn(
            "clock",
            format!("{told} UTC; whether a time server keeps it cannot be told"),
            "see to it that one does",
        ),
    }
}

/// What systemd or the kernel says of time servers; nothing where neither is there to ask.
pub(super) fn synchronised() -> Option<bool> {
    // The kernel's own flag, whoever sets it: timesyncd, chrony or ntpd.
    let asked = Command::new("timedatectl")
        .args(["show", "--property=NTPSynchronized", "--value"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    let answer = asked.ok().filter(|output| output.status.success()).map(|output| output.stdout);
    match answer.as_deref().map(<[u8]>::trim_ascii) {
        Some(b"yes") => Some(true),
        Some(b"no") => Some(false),
        _ => Path::new("/run/systemd/timesync/synchronized").exists().then_some(true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Grade;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_clock_must_be_possible_and_go_forward() {
        let now = 1_800_000_000;
        let good = clock(at(now), None, Some(true));
        assert_eq!(good, Check::ok("clock", "2027-01-15T08:00:00 UTC, kept by a time server"));
        for wrong in [0, 1_600_000_000, 5_000_000_000] {
            let check = clock(at(wrong), None, Some(true));
            assert!(check.grade == Grade::Fail && check.finding.contains("cannot be"), "{check:?}");
        }
        let file = |seconds| Some((PathBuf::from("/data/index.redb"), at(seconds)));
        assert_eq!(clock(at(now), file(now + 50).as_ref(), Some(true)).grade, Grade::Ok);
        let back = clock(at(now), file(now + 3600).as_ref(), Some(true));
        assert_eq!(back.grade, Grade::Fail);
        assert!(back.finding.contains("/data/index.redb was written 3600 s later"), "{back:?}");
        assert_eq!(clock(at(now), None, Some(false)).grade, Grade::Warn);
        assert_eq!(clock(at(now), None, None).grade, Grade::Warn);
    }
}
