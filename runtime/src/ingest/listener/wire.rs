//! PDUs over a socket, each read and write under an absolute deadline.
//!
//! A socket's own timeout starts anew with every byte, so a peer that sends a byte now and then would hold a thread for
//! ever. Here the time that is left until [`Wire::until`] is set before each system call, under TLS as well as without:
//! whatever the peer does, a call returns by then.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use dicom_ul::association::{Error as UlError, read_pdu_from_wire};
use dicom_ul::pdu::{Pdu, ReadError, write_pdu};
use tokio_rustls::rustls::{ServerConnection, StreamOwned};

use super::{End, Tls};

/// After this device ended an association, what the peer still sends is read and dropped for so long, so that the
/// goodbye is not lost with the connection's reset; never more than [`LINGER_BYTES`].
pub(super) const LINGER: Duration = Duration::from_millis(500);
const LINGER_BYTES: usize = 1 << 20;

/// Why nothing more can be read or sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Broken {
    /// The peer is gone.
    Lost,
    /// The deadline has passed.
    TimedOut,
    /// What came is no PDU, or too long a one.
    Garbage,
}

impl Broken {
    pub(super) fn end(self) -> End {
        match self {
            Self::Lost => End::Lost,
            Self::TimedOut => End::TimedOut,
            Self::Garbage => End::Violated,
        }
    }
}

/// A connection with a peer.
pub(super) struct Wire {
    stream: Stream,
    buffer: BytesMut,
}

enum Stream {
    Plain(Timed),
    Tls(Box<StreamOwned<ServerConnection, Timed>>),
}

struct Timed {
    socket: TcpStream,
    until: Instant,
}

impl Timed {
    fn left(&self) -> io::Result<Duration> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }
}

/// What a socket's timeout gives on Unix.
fn timed_out(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::WouldBlock { io::ErrorKind::TimedOut.into() } else { error }
}

impl Read for Timed {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(Some(self.left()?))?;
        self.socket.read(out).map_err(timed_out)
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(Some(self.left()?))?;
        self.socket.write(bytes).map_err(timed_out)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Wire {
    pub(super) fn new(socket: TcpStream, tls: Option<&Tls>, until: Instant) -> Result<Self, Broken> {
        // Answers are small and waited for.
        socket.set_nodelay(true).map_err(|_| Broken::Lost)?;
        let timed = Timed { socket, until };
        let stream = match tls {
            None => Stream::Plain(timed),
            Some(Tls(config)) => {
                let connection = ServerConnection::new(config.clone()).map_err(|_| Broken::Lost)?;
                Stream::Tls(Box::new(StreamOwned::new(connection, timed)))
            }
        };
        Ok(Self { stream, buffer: BytesMut::new() })
    }

    /// All reading and sending ends then, until another time is set.
    pub(super) fn until(&mut self, at: Instant) {
        self.timed().until = at;
    }

    fn timed(&mut self) -> &mut Timed {
        match &mut self.stream {
            Stream::Plain(timed) => timed,
            Stream::Tls(tls) => &mut tls.sock,
        }
    }

    /// The next PDU, of at most `most` bytes behind its header: dicom-ul's `receive` in strict mode.
    pub(super) fn receive(&mut self, most: u32) -> Result<Pdu, Broken> {
        let buffer = &mut self.buffer;
        let pdu = match &mut self.stream {
            Stream::Plain(plain) => read_pdu_from_wire(plain, buffer, most, true),
            Stream::Tls(tls) => read_pdu_from_wire(tls, buffer, most, true),
        };
        pdu.map_err(|error| match error {
            UlError::ReceivePdu { source: ReadError::ReadPdu { source, .. } } => broken(&source),
            UlError::ConnectionClosed { .. } => Broken::Lost,
            _ => Broken::Garbage,
        })
    }

    pub(super) fn send(&mut self, pdu: &Pdu) -> Result<(), Broken> {
        let mut bytes = Vec::new();
        write_pdu(&mut bytes, pdu).map_err(|_| Broken::Garbage)?;
        let sent = match &mut self.stream {
            Stream::Plain(plain) => plain.write_all(&bytes),
            Stream::Tls(tls) => tls.write_all(&bytes).and_then(|()| tls.flush()),
        };
        sent.map_err(|error| broken(&error))
    }

    /// Says goodbye and closes the connection.
    pub(super) fn finish(mut self) {
        self.until(Instant::now() + LINGER);
        if let Stream::Tls(tls) = &mut self.stream {
            tls.conn.send_close_notify();
            // The peer may be gone, which is what this is for.
            let _ = tls.flush();
        }
        let timed = self.timed();
        let _ = timed.socket.shutdown(Shutdown::Write);
        let (mut rest, mut dropped) = ([0; 4096], 0);
        while let Ok(n) = timed.read(&mut rest)
            && n > 0
            && dropped < LINGER_BYTES
        {
            dropped += n;
        }
    }
}

fn broken(error: &io::Error) -> Broken {
    match error.kind() {
        io::ErrorKind::TimedOut => Broken::TimedOut,
        // What rustls says of a peer that does not speak TLS.
        io::ErrorKind::InvalidData => Broken::Garbage,
        _ => Broken::Lost,
    }
}
