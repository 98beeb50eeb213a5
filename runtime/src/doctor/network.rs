//! What listens on this box, and the broker that it sends to.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use firmware_config::device::{Device, Listen};

use super::Check;
use crate::ingest::listener::{Tls, echo};
use crate::publish::{Patience, endpoint, probe};
use crate::update::{open_source, read_root};

/// For each answer from this machine or its network.
const PATIENCE: Duration = Duration::from_secs(5);

/// What `http.listen` says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Service {
    /// It is switched off.
    Silent,
    /// Nobody listens there.
    Absent(SocketAddr),
    /// Somebody else does.
    Other(SocketAddr),
    /// It runs: its version, and its trouble if it has one.
    Runs { version: String, trouble: Option<String> },
    /// The address cannot be listened on.
    Nowhere(SocketAddr, String),
}

pub(super) fn service(device: &Device) -> Service {
    let Listen::At(address) = device.http.listen else { return Service::Silent };
    match TcpListener::bind(address) {
        Ok(_) => return Service::Absent(address),
        Err(error) if error.kind() == ErrorKind::AddrInUse => {}
        Err(error) => return Service::Nowhere(address, error.to_string()),
    }
    let get = |path: &str| get(reachable(address), path).unwrap_or_default();
    let metrics = get("/metrics");
    let version = metrics.lines().find_map(|line| {
        line.strip_prefix("scanside_build_info{version=\"").and_then(|rest| rest.split('"').next())
    });
    let Some(version) = version else { return Service::Other(address) };
    let health = get("/healthz");
    let (head, body) = health.split_once("\r\n\r\n").unwrap_or_default();
    let well = head.split(' ').nth(1) == Some("200");
    Service::Runs { version: version.into(), trouble: (!well).then(|| body.trim().into()) }
}

impl Service {
    pub fn check(&self) -> Check {
        let here = env!("CARGO_PKG_VERSION");
        match self {
            Self::Silent => Check::ok("service", "`http.listen` is off, so it cannot be asked"),
            Self::Absent(_) => Check::ok("service", "it does not run"),
            Self::Other(address) => Check::fail(
                "service",
                format!("another program listens at {address}"),
                "give `http.listen` another port",
            ),
            Self::Nowhere(address, error) => Check::fail(
                "service",
                format!("{address} cannot be listened on: {error}"),
                "give `http.listen` an address of this machine",
            ),
            Self::Runs { version, trouble: Some(trouble) } => Check::fail(
                "service",
                format!("{version} runs and is not well: {trouble}"),
                "`journalctl -u scanside` has more",
            ),
            Self::Runs { version, trouble: None } if version != here => Check::warn(
                "service",
                format!("{version} runs, but {here} is installed"),
                "`systemctl restart scanside`",
            ),
            Self::Runs { version, trouble: None } => {
                Check::ok("service", format!("{version} runs and is well"))
            }
        }
    }
}

/// The signed repository: a root that can be trusted, and a source that answers. Where the source is the broker, its own check asks.
pub(super) fn updates(device: &Device) -> Option<Check> {
    let updates = &device.updates;
    let version = match read_root(updates.root.as_ref()?) {
        Ok((_, version)) => version,
        Err(error) => {
            return Some(Check::fail(
                "updates",
                error.to_string(),
                "carry the fleet's root.json to this device",
            ));
        }
    };
    let source = updates.source.as_ref().map(|address| open_source(address, updates.ca.as_deref()));
    let found = match source.transpose().map(Option::flatten) {
        Ok(None) => return Some(Check::ok("updates", format!("the trusted root has version {version}"))),
        Ok(Some(source)) => {
            source.metadata("timestamp.json", 1 << 20).map(|found| (found, source.name())).map_err(Into::into)
        }
        Err(error) => Err(error),
    };
    let remedy = "see `updates.source` in docs/config.md, and docs/fleet.md for what must lie there";
    Some(match found {
        Ok((Some(_), name)) => {
            Check::ok("updates", format!("{name} answers; the trusted root has version {version}"))
        }
        Ok((None, name)) => {
            Check::fail("updates", format!("{name} holds no metadata/timestamp.json"), remedy)
        }
        // What is active goes on without it.
        Err(error) => Check::warn("updates", error.to_string(), remedy),
    })
}

/// The DICOM port: free, or our own service's.
pub(super) fn dicom(device: &Device, service: &Service) -> Check {
    let (dicom, tls) = (&device.dicom, &device.dicom.tls);
    let address = dicom.listen;
    if let (Some(cert), Some(key)) = (&tls.cert, &tls.key)
        && let Err(error) = Tls::open(cert, key, tls.client_ca.as_deref())
    {
        return Check::fail("dicom", error.to_string(), "see docs/config.md, [dicom.tls]");
    }
    match TcpListener::bind(address) {
        Ok(_) => return Check::ok("dicom", format!("{address} is free")),
        Err(error) if error.kind() == ErrorKind::AddrInUse => {}
        // A port below 1024, such as DICOM's own 104: what the service may, this program may not, so it asks.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            if TcpStream::connect_timeout(&reachable(address), PATIENCE).is_err() {
                let remedy =
                    "docs/operations.md, \"The unit\", has how the service is given a port below 1024";
                return Check::warn(
                    "dicom",
                    format!("nobody listens at {address}, which needs a right"),
                    remedy,
                );
            }
        }
        Err(error) => {
            let remedy = "give `dicom.listen` an address of this machine, or 0.0.0.0 for all of them";
            return Check::fail("dicom", format!("{address} cannot be listened on: {error}"), remedy);
        }
    }
    let title = dicom.ae_title.as_str();
    let to = reachable(address);
    // Where it asks for certificates, or lets only scanners in, it would rightly turn us away.
    let lets_us_in = dicom.peers.is_empty() || dicom.peers.iter().any(|network| network.contains(to.ip()));
    if tls.cert.is_some() || !lets_us_in {
        let why = if lets_us_in { "it speaks TLS" } else { "`dicom.peers` leaves this box out" };
        return match service {
            Service::Runs { .. } => Check::ok(
                "dicom",
                format!("{address} is in use and the service runs; no C-ECHO, since {why}"),
            ),
            _ => Check::warn(
                "dicom",
                format!("{address} is in use, by whom cannot be told, since {why}"),
                format!("`ss -ltnp 'sport = :{}'` as root says who it is", address.port()),
            ),
        };
    }
    let calling = dicom.calling.first().map_or("DOCTOR", |title| title.as_str());
    match echo(to, title, calling, PATIENCE) {
        Ok(()) => Check::ok("dicom", format!("{address} answers C-ECHO as {title}")),
        Err(reason) => Check::fail(
            "dicom",
            format!("{address} is in use, but does not answer C-ECHO as {title} ({reason})"),
            format!("`ss -ltnp 'sport = :{}'` as root says who has the port", address.port()),
        ),
    }
}

/// A real connection to the broker, under another client identifier than the service's, which it would throw out.
pub(super) fn broker(device: &Device) -> Check {
    let url = &device.mqtt.url;
    let remedy = "docs/operations.md, \"When results do not arrive\", has the usual reasons";
    let endpoint = match endpoint(&device.mqtt) {
        Ok(endpoint) => endpoint,
        Err(error) => {
            return Check::fail("broker", error.to_string(), "see docs/operations.md, \"TLS and users\"");
        }
    };
    let client = format!("scanside-{}-{}-doctor", device.site, device.device);
    let patience = Patience { connect: PATIENCE, acknowledge: PATIENCE, ..Patience::default() };
    let executor = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(executor) => executor,
        Err(error) => {
            return Check::fail("broker", format!("cannot be asked: {error}"), "see the machine's limits");
        }
    };
    match executor.block_on(probe(&endpoint, &client, &patience)) {
        Ok(()) => Check::ok("broker", format!("{url} lets this device in")),
        Err(error) => Check::fail("broker", error.to_string(), remedy),
    }
}

/// Where one connects to for what listens at `address`: on all addresses means on the loopback one too.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

/// Head and body, whoever answers: of a bounded size, and within a bounded time.
fn get(address: SocketAddr, path: &str) -> io::Result<String> {
    const MOST: usize = 1 << 20;
    let until = Instant::now() + PATIENCE;
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(
        format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes(),
    )?;
    let mut bytes = Vec::new();
    let mut part = [0; 8192];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() || bytes.len() > MOST {
            return Err(ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut part)? {
            0 => return Ok(String::from_utf8_lossy(&bytes).into_owned()),
            n => bytes.extend(&part[..n]),
        }
    }
}
