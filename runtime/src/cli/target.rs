//! A signed plugin by its name in the repository.

use std::sync::Arc;

use firmware_config::device::{Device, Source as Place};
use indicatif::{ProgressBar, ProgressStyle};
use runtime::service::clock::Clock;
use runtime::service::updates::connection;
use runtime::slots::{Installed, Slots};
use runtime::update::{
    Downloads, Mqtt, Progress, Source, Trust, fetch_backbone, lacking_backbone, open_source,
};

use super::{Fault, say};

/// Fetches the target `name` from `place`, or from where the configuration says, and makes it its task's candidate.
pub fn install(device: &Device, slots: &Slots, name: &str, place: Option<&str>) -> Result<Installed, Fault> {
    let Some(root) = &device.updates.root else {
        return Err(Fault::Usage(
            "the configuration has no `updates.root`: no repository can be trusted without it".into(),
        ));
    };
    let given = place.map(|text| {
        Place::new(text).ok_or_else(|| {
            Fault::Usage(format!(
                "--source is {text:?}, expected https://HOST/PATH, an absolute path of a folder, or mqtt"
            ))
        })
    });
    let place = match given {
        Some(place) => place?,
        None => device.updates.source.clone().ok_or_else(|| {
            Fault::Usage(
                "the configuration has no `updates.source`: say with --source where the repository is".into(),
            )
        })?,
    };
    if let Some(source) = open_source(&place, device.updates.ca.as_deref())? {
        return fetch(device, slots, root, &source, name);
    }
    let (heard, _nothing) = std::sync::mpsc::channel();
    let (follow, handle) = connection(device, false, heard)?;
    let source: Arc<dyn Source> = Arc::new(Mqtt::new(handle.clone(), &device.site));
    let connected = std::thread::spawn(move || {
        let executor = tokio::runtime::Builder::new_current_thread().enable_all().build();
        // Without a network side every question to the broker is answered by an error.
        executor.map(|executor| executor.block_on(follow.run()))
    });
    let installed = fetch(device, slots, root, &source, name);
    handle.shut_down();
    let _ = connected.join();
    installed
}

fn fetch(
    device: &Device,
    slots: &Slots,
    root: &std::path::Path,
    source: &Arc<dyn Source>,
    name: &str,
) -> Result<Installed, Fault> {
    let folder = device.data_dir.join("updates");
    let clock = Clock::start().wall().div_euclid(1000);
    let repository = Trust::open(&folder, root, &device.site)?.refresh(source, clock)?;
    let target = repository.find(&device.site, name)?;
    let file = repository.target(&device.site, &target)?;
    let downloads = Downloads::open(&folder.join("downloads"))?;
    let path = shown(target.length, |told| Ok(downloads.fetch(&**source, &target, &file, told)?))?;
    let installed = slots.install(&path, Some(target))?;
    // Its bytes are in the slot now.
    let _ = std::fs::remove_file(path);
    let candidate = slots.state(&installed.task.name)?.and_then(|state| state.candidate);
    // After the plugin, without which the service would take the backbone for one that nobody needs.
    let lacking =
        candidate.and_then(|placed| lacking_backbone(&repository, slots, &placed, &device.backbone));
    if let Some(backbone) = lacking {
        say::message(&format!("fetching {}, which the plugin needs", backbone.name));
        let keep_free = device.store.min_free.0;
        shown(backbone.length, |told| fetch_backbone(&repository, slots, &backbone, keep_free, told))?;
    }
    Ok(installed)
}

/// Shows how the fetch of a file goes on.
fn shown<T>(
    length: u64,
    fetch: impl FnOnce(&mut dyn FnMut(Progress) -> bool) -> Result<T, runtime::Error>,
) -> Result<T, runtime::Error> {
    let bar = ProgressBar::new(length).with_style(
        ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {eta}")
            .unwrap_or(ProgressStyle::default_bar()),
    );
    let fetched = fetch(&mut |progress| {
        bar.set_position(progress.bytes);
        true
    });
    bar.finish_and_clear();
    fetched
}
