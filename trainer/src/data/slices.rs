use std::collections::HashMap;
use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, PoisonError};

use firmware_config::Recipe;
use runtime::recipe::Prepared;
use runtime::volume::{ReadOptions, Volume, VolumeError, read};

use super::table::{Sample, Table};
use crate::Error;

/// Volumes that are prepared ahead of the one that the network works on.
const AHEAD: usize = 4;

/// What the network sees of one volume.
#[derive(Debug, Clone, PartialEq)]
pub struct Slices {
    /// S.
    pub count: usize,
    /// Height and width.
    pub size: [usize; 2],
    /// `[S, 3, H, W]`, C order.
    pub values: Vec<f32>,
    /// `[S, H, W]`, C order: 1 inside the sample's mask, 0 outside and in the padding.
    pub mask: Option<Vec<u8>>,
}

impl Slices {
    /// Reads a sample's scan and prepares all its slices; its mask too, where it has one.
    pub fn load(table: &Table, sample: &Sample, recipe: &Recipe) -> Result<Self, Error> {
        let unusable = |e: runtime::Error| Error::Scan { id: sample.id.clone(), source: Box::new(e) };
        let volume = single(table, sample, &sample.image, "image")?;
        let prepared = Prepared::new(&volume, recipe).map_err(|e| unusable(e.into()))?;
        let mut slices = Self::of(&prepared);
        if let Some(path) = &sample.mask {
            let mask = single(table, sample, path, "mask")?;
            let inside = prepared.mask_voxels(&mask).map_err(|e| unusable(e.into()))?;
            slices.mask = Some(prepared.nearest(&inside));
        }
        Ok(slices)
    }

    /// All slices of a prepared volume.
    pub fn of(prepared: &Prepared<'_>) -> Self {
        let (count, size) = (prepared.slices(), prepared.size());
        let each = 3 * size[0] * size[1];
        let mut values = vec![0.0; count * each];
        for (s, out) in values.chunks_exact_mut(each).enumerate() {
            prepared.write_slice(s, out);
        }
        Self { count, size, values, mask: None }
    }

    /// Memory that they take.
    pub fn bytes(&self) -> usize {
        size_of_val(self.values.as_slice()) + self.mask.as_ref().map_or(0, Vec::len)
    }
}

/// Reads the only volume of a sample's `what`.
pub(crate) fn single(table: &Table, sample: &Sample, path: &Path, what: &str) -> Result<Volume, Error> {
    let unusable = |e: VolumeError| Error::Scan { id: sample.id.clone(), source: Box::new(e.into()) };
    let mut volumes = read(path, &ReadOptions::default()).map_err(unusable)?;
    match volumes.pop() {
        Some(volume) if volumes.is_empty() => Ok(volume),
        last => {
            let problem = format!(
                "its {what} {} holds {} series, expected one; give each series its own folder and row",
                path.display(),
                volumes.len() + usize::from(last.is_some())
            );
            Err(Error::Row { path: table.path.clone(), row: sample.row, problem })
        }
    }
}

/// Keeps prepared slices in memory as long as they fit; the rest is prepared anew each time.
pub struct Cache<'a> {
    table: &'a Table,
    recipe: &'a Recipe,
    limit: usize,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    bytes: usize,
    slices: HashMap<usize, Arc<Slices>>,
}

impl<'a> Cache<'a> {
    /// An empty cache of at most `limit` bytes.
    pub fn new(table: &'a Table, recipe: &'a Recipe, limit: usize) -> Self {
        Self { table, recipe, limit, kept: Mutex::default() }
    }

    /// The slices of the table's sample `index`.
    pub fn get(&self, index: usize) -> Result<Arc<Slices>, Error> {
        let kept = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slices) = kept().slices.get(&index) {
            return Ok(Arc::clone(slices));
        }
        let slices = Arc::new(Slices::load(self.table, &self.table.samples[index], self.recipe)?);
        let bytes = slices.bytes();
        let mut kept = kept();
        if kept.bytes + bytes <= self.limit && kept.slices.insert(index, Arc::clone(&slices)).is_none() {
            kept.bytes += bytes;
        }
        Ok(slices)
    }

    /// The table that the indices refer to.
    pub fn table(&self) -> &'a Table {
        self.table
    }
}

/// Calls `make` for each of `items` on another thread, a few ahead, and `take` with the results in order on this one.
/// Stops at the first error of either.
pub fn in_order<T: Send, E: Send>(
    items: &[usize],
    make: impl Fn(usize) -> Result<T, E> + Sync,
    mut take: impl FnMut(usize, T) -> Result<(), E>,
) -> Result<(), E> {
    std::thread::scope(|scope| {
        let (send, receive) = sync_channel(AHEAD);
        let make = &make;
        scope.spawn(move || {
            for &item in items {
                // The receiver is gone when taking failed.
                if send.send((item, make(item))).is_err() {
                    break;
                }
            }
        });
        receive.into_iter().try_for_each(|(item, made)| take(item, made?))
    })
}

#[cfg(test)]
mod tests {
    use runtime::volume::{Geometry, write_nifti};

    use super::*;
    use crate::loss::Loss;

    #[test]
    fn a_mask_is_prepared_as_its_image_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let write = |name: &str, dims: [usize; 3], of: fn(usize) -> f32| {
            let voxels: Vec<f32> = (0..dims.iter().product()).map(of).collect();
            let geometry =
                Geometry::from_columns([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 5.0]], [0.0; 3]);
            write_nifti(&path(name), dims, &voxels, &geometry).unwrap();
        };
        // Voxels from 0 to 800, of which those from 400 on are in the mask; whole numbers of voxels a pixel.
        write("a.nii", [3, 4, 2], |i| [0.0, 800.0, 100.0, 700.0, 300.0][i * i % 5]);
        write("m.nii", [3, 4, 2], |i| f32::from(u8::from(i * i % 5 % 2 == 1)));
        write("other.nii", [3, 4, 1], |_| 1.0);
        let rows = "1,train,a.nii,m.nii,1\n2,train,a.nii,,0\n3,train,a.nii,other.nii,1\n";
        std::fs::write(path("data.csv"), format!("id,split,image,mask,x\n{rows}")).unwrap();
        let mut table = Table::read(&path("data.csv"), &["x".into()], Loss::Bce, false).unwrap();
        let recipe: Recipe = toml::from_str(
            "plane = 'axial'\nsize = [4, 3]\nnormalize = 'none'\nintensity = { kind = 'window', windows = [[0, 800]] }",
        )
        .unwrap();
        let load = |table: &Table, i: usize| Slices::load(table, &table.samples[i], &recipe);
        let slices = load(&table, 0).unwrap();
        let first = slices.values.chunks_exact(12).step_by(3).flatten();
        let expected: Vec<u8> = first.map(|&x| u8::from(x > 0.5)).collect();
        assert!(expected.contains(&0) && expected.contains(&1));
        assert_eq!(slices.mask, Some(expected));
        assert_eq!(slices.bytes(), 2 * 12 * (3 * 4 + 1));
        assert_eq!(load(&table, 1).unwrap().mask, None);
        let error = load(&table, 2).unwrap_err();
        let text = error.to_string();
        assert!(error.is_bad_input() && text.contains("other.nii") && text.contains("a.nii"), "{text}");
        table.keep_masks(|sample| sample.id == "1");
        assert_eq!(load(&table, 2).unwrap().mask, None);
        assert!(table.samples[0].mask.is_some());
    }

    #[test]
    fn results_come_in_order_and_errors_stop_both_sides() {
        let items: Vec<usize> = (0..20).rev().collect();
        let mut seen = Vec::new();
        let all = in_order(
            &items,
            |i| Ok::<_, String>(i * i),
            |i, square| {
                assert_eq!(square, i * i);
                seen.push(i);
                Ok(())
            },
        );
        assert_eq!((all, seen), (Ok(()), items.clone()));
        let made = in_order(&items, |i| if i == 7 { Err("made") } else { Ok(()) }, |_, ()| Ok(()));
        assert_eq!(made, Err("made"));
        let taken = in_order(&items, |_| Ok(()), |i, ()| if i == 7 { Err("taken") } else { Ok(()) });
        assert_eq!(taken, Err("taken"));
    }
}
