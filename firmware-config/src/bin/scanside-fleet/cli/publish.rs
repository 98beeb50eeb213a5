//! `publish`, `unpublish`, `refresh` and `mirror`.

use std::collections::BTreeSet;
use std::fs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use clap::Args;

use super::{Common, renewal, size};
use crate::error::{Result, file, input, malformed};
use crate::files;
use crate::mirror::{Scope, mirror};
use crate::mqtt::{BrokerArgs, Connection};
use crate::plugin::PluginFile;
use crate::repository::{BACKBONES, Lifetimes, Repository, plugin_name, sha256};

/// Flags of `publish`.
#[derive(Args)]
pub struct Publish {
    /// The plugin file
    #[arg(long, value_name = "FILE", required_unless_present = "backbone")]
    plugin: Option<PathBuf>,
    /// A site that it is for; may be given several times
    #[arg(long, value_name = "SITE", conflicts_with_all = ["all_sites", "backbone"])]
    site: Vec<String>,
    /// For all sites
    #[arg(long, conflicts_with = "backbone")]
    all_sites: bool,
    /// Its merged graph, to say how many times fewer bytes the plugin is
    #[arg(long, value_name = "FILE", requires = "plugin")]
    graph: Option<PathBuf>,
    /// Also a plugin that holds patients' scans among its golden cases
    #[arg(long, requires = "plugin")]
    allow_patient_golden: bool,
    /// A backbone file, for all devices
    #[arg(long, value_name = "FILE", conflicts_with = "plugin")]
    backbone: Option<PathBuf>,
}

/// Flags of `unpublish`.
#[derive(Args)]
pub struct Unpublish {
    /// The target, for example north/lesion-1.0.0.plugin
    #[arg(value_name = "TARGET", required = true)]
    targets: Vec<String>,
}

/// Flags of `refresh`.
#[derive(Args)]
pub struct Refresh {
    /// Further roles to sign again: root, targets, sites
    #[arg(value_name = "ROLE")]
    roles: Vec<String>,
    /// All roles, the root apart
    #[arg(long)]
    all: bool,
}

/// Flags of `mirror`.
#[derive(Args)]
pub struct Mirror {
    #[command(flatten)]
    broker: BrokerArgs,
    /// The site; may be given several times
    #[arg(long, value_name = "SITE", required = true)]
    site: Vec<String>,
    /// Backbones, too, which are large
    #[arg(long)]
    backbones: bool,
    /// Read back every block, and publish again what is missing or damaged
    #[arg(long)]
    verify: bool,
}

impl Publish {
    /// Signs and publishes.
    pub fn run(&self, common: &Common) -> Result<()> {
        match (&self.plugin, &self.backbone) {
            (Some(path), _) => self.plugin(common, path),
            (None, Some(path)) => backbone(common, path),
            (None, None) => Err(input("there is nothing to publish: name a --plugin or a --backbone")),
        }
    }

    fn plugin(&self, common: &Common, path: &Path) -> Result<()> {
        let plugin = PluginFile::read(path)?;
        if let Some(cases) = plugin.manifest.patient_golden().filter(|_| !self.allow_patient_golden) {
            return Err(input(format!(
                "the golden cases {cases} of {} are patients' scans, which every device and whoever reads the repository gets: \
                 export it without them, or say --allow-patient-golden where that is permitted",
                path.display()
            )));
        }
        let task = &plugin.manifest.task;
        let mut repository = common.open()?;
        let sites: BTreeSet<String> = if self.all_sites {
            repository.sites().keys().cloned().collect()
        } else {
            self.site.iter().cloned().collect()
        };
        if sites.is_empty() {
            return Err(input(
                "the plugin is for no site: name it with --site, or take --all-sites; `scanside-fleet key add-site` adds one",
            ));
        }
        let mut new = Vec::new();
        for site in &sites {
            let name = plugin_name(site, &task.name, &task.version);
            if is_new(
                &repository,
                Some(site),
                &name,
                &plugin.bytes,
                "count up its version and export it again",
            )? {
                new.push((Some(site.as_str()), name, plugin.bytes.as_slice()));
            } else {
                println!("{name} is published already");
            }
        }
        if plugin.manifest.accepts.is_none() {
            eprintln!(
                "warning: the plugin's manifest has no `accepts`: services will not give it any series"
            );
        }
        if !new.is_empty() {
            for target in repository.publish(&new, &renewal(&common.keyring()?))? {
                println!("{}  {}", target.name, target.sha256);
            }
        }
        let whole = plugin.bytes.len();
        let without = whole - plugin.golden_bytes;
        println!("over the wire    {} ({whole} bytes)", size(whole as u64));
        println!("without golden   {} ({without} bytes)", size(without as u64));
        if let Some(graph) = &self.graph {
            let bytes = files::read(graph)?;
            if sha256(&bytes) != plugin.manifest.graph_sha256 {
                return Err(malformed(graph, "another graph", "the one that was exported with this plugin"));
            }
            let graph = bytes.len();
            let times = |part: usize| graph as f64 / part as f64;
            println!(
                "graph            {} ({graph} bytes): {:.1} times the plugin, {:.1} times without golden",
                size(graph as u64),
                times(whole),
                times(without)
            );
        }
        Ok(())
    }
}

/// Whether a name is still free; the same file again is nothing new, another one is refused.
fn is_new(repository: &Repository, site: Option<&str>, name: &str, bytes: &[u8], mend: &str) -> Result<bool> {
    let there = repository.blobs(site)?.into_iter().find(|blob| blob.target.name == name);
    match there {
        None => Ok(true),
        Some(blob) if blob.target.sha256 == sha256(bytes) => {
            // Puts back a file that was lost or damaged.
            if blob.read().is_err() {
                files::write(&blob.path, bytes)?;
            }
            Ok(false)
        }
        Some(blob) => Err(input(format!(
            "{name} is published with SHA-256 {}, and this file has {}: {mend}",
            blob.target.sha256,
            sha256(bytes)
        ))),
    }
}

fn backbone(common: &Common, path: &Path) -> Result<()> {
    let mut repository = common.open()?;
    let file_name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let name = format!("{BACKBONES}/{file_name}");
    let bytes = files::read(path)?;
    if is_new(&repository, None, &name, &bytes, "give it another file name")? {
        for target in repository.publish(&[(None, name, &bytes)], &renewal(&common.keyring()?))? {
            println!("{}  {}", target.name, target.sha256);
        }
    } else {
        println!("{name} is published already");
    }
    println!("over the wire    {}", size(bytes.len() as u64));
    Ok(())
}

impl Unpublish {
    /// Takes targets out.
    pub fn run(&self, common: &Common) -> Result<()> {
        let mut repository = common.open()?;
        let mut gone = Vec::new();
        for name in &self.targets {
            let site = name.split('/').next().filter(|site| *site != BACKBONES);
            let found = repository.blobs(site)?.into_iter().find(|blob| blob.target.name == *name);
            let blob = found.ok_or_else(|| {
                input(format!("{name} is not published: see `scanside-fleet audit` for what is"))
            })?;
            gone.push((site, blob));
        }
        repository.unpublish(&gone, &renewal(&common.keyring()?))?;
        for name in &self.targets {
            println!("{name} is gone; devices that run it go on until a desired state names another");
        }
        Ok(())
    }
}

impl Refresh {
    /// Signs again.
    pub fn run(&self, common: &Common) -> Result<()> {
        let mut repository = common.open()?;
        let keys = common.keyring()?;
        let mut roles: BTreeSet<String> = self.roles.iter().cloned().collect();
        if self.all {
            roles.insert("targets".into());
            roles.extend(repository.sites().keys().cloned());
        }
        repository.refresh(&roles, &renewal(&keys))?;
        tidy(&repository)?;
        let lifetimes = Lifetimes::default();
        let now = renewal(&keys);
        let line = |name: &str, version: u64, expires, days| {
            let due = if now.is_due(expires, days) {
                format!("  soon: scanside-fleet refresh {name}")
            } else {
                String::new()
            };
            println!("{name:<20} {version:>6}  until {}{due}", crate::desired::utc(expires));
        };
        let root = &repository.root().signed;
        line("root", root.version.get(), root.expires, lifetimes.root);
        let targets = &repository.targets().signed;
        line("targets", targets.version.get(), targets.expires, lifetimes.targets);
        for (name, site) in repository.sites() {
            line(name, site.signed.version.get(), site.signed.expires, lifetimes.targets);
        }
        let snapshot = &repository.snapshot().signed;
        line("snapshot", snapshot.version.get(), snapshot.expires, lifetimes.snapshot);
        let timestamp = &repository.timestamp().signed;
        line("timestamp", timestamp.version.get(), timestamp.expires, lifetimes.timestamp);
        Ok(())
    }
}

/// Removes metadata that nothing has led to for some versions: a client that began to read before a change may still want the last few.
fn tidy(repository: &Repository) -> Result<()> {
    const KEEP: u64 = 10;
    let folder = repository.folder().join("metadata");
    let meta = &repository.snapshot().signed.meta;
    for entry in fs::read_dir(&folder).map_err(file(&folder))? {
        let name = entry.map_err(file(&folder))?.file_name().to_string_lossy().into_owned();
        let Some((version, role)) = name.split_once('.') else { continue };
        let Ok(version) = version.parse::<u64>() else { continue };
        let current = match role {
            "root.json" => continue,
            "snapshot.json" => repository.snapshot().signed.version.get(),
            other => meta.get(other).map_or(u64::MAX, |meta| meta.version.get()),
        };
        if current != u64::MAX && version + KEEP < current {
            fs::remove_file(folder.join(&name)).map_err(file(&folder))?;
        }
    }
    Ok(())
}

impl Mirror {
    /// Copies to the broker.
    pub fn run(&self, common: &Common) -> Result<()> {
        let repository = common.open()?;
        let mut connection = Connection::open(&self.broker)?;
        let progress = std::io::stderr().is_terminal();
        for site in &self.site {
            let scope = Scope { site, backbones: self.backbones, verify: self.verify };
            let done = mirror(&mut connection, &repository, scope, |n, all| {
                if progress {
                    eprint!("\r{site}: block {n} of {all}{}", if n == all { "\n" } else { "" });
                }
            })?;
            println!(
                "{site}: {} messages published ({}), {} there already, {} cleared",
                done.published,
                size(done.bytes as u64),
                done.kept,
                done.cleared
            );
        }
        Ok(())
    }
}
