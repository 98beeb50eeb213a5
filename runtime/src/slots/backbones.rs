//! Backbones that the repository has signed and this device has fetched, by their SHA-256, for plugins whose backbone is not the
//! configured file.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Slot, Slots, io as slot_io};
use crate::Error;
use crate::backbone::Backbone;
use crate::disk::Disk;

/// Ends of their names, which tell a backbone's form.
const FORMS: [&str; 2] = ["safetensors", "onnx"];

impl Slots {
    /// The folder of backbones that were fetched; it need not be there.
    pub fn backbones(&self) -> PathBuf {
        self.data_dir.join("backbones")
    }

    pub(crate) fn disk(&self) -> Arc<dyn Disk> {
        Arc::clone(&self.disk)
    }

    /// Where the backbone with this SHA-256 is to lie; `name` is what it was published as.
    pub(crate) fn backbone_path(&self, sha256: &str, name: &str) -> PathBuf {
        let form = FORMS.into_iter().find(|form| name.ends_with(&format!(".{form}"))).unwrap_or(FORMS[0]);
        self.backbones().join(format!("{sha256}.{form}"))
    }

    /// The backbone with this SHA-256, if it was fetched; its content is compared when it is read.
    pub fn fetched_backbone(&self, sha256: &str) -> Option<PathBuf> {
        let mut paths = FORMS.into_iter().map(|form| self.backbones().join(format!("{sha256}.{form}")));
        paths.find(|path| self.disk.length(path).is_ok_and(|length| length.is_some()))
    }

    /// All backbones that were fetched.
    pub fn fetched_backbones(&self) -> Vec<PathBuf> {
        let folder = self.backbones();
        let names = self.disk.list(&folder).unwrap_or_default().into_iter().map(|entry| entry.name);
        names
            .filter(|name| FORMS.iter().any(|form| name.ends_with(form)))
            .map(|name| folder.join(name))
            .collect()
    }

    /// Whether what [`Slots::load`] would take for the backbone with this SHA-256 has it.
    pub fn has_backbone(&self, sha256: &str, configured: &Path) -> bool {
        let fetched = self.fetched_backbone(sha256);
        Backbone::digest(fetched.as_deref().unwrap_or(configured)).is_ok_and(|found| found == sha256)
    }

    /// Removes the backbones that no plugin in a slot needs, and what came of them. Where a plugin cannot be read, all stay.
    pub fn remove_unused_backbones(&self) -> Result<(), Error> {
        let folder = self.backbones();
        let there = match self.disk.list(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(slot_io(&folder))?,
        };
        if there.is_empty() {
            return Ok(());
        }
        let mut needed = Vec::new();
        for Slot { state, .. } in self.list()? {
            for (_, placed) in state?.placed() {
                needed.push(self.read(placed)?.manifest.backbone.sha256);
            }
        }
        for name in there.into_iter().filter(|entry| !entry.is_folder).map(|entry| entry.name) {
            if !needed.iter().any(|sha256| name.starts_with(sha256.as_str())) {
                let path = folder.join(name);
                self.disk.remove(&path).map_err(slot_io(&path))?;
            }
        }
        Ok(())
    }
}
