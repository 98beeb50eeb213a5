//! What a scanner sends to: a DICOM Verification and Storage SCP (PS3.4, A and B).
//!
//! An instance is acknowledged only after [`Receiver::received`] has returned, which is when it is durable; until then
//! its data set runs from the socket into the receiver's spool, a PDU at a time, so memory is bounded by the PDU size
//! and not by what is sent. An association that breaks off drops the instance under way and nothing else.
//!
//! **Threads with blocking sockets**, one an association: their number is bounded anyway, receiving ends in a file
//! that is synced, which blocks, and every system call is given the time that is left until an absolute deadline (see
//! `wire`), which a runtime's timers could not promise for code that blocks. Deadlines are for the handshake, for each
//! whole PDU (so a byte now and then does not help), and for the association.
//!
//! What it refuses: peers outside the allowed networks, before a byte is read; called and calling AE titles that it was
//! not told of; more associations than it was told to serve; SOP classes and transfer syntaxes that cannot be used
//! later; PDUs and instances beyond their limits; whatever is no DICOM. It never believes a length.
//!
//! No UID is logged above debug level, and no data set at all.

mod association;
mod command;
mod echo;
mod error;
mod message;
mod negotiation;
mod options;
mod tls;
mod wire;

use std::collections::BTreeMap;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::volume::Header;

pub use echo::echo;
pub use error::ListenError;
pub use options::{CT_AND_MR, Options};
pub use tls::Tls;

/// How long an association that is cut off by a shutdown may take to notice.
const CUT_OFF: Duration = Duration::from_secs(5);

/// Where instances go. Its methods are called from several threads at a time.
pub trait Receiver: Send + Sync + 'static {
    /// A file that is being written; dropped, it is gone.
    type Spool: Spooled;

    /// A new file for an instance that is about to be sent.
    ///
    /// # Errors
    /// If there is no room, before the data set is read.
    fn spool(&self) -> Result<Self::Spool, Refusal>;

    /// Keeps an instance; when this returns, no power cut can lose it.
    ///
    /// # Errors
    /// Whatever the sender is to be told instead of an acknowledgement.
    fn received(&self, spool: Self::Spool, header: &Header, association: u64) -> Result<(), Refusal>;

    /// Called once for every association that was accepted, after its last instance.
    fn ended(&self, association: u64, how: End);
}

/// A file that an instance is written into.
pub trait Spooled: io::Write {
    /// Where it is.
    fn path(&self) -> &Path;
}

impl Spooled for crate::store::Spool {
    fn path(&self) -> &Path {
        crate::store::Spool::path(self)
    }
}

/// Why an instance is not kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason} (DICOM status {:04X})", status.code())]
pub struct Refusal {
    /// What the sender is told.
    pub status: Status,
    /// A few words for the sender's log, of which DICOM passes on 64 characters; nothing of the patient's.
    pub reason: String,
}

impl Refusal {
    /// A refusal with its reason.
    pub fn new(status: Status, reason: impl Into<String>) -> Self {
        Self { status, reason: reason.into() }
    }
}

/// DIMSE statuses (PS3.4, B.2.3 and PS3.7, C).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// 0000: kept.
    Success,
    /// A700: no room; the sender should try again later.
    OutOfResources,
    /// A900: the data set is another instance than the command says.
    DataSetMismatch,
    /// C000: not readable as what it should be.
    CannotUnderstand,
    /// 0122: a SOP class that was not agreed on.
    SopClassNotSupported,
    /// 0211: a request that no storage service knows.
    UnrecognizedOperation,
}

impl Status {
    /// The value of (0000,0900).
    pub fn code(self) -> u16 {
        match self {
            Self::Success => 0x0000,
            Self::OutOfResources => 0xA700,
            Self::DataSetMismatch => 0xA900,
            Self::CannotUnderstand => 0xC000,
            Self::SopClassNotSupported => 0x0122,
            Self::UnrecognizedOperation => 0x0211,
        }
    }
}

/// How an association ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The sender released it: it has sent all that it wanted.
    Released,
    /// The sender aborted it.
    Aborted,
    /// The connection broke.
    Lost,
    /// Nothing whole came for too long, or the association had lasted as long as it may.
    TimedOut,
    /// This device aborted it because the sender broke the protocol or a limit.
    Violated,
    /// This device was shut down.
    Stopped,
}

/// A running listener. Dropped, it stops at once; [`Self::shutdown`] lets associations finish.
pub struct Listener<R: Receiver> {
    address: SocketAddr,
    socket: TcpListener,
    shared: Arc<Shared<R>>,
    thread: Option<JoinHandle<()>>,
}

struct Shared<R> {
    /// Those of the connections to come; each keeps the ones that it began with.
    options: RwLock<Arc<Options>>,
    receiver: Arc<R>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// All connections by their number, for cutting them off.
    connections: BTreeMap<u64, TcpStream>,
    /// How many of them are associations.
    associations: usize,
    last: u64,
    /// Accept nothing more.
    stopping: bool,
    /// End what runs.
    halted: bool,
}

impl<R: Receiver> Listener<R> {
    /// Starts to listen.
    pub fn start(options: Options, receiver: Arc<R>) -> Result<Self, ListenError> {
        options.validate()?;
        let bind = |source| ListenError::Bind { address: options.listen, source };
        let socket = TcpListener::bind(options.listen).map_err(bind)?;
        let address = socket.local_addr().map_err(bind)?;
        let accepting = socket.try_clone().map_err(bind)?;
        let options = RwLock::new(Arc::new(options));
        let shared = Arc::new(Shared { options, receiver, state: Mutex::default(), changed: Condvar::new() });
        let thread = thread::Builder::new()
            .name("dicom".into())
            .spawn({
                let shared = shared.clone();
                move || accept(&shared, &accepting)
            })
            .map_err(|source| ListenError::Thread { source })?;
        tracing::info!(%address, "listening for DICOM");
        Ok(Self { address, socket, shared, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many associations run at present.
    pub fn associations(&self) -> usize {
        self.shared.state().associations
    }

    /// As [`Self::associations`], for whoever does not hold the listener; 0 once it has ended.
    pub fn watch(&self) -> impl Fn() -> usize + Send + Sync + use<R> {
        let shared = Arc::downgrade(&self.shared);
        move || shared.upgrade().map_or(0, |shared| shared.state().associations)
    }

    /// Changes what holds for connections from now on; the address and TLS stay as they are.
    ///
    /// # Errors
    /// [`ListenError::Option`] for options against their own rules; the old ones then stay.
    pub fn set_options(&self, options: Options) -> Result<(), ListenError> {
        options.validate()?;
        let mut current = self.shared.options.write().unwrap_or_else(PoisonError::into_inner);
        let Options { listen, tls, .. } = &**current;
        *current = Arc::new(Options { listen: *listen, tls: tls.clone(), ..options });
        Ok(())
    }

    /// Accepts nothing more, lets associations run for `grace` and then aborts them. Returns how many were aborted.
    pub fn shutdown(mut self, grace: Duration) -> usize {
        self.stop_accepting();
        self.shared.wait(grace);
        let cut_off = self.shared.halt(Shutdown::Read);
        if !self.shared.wait(CUT_OFF) {
            self.shared.halt(Shutdown::Both);
            // Whoever is not gone by now syncs a file, and will not be waited for.
            self.shared.wait(CUT_OFF);
        }
        cut_off
    }

    fn stop_accepting(&mut self) {
        self.shared.state().stopping = true;
        // Wakes the thread in its call of accept.
        if let Err(error) = socket2::SockRef::from(&self.socket).shutdown(Shutdown::Both) {
            tracing::debug!(%error, "the listening socket was closed already");
        }
        if let Some(thread) = self.thread.take() {
            // It ends in any case; a panic in it has been told.
            let _ = thread.join();
        }
    }
}

impl<R: Receiver> Drop for Listener<R> {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.stop_accepting();
        }
        self.shared.halt(Shutdown::Both);
    }
}

/// Hands each connection to a thread of its own.
fn accept<R: Receiver>(shared: &Arc<Shared<R>>, listener: &TcpListener) {
    loop {
        let accepted = listener.accept();
        if shared.state().stopping {
            return;
        }
        let (socket, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Too many open files, or a connection that was gone at once; neither is to keep a core busy.
                tracing::warn!(%error, "no DICOM connection could be accepted");
                thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        let address = peer.ip();
        let options = shared.options();
        if !options.peers.is_empty() && !options.peers.iter().any(|n| n.contains(address)) {
            tracing::warn!(%address, "closed a connection from outside the allowed networks");
            continue;
        }
        let Some(place) = Place::take(shared, options, &socket) else {
            tracing::warn!(%address, "closed a connection because too many are waiting for an association");
            continue;
        };
        let spawned = thread::Builder::new()
            .name(format!("dicom-{}", place.number))
            .spawn(move || association::serve(place, socket, address, Instant::now()));
        if let Err(error) = spawned {
            tracing::warn!(%error, %address, "closed a connection for want of a thread");
        }
    }
}

impl<R> Shared<R> {
    fn options(&self) -> Arc<Options> {
        self.options.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn halted(&self) -> bool {
        self.state().halted
    }

    /// Until no connection is left, or `most` has passed; whether none is.
    fn wait(&self, most: Duration) -> bool {
        let waited =
            self.changed.wait_timeout_while(self.state(), most, |state| !state.connections.is_empty());
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.connections.is_empty()
    }

    /// Ends all connections' reading, or both directions; how many associations that hits.
    fn halt(&self, how: Shutdown) -> usize {
        let mut state = self.state();
        state.halted = true;
        for socket in state.connections.values() {
            // The peer may have been faster.
            let _ = socket.shutdown(how);
        }
        state.associations
    }
}

/// A connection's place among those that are served, given back when dropped.
struct Place<R: Receiver> {
    shared: Arc<Shared<R>>,
    options: Arc<Options>,
    number: u64,
    associated: bool,
}

impl<R: Receiver> Place<R> {
    /// `None` if too many connections are no associations yet.
    fn take(shared: &Arc<Shared<R>>, options: Arc<Options>, socket: &TcpStream) -> Option<Self> {
        let socket = socket.try_clone().ok()?;
        let mut state = shared.state();
        if state.connections.len() - state.associations >= options.max_handshakes {
            return None;
        }
        state.last += 1;
        let number = state.last;
        state.connections.insert(number, socket);
        drop(state);
        Some(Self { shared: shared.clone(), options, number, associated: false })
    }

    /// Makes it an association; false if there are as many as there may be.
    fn associate(&mut self) -> bool {
        let mut state = self.shared.state();
        if state.associations >= self.options.max_associations {
            return false;
        }
        state.associations += 1;
        self.associated = true;
        true
    }

    /// The association is over; the connection remains until the place is dropped.
    fn dissociate(&mut self) {
        self.shared.state().associations -= usize::from(self.associated);
        self.associated = false;
    }
}

impl<R: Receiver> Drop for Place<R> {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.connections.remove(&self.number);
        state.associations -= usize::from(self.associated);
        drop(state);
        self.shared.changed.notify_all();
    }
}
