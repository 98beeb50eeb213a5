//! Both ends of a DICOM connection: dcmtk's programs and hand-made messages as the scanner, a folder as what receives.

use std::fs::File;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use dicom_ul::association::ClientAssociation;
use dicom_ul::association::client::ClientAssociationOptions;
use dicom_ul::pdu::{PDataValue, PDataValueType, Pdu};
use runtime::ingest::listener::{End, Listener, Options, Receiver, Refusal, Spooled, Status};
use runtime::volume::Header;
use tempfile::{NamedTempFile, TempDir};

/// The title of every listener here.
pub const TITLE: &str = "SCANSIDE";

/// Keeps each instance as `SOP-INSTANCE-UID.dcm`, synced, and remembers the order of events.
pub struct Folder {
    place: TempDir,
    state: Mutex<State>,
    changed: Condvar,
}

/// What happened, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// An instance is kept.
    Received {
        /// By which association.
        association: u64,
        /// Series Instance UID.
        series_uid: String,
        /// SOP Instance UID.
        sop_uid: String,
    },
    /// An association is over.
    Ended(u64, End),
}

#[derive(Default)]
struct State {
    events: Vec<Event>,
    full: bool,
}

/// A file of a [`Folder`] before it has its name.
pub struct Spool(NamedTempFile);

impl Write for Spool {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Spooled for Spool {
    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Receiver for Folder {
    type Spool = Spool;

    fn spool(&self) -> Result<Spool, Refusal> {
        if self.state().full {
            return Err(Refusal::new(Status::OutOfResources, "the disk is full"));
        }
        let file = tempfile::Builder::new().suffix(".part").tempfile_in(self.place.path());
        file.map(Spool).map_err(|error| Refusal::new(Status::OutOfResources, error.to_string()))
    }

    fn received(&self, Spool(file): Spool, header: &Header, association: u64) -> Result<(), Refusal> {
        let path = self.path(&header.sop_uid);
        let kept = file.as_file().sync_all().and_then(|()| {
            file.persist(&path).map_err(|error| error.error)?;
            File::open(self.place.path())?.sync_all()
        });
        kept.map_err(|error| Refusal::new(Status::OutOfResources, error.to_string()))?;
        let series_uid = header.series_uid.clone().unwrap_or_default();
        let sop_uid = header.sop_uid.clone();
        self.push(Event::Received { association, series_uid, sop_uid });
        Ok(())
    }

    fn ended(&self, association: u64, how: End) {
        self.push(Event::Ended(association, how));
    }
}

impl Folder {
    /// An empty one.
    ///
    /// # Errors
    /// Where no folder can be made.
    pub fn new() -> Result<Arc<Self>> {
        let place = TempDir::new()?;
        Ok(Arc::new(Self { place, state: Mutex::default(), changed: Condvar::new() }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, event: Event) {
        self.state().events.push(event);
        self.changed.notify_all();
    }

    /// From now on there is no room, or there is again.
    pub fn full(&self, full: bool) {
        self.state().full = full;
    }

    /// What happened so far.
    pub fn events(&self) -> Vec<Event> {
        self.state().events.clone()
    }

    /// How the associations ended so far.
    pub fn ends(&self) -> Vec<End> {
        let ends = self.events().into_iter();
        ends.filter_map(|event| if let Event::Ended(_, how) = event { Some(how) } else { None }).collect()
    }

    /// The SOP Instance UIDs that were kept, in order.
    pub fn kept(&self) -> Vec<String> {
        let events = self.events().into_iter();
        events
            .filter_map(|e| if let Event::Received { sop_uid, .. } = e { Some(sop_uid) } else { None })
            .collect()
    }

    /// Where an instance is kept.
    pub fn path(&self, sop_uid: &str) -> PathBuf {
        self.place.path().join(format!("{sop_uid}.dcm"))
    }

    /// Names of all files.
    ///
    /// # Errors
    /// Where the folder cannot be read.
    pub fn files(&self) -> Result<Vec<String>> {
        let entries = std::fs::read_dir(self.place.path())?;
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    /// Waits until the events fulfil `enough`.
    ///
    /// # Panics
    /// Where they do not within a minute.
    pub fn wait(&self, what: &str, enough: impl Fn(&[Event]) -> bool) {
        let until = Instant::now() + Duration::from_mins(1);
        let mut state = self.state();
        while !enough(&state.events) {
            let left = until.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "waited for {what}, but there was only {:?}", state.events);
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until so many associations are over.
    ///
    /// # Panics
    /// Where they are not within a minute.
    pub fn wait_ends(&self, associations: usize) -> Vec<End> {
        let ended = |events: &[Event]| events.iter().filter(|e| matches!(e, Event::Ended(..))).count();
        self.wait("the associations' end", |events| ended(events) >= associations);
        self.ends()
    }
}

/// Options of a listener on a free port of this machine.
pub fn options() -> Options {
    let mut options = Options::new(SocketAddr::from(([127, 0, 0, 1], 0)), TITLE);
    options.idle = Duration::from_secs(30);
    options.deadline = Duration::from_mins(2);
    options
}

/// A listener over an empty folder.
///
/// # Errors
/// Where it cannot start.
pub fn listen(options: Options) -> Result<(Listener<Folder>, Arc<Folder>)> {
    let folder = Folder::new()?;
    Ok((Listener::start(options, folder.clone())?, folder))
}

/// A call of dcmtk's `storescu`, `echoscu` or `dcmsend`: `options`, then the address; files are to be added.
pub fn dcmtk(program: &str, to: SocketAddr, options: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(["-v", "-aec", TITLE]).args(options).args([to.ip().to_string(), to.port().to_string()]);
    command
}

/// Runs a program of dcmtk's to its end: whether it succeeded, and all that it said.
///
/// # Errors
/// Where it is not installed.
pub fn run(command: &mut Command) -> Result<(bool, String)> {
    let Output { status, stdout, stderr } = command
        .output()
        .with_context(|| format!("{command:?} cannot be started; `cargo xtask test` installs dcmtk"))?;
    let said = String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned();
    Ok((status.success(), said))
}

/// An association of which every message is the test's own.
pub struct Hand(pub ClientAssociation<std::net::TcpStream>);

/// CT Image Storage.
pub const CT: &str = "1.2.840.10008.5.1.4.1.1.2";
/// Explicit VR little endian.
pub const EXPLICIT: &str = "1.2.840.10008.1.2.1";

impl Hand {
    /// Proposes CT in explicit little endian.
    ///
    /// # Errors
    /// Where it is rejected.
    pub fn new(to: SocketAddr) -> Result<Self> {
        let options = ClientAssociationOptions::new()
            .calling_ae_title("HAND")
            .called_ae_title(TITLE)
            .with_presentation_context(CT, vec![EXPLICIT])
            .read_timeout(Duration::from_mins(1));
        Ok(Self(options.establish(to)?))
    }

    /// One PDV in a PDU.
    ///
    /// # Errors
    /// Where the connection is gone.
    pub fn send(&mut self, value_type: PDataValueType, is_last: bool, data: &[u8]) -> Result<()> {
        let presentation_context_id = self.0.presentation_contexts()[0].id;
        let value = PDataValue { presentation_context_id, value_type, is_last, data: data.to_vec() };
        Ok(self.0.send(&Pdu::PData { data: vec![value] })?)
    }

    /// A C-STORE request's command.
    ///
    /// # Errors
    /// Where the connection is gone.
    pub fn command(&mut self, sop_class: &str, sop_uid: &str) -> Result<()> {
        let command = [
            element(0, 2, &even(sop_class)),
            element(0, 0x0100, &[1, 0]),
            element(0, 0x0110, &[5, 0]),
            element(0, 0x0700, &[0, 0]),
            element(0, 0x0800, &[1, 0]),
            element(0, 0x1000, &even(sop_uid)),
        ];
        self.send(PDataValueType::Command, true, &command.concat())
    }

    /// The status of the next answer.
    ///
    /// # Errors
    /// Where none comes.
    pub fn status(&mut self) -> Result<u16> {
        match self.0.receive()? {
            Pdu::PData { data } => {
                let answer = &data.first().context("an answer without a value")?.data;
                let at = answer.windows(8).position(|w| *w == [0, 0, 0, 9, 2, 0, 0, 0]);
                let at = at.context("an answer without a status")? + 8;
                Ok(u16::from_le_bytes([answer[at], answer[at + 1]]))
            }
            other => anyhow::bail!("{} instead of an answer", other.short_description()),
        }
    }

    /// A whole C-STORE request and its status.
    ///
    /// # Errors
    /// Where the association ends instead.
    pub fn store(&mut self, sop_class: &str, sop_uid: &str, data_set: &[u8]) -> Result<u16> {
        self.command(sop_class, sop_uid)?;
        let mut parts = data_set.chunks(10_000).peekable();
        while let Some(part) = parts.next() {
            self.send(PDataValueType::Data, parts.peek().is_none(), part)?;
        }
        self.status()
    }
}

/// A UID at even length.
pub fn even(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.resize(text.len().next_multiple_of(2), 0);
    bytes
}

/// An element in implicit little endian.
pub fn element(group: u16, number: u16, value: &[u8]) -> Vec<u8> {
    let length = (value.len() as u32).to_le_bytes();
    [&group.to_le_bytes()[..], &number.to_le_bytes(), &length, value].concat()
}

/// A tiny CT image as a data set in explicit little endian.
pub fn image(sop_uid: &str, series_uid: &str) -> Vec<u8> {
    let explicit = |group: u16, number: u16, vr: &[u8; 2], value: &[u8]| {
        let mut out = [&group.to_le_bytes()[..], &number.to_le_bytes(), vr].concat();
        if vr == b"OW" {
            out.extend([0, 0]);
            out.extend((value.len() as u32).to_le_bytes());
        } else {
            out.extend((value.len() as u16).to_le_bytes());
        }
        out.extend(value);
        out
    };
    [
        explicit(0x0008, 0x0016, b"UI", &even(CT)),
        explicit(0x0008, 0x0018, b"UI", &even(sop_uid)),
        explicit(0x0020, 0x000E, b"UI", &even(series_uid)),
        explicit(0x0028, 0x0010, b"US", &[2, 0]),
        explicit(0x0028, 0x0011, b"US", &[2, 0]),
        explicit(0x7FE0, 0x0010, b"OW", &[1, 0, 2, 0, 3, 0, 4, 0]),
    ]
    .concat()
}
