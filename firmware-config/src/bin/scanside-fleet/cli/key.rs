//! `init` and `key`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use tough::schema::RoleType;
use tough::schema::decoded::{Decoded, Hex};
use tough::schema::key::Key as PublicKey;

use super::{Common, renewal};
use crate::error::{Result, input};
use crate::files;
use crate::keys::{KeyPair, Keyring, hex, short};
use crate::repository::{Repository, check_site};

const TOP: [(&str, RoleType); 4] = [
    ("root", RoleType::Root),
    ("targets", RoleType::Targets),
    ("snapshot", RoleType::Snapshot),
    ("timestamp", RoleType::Timestamp),
];

/// Flags of `init`.
#[derive(Args)]
pub struct Init {
    /// Root keys to make; each belongs on a stick of its own afterwards
    #[arg(long, default_value_t = 3, value_name = "N")]
    root_keys: u64,
    /// Root keys that must sign together
    #[arg(long, default_value_t = 2, value_name = "N")]
    threshold: u64,
}

/// Subcommands of `key`.
#[derive(Subcommand)]
pub enum Key {
    /// Add a site: makes its keys, which sign its plugins and its devices' desired states
    AddSite {
        /// The site's name, as `site` in its devices' device.toml
        site: String,
        /// Keys to make
        #[arg(long, default_value_t = 1, value_name = "N")]
        site_keys: u64,
        /// Keys that must sign together
        #[arg(long, default_value_t = 1, value_name = "N")]
        threshold: u64,
    },
    /// Replace keys by new ones: all of a role's, or one
    Rotate {
        /// root, targets, snapshot, timestamp or a site
        role: String,
        /// The id of the one key to replace, or its beginning
        #[arg(long, value_name = "ID")]
        key: Option<String>,
    },
    /// Take a key away without a new one; without --key, a whole site
    Revoke {
        /// root or a site
        role: String,
        /// The key's id, or its beginning
        #[arg(long, value_name = "ID")]
        key: Option<String>,
    },
    /// Show the roles, their keys, and which private keys are at hand
    List,
}

impl Init {
    /// Makes everything.
    pub fn run(&self, common: &Common) -> Result<()> {
        check_threshold(self.root_keys, self.threshold)?;
        let (folder, trusted) = (common.first(), common.trusted());
        if common
            .repository
            .canonicalize()
            .is_ok_and(|r| folder.canonicalize().is_ok_and(|k| k.starts_with(r)))
            || folder.starts_with(&common.repository)
        {
            return Err(input(format!(
                "the keys' folder {} lies inside the repository, which everybody can read: name another with --keys",
                folder.display()
            )));
        }
        if trusted.exists() {
            return Err(input(format!(
                "{} is there: these keys belong to a fleet already; name a new folder with --keys",
                trusted.display()
            )));
        }
        Repository::check_new(&common.repository)?;
        let roots = (0..self.root_keys).map(|_| KeyPair::generate()).collect::<Result<Vec<_>>>()?;
        let others = [KeyPair::generate()?, KeyPair::generate()?, KeyPair::generate()?];
        let mut paths = Vec::new();
        for key in &roots {
            paths.push(key.save(&folder, "root")?);
        }
        for (key, (name, _)) in others.iter().zip(&TOP[1..]) {
            key.save(&folder, name)?;
        }
        let none = Keyring::default();
        let [targets, snapshot, timestamp] = &others;
        let root = Repository::create(
            &common.repository,
            &roots,
            self.threshold,
            [targets, snapshot, timestamp],
            &renewal(&none),
        )?;
        files::write(&trusted, &root)?;
        println!("repository  {}", common.repository.display());
        println!("keys        {}", folder.display());
        println!(
            "root        {} (trusted by you; any {} of {} root keys sign the next)",
            trusted.display(),
            self.threshold,
            self.root_keys
        );
        println!("\nNext:");
        println!("- move each root key to a stick of its own, and keep the sticks apart:");
        for path in paths {
            println!("    {}", path.display());
        }
        println!("- carry {} to each device as updates.root, by a way that you trust", trusted.display());
        println!("- add a site: scanside-fleet key add-site SITE");
        Ok(())
    }
}

impl Key {
    /// Does what is asked.
    pub fn run(&self, common: &Common) -> Result<()> {
        match self {
            Self::AddSite { site, site_keys, threshold } => add_site(common, site, *site_keys, *threshold),
            Self::Rotate { role, key } => change(common, role, key.as_deref(), true),
            Self::Revoke { role, key } => change(common, role, key.as_deref(), false),
            Self::List => list(common),
        }
    }
}

fn check_threshold(keys: u64, threshold: u64) -> Result<()> {
    if !(1..=32).contains(&keys) || !(1..=keys).contains(&threshold) {
        return Err(input(format!(
            "--threshold is {threshold} of {keys} keys, expected from 1 to the number of keys, and at most 32 keys"
        )));
    }
    Ok(())
}

fn add_site(common: &Common, site: &str, count: u64, threshold: u64) -> Result<()> {
    check_site(site)?;
    check_threshold(count, threshold)?;
    let mut repository = common.open()?;
    let mut ring = common.keyring()?;
    if repository.sites().contains_key(site) {
        return Err(input(format!(
            "the site {site} is there already: for other keys, `scanside-fleet key rotate {site}`"
        )));
    }
    let (ids, needed) = repository.role_keys(RoleType::Targets);
    ring.of("targets", &ids, needed)?;
    let ids = new_keys(common, &mut ring, site, count)?;
    let keys = ring.of(site, &ids, count)?;
    repository.add_site(site, &keys, threshold, &renewal(&ring))?;
    println!("site {site}: {threshold} of {count} keys sign for it");
    for id in &ids {
        println!("  {}", ring.path(id).unwrap_or(&common.first()).display());
    }
    Ok(())
}

fn new_keys(common: &Common, ring: &mut Keyring, owner: &str, count: u64) -> Result<Vec<Decoded<Hex>>> {
    (0..count)
        .map(|_| {
            let key = KeyPair::generate()?;
            let id = key.tuf_id();
            let path = key.save(&common.first(), owner)?;
            ring.insert(key, path);
            Ok(id)
        })
        .collect()
}

/// Replaces (or takes away) keys of a role.
fn change(common: &Common, role: &str, one: Option<&str>, replace: bool) -> Result<()> {
    let mut repository = common.open()?;
    let mut ring = common.keyring()?;
    let top = TOP.iter().find(|(name, _)| *name == role).map(|(_, role)| *role);
    let (ids, threshold) = match top {
        Some(role) => repository.role_keys(role),
        None => repository.site_keys(role)?,
    };
    // Who must sign the change is looked for before a new key is made.
    let signer = match top {
        Some(_) => ("root", RoleType::Root),
        None => ("targets", RoleType::Targets),
    };
    let (signers, needed) = repository.role_keys(signer.1);
    ring.of(signer.0, &signers, needed)?;
    if one.is_none() && !replace {
        if top.is_some() {
            return Err(input(format!(
                "{role} cannot do without keys: name the one to take away with --key"
            )));
        }
        repository.remove_site(role, &renewal(&ring))?;
        println!("nobody signs for the site {role} any more; its devices keep what they run");
        return Ok(());
    }
    let (mut kept, mut gone): (Vec<_>, Vec<_>) = (Vec::new(), Vec::new());
    for id in ids {
        let chosen = one.is_none_or(|one| !one.is_empty() && hex(&id).starts_with(one));
        if chosen { gone.push(id) } else { kept.push(id) }
    }
    if one.is_some() && gone.len() != 1 {
        return Err(input(format!(
            "{} keys of {role} have an id that begins with {:?}, expected one: see `scanside-fleet key list`",
            gone.len(),
            one.unwrap_or_default()
        )));
    }
    if !replace && (kept.len() as u64) < threshold {
        return Err(input(format!(
            "{role} needs {threshold} keys and would be left with {}: replace the key with `scanside-fleet key rotate {role} --key {}`",
            kept.len(),
            one.unwrap_or_default()
        )));
    }
    let fresh = if replace { new_keys(common, &mut ring, role, gone.len() as u64)? } else { Vec::new() };
    kept.extend(fresh.iter().cloned());
    match top {
        Some(top) => {
            let public = public_keys(&repository, &ring, &kept)?;
            repository.set_role_keys(top, &public, threshold, &renewal(&ring))?;
            println!("root {} is in force; devices follow by themselves", repository.root().signed.version);
        }
        None => {
            repository.set_site_keys(role, &kept, threshold, &renewal(&ring))?;
        }
    }
    for id in &gone {
        let place = ring.path(id).map(|path| format!(" ({} is of no use any more)", path.display()));
        println!("revoked {role} {}{}", short(&hex(id)), place.unwrap_or_default());
    }
    for id in &fresh {
        println!("new     {}", ring.path(id).map(PathBuf::from).unwrap_or_default().display());
    }
    if top.is_none() {
        println!(
            "desired states that the old keys signed have no force any more: `scanside-fleet desire` signs them again"
        );
    }
    Ok(())
}

/// Public halves, of keys that the root has or that are at hand.
fn public_keys(repository: &Repository, ring: &Keyring, ids: &[Decoded<Hex>]) -> Result<Vec<PublicKey>> {
    let known = &repository.root().signed.keys;
    ids.iter()
        .map(|id| match known.get(id) {
            Some(key) => Ok(key.clone()),
            None => ring.of("key", std::slice::from_ref(id), 1).map(|keys| keys[0].public().clone()),
        })
        .collect()
}

fn list(common: &Common) -> Result<()> {
    let repository = common.open()?;
    let ring = common.keyring()?;
    let line = |name: &str, (ids, threshold): (Vec<Decoded<Hex>>, u64)| {
        println!("{name}: {threshold} of {}", ids.len());
        for id in ids {
            let place = ring.path(&id).map_or("not at hand".into(), |path| path.display().to_string());
            println!("  {}  {place}", hex(&id));
        }
    };
    for (name, role) in TOP {
        line(name, repository.role_keys(role));
    }
    for site in repository.sites().keys() {
        line(site, repository.site_keys(site)?);
    }
    Ok(())
}
