//! Bytes to a broker, plain or TLS, with time limits.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::BrokerArgs;
use crate::error::{Result, file, input, machine, malformed};

/// Time for a connection to stand.
const CONNECT: Duration = Duration::from_secs(10);

/// Plain, or TLS.
pub enum Stream {
    /// As it is.
    Plain(TcpStream),
    /// Encrypted.
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Stream {
    /// Connects.
    pub fn open(to: &BrokerArgs) -> Result<Self> {
        let tls = match (to.broker.is_tls(), &to.ca) {
            (false, _) => None,
            (true, Some(ca)) => Some(client(ca, to.client_cert.as_deref().zip(to.client_key.as_deref()))?),
            (true, None) => {
                return Err(input(format!(
                    "the broker {} is reached by TLS: name the file of the authority that its certificate comes from with --ca",
                    to.broker
                )));
            }
        };
        let host = to.broker.bare_host();
        let unreachable = |reason: &dyn std::fmt::Display| {
            machine(format!(
                "the broker {} cannot be reached ({reason}); check that it runs, its address and the network",
                to.broker
            ))
        };
        let addresses = (host, to.broker.port()).to_socket_addrs().map_err(|e| unreachable(&e))?;
        let mut last = unreachable(&"its name has no address");
        for address in addresses {
            match TcpStream::connect_timeout(&address, CONNECT) {
                Ok(tcp) => {
                    tcp.set_nodelay(true).map_err(|e| unreachable(&e))?;
                    let Some(config) = tls else { return Ok(Self::Plain(tcp)) };
                    let name = ServerName::try_from(host.to_owned())
                        .map_err(|_| input(format!("{host} cannot stand in a certificate")))?;
                    let session =
                        ClientConnection::new(Arc::new(config), name).map_err(|e| unreachable(&e))?;
                    return Ok(Self::Tls(Box::new(StreamOwned::new(session, tcp))));
                }
                Err(error) => last = unreachable(&error),
            }
        }
        Err(last)
    }

    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => &tls.sock,
        }
    }

    /// Reads something within `wait`; false at the end.
    pub fn read(&mut self, into: &mut BytesMut, wait: Duration) -> io::Result<bool> {
        self.tcp().set_read_timeout(Some(wait.max(Duration::from_millis(1))))?;
        let mut buffer = [0; 16 << 10];
        let count = match self {
            Self::Plain(tcp) => tcp.read(&mut buffer)?,
            Self::Tls(tls) => tls.read(&mut buffer)?,
        };
        into.extend_from_slice(&buffer[..count]);
        Ok(count > 0)
    }

    /// Writes everything; no write may take longer than `patience`.
    pub fn write(&mut self, bytes: &[u8], patience: Duration) -> io::Result<()> {
        self.tcp().set_write_timeout(Some(patience))?;
        // A handshake reads, too.
        self.tcp().set_read_timeout(Some(patience))?;
        match self {
            Self::Plain(tcp) => tcp.write_all(bytes),
            Self::Tls(tls) => tls.write_all(bytes).and_then(|()| tls.flush()),
        }
    }
}

/// Whether there was only nothing to read yet.
pub fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

/// The first line of a file of one's own.
pub fn password(path: &Path) -> Result<String> {
    let mode = fs::metadata(path).map_err(file(path))?.permissions().mode();
    if mode & 0o007 != 0 {
        return Err(input(format!(
            "{} holds a password and can be read by everybody: take that right away with chmod",
            path.display()
        )));
    }
    let text = fs::read_to_string(path).map_err(file(path))?;
    Ok(text.lines().next().unwrap_or_default().into())
}

/// TLS 1.2 and 1.3, trusting `ca` only.
fn client(ca: &Path, identity: Option<(&Path, &Path)>) -> Result<ClientConfig> {
    let unusable =
        |path: &Path, error: &dyn std::fmt::Display| malformed(path, error, "something that TLS can use");
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca)? {
        roots.add(certificate).map_err(|error| unusable(ca, &error))?;
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(ca, &error))?
        .with_root_certificates(roots);
    let Some((cert, key)) = identity else { return Ok(builder.with_no_client_auth()) };
    let chain = certificates(cert)?;
    let secret =
        PrivateKeyDer::from_pem_file(key).map_err(|error| malformed(key, error, "a private key in PEM"))?;
    builder.with_client_auth_cert(chain, secret).map_err(|error| unusable(cert, &error))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let read =
        CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>);
    match read {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) => Err(malformed(path, "without a certificate", "certificates in PEM")),
        Err(error) => Err(malformed(path, error, "certificates in PEM")),
    }
}
