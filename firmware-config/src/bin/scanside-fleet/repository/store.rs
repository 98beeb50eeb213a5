//! The files that targets name.

use std::fs;
use std::path::{Path, PathBuf};

use firmware_config::TargetRef;
use sha2::{Digest, Sha256};
use tough::TargetName;
use tough::schema::{Hashes, Target};

use super::Repository;
use crate::error::{Result, input, malformed};
use crate::files;
use crate::keys::hex;

/// A file that the repository hands out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// Name, length and hash.
    pub target: TargetRef,
    /// Where it lies.
    pub path: PathBuf,
}

/// SHA-256, as lower-case hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&digest(bytes))
}

pub(super) fn digest(bytes: &[u8]) -> Vec<u8> {
    Sha256::digest(bytes).to_vec()
}

impl Repository {
    /// The targets of a site, or the top-level ones (backbones), by name.
    pub fn blobs(&self, site: Option<&str>) -> Result<Vec<Blob>> {
        let role = match site {
            Some(site) => self.site(site)?,
            None => &self.targets,
        };
        let mut all: Vec<Blob> =
            role.signed.targets.iter().map(|(name, target)| self.blob(name.resolved(), target)).collect();
        all.sort_by(|a, b| a.target.name.cmp(&b.target.name));
        Ok(all)
    }

    /// The target of a task's version at a site.
    pub fn plugin(&self, site: &str, task: &str, version: &str) -> Result<TargetRef> {
        let wanted = plugin_name(site, task, version);
        let all = self.blobs(Some(site))?;
        if let Some(blob) = all.iter().find(|blob| blob.target.name == wanted) {
            return Ok(blob.target.clone());
        }
        let prefix = format!("{site}/{task}-");
        let known: Vec<&str> =
            all.iter().map(|b| b.target.name.as_str()).filter(|name| name.starts_with(&prefix)).collect();
        let known = if known.is_empty() { "nothing of this task".into() } else { known.join(", ") };
        Err(input(format!(
            "{wanted} is not published (for {site} there is {known}): publish it with `scanside-fleet publish --plugin FILE --site {site}`"
        )))
    }

    fn blob(&self, name: &str, target: &Target) -> Blob {
        let sha256 = hex(&target.hashes.sha256);
        let target = TargetRef { name: name.into(), length: target.length, sha256 };
        Blob { path: place(&self.folder, &target), target }
    }

    /// Puts a file where its target will say it is.
    pub(super) fn keep(&self, name: &str, bytes: &[u8]) -> Result<TargetRef> {
        let target = TargetRef { name: name.into(), length: bytes.len() as u64, sha256: sha256(bytes) };
        target.validate().map_err(|invalid| input(invalid.to_string()))?;
        let path = place(&self.folder, &target);
        if files::read_if_there(&path)?.as_deref() != Some(bytes) {
            files::write(&path, bytes)?;
        }
        Ok(target)
    }
}

/// Where a target's file lies, with its hash before its name, as TUF has it for consistent snapshots.
fn place(folder: &Path, target: &TargetRef) -> PathBuf {
    let (below, name) = target.name.rsplit_once('/').unwrap_or(("", &target.name));
    folder.join("targets").join(below).join(format!("{}.{name}", target.sha256))
}

/// A plugin's name as a target.
pub fn plugin_name(site: &str, task: &str, version: &str) -> String {
    format!("{site}/{task}-{version}.plugin")
}

impl Blob {
    /// Its bytes, which must be those that were signed.
    pub fn read(&self) -> Result<Vec<u8>> {
        let bytes = files::read(&self.path)?;
        if sha256(&bytes) != self.target.sha256 {
            return Err(malformed(
                &self.path,
                "damaged or another file",
                "the one that was signed: publish it again from its source",
            ));
        }
        Ok(bytes)
    }

    /// Removes the file of a target that is gone.
    pub fn remove(&self) -> Result<()> {
        if self.path.exists() {
            fs::remove_file(&self.path).map_err(crate::error::file(&self.path))?;
        }
        Ok(())
    }
}

pub(super) fn entry(target: &TargetRef) -> Result<(TargetName, Target)> {
    let name = TargetName::new(&target.name).map_err(|error| input(error.to_string()))?;
    let bytes = (0..64).step_by(2).map(|at| u8::from_str_radix(&target.sha256[at..at + 2], 16).unwrap_or(0));
    let hashes =
        Hashes { sha256: bytes.collect::<Vec<u8>>().into(), _extra: std::collections::HashMap::new() };
    let target = Target {
        length: target.length,
        hashes,
        custom: std::collections::HashMap::new(),
        _extra: std::collections::HashMap::new(),
    };
    Ok((name, target))
}
