//! The bytes of targets: fetched in pieces, taken up again where they broke off, believed by their digest.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use firmware_config::TargetRef;
use sha2::{Digest, Sha256};

use super::source::{Source, SourceError, TargetFile};
use super::{Attack, UpdateError};
use crate::disk::{Disk, RealDisk};
use crate::files::create_folders_on;
use crate::tensor::hex;

/// What has come is synced so often, so that little is fetched twice after a power cut.
const SYNC_EVERY: u64 = 1 << 20;

/// How much of a file has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that are here.
    pub bytes: u64,
    /// Bytes in all.
    pub of: u64,
}

/// The folder of files that are being fetched. Each is named by its digest, so that what one release began another goes on with.
#[derive(Clone)]
pub struct Downloads {
    disk: Arc<dyn Disk>,
    folder: PathBuf,
}

impl fmt::Debug for Downloads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Downloads").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl Downloads {
    /// Downloads in `folder`, which is made if need be.
    pub fn open(folder: &Path) -> Result<Self, UpdateError> {
        Self::on(Arc::new(RealDisk::Shared), folder)
    }

    /// As [`Self::open`], on any disk.
    pub(super) fn on(disk: Arc<dyn Disk>, folder: &Path) -> Result<Self, UpdateError> {
        create_folders_on(&*disk, folder, folder).map_err(UpdateError::io(folder))?;
        Ok(Self { disk, folder: folder.into() })
    }

    /// Where the file is, or will be.
    pub fn path(&self, target: &TargetRef) -> PathBuf {
        self.folder.join(format!("{}.part", target.sha256))
    }

    /// How much of it is here.
    pub fn progress(&self, target: &TargetRef) -> Progress {
        let found = self.disk.length(&self.path(target)).ok().flatten();
        let bytes = found.unwrap_or(0).min(target.length);
        Progress { bytes, of: target.length }
    }

    /// Fetches what is missing of `file`, checks the whole and returns its path. `told` hears how it goes on and ends it by false.
    ///
    /// What broke off is gone on with. Bytes that prove to be wrong are thrown away; where some of them were here before, which a
    /// power cut may have torn, the whole is fetched once more.
    pub fn fetch(
        &self,
        source: &dyn Source,
        target: &TargetRef,
        file: &TargetFile,
        told: &mut dyn FnMut(Progress) -> bool,
    ) -> Result<PathBuf, UpdateError> {
        let path = self.path(target);
        loop {
            let resumed = self.progress(target).bytes;
            self.append(source, target, file, resumed, told)?;
            let found = self.digest(&path).map_err(UpdateError::io(&path))?;
            if found == target.sha256 {
                return Ok(path);
            }
            self.disk.remove(&path).map_err(UpdateError::io(&path))?;
            if resumed == 0 {
                return Err(UpdateError::Target {
                    target: target.name.clone(),
                    attack: Attack::Swapped,
                    detail: format!("its SHA-256 is {found}, and {} was signed", target.sha256),
                });
            }
        }
    }

    fn append(
        &self,
        source: &dyn Source,
        target: &TargetRef,
        file: &TargetFile,
        from: u64,
        told: &mut dyn FnMut(Progress) -> bool,
    ) -> Result<(), UpdateError> {
        let path = self.path(target);
        let opened = match self.disk.length(&path) {
            Ok(Some(_)) => self.disk.open(&path),
            Ok(None) => {
                self.disk.create(&path).and_then(|file| self.disk.sync_folder(&self.folder).map(|()| file))
            }
            Err(error) => Err(error),
        };
        let part = opened.map_err(UpdateError::io(&path))?;
        // More than the whole is nothing that was fetched for it.
        part.set_len(from).map_err(UpdateError::io(&path))?;
        let (mut bytes, mut synced, mut long, mut stopped, mut disk) = (from, from, false, false, None);
        let mut take = |piece: &[u8]| -> io::Result<()> {
            bytes += piece.len() as u64;
            long = bytes > target.length;
            if long {
                return Err(io::Error::other("no more of it"));
            }
            let mut write = || -> io::Result<()> {
                part.write_at(bytes - piece.len() as u64, piece)?;
                if bytes - synced >= SYNC_EVERY {
                    part.sync()?;
                    synced = bytes;
                }
                Ok(())
            };
            if let Err(error) = write() {
                let told = io::Error::other(error.to_string());
                disk = Some(error);
                return Err(told);
            }
            // What is told is here.
            stopped = !told(Progress { bytes, of: target.length });
            if stopped { Err(io::Error::other("it was ended")) } else { Ok(()) }
        };
        let fetched = if from < target.length { source.target(file, from, &mut take) } else { Ok(()) };
        if let Some(error) = disk {
            return Err(UpdateError::io(&path)(error));
        }
        if long {
            self.disk.remove(&path).map_err(UpdateError::io(&path))?;
            return Err(UpdateError::Target {
                target: target.name.clone(),
                attack: Attack::EndlessData,
                detail: format!("more than its {} bytes came from {}", target.length, source.name()),
            });
        }
        part.sync().map_err(UpdateError::io(&path))?;
        fetched?;
        if bytes < target.length {
            let detail = if stopped {
                "the fetch was ended".into()
            } else {
                format!("{} ends after {bytes} of {} bytes", file.path, target.length)
            };
            return Err(SourceError::Failed { source_name: source.name(), detail }.into());
        }
        Ok(())
    }

    /// Removes what no target in `wanted` needs.
    pub fn clean(&self, wanted: &[&TargetRef]) -> Result<(), UpdateError> {
        let kept: Vec<PathBuf> = wanted.iter().map(|target| self.path(target)).collect();
        for entry in self.disk.list(&self.folder).map_err(UpdateError::io(&self.folder))? {
            let path = self.folder.join(&entry.name);
            if entry.name.strip_suffix(".part").is_some() && !kept.contains(&path) {
                self.disk.remove(&path).map_err(UpdateError::io(&path))?;
            }
        }
        Ok(())
    }

    fn digest(&self, path: &Path) -> io::Result<String> {
        let file = self.disk.open(path)?;
        let (mut sha, mut piece, mut at, length) = (Sha256::new(), vec![0; 64 << 10], 0, file.len()?);
        while at < length {
            let n = (length - at).min(piece.len() as u64);
            file.read_at(at, &mut piece[..n as usize])?;
            sha.update(&piece[..n as usize]);
            at += n;
        }
        Ok(hex(sha))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::tensor::sha256;

    /// Ends each answer after a few bytes, and counts what it has sent.
    #[derive(Debug)]
    pub struct Torn {
        content: Vec<u8>,
        piece: usize,
        pub sent: AtomicU64,
    }

    impl Source for Torn {
        fn name(&self) -> String {
            "a torn line".into()
        }

        fn metadata(&self, _: &str, _: u64) -> Result<Option<Vec<u8>>, SourceError> {
            Ok(None)
        }

        fn target(
            &self,
            _: &TargetFile,
            from: u64,
            take: &mut super::super::source::Take<'_>,
        ) -> Result<(), SourceError> {
            let failed = |detail: String| SourceError::Failed { source_name: self.name(), detail };
            let rest = &self.content[from as usize..];
            let piece = &rest[..rest.len().min(self.piece)];
            self.sent.fetch_add(piece.len() as u64, Ordering::Relaxed);
            take(piece).map_err(|error| failed(error.to_string()))?;
            if piece.len() < rest.len() { Err(failed("the line is down".into())) } else { Ok(()) }
        }
    }

    pub fn source(content: &[u8], piece: usize) -> Torn {
        Torn { content: content.to_vec(), piece, sent: AtomicU64::new(0) }
    }

    pub fn target(content: &[u8]) -> TargetRef {
        TargetRef { name: "north/a.plugin".into(), length: content.len() as u64, sha256: sha256(content) }
    }

    fn get(downloads: &Downloads, source: &Torn, target: &TargetRef) -> Result<PathBuf, UpdateError> {
        downloads.fetch(source, target, &TargetFile::new(target), &mut |_| true)
    }

    #[test]
    fn what_broke_off_is_gone_on_with() {
        let folder = tempfile::tempdir().unwrap();
        let downloads = Downloads::open(folder.path()).unwrap();
        let content: Vec<u8> = (0..100_000u32).map(|i| (i * 7) as u8).collect();
        let (line, target) = (source(&content, 30_000), target(&content));
        for _ in 0..3 {
            assert!(get(&downloads, &line, &target).unwrap_err().is_passing());
        }
        let path = get(&downloads, &line, &target).unwrap();
        assert_eq!(fs::read(path).unwrap(), content);
        assert_eq!(line.sent.into_inner(), 100_000, "nothing is fetched twice");
    }

    #[test]
    fn torn_bytes_are_fetched_again_and_wrong_ones_are_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let downloads = Downloads::open(folder.path()).unwrap();
        let content = vec![5; 10_000];
        let target = target(&content);
        fs::write(downloads.path(&target), vec![0; 4_000]).unwrap();
        assert!(get(&downloads, &source(&content, 20_000), &target).is_ok());
        fs::write(downloads.path(&target), vec![5; 40_000]).unwrap();
        assert!(get(&downloads, &source(&content, 20_000), &target).is_ok(), "longer than it may be");

        downloads.clean(&[]).unwrap();
        let error = get(&downloads, &source(&[6; 10_000], 20_000), &target).unwrap_err();
        assert_eq!(error.attack(), Some(Attack::Swapped), "{error}");
        let error = get(&downloads, &source(&[5; 10_001], 20_000), &target).unwrap_err();
        assert_eq!(error.attack(), Some(Attack::EndlessData), "{error}");
        assert!(!downloads.path(&target).exists());
    }
}
