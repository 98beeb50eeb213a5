//! Backbones by their digest: where a plugin names one that the device does not have, and the repository signs it.

use std::path::Path;

use firmware_config::TargetRef;

use super::{Downloads, Progress, Repository, TargetFile, UpdateError};
use crate::Error;
use crate::slots::{Placed, Slots};

/// The backbone of a plugin in a slot, where this device lacks it and the repository has it. Where nobody has it, loading the plugin
/// says so.
pub fn lacking_backbone(
    repository: &Repository,
    slots: &Slots,
    placed: &Placed,
    configured: &Path,
) -> Option<TargetRef> {
    let wanted = slots.read(placed).ok()?.manifest.backbone.sha256;
    if slots.has_backbone(&wanted, configured) { None } else { repository.backbone(&wanted) }
}

/// Fetches the signed backbone `target` into its place among the slots' and leaves `keep_free` bytes of the disk free. `told` as by
/// [`Downloads::fetch`].
///
/// # Errors
/// Where the disk has no room for it, or it does not come, or is another one.
pub fn fetch_backbone(
    repository: &Repository,
    slots: &Slots,
    target: &TargetRef,
    keep_free: u64,
    told: &mut dyn FnMut(Progress) -> bool,
) -> Result<(), Error> {
    let (folder, disk) = (slots.backbones(), slots.disk());
    let downloads = Downloads::on(disk.clone(), &folder)?;
    let missing = target.length - downloads.progress(target).bytes;
    let free = disk.free_bytes(&folder).map_err(UpdateError::io(&folder))?;
    if free.saturating_sub(keep_free) < missing {
        let detail = format!(
            "{} takes another {missing} bytes, and of the {free} that are free `store.min_free` keeps {keep_free}; make room on the disk",
            target.name
        );
        return Err(UpdateError::State { path: folder, detail, damaged: false }.into());
    }
    let part = downloads.fetch(&**repository.source(), target, &TargetFile::new(target), told)?;
    let path = slots.backbone_path(&target.sha256, &target.name);
    disk.rename(&part, &path).map_err(UpdateError::io(&path))?;
    disk.sync_folder(&folder).map_err(UpdateError::io(&folder))?;
    tracing::info!(target = target.name, path = %path.display(), "a backbone was fetched");
    Ok(())
}
