//! A repository on a static file server.

use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider, parse_pem};
use ureq::{Agent, Body, http::Response};

use super::UpdateError;
use super::source::{Source, SourceError, Take, TargetFile};

/// Time for a connection, and for the server to begin its answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server that sends less than this, over the whole of a file, is left: an endless trickle keeps a device busy for ever.
const LEAST_BYTES_A_SECOND: u64 = 1 << 10;

/// How much is read at a time.
const PIECE: usize = 32 << 10;

/// The address of the folder that holds `metadata` and `targets`.
#[derive(Debug, Clone)]
pub struct Https {
    base: String,
    agent: Agent,
    patience: Duration,
}

impl Https {
    /// A server at `base`, whose certificate must come from an authority in `ca` (PEM). `HTTPS_PROXY` is heeded.
    pub fn new(base: &str, ca: &Path) -> Result<Self, UpdateError> {
        let wrong = |detail: String| UpdateError::State { path: ca.into(), detail, damaged: true };
        let pem = std::fs::read(ca).map_err(|error| wrong(error.to_string()))?;
        let mut roots: Vec<Certificate<'static>> = Vec::new();
        for item in parse_pem(&pem) {
            if let Ok(ureq::tls::PemItem::Certificate(certificate)) = item {
                roots.push(certificate);
            }
        }
        if roots.is_empty() {
            return Err(wrong("holds no certificate in PEM; give `updates.ca` the authority's".into()));
        }
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .unversioned_rustls_crypto_provider(Arc::new(default_provider()))
            .root_certs(RootCerts::new_with_certs(&roots));
        Ok(Self::with(base, Some(tls.build()), PATIENCE))
    }

    /// With a given patience, and without TLS where `tls` is none; what tests use against a server of their own.
    fn with(base: &str, tls: Option<TlsConfig>, patience: Duration) -> Self {
        let config = Agent::config_builder()
            .https_only(tls.is_some())
            .tls_config(tls.unwrap_or_default())
            .http_status_as_error(false)
            .max_redirects(3)
            .timeout_connect(Some(patience))
            .timeout_recv_response(Some(patience))
            .user_agent(crate::infer::BUILD.replace(' ', "/"));
        Self { base: base.trim_end_matches('/').into(), agent: config.build().new_agent(), patience }
    }

    fn failed(&self, detail: impl std::fmt::Display) -> SourceError {
        SourceError::Failed { source_name: self.base.clone(), detail: detail.to_string() }
    }

    fn get(&self, path: &str, from: u64, deadline: Duration) -> Result<Response<Body>, SourceError> {
        let mut request = self.agent.get(format!("{}/{path}", self.base));
        if from > 0 {
            request = request.header("Range", format!("bytes={from}-"));
        }
        // One more second than the reader's own deadline, whose sentence is better.
        let request = request.config().timeout_recv_body(Some(deadline + Duration::from_secs(1))).build();
        request.call().map_err(|error| self.failed(format!("{path}: {error}")))
    }

    /// Reads a body to its end, `limit` or the deadline.
    fn read(
        &self,
        response: Response<Body>,
        file: &str,
        limit: u64,
        deadline: Duration,
        take: &mut Take<'_>,
    ) -> Result<(), SourceError> {
        let begun = Instant::now();
        let mut body = response.into_body().into_reader();
        let (mut piece, mut had) = (vec![0; PIECE], 0);
        let slow = |had: u64| SourceError::TooSlow {
            source_name: self.base.clone(),
            file: file.into(),
            detail: format!("{had} bytes in {:?}", begun.elapsed()),
        };
        loop {
            let n = match body.read(&mut piece) {
                Ok(0) => return Ok(()),
                Ok(n) => n,
                Err(_) if begun.elapsed() >= deadline => return Err(slow(had)),
                Err(error) => return Err(self.failed(format!("{file}: {error}"))),
            };
            had += n as u64;
            if had > limit {
                return Err(SourceError::TooLong {
                    source_name: self.base.clone(),
                    file: file.into(),
                    limit,
                });
            }
            take(&piece[..n]).map_err(|error| self.failed(error))?;
            if begun.elapsed() >= deadline {
                return Err(slow(had));
            }
        }
    }

    /// How long a file of so many bytes may take.
    fn deadline(&self, bytes: u64) -> Duration {
        self.patience + Duration::from_secs(bytes / LEAST_BYTES_A_SECOND)
    }
}

impl Source for Https {
    fn name(&self) -> String {
        self.base.clone()
    }

    fn metadata(&self, file: &str, limit: u64) -> Result<Option<Vec<u8>>, SourceError> {
        // Metadata is a few kilobytes; a server that needs the time of the longest file for it is too slow.
        let deadline = self.patience;
        let response = self.get(&format!("metadata/{file}"), 0, deadline)?;
        match response.status().as_u16() {
            200 => {}
            // Object stores answer 403 for what is not there, where listing is not allowed.
            403 | 404 | 410 => return Ok(None),
            status => return Err(self.failed(format!("metadata/{file}: the server answers {status}"))),
        }
        let mut bytes = Vec::new();
        self.read(response, file, limit, deadline, &mut |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(Some(bytes))
    }

    fn target(&self, target: &TargetFile, from: u64, take: &mut Take<'_>) -> Result<(), SourceError> {
        let path = format!("targets/{}", target.path);
        let rest = target.length.saturating_sub(from);
        let deadline = self.deadline(rest);
        let response = self.get(&path, from, deadline)?;
        let skip = match (response.status().as_u16(), from) {
            (206, _) if begins_at(&response, from) => 0,
            // A server that knows no ranges sends the whole: what is already here is passed over.
            (200, _) => from,
            (status, _) => return Err(self.failed(format!("{path}: the server answers {status}"))),
        };
        let mut skip = skip;
        self.read(response, &path, rest + skip, deadline, &mut |piece: &[u8]| -> io::Result<()> {
            let passed = skip.min(piece.len() as u64);
            skip -= passed;
            take(&piece[passed as usize..])
        })
    }
}

/// Whether a partial answer is the part that was asked for.
fn begins_at(response: &Response<Body>, from: u64) -> bool {
    let range = response.headers().get("content-range").and_then(|value| value.to_str().ok());
    range.is_some_and(|range| range.starts_with(&format!("bytes {from}-")))
}

#[cfg(test)]
mod tests;
