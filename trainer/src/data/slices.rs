use std::collections::HashMap;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, PoisonError};

use firmware_config::Recipe;
use runtime::recipe::Prepared;
use runtime::volume::{ReadOptions, read};

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
}

impl Slices {
    /// Reads a sample's scan and prepares all its slices.
    pub fn load(table: &Table, sample: &Sample, recipe: &Recipe) -> Result<Self, Error> {
        let unusable = |e: runtime::Error| Error::Scan { id: sample.id.clone(), source: Box::new(e) };
        let volumes = read(&sample.image, &ReadOptions::default()).map_err(|e| unusable(e.into()))?;
        let [volume] = volumes.as_slice() else {
            let problem = format!(
                "its image {} holds {} series, expected one; give each series its own folder and row",
                sample.image.display(),
                volumes.len()
            );
            return Err(Error::Row { path: table.path.clone(), row: sample.row, problem });
        };
        let prepared = Prepared::new(volume, recipe).map_err(|e| unusable(e.into()))?;
        Ok(Self::of(&prepared))
    }

    /// All slices of a prepared volume.
    pub fn of(prepared: &Prepared<'_>) -> Self {
        let (count, size) = (prepared.slices(), prepared.size());
        let each = 3 * size[0] * size[1];
        let mut values = vec![0.0; count * each];
        for (s, out) in values.chunks_exact_mut(each).enumerate() {
            prepared.write_slice(s, out);
        }
        Self { count, size, values }
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
        let bytes = size_of_val(slices.values.as_slice());
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
    use super::*;

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
