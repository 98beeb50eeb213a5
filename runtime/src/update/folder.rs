//! A repository in a folder: a USB stick, a share, an air gap.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::source::{Source, SourceError, Take, TargetFile};

/// How much is read at a time.
const PIECE: usize = 64 << 10;

/// A folder that holds `metadata` and `targets`.
#[derive(Debug, Clone)]
pub struct Folder(pub PathBuf);

impl Folder {
    fn failed(&self, path: &Path, error: &io::Error) -> SourceError {
        SourceError::Failed { source_name: self.name(), detail: format!("{}: {error}", path.display()) }
    }
}

impl Source for Folder {
    fn name(&self) -> String {
        self.0.display().to_string()
    }

    fn metadata(&self, file: &str, limit: u64) -> Result<Option<Vec<u8>>, SourceError> {
        let path = self.0.join("metadata").join(file);
        let opened = match File::open(&path) {
            Ok(opened) => opened,
            // Only where the repository itself is there: a stick that was pulled out must not read as "no newer root".
            Err(error) if error.kind() == ErrorKind::NotFound && self.0.join("metadata").is_dir() => {
                return Ok(None);
            }
            Err(error) => return Err(self.failed(&path, &error)),
        };
        let mut bytes = Vec::new();
        opened.take(limit + 1).read_to_end(&mut bytes).map_err(|error| self.failed(&path, &error))?;
        if bytes.len() as u64 > limit {
            return Err(SourceError::TooLong { source_name: self.name(), file: file.into(), limit });
        }
        Ok(Some(bytes))
    }

    fn target(&self, target: &TargetFile, from: u64, take: &mut Take<'_>) -> Result<(), SourceError> {
        let path = self.0.join("targets").join(&target.path);
        let failed = |error: io::Error| self.failed(&path, &error);
        let mut file = File::open(&path).map_err(failed)?;
        file.seek(SeekFrom::Start(from)).map_err(failed)?;
        let mut piece = vec![0; PIECE];
        loop {
            match file.read(&mut piece).map_err(failed)? {
                0 => return Ok(()),
                n => take(&piece[..n]).map_err(failed)?,
            }
        }
    }
}
