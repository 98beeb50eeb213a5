//! The repository as retained messages, for sites that open one port only: devices pull its blocks through the broker.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde::{Deserialize, Serialize};

use crate::error::{Result, file};
use crate::files;
use crate::mqtt::{Connection, Message};
use crate::repository::{Blob, Repository};

/// The value of [`Index::schema`].
const SCHEMA: &str = "scanside.index/1";

/// Bytes of a block.
const BLOCK: usize = 64 << 10;

/// What there is, published last of all. A hint for devices, which trust the signed metadata only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    /// [`SCHEMA`].
    pub schema: String,
    /// Metadata files by name, with their lengths.
    pub metadata: BTreeMap<String, usize>,
    /// Bytes of a block.
    pub block: usize,
    /// Files by SHA-256, with their lengths.
    pub targets: BTreeMap<String, u64>,
}

/// What a mirror did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Messages published.
    pub published: usize,
    /// Messages that were there already.
    pub kept: usize,
    /// Messages cleared, of files that are gone.
    pub cleared: usize,
    /// Bytes of the messages published.
    pub bytes: usize,
}

/// What is mirrored, and how.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'a> {
    /// For this site.
    pub site: &'a str,
    /// Backbones, too.
    pub backbones: bool,
    /// Reads every block back instead of believing the last index.
    pub verify: bool,
}

/// Brings a site's branch of the broker up to date.
pub fn mirror(
    connection: &mut Connection,
    repository: &Repository,
    scope: Scope<'_>,
    mut tell: impl FnMut(usize, usize),
) -> Result<Done> {
    let branch = format!("scanside/v1/{}/repository", scope.site);
    let metadata = metadata(repository)?;
    let mut blobs = repository.blobs(Some(scope.site))?;
    if scope.backbones {
        blobs.extend(repository.blobs(None)?);
    }
    let index = index(&metadata, &blobs);
    let mut filters = vec![format!("{branch}/index"), format!("{branch}/metadata/+")];
    if scope.verify {
        filters.push(format!("{branch}/targets/#"));
    }
    let old = connection.retained(&filters)?;
    let before: Option<Index> =
        old.get(&format!("{branch}/index")).and_then(|b| serde_json::from_slice(b).ok());
    let mut done = Done::default();

    // A hash is its content: where the last index, which came after its blocks, has a file, its blocks are there.
    let listed: BTreeSet<&String> = before.iter().flat_map(|b| b.targets.keys()).collect();
    for blob in &blobs {
        if !scope.verify && listed.contains(&blob.target.sha256) {
            done.kept += blocks(blob.target.length);
            continue;
        }
        let bytes = blob.read()?;
        let all = bytes.chunks(BLOCK).enumerate().map(|(n, block)| Message {
            topic: block_topic(&branch, &blob.target.sha256, n),
            payload: block.to_vec(),
            content_type: None,
        });
        let new: Vec<Message> = all.filter(|block| old.get(&block.topic) != Some(&block.payload)).collect();
        done.kept += blocks(blob.target.length) - new.len();
        done.published += new.len();
        done.bytes += new.iter().map(|block| block.payload.len()).sum::<usize>();
        let count = new.len();
        connection.publish(new, |n| tell(n, count))?;
    }
    // The timestamp names all others and comes after them.
    let (last, first): (Vec<_>, Vec<_>) = metadata.iter().partition(|(name, _)| *name == "timestamp.json");
    for (name, bytes) in first.into_iter().chain(last) {
        let topic = format!("{branch}/metadata/{name}");
        if old.get(&topic) == Some(bytes) {
            done.kept += 1;
            continue;
        }
        connection.publish([Message { topic, payload: bytes.clone(), content_type: None }], |_| ())?;
        done.published += 1;
        done.bytes += bytes.len();
    }
    let payload = serde_json::to_vec(&index).expect("plain data serialises");
    done.bytes += payload.len();
    done.published += 1;
    connection.publish([Message::json(format!("{branch}/index"), payload)], |_| ())?;

    // What the broker still has and no index names any more.
    let mut wanted: BTreeSet<String> =
        metadata.keys().map(|name| format!("{branch}/metadata/{name}")).collect();
    wanted.insert(format!("{branch}/index"));
    let of = |targets: &BTreeMap<String, u64>| -> Vec<String> {
        let topics = |(sha256, length): (&String, &u64)| -> Vec<String> {
            (0..blocks(*length)).map(|n| block_topic(&branch, sha256, n)).collect()
        };
        targets.iter().flat_map(topics).collect()
    };
    wanted.extend(of(&index.targets));
    let mut gone: BTreeSet<String> = old.into_keys().collect();
    gone.extend(before.iter().flat_map(|b| of(&b.targets)));
    gone.retain(|topic| !wanted.contains(topic));
    done.cleared = gone.len();
    let clear = gone.into_iter().map(|topic| Message { topic, payload: Vec::new(), content_type: None });
    connection.publish(clear, |_| ())?;
    Ok(done)
}

fn blocks(length: u64) -> usize {
    (length as usize).div_ceil(BLOCK)
}

fn block_topic(branch: &str, sha256: &str, n: usize) -> String {
    format!("{branch}/targets/{sha256}/{n}")
}

fn index(metadata: &BTreeMap<String, Vec<u8>>, blobs: &[Blob]) -> Index {
    Index {
        schema: SCHEMA.into(),
        metadata: metadata.iter().map(|(name, bytes)| (name.clone(), bytes.len())).collect(),
        block: BLOCK,
        targets: blobs.iter().map(|blob| (blob.target.sha256.clone(), blob.target.length)).collect(),
    }
}

/// The files that a client reads: every root, since a device may come from the first one, and what the timestamp leads to. The other
/// sites' are among them, because TUF clients load all delegations.
fn metadata(repository: &Repository) -> Result<BTreeMap<String, Vec<u8>>> {
    let folder = repository.folder().join("metadata");
    let mut names: BTreeSet<String> = ["timestamp.json".into()].into();
    for entry in fs::read_dir(&folder).map_err(file(&folder))? {
        let name = entry.map_err(file(&folder))?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".root.json") && !name.starts_with('.') {
            names.insert(name);
        }
    }
    let snapshot = &repository.snapshot().signed;
    names.insert(format!("{}.snapshot.json", snapshot.version));
    for role in std::iter::once("targets").chain(repository.sites().keys().map(String::as_str)) {
        if let Some(meta) = snapshot.meta.get(&format!("{role}.json")) {
            names.insert(format!("{}.{role}.json", meta.version));
        }
    }
    names.into_iter().map(|name| Ok((name.clone(), files::read(&folder.join(&name))?))).collect()
}
