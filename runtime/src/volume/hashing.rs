//! Reading and hashing in one pass.

use std::io::{self, Read};

use sha2::{Digest, Sha256};

/// Hands on what it reads and hashes it.
pub(super) struct Hashing<R> {
    inner: R,
    sha: Sha256,
}

impl<R: Read> Hashing<R> {
    pub(super) fn new(inner: R) -> Self {
        Self { inner, sha: Sha256::new() }
    }

    /// Reads what is left, and gives the SHA-256 of everything.
    pub(super) fn finish(mut self) -> io::Result<String> {
        io::copy(&mut self, &mut io::sink())?;
        Ok(hex(self.sha))
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.sha.update(&buffer[..n]);
        Ok(n)
    }
}

impl Hashing<&[u8]> {
    /// The SHA-256 of some bytes, in lower-case hexadecimal.
    pub(super) fn of(bytes: &[u8]) -> String {
        let mut sha = Sha256::new();
        sha.update(bytes);
        hex(sha)
    }
}

/// The digest in lower-case hexadecimal.
pub(super) fn hex(sha: Sha256) -> String {
    let digits =
        |byte: &u8| [byte >> 4, byte & 15].map(|digit| char::from(b"0123456789abcdef"[usize::from(digit)]));
    sha.finalize().iter().flat_map(digits).collect()
}
