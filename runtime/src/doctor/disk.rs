//! The data folder: whose it is, on what it lies, and how much fits into it.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use firmware_config::device::{Device, Store};
use rustix::fs::{Access, access, statfs, statvfs};

use super::{Check, shown};
use crate::publish::device_key;

/// What lies in the store.
#[derive(Debug, Default)]
pub(super) struct Survey {
    pub bytes: u64,
    pub newest: Option<(PathBuf, SystemTime)>,
}

/// Everything below `folder` that may be looked at.
pub(super) fn survey(folder: &Path) -> Survey {
    let mut found = Survey::default();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            // Links are not followed: the store makes none.
            let Ok(data) = entry.metadata() else { continue };
            if data.is_dir() {
                folders.push(entry.path());
                continue;
            }
            found.bytes += data.len();
            if let Ok(at) = data.modified()
                && found.newest.as_ref().is_none_or(|(_, newest)| at > *newest)
            {
                found.newest = Some((entry.path(), at));
            }
        }
    }
    found
}

/// Whether the service can write into its folder.
pub(super) fn folder(path: &Path) -> Check {
    let me = fs::metadata("/proc/self").map_or(0, |data| data.uid());
    let shown = path.display();
    let data = match fs::metadata(path) {
        Ok(data) if data.is_dir() => data,
        Ok(_) => {
            return Check::fail(
                "data_dir",
                format!("{shown} is no folder"),
                "give a folder's path as `data_dir`",
            );
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return not_there(path, me),
        Err(error) => {
            let remedy = "run this as the service's user, or give another `data_dir`";
            return Check::fail("data_dir", format!("{shown} cannot be looked at: {error}"), remedy);
        }
    };
    if me != 0 && data.uid() != me {
        return Check::fail(
            "data_dir",
            format!("{shown} belongs to user {}, and this runs as user {me}", data.uid()),
            "run this as the service's user (`sudo -u scanside`), or `chown -R` the folder to it",
        );
    }
    // Synced, since some disks find out only then.
    let written = tempfile::tempfile_in(path).and_then(|mut file| {
        file.write_all(b"scanside doctor")?;
        file.sync_all()
    });
    if let Err(error) = written {
        let remedy = "see `mount`, `dmesg` and the folder's rights";
        return Check::fail("data_dir", format!("{shown} cannot be written into: {error}"), remedy);
    }
    if data.mode() & 0o022 != 0 {
        let finding = format!("others may write into {shown}");
        return Check::warn("data_dir", finding, format!("`chmod go-w {shown}`"));
    }
    match statfs(path).ok().and_then(|found| unfit(found.f_type.cast_unsigned())) {
        Some((kind, remedy, false)) => Check::fail("data_dir", format!("{shown} is on {kind}"), remedy),
        Some((kind, remedy, true)) => Check::warn("data_dir", format!("{shown} is on {kind}"), remedy),
        None => Check::ok("data_dir", format!("{shown} is writable and on a local disk")),
    }
}

/// The service makes its folder at the first start, if it may.
fn not_there(path: &Path, me: u32) -> Check {
    let parent = path.ancestors().skip(1).find(|parent| parent.is_dir()).unwrap_or(Path::new("."));
    if access(parent, Access::WRITE_OK).is_ok() {
        let finding = format!("{} is not there yet; the service makes it at its first start", path.display());
        return Check::ok("data_dir", finding);
    }
    Check::fail(
        "data_dir",
        format!("{} is not there, and user {me} may not make it", path.display()),
        "make it and `chown` it to the service's user",
    )
}

/// File systems that a store cannot lie on, by the number that statfs(2) gives: what it is, what to do, and whether it may be meant.
fn unfit(kind: u64) -> Option<(&'static str, &'static str, bool)> {
    const LOCAL: &str =
        "give a folder on a local disk as `data_dir`: a network promises neither locks nor syncs";
    // statfs(2) lists them. Some kernels give them sign-extended, hence 32 bits.
    match kind & 0xffff_ffff {
        0x6969 => Some(("NFS", LOCAL, false)),
        0x517B | 0xff53_4d42 | 0xfe53_4d42 => Some(("an SMB share", LOCAL, false)),
        0x0102_1997 => Some(("9P, a folder of another machine", LOCAL, false)),
        0x00c3_6400 => Some(("Ceph", LOCAL, false)),
        0x5346_414f | 0x6B41_4653 => Some(("AFS", LOCAL, false)),
        0x0102_1994 | 0x8584_58f6 => Some((
            "a file system in memory, gone with the power",
            "give a folder on a disk as `data_dir`",
            false,
        )),
        0x6573_5546 => {
            Some(("FUSE", "see that it is no network behind it, and that it keeps what it has synced", true))
        }
        0x794c_7630 => {
            Some(("a container's overlay, gone with the container", "mount a volume at `data_dir`", true))
        }
        _ => None,
    }
}

/// What fits, and what may be used of it. `used` is what the store takes up by now.
pub(super) fn space(path: &Path, store: &Store, used: u64) -> Option<Check> {
    let there = path.ancestors().find(|folder| folder.is_dir())?;
    let found = statvfs(there).ok()?;
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    Some(judge(free, used, store.min_free.0, store.max_size.0))
}

fn judge(free: u64, used: u64, min_free: u64, max_size: u64) -> Check {
    let finding = format!(
        "{} free, {} in the store; `store.min_free` is {}, `store.max_size` {}",
        shown(free),
        shown(used),
        shown(min_free),
        shown(max_size)
    );
    if free <= min_free {
        return Check::fail(
            "disk",
            format!("{finding}: new instances are refused"),
            "make room on the disk, or lower `store.min_free`",
        );
    }
    if used >= max_size {
        let remedy = "wait for `store.retention`, shorten it, or raise `store.max_size`";
        return Check::fail("disk", format!("{finding}: new instances are refused"), remedy);
    }
    let most = used + (free - min_free);
    if most < max_size {
        return Check::warn(
            "disk",
            finding,
            format!(
                "the store can grow to {} only: lower `store.max_size` or take a larger disk",
                shown(most)
            ),
        );
    }
    Check::ok("disk", finding)
}

/// The device's key, where it is used. One that is not there yet is made at the service's first start.
pub(super) fn key(device: &Device) -> Option<Check> {
    let path = device.data_dir.join("device.key");
    if device.publishes_plain_uids() || !path.exists() {
        return None;
    }
    Some(match device_key(&path) {
        Ok(_) => Check::ok("key", format!("{} is sound; keep a copy of it", path.display())),
        Err(error) => {
            let remedy = "without it UIDs cannot be hashed, and the service does not start";
            Check::fail("key", error.to_string(), remedy)
        }
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    use super::*;
    use crate::doctor::Grade;

    #[test]
    fn the_newest_of_all_files_is_found_and_their_bytes_counted() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("instances/a")).unwrap();
        let write = |name: &str, bytes: usize, age: u64| {
            let path = folder.path().join(name);
            fs::write(&path, vec![0; bytes]).unwrap();
            let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 - age);
            fs::File::open(&path).unwrap().set_modified(at).unwrap();
            (path, at)
        };
        write("index.redb", 100, 50);
        let newest = write("instances/a/b", 7, 10);
        write("instances/a/c", 3, 20);
        let found = survey(folder.path());
        assert_eq!((found.bytes, found.newest), (110, Some(newest)));
        assert!(survey(&folder.path().join("none")).newest.is_none());
    }

    #[test]
    fn a_folder_that_is_none_or_open_to_all_is_told() {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(folder(&file).finding.contains("is no folder"));
        let missing = folder(&scratch.path().join("a/b"));
        assert!(missing.grade == Grade::Ok && missing.finding.contains("first start"), "{missing:?}");
        let open = scratch.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
        let check = folder(&open);
        assert!(check.grade == Grade::Warn && check.remedy.unwrap().contains("chmod go-w"));
        assert_eq!(fs::read_dir(&open).unwrap().count(), 0, "nothing is left behind");
        // Linux lets nobody write here, root included.
        let sealed = folder(Path::new("/proc"));
        assert!(sealed.grade == Grade::Fail, "{sealed:?}");
    }

    #[test]
    fn networks_and_memory_are_no_disks() {
        for (kind, meant) in
            [(0x6969, false), (0xffff_ffff_ff53_4d42, false), (0x0102_1994, false), (0x794c_7630, true)]
        {
            assert_eq!(unfit(kind).unwrap().2, meant, "{kind:x}");
        }
        // ext4, XFS, Btrfs, F2FS.
        for kind in [0xEF53, 0x5846_5342, 0x9123_683E, 0xF2F5_2010] {
            assert_eq!(unfit(kind), None, "{kind:x}");
        }
        if statfs("/dev/shm").is_ok_and(|found| found.f_type == 0x0102_1994) {
            let shared = tempfile::tempdir_in("/dev/shm").unwrap();
            assert_eq!(folder(shared.path()).grade, Grade::Fail);
        }
    }

    #[test]
    fn room_is_held_against_the_stores_limits() {
        let grade = |free, used, min_free, max_size| judge(free, used, min_free, max_size).grade;
        assert_eq!(grade(100, 0, 10, 90), Grade::Ok);
        assert_eq!(grade(100, 0, 10, 91), Grade::Warn);
        assert_eq!(grade(50, 50, 10, 90), Grade::Ok, "what is used counts");
        assert_eq!(grade(10, 50, 10, 90), Grade::Fail);
        assert_eq!(grade(100, 90, 10, 90), Grade::Fail);
        let half = judge(2_000_000_000, 0, 1_000_000_000, 20_000_000_000);
        assert!(half.remedy.unwrap().contains("grow to 1.0 GB only"));
    }
}
