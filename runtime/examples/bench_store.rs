//! What the store does on this disk: `bench_store FOLDER [BYTES]` puts instances of so many bytes (512 KiB, a CT slice) from one thread
//! and from four, each put durable before it returns; then fills an index with 10,000 rows and opens it.

use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use runtime::result::Completion;
use runtime::store::{Limits, NewInstance, Store, StoreError};

/// Instances of the first two measurements.
const INSTANCES: usize = 2000;
/// Rows of the last.
const ROWS: usize = 10_000;

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let folder = words.first().ok_or("give a folder on the disk to be measured")?;
    let bytes: usize = words.get(1).map_or(Ok(512 << 10), |word| word.parse())?;
    let folder = tempfile::tempdir_in(folder)?;
    for threads in [1, 4] {
        let (store, _) = open(&folder.path().join(format!("{threads}")))?;
        let start = Instant::now();
        put(&store, threads, INSTANCES, bytes)?;
        let rate = INSTANCES as f64 / start.elapsed().as_secs_f64();
        println!("{threads} threads: {rate:.0} puts/s of {bytes} bytes, peak memory {:.1} MB", peak_mb()?);
    }
    let place = folder.path().join("rows");
    let (store, _) = open(&place)?;
    put(&store, 4, ROWS, 100)?;
    let start = Instant::now();
    store.close("series 0", Completion::Idle, 0)?;
    let job = store.take(0)?.ok_or("no job")?;
    store.finish(job.id, &[], &[], 0)?;
    println!("close, take and finish: {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
    drop(store);
    let start = Instant::now();
    let (_store, recovery) = open(&place)?;
    let index = std::fs::metadata(place.join("index.redb"))?.len();
    println!(
        "{} rows: opened in {:.0} ms, index {:.1} MB, peak memory {:.1} MB",
        recovery.instances,
        start.elapsed().as_secs_f64() * 1e3,
        index as f64 / 1e6,
        peak_mb()?
    );
    Ok(())
}

fn open(folder: &Path) -> Result<(Store, runtime::store::Recovery), StoreError> {
    Store::open(folder, Limits { max_bytes: u64::MAX, min_free_bytes: 0, max_tries: 3 })
}

fn put(store: &Store, threads: usize, instances: usize, bytes: usize) -> Result<(), StoreError> {
    let content = vec![7; bytes];
    let work = |thread: usize| {
        for i in 0..instances / threads {
            let mut spool = store.spool()?;
            // As a listener does: a PDU at a time. A failure shows in the length, which `put` checks.
            content.chunks(64 << 10).for_each(|part| spool.write_all(part).unwrap_or_default());
            let instance = NewInstance {
                study_uid: None,
                series_uid: format!("series {thread}"),
                sop_uid: format!("1.2.840.113619.2.55.3.604688119.971.{i}"),
                sha256: "0".repeat(64),
                bytes: bytes as u64,
                expected: None,
                received: 0,
            };
            store.put(spool, &instance)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..threads).map(|thread| scope.spawn(move || work(thread))).collect();
        all.into_iter().try_for_each(|thread| thread.join().unwrap_or(Err(StoreError::BrokenOff)))
    })
}

/// The kernel's high-water mark of resident memory.
fn peak_mb() -> Result<f64, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM in /proc/self/status")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
}
