//! Changes of the repository: what is changed is signed anew, and snapshot and timestamp with it.

use std::collections::{BTreeSet, HashMap};

use firmware_config::TargetRef;
use jiff::{SignedDuration, Timestamp as Instant};
use tough::schema::decoded::{Decoded, Hex};
use tough::schema::{Hashes, Metafile, RoleType, Root, Signed, Snapshot, Targets, Timestamp};

use super::store::{digest, entry};
use super::{
    Blob, Repository, SPEC_VERSION, at_least_one, check_site, delegation, encoded, is_empty, journal,
    keys_of, role_keys,
};
use crate::envelope::seal;
use crate::error::{Result, input};
use crate::keys::{KeyPair, Keyring};

/// For how many days signatures hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetimes {
    /// Of the root.
    pub root: u32,
    /// Of the targets and the sites.
    pub targets: u32,
    /// Of the snapshot.
    pub snapshot: u32,
    /// Of the timestamp.
    pub timestamp: u32,
}

impl Default for Lifetimes {
    fn default() -> Self {
        Self { root: 365, targets: 90, snapshot: 30, timestamp: 7 }
    }
}

/// What signing takes.
pub struct Renewal<'a> {
    /// The private keys at hand.
    pub keys: &'a Keyring,
    /// Now.
    pub now: Instant,
    /// For how long it shall hold.
    pub lifetimes: Lifetimes,
}

/// The roles whose content changes, besides snapshot and timestamp.
#[derive(Default)]
struct Touched {
    root: Option<Root>,
    targets: Option<Targets>,
    sites: HashMap<String, Targets>,
}

impl Renewal<'_> {
    fn until(&self, days: u32) -> Instant {
        let seconds = self.now.as_second() + i64::from(days) * 86_400;
        Instant::from_second(seconds).unwrap_or(self.now)
    }

    /// Whether less than a third of a lifetime is left.
    pub fn is_due(&self, expires: Instant, days: u32) -> bool {
        expires.duration_since(self.now) < SignedDuration::from_hours(i64::from(days) * 8)
    }
}

impl Repository {
    /// Checks that a folder has room for a new repository: nothing is in it.
    pub fn check_new(folder: &std::path::Path) -> Result<()> {
        if !is_empty(folder)? {
            return Err(input(format!(
                "{} is not empty, expected a new folder for the repository",
                folder.display()
            )));
        }
        Ok(())
    }

    /// Makes a repository in an empty folder; returns its first root, to be carried to the devices.
    pub fn create(
        folder: &std::path::Path,
        root_keys: &[KeyPair],
        threshold: u64,
        others: [&KeyPair; 3],
        renewal: &Renewal<'_>,
    ) -> Result<Vec<u8>> {
        Self::check_new(folder)?;
        let all: Vec<&KeyPair> = root_keys.iter().collect();
        let [targets_key, snapshot_key, timestamp_key] = others;
        let roles = [
            (RoleType::Root, role_keys(&all, threshold)),
            (RoleType::Targets, role_keys(&[targets_key], 1)),
            (RoleType::Snapshot, role_keys(&[snapshot_key], 1)),
            (RoleType::Timestamp, role_keys(&[timestamp_key], 1)),
        ];
        let root = Root {
            spec_version: SPEC_VERSION.into(),
            consistent_snapshot: true,
            version: at_least_one(1),
            expires: renewal.until(renewal.lifetimes.root),
            keys: all.iter().chain(&others).map(|key| (key.tuf_id(), key.public().clone())).collect(),
            roles: roles.into(),
            _extra: HashMap::new(),
        };
        let root = encoded(&seal(root, &all));
        let until = |days| renewal.until(days);
        let targets = Targets::new(SPEC_VERSION.into(), at_least_one(1), until(renewal.lifetimes.targets));
        let targets = encoded(&seal(targets, &[targets_key]));
        let mut snapshot =
            Snapshot::new(SPEC_VERSION.into(), at_least_one(1), until(renewal.lifetimes.snapshot));
        snapshot.meta.insert("targets.json".into(), meta(1, &targets));
        let snapshot = encoded(&seal(snapshot, &[snapshot_key]));
        let mut timestamp =
            Timestamp::new(SPEC_VERSION.into(), at_least_one(1), until(renewal.lifetimes.timestamp));
        timestamp.meta.insert("snapshot.json".into(), meta(1, &snapshot));
        let timestamp = encoded(&seal(timestamp, &[timestamp_key]));
        let files = [
            ("1.root.json", root.clone()),
            ("1.targets.json", targets),
            ("1.snapshot.json", snapshot),
            ("timestamp.json", timestamp),
        ];
        std::fs::create_dir_all(folder.join("targets")).map_err(crate::error::file(folder))?;
        journal::commit(folder, &files.map(|(name, bytes)| (name.to_owned(), bytes)))?;
        Ok(root)
    }

    /// Lets new keys sign for a site that was not there.
    pub fn add_site(
        &mut self,
        site: &str,
        keys: &[&KeyPair],
        threshold: u64,
        renewal: &Renewal<'_>,
    ) -> Result<()> {
        check_site(site)?;
        if self.sites.contains_key(site) {
            return Err(input(format!(
                "the site {site} is there already: for other keys, `scanside-fleet key rotate {site}`"
            )));
        }
        let ids: Vec<_> = keys.iter().map(|key| key.tuf_id()).collect();
        self.set_site_keys(site, &ids, threshold, renewal)
    }

    /// Lets these keys, and no others, sign for a site; new ones must be at hand.
    pub fn set_site_keys(
        &mut self,
        site: &str,
        ids: &[Decoded<Hex>],
        threshold: u64,
        renewal: &Renewal<'_>,
    ) -> Result<()> {
        let mut targets = self.targets.signed.clone();
        let public = ids.iter().filter_map(|id| renewal.keys.public(id)).collect::<Vec<_>>();
        delegation(targets.delegations.get_or_insert_default(), site, ids, threshold, public);
        // A site that was taken away and comes back counts on.
        let before =
            self.snapshot.signed.meta.get(&format!("{site}.json")).map_or(0, |meta| meta.version.get());
        let own = self.sites.get(site).map_or_else(
            || Targets {
                delegations: None,
                ..Targets::new(SPEC_VERSION.into(), at_least_one(before), self.targets.signed.expires)
            },
            |site| site.signed.clone(),
        );
        let fresh = before == 0;
        let touched = Touched { targets: Some(targets), sites: [(site.into(), own)].into(), root: None };
        self.commit(touched, fresh.then_some(site), renewal)
    }

    /// Lets nobody sign for a site any more.
    pub fn remove_site(&mut self, site: &str, renewal: &Renewal<'_>) -> Result<()> {
        self.site(site)?;
        let mut targets = self.targets.signed.clone();
        if let Some(delegations) = &mut targets.delegations {
            delegations.roles.retain(|role| role.name != site);
            let used: Vec<_> = delegations.roles.iter().flat_map(|role| role.keyids.clone()).collect();
            delegations.keys.retain(|id, _| used.contains(id));
        }
        self.sites.remove(site);
        self.commit(Touched { targets: Some(targets), ..Touched::default() }, None, renewal)
    }

    /// Lets these keys, and no others, sign for a top-level role.
    pub fn set_role_keys(
        &mut self,
        role: RoleType,
        keys: &[tough::schema::key::Key],
        threshold: u64,
        renewal: &Renewal<'_>,
    ) -> Result<()> {
        let mut root = self.root.signed.clone();
        let ids = keys
            .iter()
            .map(|key| key.key_id().map_err(|error| input(error.to_string())))
            .collect::<Result<Vec<_>>>()?;
        root.keys.extend(ids.iter().cloned().zip(keys.iter().cloned()));
        if let Some(entry) = root.roles.get_mut(&role) {
            entry.keyids = ids;
            entry.threshold = at_least_one(threshold);
        }
        let used: Vec<_> = root.roles.values().flat_map(|keys| keys.keyids.clone()).collect();
        root.keys.retain(|id, _| used.contains(id));
        let targets = (role == RoleType::Targets).then(|| self.targets.signed.clone());
        self.commit(Touched { root: Some(root), targets, ..Touched::default() }, None, renewal)
    }

    /// Signs these roles again, so that they hold longer; snapshot and timestamp always.
    pub fn refresh(&mut self, roles: &BTreeSet<String>, renewal: &Renewal<'_>) -> Result<()> {
        let mut touched = Touched::default();
        for role in roles {
            match role.as_str() {
                "root" => touched.root = Some(self.root.signed.clone()),
                "targets" => touched.targets = Some(self.targets.signed.clone()),
                "snapshot" | "timestamp" => {}
                site => _ = touched.sites.insert(site.into(), self.site(site)?.signed.clone()),
            }
        }
        self.commit(touched, None, renewal)
    }

    /// Publishes files, each under its name, for sites or (with none) for all devices.
    pub fn publish(
        &mut self,
        new: &[(Option<&str>, String, &[u8])],
        renewal: &Renewal<'_>,
    ) -> Result<Vec<TargetRef>> {
        let mut touched = Touched::default();
        let mut all = Vec::new();
        for (site, name, _) in new {
            // Keys are looked for before anything is written.
            match site {
                Some(site) => {
                    let (ids, threshold) = self.site_keys(site)?;
                    renewal.keys.of(site, &ids, threshold)?;
                }
                None if name.starts_with(super::BACKBONES) => {}
                None => return Err(input(format!("{name} belongs to no site"))),
            }
        }
        for (site, name, bytes) in new {
            let target = self.keep(name, bytes)?;
            let (key, value) = entry(&target)?;
            self.touch(&mut touched, *site)?.targets.insert(key, value);
            all.push(target);
        }
        self.commit(touched, None, renewal)?;
        Ok(all)
    }

    /// Takes targets out of the repository, and then their files.
    pub fn unpublish(&mut self, gone: &[(Option<&str>, Blob)], renewal: &Renewal<'_>) -> Result<()> {
        let mut touched = Touched::default();
        for (site, blob) in gone {
            let (key, _) = entry(&blob.target)?;
            self.touch(&mut touched, *site)?.targets.remove(&key);
        }
        self.commit(touched, None, renewal)?;
        gone.iter().try_for_each(|(_, blob)| blob.remove())
    }

    fn touch<'t>(&self, touched: &'t mut Touched, site: Option<&str>) -> Result<&'t mut Targets> {
        match site {
            None => Ok(touched.targets.get_or_insert_with(|| self.targets.signed.clone())),
            Some(site) => {
                let own = self.site(site)?.signed.clone();
                Ok(touched.sites.entry(site.into()).or_insert(own))
            }
        }
    }

    /// Signs what was touched with the keys that count from now on, and puts it into place. `fresh` is a site's first metadata.
    fn commit(&mut self, touched: Touched, fresh: Option<&str>, renewal: &Renewal<'_>) -> Result<()> {
        let Renewal { keys, lifetimes, .. } = renewal;
        let mut files = Vec::new();
        if let Some(mut root) = touched.root {
            root.version = root.version.saturating_add(1);
            root.expires = renewal.until(lifetimes.root);
            // The old keys say that the new ones are right, and these that they are there.
            let mut signers = Vec::new();
            for (ids, threshold) in [self.role_keys(RoleType::Root), keys_of(&root, RoleType::Root)] {
                signers.extend(keys.of("root", &ids, threshold)?);
            }
            self.root = seal(root, &signers);
            files.push((format!("{}.root.json", self.root.signed.version), encoded(&self.root)));
        }
        let mut metas = Vec::new();
        if let Some(mut targets) = touched.targets {
            targets.version = targets.version.saturating_add(1);
            targets.expires = renewal.until(lifetimes.targets);
            let (ids, threshold) = self.role_keys(RoleType::Targets);
            self.targets = seal(targets, &keys.of("targets", &ids, threshold)?);
            metas.push(("targets".to_owned(), self.targets.clone()));
        }
        for (site, mut own) in touched.sites {
            if fresh != Some(site.as_str()) {
                own.version = own.version.saturating_add(1);
            }
            own.expires = renewal.until(lifetimes.targets);
            let delegations = self.delegations();
            let role = delegations.roles.iter().find(|role| role.name == site);
            let (ids, threshold) = role.map_or((Vec::new(), 1), |r| (r.keyids.clone(), r.threshold.get()));
            let sealed = seal(own, &keys.of(&site, &ids, threshold)?);
            self.sites.insert(site.clone(), sealed.clone());
            metas.push((site, sealed));
        }
        let mut snapshot = self.snapshot.signed.clone();
        for (name, sealed) in metas {
            let version = sealed.signed.version.get();
            let bytes = encoded(&sealed);
            snapshot.meta.insert(format!("{name}.json"), meta(version, &bytes));
            files.push((format!("{version}.{name}.json"), bytes));
        }
        let signed_by = |role, name: &str| {
            let (ids, threshold) = self.role_keys(role);
            keys.of(name, &ids, threshold)
        };
        snapshot.version = snapshot.version.saturating_add(1);
        snapshot.expires = renewal.until(lifetimes.snapshot);
        let snapshot: Signed<Snapshot> = seal(snapshot, &signed_by(RoleType::Snapshot, "snapshot")?);
        let bytes = encoded(&snapshot);
        let mut timestamp = self.timestamp.signed.clone();
        timestamp.version = timestamp.version.saturating_add(1);
        timestamp.expires = renewal.until(lifetimes.timestamp);
        timestamp.meta.insert("snapshot.json".into(), meta(snapshot.signed.version.get(), &bytes));
        let timestamp = seal(timestamp, &signed_by(RoleType::Timestamp, "timestamp")?);
        files.push((format!("{}.snapshot.json", snapshot.signed.version), bytes));
        files.push(("timestamp.json".into(), encoded(&timestamp)));
        journal::commit(&self.folder, &files)?;
        (self.snapshot, self.timestamp) = (snapshot, timestamp);
        Ok(())
    }
}

fn meta(version: u64, bytes: &[u8]) -> Metafile {
    Metafile {
        length: Some(bytes.len() as u64),
        hashes: Some(Hashes { sha256: digest(bytes).into(), _extra: HashMap::new() }),
        version: at_least_one(version),
        _extra: HashMap::new(),
    }
}
