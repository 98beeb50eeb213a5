//! The device's key on its disk.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::result::DeviceKey;

use super::PublishError;

/// Reads the key, or makes it when there is none: 64 hexadecimal digits in a file that only its owner can read. A
/// lost key cannot be made again, and with another one every UID has another hash: a file that is damaged is refused, not replaced.
pub fn device_key(path: &Path) -> Result<DeviceKey, PublishError> {
    match fs::read_to_string(path) {
        Ok(text) => read(path, text.trim_end()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make(path).map_err(|error| wrong(path, &format!("cannot be made: {error}")))?;
            let text =
                fs::read_to_string(path).map_err(|error| wrong(path, &format!("cannot be read: {error}")))?;
            read(path, text.trim_end())
        }
        Err(error) => Err(wrong(path, &format!("cannot be read: {error}"))),
    }
}

fn read(path: &Path, text: &str) -> Result<DeviceKey, PublishError> {
    let mode = fs::metadata(path).map_or(0, |data| data.permissions().mode());
    if mode & 0o077 != 0 {
        return Err(wrong(path, "holds this device's key and can be read by others: run chmod 600 on it"));
    }
    let sound = text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
    let byte = |i: usize| sound.then(|| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()).flatten();
    let mut key = [0; 32];
    for (i, slot) in key.iter_mut().enumerate() {
        *slot = byte(i).ok_or_else(|| {
            wrong(
                path,
                "holds no key, expected 64 hexadecimal digits: put back the copy, or delete it for a new key",
            )
        })?;
    }
    Ok(DeviceKey::new(key))
}

fn make(path: &Path) -> io::Result<()> {
    let mut bytes = [0u8; 32];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let text = bytes.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Temporary files are their owner's alone (0600), and this one stays so.
    let mut file = tempfile::Builder::new().prefix(".tmp-").tempfile_in(folder)?;
    writeln!(file, "{text}")?;
    file.as_file().sync_all()?;
    match file.persist_noclobber(path) {
        // Another start was faster: its key counts.
        Err(error) if error.error.kind() != io::ErrorKind::AlreadyExists => Err(error.error),
        _ => File::open(folder)?.sync_all(),
    }
}

fn wrong(path: &Path, problem: &str) -> PublishError {
    PublishError::Credential { path: path.into(), problem: problem.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_is_the_owners_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("device.key");
        let first = device_key(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(device_key(&path).unwrap() == first);
        let other = device_key(&folder.path().join("other.key")).unwrap();
        assert!(first.hash("1.2") != other.hash("1.2"), "keys are random");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing else is left");
    }

    #[test]
    fn a_key_that_is_damaged_or_open_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("device.key");
        device_key(&path).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        for damaged in
            ["", "ab", &text[..63], &text.replace(|c: char| c.is_ascii_digit(), "g"), &"é".repeat(32)]
        {
            fs::write(&path, damaged).unwrap();
            let Err(error) = device_key(&path) else { panic!("{damaged}") };
            assert!(error.is_bad_input() && error.to_string().contains("64 hexadecimal digits"), "{error}");
        }
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let Err(error) = device_key(&path) else { panic!("others can read it") };
        assert!(error.to_string().contains("chmod 600"), "{error}");
    }
}
