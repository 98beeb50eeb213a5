//! A repository as retained messages, for sites that open one port: pulled block by block.
//!
//! Under `scanside/v1/{site}/repository/`: `metadata/{file}`; `targets/{sha256}/{n}`, the file's n-th block; and `index`, JSON
//! that tells which files there are and how long a block is. The index is a hint and signed by nobody: a wrong one costs time.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use firmware_config::TopicLevel;
use serde::Deserialize;

use super::source::{Source, SourceError, Take, TargetFile};
use crate::publish::follow::Handle;

/// A retained message comes as soon as its topic is subscribed to; after this time there is none.
const PATIENCE: Duration = Duration::from_secs(20);

/// The index is asked for anew after this time, so that one look at the repository sees one index.
const INDEX_AGE: Duration = Duration::from_secs(5);

/// The largest block that is taken.
const MAX_BLOCK: u64 = 128 << 10;

/// See the module's description.
#[derive(Debug)]
pub struct Mqtt {
    handle: Handle,
    prefix: String,
    index: Mutex<Option<(Instant, Index)>>,
}

#[derive(Debug, Clone, Deserialize)]
struct Index {
    metadata: BTreeMap<String, u64>,
    block: u64,
    targets: BTreeMap<String, u64>,
}

impl Mqtt {
    /// The repository of `site` at the broker that `handle` is connected with.
    pub fn new(handle: Handle, site: &TopicLevel) -> Self {
        Self { handle, prefix: format!("scanside/v1/{site}/repository"), index: Mutex::default() }
    }

    fn failed(&self, detail: impl Into<String>) -> SourceError {
        SourceError::Failed { source_name: self.name(), detail: detail.into() }
    }

    fn get(&self, rest: &str) -> Result<Vec<u8>, SourceError> {
        let topic = format!("{}/{rest}", self.prefix);
        let found = self.handle.fetch(&topic, PATIENCE).map_err(|detail| self.failed(detail))?;
        found.ok_or_else(|| self.failed(format!("nothing is retained under {topic}")))
    }

    fn index(&self) -> Result<Index, SourceError> {
        let mut kept = self.index.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((at, index)) = kept.as_ref()
            && at.elapsed() < INDEX_AGE
        {
            return Ok(index.clone());
        }
        let index: Index = serde_json::from_slice(&self.get("index")?)
            .map_err(|error| self.failed(format!("its index cannot be read: {error}")))?;
        if index.block == 0 || index.block > MAX_BLOCK {
            return Err(
                self.failed(format!("its blocks have {} bytes, expected 1 to {MAX_BLOCK}", index.block))
            );
        }
        *kept = Some((Instant::now(), index.clone()));
        Ok(index)
    }
}

impl Source for Mqtt {
    fn name(&self) -> String {
        format!("the broker, {}", self.prefix)
    }

    fn metadata(&self, file: &str, limit: u64) -> Result<Option<Vec<u8>>, SourceError> {
        if !self.index()?.metadata.contains_key(file) {
            return Ok(None);
        }
        let bytes = self.get(&format!("metadata/{file}"))?;
        if bytes.len() as u64 > limit {
            return Err(SourceError::TooLong { source_name: self.name(), file: file.into(), limit });
        }
        Ok(Some(bytes))
    }

    fn target(&self, target: &TargetFile, from: u64, take: &mut Take<'_>) -> Result<(), SourceError> {
        let index = self.index()?;
        if !index.targets.contains_key(&target.sha256) {
            return Err(self.failed(format!("it does not hold {}", target.path)));
        }
        // A part of a block that is here is passed over: a block comes as a whole.
        let (first, mut skip) = (from / index.block, (from % index.block) as usize);
        for n in first..target.length.div_ceil(index.block) {
            let block = self.get(&format!("targets/{}/{n}", target.sha256))?;
            let expected = index.block.min(target.length - n * index.block);
            if block.len() as u64 != expected {
                let detail =
                    format!("block {n} of {} has {} bytes, expected {expected}", target.path, block.len());
                return Err(self.failed(detail));
            }
            take(&block[skip..]).map_err(|error| self.failed(error.to_string()))?;
            skip = 0;
        }
        Ok(())
    }
}
