//! A 3D image with geometry, read from NIfTI or DICOM.
//!
//! Voxels are f32 in the scan's units (HU for CT), the first axis fastest. Geometry is an affine from voxel
//! indices to millimetres in the RAS+ frame (see [`Geometry`]); [`Reorientation`] says which stored axis runs
//! along which patient axis, so that nothing after the reader needs to know how a file was stored.
//!
//! What a file leaves open is refused, never guessed: missing or contradictory geometry, holes in a series,
//! voxels that are not numbers. Each refusal is one sentence ([`VolumeError`]).

mod dicom;
mod error;
mod geometry;
mod hashing;
mod nifti;
mod orientation;

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::vec;

use firmware_config::{Observed, Plane};
use sha2::{Digest, Sha256};

pub use dicom::{
    Arrangement, DECODABLE_TRANSFER_SYNTAXES, FileRead, Header, Instance, STORAGE_CLASSES, series_digest,
};
pub use error::VolumeError;
pub use geometry::Geometry;
pub use nifti::write_nifti;
pub use orientation::{Axis, AxisCodes, InvalidAxisCodes, Reorientation};

/// Most voxels that one volume may have (2³⁰, 4 GiB as f32); more is refused before anything is allocated.
pub const MAX_VOXELS: usize = 1 << 30;

/// A 3D image with geometry.
#[derive(Clone)]
pub struct Volume {
    /// Number of voxels along each axis.
    pub dims: [usize; 3],
    /// Voxel `(i, j, k)` at `i + dims[0] * (j + dims[1] * k)`.
    pub voxels: Vec<f32>,
    /// Where the voxels are.
    pub geometry: Geometry,
    /// Where the image comes from.
    pub source: Source,
    /// What a reader should know, a sentence each.
    pub warnings: Vec<String>,
}

/// Where an image comes from.
#[derive(Debug, Clone)]
pub struct Source {
    /// NIfTI or DICOM.
    pub kind: SourceKind,
    /// The file or folder it was read from.
    pub path: PathBuf,
    /// SHA-256 of the input: of a NIfTI file's bytes as on disk; for a series, of the sorted SHA-256 of its
    /// files (lower-case hexadecimal, one after the other), so that neither names nor order matter.
    pub digest: String,
    /// DICOM Study Instance UID (0020,000D).
    pub study_uid: Option<String>,
    /// DICOM Series Instance UID (0020,000E).
    pub series_uid: Option<String>,
    /// DICOM SOP Instance UID (0008,0018) of each slice, along the third stored axis; empty for NIfTI. The frames of an
    /// enhanced image have one UID, that of the image.
    pub instances: Vec<String>,
    /// The number of each slice among the frames of its instance, from 1 as in Referenced Frame Number (0008,1160); empty
    /// where slices are instances of their own.
    pub frames: Vec<u32>,
    /// DICOM Modality (0008,0060).
    pub modality: Option<String>,
    /// DICOM Body Part Examined (0018,0015).
    pub body_part: Option<String>,
}

impl Source {
    /// How many DICOM instances the slices come from; 0 for NIfTI.
    pub fn instance_count(&self) -> usize {
        self.instances.iter().collect::<BTreeSet<_>>().len()
    }
}

/// File format of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceKind {
    /// NIfTI-1 or NIfTI-2, `.nii` or `.nii.gz`.
    Nifti,
    /// A DICOM series.
    Dicom,
}

/// What the user says about an input beyond its path.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReadOptions {
    /// How the voxels of a NIfTI file lie, used only where the file's own geometry is missing or contradicts
    /// itself; sound geometry is never overridden.
    pub assume_orientation: Option<AxisCodes>,
    /// Which volume of a 4D NIfTI file to read, from 0.
    pub volume_index: Option<usize>,
}

/// The volumes that an input holds, read as they are asked for, so that one is in memory at a time.
///
/// One volume for a file; for a folder one a series, sorted by Series Instance UID. A series that cannot be read does
/// not keep the next ones from being read.
pub struct Scans(vec::IntoIter<Scan>);

enum Scan {
    Nifti(PathBuf, ReadOptions),
    Series(dicom::Series),
}

impl Iterator for Scans {
    type Item = Result<Volume, VolumeError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next().map(|scan| match scan {
            Scan::Nifti(path, options) => nifti::read(&path, &options),
            Scan::Series(series) => series.read(),
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl ExactSizeIterator for Scans {}

/// Looks at what `path` names: a NIfTI file, a DICOM file, or a folder with one DICOM series or several. Files are told
/// apart by their content, not by their name.
///
/// # Errors
/// Every way in which a file can be wrong is a [`VolumeError`] that names it; here those that keep the series of a folder
/// from being told apart.
pub fn open(path: &Path, options: &ReadOptions) -> Result<Scans, VolumeError> {
    let metadata = std::fs::metadata(path).map_err(|source| VolumeError::io(path, source))?;
    let series = if metadata.is_dir() {
        dicom::open_folder(path)?
    } else {
        let mut start = Vec::with_capacity(132);
        let file = File::open(path).map_err(|source| VolumeError::io(path, source))?;
        file.take(132).read_to_end(&mut start).map_err(|source| VolumeError::io(path, source))?;
        if nifti::is_nifti(&start) {
            return Ok(Scans(vec![Scan::Nifti(path.to_owned(), *options)].into_iter()));
        }
        if !dicom::is_dicom(&start) {
            return Err(nifti::unreadable(path, &start));
        }
        vec![dicom::open_file(path)?]
    };
    Ok(Scans(series.into_iter().map(Scan::Series).collect::<Vec<_>>().into_iter()))
}

/// Reads all that [`open`] finds, or nothing.
///
/// # Errors
/// The first volume's that cannot be read.
pub fn read(path: &Path, options: &ReadOptions) -> Result<Vec<Volume>, VolumeError> {
    open(path, options)?.collect()
}

impl Volume {
    /// A volume made in memory; `dims` as in [`Volume::dims`], `voxels` in their order.
    ///
    /// # Panics
    /// If there are not as many voxels as `dims` says.
    pub fn from_parts(dims: [usize; 3], voxels: Vec<f32>, geometry: Geometry) -> Self {
        assert_eq!(voxels.len(), dims.iter().product::<usize>(), "voxels of a volume of {dims:?}");
        let mut sha = Sha256::new();
        for n in dims {
            sha.update((n as u64).to_le_bytes());
        }
        for x in geometry.affine.as_flattened() {
            sha.update(x.to_le_bytes());
        }
        for block in voxels.chunks(1 << 14) {
            sha.update(block.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>());
        }
        let source = Source {
            kind: SourceKind::Nifti,
            path: PathBuf::from("memory"),
            digest: hashing::hex(sha),
            study_uid: None,
            series_uid: None,
            instances: Vec::new(),
            frames: Vec::new(),
            modality: None,
            body_part: None,
        };
        Self { dims, voxels, geometry, source, warnings: Vec::new() }
    }

    /// Which stored axis runs along which patient axis.
    pub fn reorientation(&self) -> Reorientation {
        self.geometry.reorientation()
    }

    /// Distance between voxel centres along each stored axis, in mm.
    pub fn spacing(&self) -> [f64; 3] {
        self.geometry.spacing()
    }

    /// The plane of the slices as stored: across the patient axis nearest to the third stored axis.
    pub fn acquisition_plane(&self) -> Plane {
        self.geometry.plane()
    }

    /// What a plugin's `accepts` is compared with.
    pub fn observed(&self) -> Observed {
        Observed {
            modality: self.source.modality.clone(),
            body_part: self.source.body_part.clone(),
            plane: self.acquisition_plane(),
            slice_spacing_mm: self.spacing()[2],
            slices: self.dims[2],
        }
    }
}

impl fmt::Debug for Volume {
    /// Without the voxels.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { dims, voxels: _, geometry, source, warnings } = self;
        f.debug_struct("Volume")
            .field("dims", dims)
            .field("geometry", geometry)
            .field("source", source)
            .field("warnings", warnings)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
