//! The signed repository: a plain folder that any static file server, USB stick or `mirror` hands out.
//!
//! `metadata/` holds `N.root.json`, `timestamp.json`, `N.snapshot.json`, `N.targets.json` and `N.SITE.json` (TUF, consistent snapshots);
//! `targets/` the files, `north/lesion-1.1.0.plugin` as `targets/north/SHA256.lesion-1.1.0.plugin`. What is read is verified from the
//! root that the operator keeps beside the keys: a folder that somebody else could write to is signed again by nobody.

mod journal;
mod sign;
mod store;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tough::schema::decoded::{Decoded, Hex};
use tough::schema::key::Key;
use tough::schema::{
    DelegatedRole, Delegations, PathPattern, PathSet, RoleKeys, RoleType, Root, Signed, Snapshot, Targets,
    Timestamp,
};

use crate::error::{Result, file, input, malformed};
use crate::files;
use crate::keys::KeyPair;

pub use sign::{Lifetimes, Renewal};
pub use store::{Blob, plugin_name, sha256};

/// The version of the TUF specification that the metadata follow.
const SPEC_VERSION: &str = "1.0.0";

/// Names that a site cannot have, because they are roles or folders.
const RESERVED: [&str; 5] = ["root", "targets", "snapshot", "timestamp", BACKBONES];

/// The folder of backbones among the top-level targets.
pub const BACKBONES: &str = "backbones";

/// An open repository; nobody else changes it meanwhile.
pub struct Repository {
    folder: PathBuf,
    root: Signed<Root>,
    timestamp: Signed<Timestamp>,
    snapshot: Signed<Snapshot>,
    targets: Signed<Targets>,
    sites: BTreeMap<String, Signed<Targets>>,
    _lock: Lock,
}

/// Held while a command works on the folder.
struct Lock(#[expect(dead_code, reason = "unlocked when closed")] File);

impl Lock {
    fn take(folder: &Path) -> Result<Self> {
        let path = folder.join(".lock");
        let lock = File::options().create(true).append(true).open(&path).map_err(file(&path))?;
        lock.lock().map_err(file(&path))?;
        Ok(Self(lock))
    }
}

impl Repository {
    /// Opens and verifies a repository. `trusted` is the operator's own copy of a root; later roots are followed from it.
    pub fn open(folder: &Path, trusted: &Path) -> Result<Self> {
        if !folder.join("metadata").is_dir() {
            return Err(input(format!(
                "{} holds no repository: name its folder with --repository, or make one with `scanside-fleet init`",
                folder.display()
            )));
        }
        let lock = Lock::take(folder)?;
        journal::finish(folder)?;
        let metadata = folder.join("metadata");
        let root = chain(&metadata, trusted)?;
        let timestamp: Signed<Timestamp> = role(&metadata.join("timestamp.json"), &root)?;
        let pinned = |name: &str, file: &str, meta: Option<&tough::schema::Metafile>| {
            let path = metadata.join(file);
            let meta = meta.ok_or_else(|| malformed(&metadata, "a repository without it", name))?;
            let bytes = files::read(&path)?;
            let sound = meta.hashes.as_ref().is_some_and(|h| h.sha256[..] == store::digest(&bytes)[..]);
            if sound { Ok(path) } else { Err(malformed(&path, "another file", "the one that is listed")) }
        };
        let meta = timestamp.signed.meta.get("snapshot.json");
        let version = |meta: Option<&tough::schema::Metafile>| meta.map_or(0, |m| m.version.get());
        let path = pinned("snapshot.json", &format!("{}.snapshot.json", version(meta)), meta)?;
        let snapshot: Signed<Snapshot> = role(&path, &root)?;
        let listed = |name: &str| {
            let meta = snapshot.signed.meta.get(&format!("{name}.json"));
            pinned(name, &format!("{}.{name}.json", version(meta)), meta)
        };
        let targets: Signed<Targets> = role(&listed("targets")?, &root)?;
        let mut sites = BTreeMap::new();
        if let Some(delegations) = &targets.signed.delegations {
            for role in &delegations.roles {
                let path = listed(&role.name)?;
                let site: Signed<Targets> = parse(&path)?;
                delegations
                    .verify_role(&site, &role.name)
                    .map_err(|error| malformed(&path, error, "the signatures of the site's keys"))?;
                sites.insert(role.name.clone(), site);
            }
        }
        Ok(Self { folder: folder.into(), root, timestamp, snapshot, targets, sites, _lock: lock })
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The root in force.
    pub fn root(&self) -> &Signed<Root> {
        &self.root
    }

    /// The timestamp.
    pub fn timestamp(&self) -> &Signed<Timestamp> {
        &self.timestamp
    }

    /// The snapshot.
    pub fn snapshot(&self) -> &Signed<Snapshot> {
        &self.snapshot
    }

    /// The top-level targets: backbones, and who signs for which site.
    pub fn targets(&self) -> &Signed<Targets> {
        &self.targets
    }

    /// The sites with what is signed for them.
    pub fn sites(&self) -> &BTreeMap<String, Signed<Targets>> {
        &self.sites
    }

    /// What is signed for a site.
    pub fn site(&self, name: &str) -> Result<&Signed<Targets>> {
        self.sites.get(name).ok_or_else(|| {
            let known: Vec<&str> = self.sites.keys().map(String::as_str).collect();
            let known = if known.is_empty() { "none".into() } else { known.join(", ") };
            input(format!("the repository has no site {name:?} (it has {known}): add it with `scanside-fleet key add-site {name}`"))
        })
    }

    /// Who signs for which site.
    pub fn delegations(&self) -> Delegations {
        self.targets.signed.delegations.clone().unwrap_or_default()
    }

    /// The keys of a site.
    pub fn site_keys(&self, name: &str) -> Result<(Vec<Decoded<Hex>>, u64)> {
        self.site(name)?;
        let delegations = self.delegations();
        let role = delegations.roles.iter().find(|role| role.name == name);
        Ok(role.map_or((Vec::new(), 1), |role| (role.keyids.clone(), role.threshold.get())))
    }

    /// The keys of a top-level role.
    pub fn role_keys(&self, role: RoleType) -> (Vec<Decoded<Hex>>, u64) {
        keys_of(&self.root.signed, role)
    }
}

fn keys_of(root: &Root, role: RoleType) -> (Vec<Decoded<Hex>>, u64) {
    root.roles.get(&role).map_or((Vec::new(), 1), |keys| (keys.keyids.clone(), keys.threshold.get()))
}

/// Follows the roots from the trusted one to the newest.
fn chain(metadata: &Path, trusted: &Path) -> Result<Signed<Root>> {
    if !trusted.exists() {
        return Err(input(format!(
            "{} is not there: name your own trusted copy of the fleet's root.json with --root",
            trusted.display()
        )));
    }
    let mut root: Signed<Root> = parse(trusted)?;
    verify(&root, &root, trusted)?;
    loop {
        let path = metadata.join(format!("{}.root.json", root.signed.version.get() + 1));
        let Some(bytes) = files::read_if_there(&path)? else { break };
        let next: Signed<Root> = parse_bytes(&path, &bytes)?;
        verify(&root, &next, &path)?;
        verify(&next, &next, &path)?;
        if next.signed.version.get() != root.signed.version.get() + 1 {
            return Err(malformed(
                &path,
                format!("version {}", next.signed.version),
                "the version in its name",
            ));
        }
        root = next;
    }
    let own = metadata.join(format!("{}.root.json", root.signed.version));
    if parse::<Signed<Root>>(&own)? != root {
        return Err(malformed(
            &own,
            "another root",
            "the one that you trust: is this your fleet's repository?",
        ));
    }
    Ok(root)
}

fn verify<T: tough::schema::Role>(root: &Signed<Root>, role: &Signed<T>, path: &Path) -> Result<()> {
    root.signed
        .verify_role(role)
        .map_err(|error| malformed(path, error, "the signatures that the fleet's root asks for"))
}

fn role<T: tough::schema::Role + DeserializeOwned>(path: &Path, root: &Signed<Root>) -> Result<Signed<T>> {
    let role = parse(path)?;
    verify(root, &role, path)?;
    Ok(role)
}

fn parse<T: DeserializeOwned>(path: &Path) -> Result<T> {
    parse_bytes(path, &files::read(path)?)
}

fn parse_bytes<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes)
        .map_err(|error| malformed(path, format!("no metadata ({error})"), "TUF metadata in JSON"))
}

/// Lets a site's plugins, and nothing else, be signed by these keys, of which `all` or `public` has the public halves.
pub fn delegation(
    all: &mut Delegations,
    site: &str,
    ids: &[Decoded<Hex>],
    threshold: u64,
    public: impl IntoIterator<Item = Key>,
) {
    let role = DelegatedRole {
        name: site.into(),
        keyids: ids.to_vec(),
        threshold: at_least_one(threshold),
        paths: PathSet::Paths(vec![
            PathPattern::new(format!("{site}/*")).expect("a site's name has no special characters"),
        ]),
        terminating: true,
        targets: None,
    };
    all.keys.extend(public.into_iter().filter_map(|key| Some((key.key_id().ok()?, key))));
    all.roles.retain(|other| other.name != site);
    all.roles.push(role);
    all.roles.sort_by(|a, b| a.name.cmp(&b.name));
    let used: Vec<_> = all.roles.iter().flat_map(|role| role.keyids.clone()).collect();
    all.keys.retain(|id, _| used.contains(id));
}

/// Checks a new site's name: it stands in file names, addresses and topics.
pub fn check_site(name: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    if name.is_empty()
        || name.len() > 64
        || name.starts_with('.')
        || !name.chars().all(plain)
        || RESERVED.contains(&name)
    {
        return Err(input(format!(
            "the site's name is {name:?}, expected 1 to 64 letters (a to z), digits, '-', '_' and '.', not beginning with '.', and none of {}",
            RESERVED.join(", ")
        )));
    }
    Ok(())
}

fn at_least_one(number: u64) -> NonZeroU64 {
    NonZeroU64::new(number).unwrap_or(NonZeroU64::MIN)
}

fn role_keys(keys: &[&KeyPair], threshold: u64) -> RoleKeys {
    RoleKeys {
        keyids: keys.iter().map(|key| key.tuf_id()).collect(),
        threshold: at_least_one(threshold),
        _extra: std::collections::HashMap::new(),
    }
}

/// Metadata in the form that is written and hashed.
fn encoded<T: Serialize>(signed: &Signed<T>) -> Vec<u8> {
    crate::envelope::to_bytes(signed)
}

/// Whether a folder has nothing in it.
fn is_empty(folder: &Path) -> Result<bool> {
    if !folder.exists() {
        return Ok(true);
    }
    let mut names = fs::read_dir(folder).map_err(file(folder))?.filter_map(std::result::Result::ok);
    Ok(names.all(|entry| entry.file_name().to_string_lossy().starts_with('.')))
}

#[cfg(test)]
mod tests;
