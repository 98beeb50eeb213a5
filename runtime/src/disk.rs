//! The few things that whatever must outlive a power cut asks of a file system, so that a test can put a failing disk in its
//! place.
//!
//! Nothing here is durable by itself: content is after [`DiskFile::sync`], a name after [`Disk::sync_folder`].

#[cfg(test)]
pub(crate) mod sim;

use std::any::Any;
use std::fmt::Debug;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;

/// What a lock is held by: until it is dropped, or the process ends in whatever way.
pub type Lock = Box<dyn Any + Send + Sync>;

/// One entry of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name in the folder.
    pub name: String,
    /// Its length; 0 for a folder.
    pub bytes: u64,
    /// Whether it is a folder.
    pub is_folder: bool,
}

/// A file system.
pub trait Disk: Send + Sync + 'static {
    /// Makes a folder; false if it was there.
    fn create_folder(&self, path: &Path) -> io::Result<bool>;
    /// Makes a file that was not there.
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// Opens a file for reading and writing.
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// The content of a file of at most `most` bytes; a longer one is an error.
    fn read(&self, path: &Path, most: u64) -> io::Result<Vec<u8>>;
    /// The length of a file; None if there is none.
    fn length(&self, path: &Path) -> io::Result<Option<u64>>;
    /// What is in a folder.
    fn list(&self, folder: &Path) -> io::Result<Vec<Entry>>;
    /// Gives a file another name, in whose place there may be one.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Removes a folder that is empty.
    fn remove_folder(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in a folder durable.
    fn sync_folder(&self, path: &Path) -> io::Result<()>;
    /// Bytes that may still be written where `path` lies.
    fn free_bytes(&self, path: &Path) -> io::Result<u64>;
    /// Takes hold of a file, made if need be; None if another process has it.
    fn lock(&self, path: &Path) -> io::Result<Option<Lock>>;
    /// As [`Self::lock`], and waits until it has it: only for what nobody holds for long.
    fn wait_lock(&self, path: &Path) -> io::Result<Lock>;
}

/// An open file.
#[expect(clippy::len_without_is_empty, reason = "a file is no collection")]
pub trait DiskFile: Debug + Send + Sync {
    /// Its length.
    fn len(&self) -> io::Result<u64>;
    /// Reads exactly as much as `out` holds.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;
    /// Writes all of `data`.
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Cuts off or fills up with zeros.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Makes content and length durable.
    fn sync(&self) -> io::Result<()>;
}

/// The machine's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RealDisk {
    /// Folders and files are the owner's alone, as for what scanners send.
    Private,
    /// Others may read what is made.
    Shared,
}

impl RealDisk {
    fn folder_mode(self) -> u32 {
        if self == Self::Private { 0o700 } else { 0o755 }
    }

    fn file_mode(self) -> u32 {
        if self == Self::Private { 0o600 } else { 0o644 }
    }

    fn lock_file(self, path: &Path) -> io::Result<File> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(self.file_mode())
            .open(path)
    }
}

impl Disk for RealDisk {
    fn create_folder(&self, path: &Path) -> io::Result<bool> {
        match DirBuilder::new().mode(self.folder_mode()).create(path) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(self.file_mode());
        Ok(Box::new(options.open(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(OpenOptions::new().read(true).write(true).open(path)?))
    }

    fn read(&self, path: &Path, most: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(path)?.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > most {
            return Err(longer_than(most));
        }
        Ok(bytes)
    }

    fn length(&self, path: &Path) -> io::Result<Option<u64>> {
        match fs::symlink_metadata(path) {
            Ok(found) => Ok(found.is_file().then_some(found.len())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<Entry>> {
        fs::read_dir(folder)?
            .map(|entry| {
                let entry = entry?;
                let found = entry.metadata()?;
                let (is_folder, bytes) = (found.is_dir(), if found.is_dir() { 0 } else { found.len() });
                Ok(Entry { name: entry.file_name().to_string_lossy().into_owned(), bytes, is_folder })
            })
            .collect()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(path)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        let found = rustix::fs::statvfs(path)?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Lock>> {
        let file = self.lock_file(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Box::new(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(e)) => Err(e),
        }
    }

    fn wait_lock(&self, path: &Path) -> io::Result<Lock> {
        let file = self.lock_file(path)?;
        file.lock()?;
        Ok(Box::new(file))
    }
}

fn longer_than(most: u64) -> io::Error {
    io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {most} bytes"))
}

impl DiskFile for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(out, offset)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write_all_at(data, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        Self::set_len(self, len)
    }

    fn sync(&self) -> io::Result<()> {
        // The length is part of what fdatasync keeps; times are of no use here.
        self.sync_data()
    }
}
