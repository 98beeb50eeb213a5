//! MetaImage headers with their voxels in a file beside them, as LUNA16 has them.
//!
//! Source: MetaIO's description of the format (<https://github.com/Kitware/MetaIO>). Places are in LPS, as in DICOM; the n-th triple of
//! `TransformMatrix` is the direction of axis n. Uncompressed little-endian 8-, 16-bit and float voxels are read, others refused.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use runtime::volume::{Geometry, MAX_VOXELS, Volume};

use super::wrong;
use crate::Error;

/// Reads `NAME.mhd` and the file that it names.
pub(super) fn read(path: &Path) -> Result<Volume, Error> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    let header = Header { path, fields: fields(&text) };
    header.expect("NDims", "3", "3")?;
    header.expect("CompressedData", "False", "False, so unpack it first")?;
    header.expect("BinaryDataByteOrderMSB", "False", "False")?;
    let dims = header.numbers::<3>("DimSize")?.map(|n| n as usize);
    let count = dims.iter().try_fold(1usize, |product, &n| product.checked_mul(n)).unwrap_or(usize::MAX);
    if count == 0 || count > MAX_VOXELS {
        return Err(
            header.wrong("DimSize", &format!("three lengths of at most {MAX_VOXELS} voxels together"))
        );
    }
    let geometry = header.geometry()?;
    let raw = header.data_file()?;
    let bytes = std::fs::read(&raw).map_err(Error::io(&raw))?;
    let voxels = header.voxels(&raw, &bytes, count)?;
    Ok(Volume::from_parts(dims, voxels, geometry))
}

fn fields(text: &str) -> HashMap<&str, &str> {
    text.lines()
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key.trim(), value.trim()))
        .collect()
}

struct Header<'a> {
    path: &'a Path,
    fields: HashMap<&'a str, &'a str>,
}

impl Header<'_> {
    fn get(&self, field: &str) -> &str {
        self.fields.get(field).copied().unwrap_or("missing")
    }

    fn wrong(&self, field: &str, expected: &str) -> Error {
        wrong(self.path, format!("its {field} is {}, expected {expected}", self.get(field)))
    }

    /// Refuses another value; a field that is missing has the usual one, but for `NDims`.
    fn expect(&self, field: &str, value: &str, expected: &str) -> Result<(), Error> {
        let missing = !self.fields.contains_key(field) && field != "NDims";
        if missing || self.get(field).eq_ignore_ascii_case(value) {
            return Ok(());
        }
        Err(self.wrong(field, expected))
    }

    fn numbers<const N: usize>(&self, field: &str) -> Result<[f64; N], Error> {
        let found: Vec<f64> =
            self.get(field).split_whitespace().map_while(|word| word.parse().ok()).collect();
        let sound = found.iter().all(|x: &f64| x.is_finite());
        <[f64; N]>::try_from(found)
            .ok()
            .filter(|_| sound)
            .ok_or_else(|| self.wrong(field, &format!("{N} numbers")))
    }

    /// LPS to RAS turns the first two coordinates about.
    fn geometry(&self) -> Result<Geometry, Error> {
        let spacing = self.numbers::<3>("ElementSpacing")?;
        let place = if self.fields.contains_key("Offset") { "Offset" } else { "Position" };
        let offset = self.numbers::<3>(place)?;
        let matrix = if self.fields.contains_key("TransformMatrix") {
            self.numbers::<9>("TransformMatrix")?
        } else {
            [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
        };
        if spacing.iter().any(|&s| s <= 0.0) {
            return Err(self.wrong("ElementSpacing", "three lengths above 0"));
        }
        let ras = |[x, y, z]: [f64; 3]| [-x, -y, z];
        let step = |axis: usize| ras(std::array::from_fn(|r| matrix[3 * axis + r] * spacing[axis]));
        Ok(Geometry::from_columns([step(0), step(1), step(2)], ras(offset)))
    }

    fn data_file(&self) -> Result<PathBuf, Error> {
        match self.get("ElementDataFile") {
            "missing" | "LOCAL" | "LIST" => {
                Err(self.wrong("ElementDataFile", "the name of a .raw file beside it"))
            }
            name => Ok(self.path.with_file_name(name)),
        }
    }

    fn voxels(&self, raw: &Path, bytes: &[u8], count: usize) -> Result<Vec<f32>, Error> {
        let size = match self.get("ElementType") {
            "MET_CHAR" | "MET_UCHAR" => 1,
            "MET_SHORT" | "MET_USHORT" => 2,
            "MET_FLOAT" => 4,
            _ => {
                return Err(
                    self.wrong("ElementType", "MET_SHORT, MET_USHORT, MET_CHAR, MET_UCHAR or MET_FLOAT")
                );
            }
        };
        if bytes.len() != size * count {
            let problem =
                format!("it has {} bytes, expected {}; get the file again", bytes.len(), size * count);
            return Err(wrong(raw, problem));
        }
        let short = |b: &[u8]| [b[0], b[1]];
        Ok(match self.get("ElementType") {
            "MET_CHAR" => bytes.iter().map(|&b| f32::from(b as i8)).collect(),
            "MET_UCHAR" => bytes.iter().map(|&b| f32::from(b)).collect(),
            "MET_SHORT" => bytes.chunks_exact(2).map(|b| f32::from(i16::from_le_bytes(short(b)))).collect(),
            "MET_USHORT" => bytes.chunks_exact(2).map(|b| f32::from(u16::from_le_bytes(short(b)))).collect(),
            _ => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        })
    }
}

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "the numbers are exact by construction")]
mod tests {
    use super::*;

    const HEADER: &str = "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = False\n\
         TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = -10 -20 30\nCenterOfRotation = 0 0 0\nAnatomicalOrientation = RAI\n\
         ElementSpacing = 0.5 0.5 2\nDimSize = 2 1 2\nElementType = MET_SHORT\nElementDataFile = a.raw\n";

    fn read_text(text: &str) -> Result<Volume, Error> {
        let folder = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = [-1000i16, 0, 1, 300].iter().flat_map(|x| x.to_le_bytes()).collect();
        std::fs::write(folder.path().join("a.raw"), bytes).unwrap();
        std::fs::write(folder.path().join("a.mhd"), text).unwrap();
        read(&folder.path().join("a.mhd"))
    }

    #[test]
    fn voxels_and_geometry_are_those_of_the_header() {
        let volume = read_text(HEADER).unwrap();
        assert_eq!((volume.dims, volume.voxels.as_slice()), ([2, 1, 2], &[-1000.0, 0.0, 1.0, 300.0][..]));
        // LPS (-10 + 0.5, -20, 32) in RAS.
        assert_eq!(volume.geometry.position([1.0, 0.0, 1.0]), [9.5, 20.0, 32.0]);
        let turned = HEADER.replace("1 0 0 0 1 0 0 0 1", "-1 0 0 0 -1 0 0 0 1");
        assert_eq!(read_text(&turned).unwrap().geometry.position([1.0, 0.0, 0.0]), [10.5, 20.0, 30.0]);
    }

    #[test]
    fn what_is_not_read_is_told() {
        for (from, to, told) in [
            ("CompressedData = False", "CompressedData = True", "its CompressedData is True, expected False"),
            ("NDims = 3\n", "", "its NDims is missing"),
            ("2 1 2", "2 1", "its DimSize is 2 1, expected 3 numbers"),
            ("2 1 2", "2 1 3", "it has 8 bytes, expected 12"),
            ("MET_SHORT", "MET_DOUBLE", "its ElementType is MET_DOUBLE"),
            ("a.raw", "LOCAL", "its ElementDataFile is LOCAL"),
            ("0.5 0.5 2", "0.5 0.5 0", "its ElementSpacing"),
            ("a.raw", "b.raw", "b.raw"),
        ] {
            let error = read_text(&HEADER.replace(from, to)).unwrap_err();
            assert!(error.is_bad_input() && error.to_string().contains(told), "{to}: {error}");
        }
    }
}
