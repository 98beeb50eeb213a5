//! Prepared slices on disk, so that a second epoch, seed or run does not decode and resample again.
//!
//! An entry is a safetensors file, `slices` f32 `[S, 3, H, W]` and, where the sample has one, `mask` u8 `[S, H, W]`: 12 bytes a
//! pixel of each slice. Its name is the SHA-256 of what it was made from: recipe, version of this program, and path, length
//! and time of change of the scan's files. Its metadata holds a CRC-32 of the tensors: an entry that is damaged is made again.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::UNIX_EPOCH;

use firmware_config::Recipe;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use super::Slices;
use crate::Error;

/// Longest header that is read; ours have some hundred bytes.
const MAX_HEADER: u64 = 1 << 16;
/// Part of every key: to be raised when the same scan and recipe give other slices than before.
const FORMAT: &str = "slices 1";
const CRC: &str = "scanside.crc32";

/// A folder of prepared slices for one recipe. Several runs may share it, at the same time too; it may be deleted at any time
/// when none is running.
#[derive(Debug)]
pub struct Stored {
    folder: PathBuf,
    /// Of everything but the scan.
    key: String,
    full: AtomicBool,
}

impl Stored {
    /// Opens or makes the folder.
    pub fn open(folder: &Path, recipe: &Recipe) -> Result<Self, Error> {
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let recipe = serde_json::to_string(recipe).map_err(|e| Error::io(folder)(e.into()))?;
        let key = format!("{FORMAT}\n{}\n{recipe}\n", env!("CARGO_PKG_VERSION"));
        Ok(Self { folder: folder.into(), key, full: AtomicBool::new(false) })
    }

    /// The slices of the scan in `inputs` (image, and mask where there is one): from the folder, or by `make`, and then kept.
    pub fn get(
        &self,
        inputs: [Option<&Path>; 2],
        make: impl FnOnce() -> Result<Slices, Error>,
    ) -> Result<Slices, Error> {
        // What cannot be looked at is told of by who reads it.
        let Ok(path) = self.entry(inputs) else { return make() };
        match read(&path) {
            Ok(slices) => return Ok(slices),
            Err(e) if e.kind() == io::ErrorKind::NotFound => (),
            Err(e) => tracing::warn!("{} is made again: {e}", path.display()),
        }
        let slices = make()?;
        if !self.full.load(Ordering::Relaxed)
            && let Err(e) = write(&path, &slices)
        {
            self.full.store(true, Ordering::Relaxed);
            tracing::warn!("no more slices are kept in {}: {e}", self.folder.display());
        }
        Ok(slices)
    }

    fn entry(&self, inputs: [Option<&Path>; 2]) -> io::Result<PathBuf> {
        let mut text = self.key.clone();
        for input in inputs {
            match input {
                Some(path) => describe(&path.canonicalize()?, &mut text)?,
                None => text.push_str("none\n"),
            }
        }
        Ok(self.folder.join(runtime::tensor::sha256(text.as_bytes())).with_extension("safetensors"))
    }
}

/// Path, length and time of change of a file, or of all files of a folder.
fn describe(path: &Path, text: &mut String) -> io::Result<()> {
    let found = path.metadata()?;
    if found.is_dir() {
        let mut inside = std::fs::read_dir(path)?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<io::Result<Vec<_>>>()?;
        inside.sort();
        return inside.iter().try_for_each(|path| describe(path, text));
    }
    let changed = found.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    *text += &format!("{} {} {}\n", path.display(), found.len(), changed.as_nanos());
    Ok(())
}

fn write(path: &Path, slices: &Slices) -> io::Result<()> {
    let values: &[u8] = bytemuck::cast_slice(&slices.values);
    let mask = slices.mask.as_deref();
    let [h, w] = slices.size;
    let end = values.len() + mask.map_or(0, <[u8]>::len);
    let mut tensors = vec![(
        "slices".to_owned(),
        TensorInfo { dtype: Dtype::F32, shape: vec![slices.count, 3, h, w], data_offsets: (0, values.len()) },
    )];
    if mask.is_some() {
        let info = TensorInfo {
            dtype: Dtype::U8,
            shape: vec![slices.count, h, w],
            data_offsets: (values.len(), end),
        };
        tensors.push(("mask".into(), info));
    }
    let crc = checksum(values, mask).to_string();
    let metadata =
        Metadata::new(Some(HashMap::from([(CRC.to_owned(), crc)])), tensors).map_err(io::Error::other)?;
    let mut header = serde_json::to_vec(&metadata)?;
    // The format wants its data aligned to 8 bytes.
    header.resize(header.len().next_multiple_of(8), b' ');
    runtime::files::write_atomically_with(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        file.write_all(values)?;
        file.write_all(mask.unwrap_or_default())
    })
}

fn read(path: &Path) -> io::Result<Slices> {
    let damaged = |problem: &str| io::Error::new(io::ErrorKind::InvalidData, problem);
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut size = [0; 8];
    file.read_exact(&mut size)?;
    let size = u64::from_le_bytes(size);
    if size > MAX_HEADER {
        return Err(damaged("its header is damaged"));
    }
    let mut header = vec![0; size as usize];
    file.read_exact(&mut header)?;
    let metadata: Metadata =
        serde_json::from_slice(&header).map_err(|e| damaged(&format!("its header is damaged ({e})")))?;
    let crc: Option<u32> = metadata.metadata().as_ref().and_then(|m| m.get(CRC)?.parse().ok());
    let info = |name: &str, dtype: Dtype| metadata.info(name).filter(|info| info.dtype == dtype);
    let (Some(slices), Some(crc)) = (info("slices", Dtype::F32), crc) else {
        return Err(damaged("its header is of another version"));
    };
    let &[count, 3, h, w] = slices.shape.as_slice() else {
        return Err(damaged("its slices have another shape"));
    };
    if length != 8 + size + metadata.data_len() as u64 {
        return Err(damaged("it has another length than its header says"));
    }
    let mut values = vec![0.0f32; count * 3 * h * w];
    file.read_exact(bytemuck::cast_slice_mut(&mut values))?;
    let mut mask = info("mask", Dtype::U8).map(|info| vec![0; info.shape.iter().product()]);
    if let Some(mask) = &mut mask {
        file.read_exact(mask)?;
    }
    if checksum(bytemuck::cast_slice(&values), mask.as_deref()) != crc {
        return Err(damaged("its checksum is another"));
    }
    Ok(Slices { count, size: [h, w], values, mask })
}

fn checksum(values: &[u8], mask: Option<&[u8]>) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(values);
    hasher.update(mask.unwrap_or_default());
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(size: usize) -> Recipe {
        let text = format!("plane = 'axial'\nsize = [4, {size}]\nintensity = {{ kind = 'z-score' }}");
        toml::from_str(&text).unwrap()
    }

    fn slices() -> Slices {
        let values = (0..2 * 3 * 4 * 6).map(|x| x as f32 / 7.0 - 1.0).collect();
        Slices { count: 2, size: [4, 6], values, mask: Some((0..48).map(|x| x % 2).collect()) }
    }

    /// How often slices had to be made.
    struct Counted {
        stored: Stored,
        scan: PathBuf,
        made: usize,
    }

    impl Counted {
        fn get(&mut self) -> Slices {
            let scan = self.scan.clone();
            self.stored
                .get([Some(&scan), None], || {
                    self.made += 1;
                    Ok(slices())
                })
                .unwrap()
        }

        fn entries(&self) -> Vec<PathBuf> {
            std::fs::read_dir(&self.stored.folder).unwrap().map(|entry| entry.unwrap().path()).collect()
        }
    }

    fn counted(folder: &Path) -> Counted {
        let scan = folder.join("scan.nii");
        std::fs::write(&scan, "scan").unwrap();
        Counted { stored: Stored::open(&folder.join("cache"), &recipe(6)).unwrap(), scan, made: 0 }
    }

    #[test]
    fn what_was_made_once_is_read_back_to_the_bit() {
        let folder = tempfile::tempdir().unwrap();
        let mut counted = counted(folder.path());
        assert_eq!((counted.get(), counted.get(), counted.made), (slices(), slices(), 1));
        // Anything that reads safetensors reads it.
        let bytes = std::fs::read(&counted.entries()[0]).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let values: Vec<u8> = slices().values.iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(file.tensor("slices").unwrap().data(), values);
        assert_eq!(file.tensor("mask").unwrap().shape(), [2, 4, 6]);
    }

    #[test]
    fn another_scan_mask_or_recipe_is_another_entry() {
        let folder = tempfile::tempdir().unwrap();
        let mut counted = counted(folder.path());
        let of = |counted: &Counted, inputs| counted.stored.entry(inputs).unwrap();
        let scan = counted.scan.clone();
        let first = of(&counted, [Some(&scan), None]);
        assert_ne!(of(&counted, [Some(&scan), Some(&scan)]), first);
        counted.get();
        std::fs::write(&scan, "changed").unwrap();
        counted.get();
        assert_eq!((counted.made, counted.entries().len()), (2, 2));
        counted.stored = Stored::open(&folder.path().join("cache"), &recipe(8)).unwrap();
        assert_ne!(of(&counted, [Some(&scan), None]), of(&self::counted(folder.path()), [Some(&scan), None]));
        // A series: the files of its folder.
        let series = folder.path().join("series");
        std::fs::create_dir(&series).unwrap();
        std::fs::write(series.join("1.dcm"), "one").unwrap();
        let before = of(&counted, [Some(&series), None]);
        std::fs::write(series.join("2.dcm"), "two").unwrap();
        assert_ne!(of(&counted, [Some(&series), None]), before);
    }

    #[test]
    fn a_damaged_entry_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut counted = counted(folder.path());
        counted.get();
        let entry = counted.entries().remove(0);
        let sound = std::fs::read(&entry).unwrap();
        let length = sound.len();
        let mut damages = vec![Vec::new(), sound[..length - 1].to_vec(), [&sound[..], &[0]].concat()];
        // One bit of length, header, slices and mask.
        for at in [0, 20, length - 49 - 100, length - 1] {
            let mut bytes = sound.clone();
            bytes[at] ^= 4;
            damages.push(bytes);
        }
        for (i, damage) in damages.into_iter().enumerate() {
            std::fs::write(&entry, damage).unwrap();
            assert_eq!(counted.get(), slices(), "{i}");
            assert_eq!(counted.made, i + 2, "{i}");
            assert!(std::fs::read(&entry).unwrap().len() == length, "{i}: it is sound again");
            assert_eq!((counted.get(), counted.made), (slices(), i + 2), "{i}");
        }
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_told_and_done_without() {
        let folder = tempfile::tempdir().unwrap();
        let mut counted = counted(folder.path());
        std::fs::remove_dir(&counted.stored.folder).unwrap();
        assert_eq!((counted.get(), counted.get(), counted.made), (slices(), slices(), 2));
        assert!(counted.stored.full.into_inner());
        let file = folder.path().join("scan.nii");
        assert!(Stored::open(&file, &recipe(6)).unwrap_err().to_string().contains("scan.nii"));
    }
}
