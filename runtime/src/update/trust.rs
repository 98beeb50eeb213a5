//! Signed metadata: what the trusted root leads to, verified by tough and kept in [`State`].

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use firmware_config::{Desired, MetadataVersions, TargetRef, TopicLevel, Utc};
use jiff::Timestamp;
use serde::Serialize;
use tough::schema::{Role, RoleKeys, RoleType, Root, Signed, Target, Targets};
use tough::{ExpirationEnforcement, Limits, RepositoryLoader, TargetName};

use super::error::{chain, expired, of_tuf};
use super::source::{Bridge, MAX_METADATA, Source, TargetFile, metadata_url};
use super::state::{Followed, State};
use super::{Attack, UpdateError};
use crate::disk::{Disk, Lock, RealDisk};
use crate::files::create_folders_on;
use crate::tensor::sha256;

/// A new root is looked for so often in a row at most: a thousand would be endless data.
const MAX_ROOTS: u64 = 256;

/// Longest desired state that is read.
const MAX_DESIRED: usize = 128 << 10;

/// The trust of a device: from the root that it was given to what it has seen since.
pub struct Trust {
    disk: Arc<dyn Disk>,
    folder: PathBuf,
    site: TopicLevel,
    state: State,
}

/// A repository whose metadata was verified, all of it at one instant.
#[derive(Debug)]
pub struct Repository {
    inner: tough::Repository,
    source: Arc<dyn Source>,
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trust").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl Trust {
    /// Takes up what is kept in `folder`, or begins with the root file `anchor`, which was brought to this device by a way that its
    /// owner trusts, for a device of `site`. With another anchor than before, trust begins anew: that is how a lost set of root keys is
    /// replaced.
    pub fn open(folder: &Path, anchor: &Path, site: &TopicLevel) -> Result<Self, UpdateError> {
        Self::on(Arc::new(RealDisk::Shared), folder, anchor, site)
    }

    /// As [`Self::open`], with what is kept on any disk.
    pub(super) fn on(
        disk: Arc<dyn Disk>,
        folder: &Path,
        anchor: &Path,
        site: &TopicLevel,
    ) -> Result<Self, UpdateError> {
        let bytes = read_root(anchor)?.0;
        create_folders_on(&*disk, folder, folder).map_err(UpdateError::io(folder))?;
        let digest = sha256(&bytes);
        let kept = State::read(&*disk, &folder.join("trust.json"))?;
        let state = match kept {
            Some(state) if state.anchor == digest => state,
            other => {
                if other.is_some() {
                    tracing::warn!(root = %anchor.display(), "another trusted root than before: trust begins anew");
                }
                State {
                    anchor: digest,
                    root: String::from_utf8_lossy(&bytes).into_owned(),
                    timestamp: None,
                    snapshot: None,
                    targets: None,
                    clock: other.map_or(0, |state| state.clock),
                    desired: None,
                }
            }
        };
        Ok(Self { disk, folder: folder.into(), site: site.clone(), state })
    }

    /// The time that expiry is judged by: the clock's, or the latest that was ever known where the clock lags behind that.
    pub fn time(&self, clock: i64) -> i64 {
        clock.max(self.state.clock)
    }

    /// Loads and verifies the metadata of `source`, and keeps it as the least that is believed from now on. `clock` is Unix time in
    /// seconds.
    ///
    /// # Errors
    /// Whatever makes it not to be believed; nothing is then kept of it.
    pub fn refresh(&mut self, source: &Arc<dyn Source>, clock: i64) -> Result<Repository, UpdateError> {
        let held = self.take_up()?;
        // What tough writes there need not outlive it.
        let scratch = tempfile::tempdir().map_err(UpdateError::io(std::env::temp_dir()))?;
        let kept = [
            ("timestamp.json", &self.state.timestamp),
            ("snapshot.json", &self.state.snapshot),
            ("targets.json", &self.state.targets),
        ];
        for (name, content) in kept {
            if let Some(content) = content {
                fs::write(scratch.path().join(name), content).map_err(UpdateError::io(scratch.path()))?;
            }
        }
        let repository = load(&self.state.root, scratch.path(), source)?;
        repository.unexpired(&self.site, clock.max(self.state.clock))?;
        let read = |name: &str| {
            let path = scratch.path().join(name);
            fs::read_to_string(&path).map_err(UpdateError::io(path))
        };
        let mut next = self.state.clone();
        next.root = read("root.json")?;
        next.timestamp = Some(read("timestamp.json")?);
        next.snapshot = Some(read("snapshot.json")?);
        next.targets = Some(read("targets.json")?);
        next.clock = next.clock.max(clock);
        if next != self.state {
            self.state = next;
            self.write()?;
        }
        drop(held);
        Ok(repository)
    }

    /// The desired state that is followed.
    pub fn desired(&self) -> Option<Desired> {
        self.state.desired.as_ref().and_then(|followed| serde_json::from_str(&followed.signed).ok())
    }

    /// Follows the desired state `envelope` from now on, if the keys of the site's role have signed it, it is for this device, has
    /// not expired and is no older than what is followed; whether it is another one than before.
    pub fn follow(
        &mut self,
        envelope: &[u8],
        repository: &Repository,
        [site, device]: [&TopicLevel; 2],
        clock: i64,
    ) -> Result<bool, UpdateError> {
        let _held = self.take_up()?;
        let current = self.state.desired.as_ref().map_or(0, |followed| followed.revision);
        let refuse = |attack, detail: String| UpdateError::Desired { attack, detail, current };
        if envelope.len() > MAX_DESIRED {
            let detail = format!("it has {} bytes, at most {MAX_DESIRED} are read", envelope.len());
            return Err(refuse(Attack::EndlessData, detail));
        }
        let signed: Signed<Statement> = serde_json::from_slice(envelope)
            .map_err(|error| refuse(Attack::Malformed, format!("it cannot be read: {error}")))?;
        let keys = repository.site_keys(site.as_str()).map_err(|detail| refuse(Attack::Signature, detail))?;
        keys.verify_role(&signed).map_err(|error| refuse(Attack::Signature, chain(&error)))?;
        let Statement(desired) = signed.signed;
        desired.validate().map_err(|invalid| refuse(Attack::Malformed, invalid.to_string()))?;
        if (&desired.site, &desired.device) != (site, device) {
            let detail = format!("it is for {}/{}, this is {site}/{device}", desired.site, desired.device);
            return Err(refuse(Attack::Swapped, detail));
        }
        let now = self.time(clock);
        if Statement::instant(&desired).as_second() < now {
            let detail = format!(
                "it was good until {}, and it is {} by this device's clock",
                desired.expires,
                utc(now)
            );
            return Err(refuse(Attack::Freeze, detail));
        }
        let text = serde_json::to_string(&desired).unwrap_or_default();
        if let Some(followed) = &self.state.desired {
            if followed.signed == text {
                return Ok(false);
            }
            if desired.revision <= followed.revision {
                let detail = format!("it has revision {}, and {current} was seen", desired.revision);
                return Err(refuse(Attack::Rollback, detail));
            }
        }
        self.state.desired = Some(Followed { revision: desired.revision, signed: text });
        self.state.clock = now;
        self.write()?;
        Ok(true)
    }

    /// Takes up what another process has written, and keeps others from writing until the lock is dropped: service and command line
    /// would put each other's older state back.
    fn take_up(&mut self) -> Result<Lock, UpdateError> {
        let lock = self.folder.join("lock");
        let held = self.disk.wait_lock(&lock).map_err(UpdateError::io(&lock))?;
        let kept = State::read(&*self.disk, &self.folder.join("trust.json"))?;
        if let Some(newer) = kept.filter(|kept| kept.anchor == self.state.anchor) {
            self.state = newer;
        }
        Ok(held)
    }

    fn write(&self) -> Result<(), UpdateError> {
        self.state.write(&*self.disk, &self.folder.join("trust.json"))
    }
}

/// The bytes and version of a root file that signs itself.
pub fn read_root(anchor: &Path) -> Result<(Vec<u8>, u64), UpdateError> {
    let wrong = |detail: String| UpdateError::Root { path: anchor.into(), detail };
    let bytes = fs::read(anchor).map_err(|error| wrong(error.to_string()))?;
    let root: Signed<Root> = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
    root.signed.verify_role(&root).map_err(|error| wrong(chain(&error)))?;
    Ok((bytes, root.signed.version.get()))
}

/// Runs tough on what was trusted before, in `scratch`, and on what `source` has now.
fn load(root: &str, scratch: &Path, source: &Arc<dyn Source>) -> Result<Repository, UpdateError> {
    let limits = Limits {
        max_root_size: MAX_METADATA,
        max_targets_size: MAX_METADATA,
        max_timestamp_size: MAX_METADATA,
        max_snapshot_size: MAX_METADATA,
        max_root_updates: MAX_ROOTS,
    };
    let executor = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(UpdateError::io(scratch))?;
    let loader = RepositoryLoader::new(&root, metadata_url(), metadata_url())
        .transport(Bridge(source.clone()))
        .limits(limits)
        .datastore(scratch)
        // tough judges by the machine's clock, which may lag behind what this device has known: [`Repository::unexpired`].
        .expiration_enforcement(ExpirationEnforcement::Unsafe);
    let inner = executor.block_on(loader.load()).map_err(|error| of_tuf(&error, &source.name()))?;
    Ok(Repository { inner, source: source.clone() })
}

impl Repository {
    /// Versions of its metadata.
    pub fn versions(&self) -> MetadataVersions {
        MetadataVersions {
            root: self.inner.root().signed.version.get(),
            timestamp: self.inner.timestamp().signed.version.get(),
            snapshot: self.inner.snapshot().signed.version.get(),
            targets: self.inner.targets().signed.version.get(),
        }
    }

    /// Where it is.
    pub fn source(&self) -> &Arc<dyn Source> {
        &self.source
    }

    /// A file that is signed for `site`: by the role of that name for what is under `SITE/`, by the targets role for what is for all.
    /// With `wanted`, it must have that length and digest too.
    pub fn find(&self, site: &TopicLevel, name: &str) -> Result<TargetRef, UpdateError> {
        let none =
            |detail: String| UpdateError::NoTarget { target: name.into(), site: site.to_string(), detail };
        let plain = TargetRef { name: name.into(), length: 0, sha256: "0".repeat(64) };
        plain.validate().map_err(|invalid| none(invalid.to_string()))?;
        let key = TargetName::new(name).map_err(|error| none(chain(&error)))?;
        let of =
            |targets: &Signed<Targets>| targets.signed.targets.get(&key).map(|found| reference(name, found));
        let found = if name.starts_with(&format!("{site}/")) {
            self.site(site.as_str()).map_err(none)?.and_then(of)
        } else {
            of(self.inner.targets())
        };
        found.ok_or_else(|| none("there is no such name".into()))
    }

    /// The signed file that `wanted` names, where it is the very one.
    pub fn target(&self, site: &TopicLevel, wanted: &TargetRef) -> Result<TargetFile, UpdateError> {
        let found = self.find(site, &wanted.name)?;
        if found != *wanted {
            return Err(UpdateError::Target {
                target: wanted.name.clone(),
                attack: Attack::Swapped,
                detail: format!(
                    "{} bytes with SHA-256 {} are wanted, and the repository signs {} bytes with {}",
                    wanted.length, wanted.sha256, found.length, found.sha256
                ),
            });
        }
        Ok(TargetFile::new(&found))
    }

    /// The backbone with this SHA-256, if the targets role signs it.
    pub fn backbone(&self, sha256: &str) -> Option<TargetRef> {
        let targets = self.inner.targets().signed.targets.iter();
        let mut all = targets.map(|(name, target)| reference(name.resolved(), target));
        all.find(|target| {
            target.name.starts_with("backbones/") && target.sha256 == sha256 && target.validate().is_ok()
        })
    }

    /// The role that the repository delegates a site to.
    fn site(&self, site: &str) -> Result<Option<&Signed<Targets>>, String> {
        let role =
            self.inner.delegated_role(site).ok_or(format!("the repository delegates nothing to {site}"))?;
        Ok(role.targets.as_ref())
    }

    /// The keys of a site's role as those of a root, whose `verify_role` takes any role: signatures and threshold are checked by
    /// tough and not by a second implementation.
    fn site_keys(&self, site: &str) -> Result<Root, String> {
        let delegations = self.inner.targets().signed.delegations.as_ref();
        let nothing = || format!("the repository delegates nothing to site {site}");
        let delegations = delegations.ok_or_else(nothing)?;
        let role = delegations.roles.iter().find(|role| role.name == site).ok_or_else(nothing)?;
        let mut root = self.inner.root().signed.clone();
        root.keys.clone_from(&delegations.keys);
        let keys =
            RoleKeys { keyids: role.keyids.clone(), threshold: role.threshold, _extra: HashMap::default() };
        root.roles = [(RoleType::DelegatedTargets, keys)].into();
        Ok(root)
    }

    /// Checks that nothing of it that matters to `site` has expired at `now`: what another site let lapse is none of ours.
    fn unexpired(&self, site: &TopicLevel, now: i64) -> Result<(), UpdateError> {
        let top = &self.inner;
        let delegated = self.site(site.as_str()).ok().flatten().map(|role| role.signed.expires);
        let roles = [
            (RoleType::Root, Some(top.root().signed.expires)),
            (RoleType::Timestamp, Some(top.timestamp().signed.expires)),
            (RoleType::Snapshot, Some(top.snapshot().signed.expires)),
            (RoleType::Targets, Some(top.targets().signed.expires)),
            (RoleType::DelegatedTargets, delegated),
        ];
        for (role, at) in roles.into_iter().filter_map(|(role, at)| Some((role, at?))) {
            if at.as_second() < now {
                let (at, now) = (at.to_string(), utc(now));
                return Err(expired(role, site.as_str(), &at, now.as_str(), &self.source.name()));
            }
        }
        Ok(())
    }
}

fn reference(name: &str, target: &Target) -> TargetRef {
    let mut sha256 = String::new();
    for byte in target.hashes.sha256.iter() {
        sha256 += &format!("{byte:02x}");
    }
    TargetRef { name: name.into(), length: target.length, sha256 }
}

/// Unix time as it is written.
pub(super) fn utc(seconds: i64) -> Utc {
    let at = Timestamp::from_second(seconds).unwrap_or_default();
    // Years beyond 9999 have no text of this form.
    at.to_string().parse().unwrap_or_else(|_| "1970-01-01T00:00:00Z".parse().expect("an instant"))
}

/// A desired state as a role of tough's, so that tough verifies it.
#[derive(Debug, Clone, Serialize, serde::Deserialize)]
#[serde(transparent)]
struct Statement(Desired);

impl Statement {
    fn instant(desired: &Desired) -> Timestamp {
        // A text that is no instant after all has passed long ago.
        desired.expires.as_str().parse().unwrap_or_default()
    }
}

impl Role for Statement {
    const TYPE: RoleType = RoleType::DelegatedTargets;

    fn expires(&self) -> Timestamp {
        Self::instant(&self.0)
    }

    fn version(&self) -> NonZeroU64 {
        NonZeroU64::new(self.0.revision).unwrap_or(NonZeroU64::MIN)
    }

    fn filename(&self, _: bool) -> String {
        "desired.json".into()
    }
}
