//! A 3D image with geometry, read from NIfTI or DICOM.
//!
//! Voxels are f32 in the scan's units (HU for CT), the first axis fastest. Geometry is an affine from voxel
//! indices to millimetres in the RAS+ frame (see [`Geometry`]).

use std::path::PathBuf;

/// A 3D image with geometry.
#[derive(Debug, Clone)]
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

/// Affine from voxel indices to millimetres in RAS+: x grows towards the patient's right, y to the front, z to the head.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Geometry {
    /// Row `r` gives coordinate `r` of voxel `(i, j, k)`: `m[r][0] i + m[r][1] j + m[r][2] k + m[r][3]`.
    pub affine: [[f64; 4]; 3],
}

/// Where an image comes from.
#[derive(Debug, Clone)]
pub struct Source {
    /// NIfTI or DICOM.
    pub kind: SourceKind,
    /// The file or folder it was read from.
    pub path: PathBuf,
    /// SHA-256 of the input: of a NIfTI file's bytes as on disk; for a series, of the sorted SHA-256 of its files.
    pub digest: String,
    /// DICOM Study Instance UID (0020,000D).
    pub study_uid: Option<String>,
    /// DICOM Series Instance UID (0020,000E).
    pub series_uid: Option<String>,
    /// DICOM SOP Instance UID (0008,0018) of each slice, along the third stored axis; empty for NIfTI.
    pub instances: Vec<String>,
    /// DICOM Modality (0008,0060).
    pub modality: Option<String>,
    /// DICOM Body Part Examined (0018,0015).
    pub body_part: Option<String>,
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
