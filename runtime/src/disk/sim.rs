//! A disk in memory that keeps what was done to it as a list, so that it can be said what may lie on it if the power went
//! after any of the operations.
//!
//! The model is harsher than file systems are: what was not synced may be lost, kept or torn, in units of 512 bytes, in any
//! order; a name that was made or removed without its folder being synced may be there or not, and the two halves of a
//! renaming are two such changes.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io::{self, ErrorKind};
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Disk, DiskFile, Entry, Lock, longer_than};

/// What a disk writes whole or not at all.
const SECTOR: usize = 512;

type Id = usize;

const ROOT: Id = 0;

#[derive(Debug, Clone)]
enum Node {
    File(Arc<Vec<u8>>),
    Folder(BTreeMap<String, Id>),
}

type Nodes = HashMap<Id, Node>;

/// A change that is not durable before it is synced.
#[derive(Debug, Clone)]
enum Change {
    Name { folder: Id, name: String, to: Option<Id> },
    Write { file: Id, offset: usize, data: Arc<[u8]> },
    Length { file: Id, length: usize },
}

impl Change {
    /// The file or folder whose sync makes it durable.
    fn of(&self) -> Id {
        match self {
            Self::Name { folder, .. } => *folder,
            Self::Write { file, .. } | Self::Length { file, .. } => *file,
        }
    }

    fn apply(&self, nodes: &mut Nodes) {
        match (nodes.get_mut(&self.of()), self) {
            (Some(Node::Folder(entries)), Self::Name { name, to: Some(id), .. }) => {
                entries.insert(name.clone(), *id);
            }
            (Some(Node::Folder(entries)), Self::Name { name, to: None, .. }) => {
                entries.remove(name);
            }
            (Some(Node::File(content)), Self::Write { offset, data, .. }) => {
                let content = Arc::make_mut(content);
                let end = offset + data.len();
                if content.len() < end {
                    content.resize(end, 0);
                }
                content[*offset..end].copy_from_slice(data);
            }
            (Some(Node::File(content)), Self::Length { length, .. }) => {
                Arc::make_mut(content).resize(*length, 0);
            }
            (node, change) => unreachable!("{change:?} of {node:?}"),
        }
    }

    /// The part of a write that lies in each sector.
    fn sectors(&self) -> Vec<Self> {
        let Self::Write { file, offset, data } = self else { return vec![self.clone()] };
        let mut parts = Vec::new();
        let mut at = *offset;
        while at < offset + data.len() {
            let end = ((at / SECTOR + 1) * SECTOR).min(offset + data.len());
            parts.push(Self::Write { file: *file, offset: at, data: data[at - offset..end - offset].into() });
            at = end;
        }
        parts
    }
}

#[derive(Debug, Clone)]
enum Operation {
    /// Changes that belong to one call, and a node that it made.
    Change(Vec<Change>, Option<(Id, Node)>),
    Sync(Id),
}

/// What kind of sync it is: tests leave out one kind.
pub type SyncPoint = &'static str;

/// Tells the kind of a sync from its path and, of a folder, from the name that was made in it last.
pub type Points = fn(&Path, Option<&str>) -> SyncPoint;

/// Operations by what they do, for a test to print.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Writes of content, and changes of length.
    pub writes: usize,
    /// Files and folders made.
    pub made: usize,
    /// Files and folders that were given another name.
    pub renamed: usize,
    /// Files and folders removed.
    pub removed: usize,
    /// Syncs of files and of folders.
    pub synced: usize,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { writes, made, renamed, removed, synced } = self;
        write!(
            f,
            "{writes} writes, {made} files and folders made, {renamed} renamed, {removed} removed, {synced} syncs"
        )
    }
}

/// The running machine's view of the disk.
pub struct SimDisk(Arc<Mutex<State>>);

struct State {
    nodes: Nodes,
    next: Id,
    log: Vec<Operation>,
    points: Points,
    left_out: Option<SyncPoint>,
    /// The name that was made in a folder last.
    last_made: HashMap<Id, String>,
    /// The number of the operation that fails.
    failing: Option<usize>,
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SimDisk {
    /// An empty disk that does nothing when asked to sync `left_out`.
    pub fn new(points: Points, left_out: Option<SyncPoint>) -> Self {
        let nodes = HashMap::from([(ROOT, Node::Folder(BTreeMap::new()))]);
        Self::of(nodes, 1, points, left_out)
    }

    fn of(nodes: Nodes, next: Id, points: Points, left_out: Option<SyncPoint>) -> Self {
        let (log, last_made) = (Vec::new(), HashMap::new());
        Self(Arc::new(Mutex::new(State { nodes, next, log, points, left_out, last_made, failing: None })))
    }

    /// Operations so far, by what they do.
    pub fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        for operation in &locked(&self.0).log {
            *match operation {
                Operation::Sync(_) => &mut tally.synced,
                Operation::Change(_, Some(_)) => &mut tally.made,
                Operation::Change(changes, None) => match &changes[..] {
                    [Change::Name { .. }, _] => &mut tally.renamed,
                    [Change::Name { .. }] => &mut tally.removed,
                    _ => &mut tally.writes,
                },
            } += 1;
        }
        tally
    }

    /// Lets the operation after so many fail for want of space.
    pub fn fail_after(&self, operations: usize) {
        locked(&self.0).failing = Some(operations);
    }

    /// Operations so far.
    pub fn operations(&self) -> usize {
        locked(&self.0).log.len()
    }

    /// The content of a file.
    pub fn content(&self, path: &Path) -> io::Result<Vec<u8>> {
        let state = locked(&self.0);
        let id = state.find(path)?;
        state.file(id).map(|content| content.to_vec())
    }

    /// The names of all files.
    pub fn files(&self) -> Vec<String> {
        fn walk(state: &State, id: Id, path: &str, out: &mut Vec<String>) {
            match &state.nodes[&id] {
                Node::File(_) => out.push(path.to_owned()),
                Node::Folder(entries) => {
                    for (name, id) in entries {
                        walk(state, *id, &format!("{path}/{name}"), out);
                    }
                }
            }
        }
        let mut out = Vec::new();
        walk(&locked(&self.0), ROOT, "", &mut out);
        out
    }
}

impl State {
    fn entries(&self, folder: Id) -> io::Result<&BTreeMap<String, Id>> {
        match &self.nodes[&folder] {
            Node::Folder(entries) => Ok(entries),
            Node::File(_) => Err(ErrorKind::NotADirectory.into()),
        }
    }

    fn file(&self, id: Id) -> io::Result<&Arc<Vec<u8>>> {
        match &self.nodes[&id] {
            Node::File(content) => Ok(content),
            Node::Folder(_) => Err(ErrorKind::IsADirectory.into()),
        }
    }

    fn find(&self, path: &Path) -> io::Result<Id> {
        path.components().try_fold(ROOT, |id, component| match component {
            Component::Normal(name) => {
                let name = name.to_str().ok_or(ErrorKind::InvalidFilename)?;
                self.entries(id)?.get(name).copied().ok_or_else(|| ErrorKind::NotFound.into())
            }
            _ => Ok(id),
        })
    }

    /// The folder in which a path lies, and the name there.
    fn place(&self, path: &Path) -> io::Result<(Id, String)> {
        let name = path.file_name().and_then(|name| name.to_str()).ok_or(ErrorKind::InvalidFilename)?;
        Ok((self.find(path.parent().unwrap_or(Path::new("/")))?, name.to_owned()))
    }

    fn fail_if_due(&mut self) -> io::Result<()> {
        if self.failing == Some(self.log.len()) {
            self.failing = None;
            return Err(ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn run(&mut self, changes: Vec<Change>, new: Option<(Id, Node)>) -> io::Result<()> {
        self.fail_if_due()?;
        self.nodes.extend(new.clone());
        for change in &changes {
            change.apply(&mut self.nodes);
            if let Change::Name { folder, name, to: Some(_) } = change {
                self.last_made.insert(*folder, name.clone());
            }
        }
        self.log.push(Operation::Change(changes, new));
        Ok(())
    }

    fn make(&mut self, path: &Path, node: Node) -> io::Result<Id> {
        let (folder, name) = self.place(path)?;
        if self.entries(folder)?.contains_key(&name) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        let id = self.next;
        self.next += 1;
        self.run(vec![Change::Name { folder, name, to: Some(id) }], Some((id, node)))?;
        Ok(id)
    }

    fn sync(&mut self, id: Id, point: SyncPoint) -> io::Result<()> {
        self.fail_if_due()?;
        if self.left_out != Some(point) {
            self.log.push(Operation::Sync(id));
        }
        Ok(())
    }
}

impl Disk for SimDisk {
    fn create_folder(&self, path: &Path) -> io::Result<bool> {
        let mut state = locked(&self.0);
        if state.find(path).is_ok_and(|id| state.entries(id).is_ok()) {
            return Ok(false);
        }
        state.make(path, Node::Folder(BTreeMap::new())).map(|_| true)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let id = locked(&self.0).make(path, Node::File(Arc::default()))?;
        Ok(Box::new(SimFile { state: Arc::clone(&self.0), id, path: path.to_owned() }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let id = locked(&self.0).find(path)?;
        Ok(Box::new(SimFile { state: Arc::clone(&self.0), id, path: path.to_owned() }))
    }

    fn read(&self, path: &Path, most: u64) -> io::Result<Vec<u8>> {
        let bytes = self.content(path)?;
        if bytes.len() as u64 > most { Err(longer_than(most)) } else { Ok(bytes) }
    }

    fn length(&self, path: &Path) -> io::Result<Option<u64>> {
        let state = locked(&self.0);
        match state.find(path) {
            Ok(id) => Ok(state.file(id).ok().map(|content| content.len() as u64)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<Entry>> {
        let state = locked(&self.0);
        let entry = |(name, id): (&String, &Id)| {
            let bytes = state.file(*id).map_or(0, |content| content.len() as u64);
            Entry { name: name.clone(), bytes, is_folder: state.entries(*id).is_ok() }
        };
        Ok(state.entries(state.find(folder)?)?.iter().map(entry).collect())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = locked(&self.0);
        let ((old, old_name), (folder, name)) = (state.place(from)?, state.place(to)?);
        let id = state.find(from)?;
        let gone = Change::Name { folder: old, name: old_name, to: None };
        state.run(vec![Change::Name { folder, name, to: Some(id) }, gone], None)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = locked(&self.0);
        let id = state.find(path)?;
        state.file(id)?;
        let (folder, name) = state.place(path)?;
        state.run(vec![Change::Name { folder, name, to: None }], None)
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        let mut state = locked(&self.0);
        let id = state.find(path)?;
        if !state.entries(id)?.is_empty() {
            return Err(ErrorKind::DirectoryNotEmpty.into());
        }
        let (folder, name) = state.place(path)?;
        state.run(vec![Change::Name { folder, name, to: None }], None)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        let mut state = locked(&self.0);
        let id = state.find(path)?;
        let point = (state.points)(path, state.last_made.get(&id).map(String::as_str));
        state.sync(id, point)
    }

    fn free_bytes(&self, _: &Path) -> io::Result<u64> {
        Ok(u64::MAX)
    }

    fn lock(&self, _: &Path) -> io::Result<Option<Lock>> {
        Ok(Some(Box::new(())))
    }

    fn wait_lock(&self, _: &Path) -> io::Result<Lock> {
        Ok(Box::new(()))
    }
}

struct SimFile {
    state: Arc<Mutex<State>>,
    id: Id,
    path: PathBuf,
}

impl std::fmt::Debug for SimFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SimFile({})", self.id)
    }
}

impl DiskFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        Ok(locked(&self.state).file(self.id)?.len() as u64)
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = locked(&self.state);
        let content = state.file(self.id)?;
        let part = content.get(offset as usize..offset as usize + out.len());
        out.copy_from_slice(part.ok_or(ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let change = Change::Write { file: self.id, offset: offset as usize, data: data.into() };
        locked(&self.state).run(vec![change], None)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        locked(&self.state).run(vec![Change::Length { file: self.id, length: len as usize }], None)
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = locked(&self.state);
        let point = (state.points)(&self.path, None);
        state.sync(self.id, point)
    }
}

/// What a power cut takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// All that was not synced.
    Everything,
    /// Nothing, as when only the process is killed.
    Nothing,
    /// Content that was not synced; names are kept.
    Content,
    /// Names that were not synced; content is kept.
    Names,
    /// What came after some operation, which is torn.
    Torn(u64),
    /// Any sector and any name that was not synced.
    Shuffled(u64),
}

/// What lies on the disk for certain, and what may.
#[derive(Clone)]
pub struct Platter {
    points: Points,
    durable: Nodes,
    next: Id,
    pending: Vec<Change>,
}

impl Platter {
    /// The disk as it is, all of it durable.
    pub fn of(disk: &SimDisk) -> Self {
        let state = locked(&disk.0);
        Self { points: state.points, durable: state.nodes.clone(), next: state.next, pending: Vec::new() }
    }

    /// Follows the disk's operations `from..to`.
    pub fn follow(&mut self, disk: &SimDisk, from: usize, to: usize) {
        for operation in &locked(&disk.0).log[from..to] {
            match operation {
                Operation::Change(changes, new) => {
                    if let Some((id, node)) = new {
                        self.durable.insert(*id, node.clone());
                        self.next = self.next.max(id + 1);
                    }
                    self.pending.extend(changes.iter().cloned());
                }
                Operation::Sync(id) => {
                    let durable = &mut self.durable;
                    self.pending.retain(|change| {
                        let synced = change.of() == *id;
                        if synced {
                            change.apply(durable);
                        }
                        !synced
                    });
                }
            }
        }
    }

    /// A disk on which the power cut left what `loss` says, running again, with nothing in its list.
    pub fn after(&self, loss: Loss, left_out: Option<SyncPoint>) -> SimDisk {
        let mut nodes = self.durable.clone();
        let is_name = |change: &Change| matches!(change, Change::Name { .. });
        let mut keep = |change: &Change| change.apply(&mut nodes);
        match loss {
            Loss::Everything => {}
            Loss::Nothing => self.pending.iter().for_each(keep),
            Loss::Content => self.pending.iter().filter(|change| is_name(change)).for_each(keep),
            Loss::Names => self.pending.iter().filter(|change| !is_name(change)).for_each(keep),
            Loss::Torn(seed) => {
                let mut random = Random(seed);
                let whole = random.below(self.pending.len() + 1);
                self.pending[..whole].iter().for_each(&mut keep);
                if let Some(torn) = self.pending.get(whole) {
                    let sectors = torn.sectors();
                    sectors[..random.below(sectors.len() + 1)].iter().for_each(keep);
                }
            }
            Loss::Shuffled(seed) => {
                let mut random = Random(seed);
                let sectors = self.pending.iter().flat_map(Change::sectors);
                sectors.filter(|_| random.below(2) == 0).for_each(|change| keep(&change));
            }
        }
        SimDisk::of(nodes, self.next, self.points, left_out)
    }
}

/// What lay on the disk after each of its operations, from none to all.
pub fn every_cut(disk: &SimDisk, mut each: impl FnMut(usize, &Platter)) {
    let points = locked(&disk.0).points;
    let mut platter = Platter::of(&SimDisk::new(points, None));
    for cut in 0..=disk.operations() {
        if cut > 0 {
            platter.follow(disk, cut - 1, cut);
        }
        each(cut, &platter);
    }
}

/// What a cut may take: all that has a name, and `drawn` of each kind that is drawn.
pub fn losses(cut: usize, drawn: usize) -> impl Iterator<Item = Loss> {
    let seeds = (0..drawn).map(move |i| (cut * drawn + i) as u64);
    let drawn = seeds.flat_map(|seed| [Loss::Torn(seed), Loss::Shuffled(seed)]);
    [Loss::Everything, Loss::Nothing, Loss::Content, Loss::Names].into_iter().chain(drawn)
}

/// The first harm that `check` sees on a disk that does not sync `left_out`; `disk` was used without it, too.
pub fn harm(
    disk: &SimDisk,
    left_out: SyncPoint,
    mut check: impl FnMut(usize, SimDisk) -> Result<(), String>,
) -> String {
    let (mut found, mut tried) = (None, 0);
    every_cut(disk, |cut, platter| {
        for loss in losses(cut, 20).filter(|loss| !matches!(loss, Loss::Nothing | Loss::Torn(_))) {
            if found.is_none() {
                tried += 1;
                let harm = check(cut, platter.after(loss, Some(left_out))).err();
                found = harm.map(|harm| format!("cut {cut}, {loss:?}: {harm:.120}"));
            }
        }
    });
    let harm = found.unwrap_or_else(|| panic!("{tried} losses without the sync of {left_out} did no harm"));
    format!("without the sync of {left_out}, after {tried} losses: {harm}")
}

/// SplitMix64 (Steele, Lea, Flood 2014).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}
