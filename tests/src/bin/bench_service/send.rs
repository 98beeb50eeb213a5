//! A scanner that sends slices at its own pace.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use dicom_dictionary_std::tags;
use runtime::volume::{AxisCodes, Volume};
use tests::dicom::{SeriesOptions, write_series};
use tests::scanner::{CT, Hand};

/// A CT series of made-up pixels.
pub struct Study {
    volume: Volume,
    number: usize,
}

impl Study {
    /// `slices` slices of `side` × `side` pixels.
    pub fn new(side: usize, slices: usize, number: usize) -> Self {
        let dims = [side, side, slices];
        let voxel = |n: usize| ((n * 7 + n / side * 13 + number * 17) % 1000) as f32;
        let voxels = (0..dims.iter().product()).map(voxel).collect();
        let codes: AxisCodes = "LPS".parse().expect("axis codes");
        Self { volume: Volume::from_parts(dims, voxels, codes.centred([0.5, 0.5, 2.0], dims)), number }
    }

    /// The Series Instance UID of a number.
    pub fn uid(number: usize) -> String {
        format!("1.2.826.0.1.3680043.10.99.{number}")
    }

    /// Writes the series into a folder of its own; its files in the order of their slices.
    pub fn write(&self, folder: &Path) -> Result<Vec<PathBuf>> {
        let place = folder.join(self.number.to_string());
        fs::create_dir(&place)?;
        let series_uid = Self::uid(self.number);
        let options = SeriesOptions { series_uid, modality: "CT".into(), ..SeriesOptions::default() };
        write_series(&place, &self.volume, &options)?;
        let files = fs::read_dir(place)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>();
        let mut files = files?;
        files.sort();
        Ok(files)
    }
}

/// Sends a series over one association, a slice every `pace`, and releases it; when the response to the last slice came.
pub fn send_paced(to: SocketAddr, study: &Study, pace: Duration) -> Result<Instant> {
    let folder = tempfile::tempdir()?;
    let mut slices = Vec::new();
    for file in study.write(folder.path())? {
        let object = dicom_object::open_file(file)?;
        let uid = object.element(tags::SOP_INSTANCE_UID)?.to_str()?.trim_end_matches('\0').to_owned();
        let mut data_set = Vec::new();
        object.write_dataset(&mut data_set)?;
        slices.push((uid, data_set));
    }
    let mut scanner = Hand::new(to)?;
    let mut next = Instant::now();
    let mut last = next;
    for (uid, data_set) in &slices {
        thread::sleep(next.saturating_duration_since(Instant::now()));
        next = Instant::now() + pace;
        let status = scanner.store(CT, uid, data_set)?;
        last = Instant::now();
        ensure!(status == 0, "slice {uid} was answered with status {status:04X}");
    }
    scanner.0.release()?;
    Ok(last)
}
