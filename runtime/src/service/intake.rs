//! What the DICOM listener gives its instances to: the store, and then whoever waits for them.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use sha2::{Digest as _, Sha256};

use super::assembler::Call;
use super::core::Core;
use crate::ingest::assembly::Event;
use crate::ingest::listener::{End, Receiver, Refusal, Spooled, Status};
use crate::store::{NewInstance, Put, Spool, StoreError};
use crate::tensor::hex;
use crate::volume::Header;

/// Stores instances and tells the assembler.
pub(super) struct Intake {
    pub core: Arc<Core>,
    pub calls: Sender<Call>,
    /// The series that were open when the process ended last; see [`super::early`].
    pub restored: BTreeSet<String>,
}

/// A spool file that is hashed as it is written.
pub(super) struct HashedSpool {
    spool: Spool,
    hash: Sha256,
}

impl io::Write for HashedSpool {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.spool.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.spool.flush()
    }
}

impl Spooled for HashedSpool {
    fn path(&self) -> &Path {
        self.spool.path()
    }
}

impl Receiver for Intake {
    type Spool = HashedSpool;

    fn spool(&self) -> Result<HashedSpool, Refusal> {
        let spool = self.core.store.spool().map_err(|error| self.refuse(&error))?;
        Ok(HashedSpool { spool, hash: Sha256::new() })
    }

    fn received(&self, spool: HashedSpool, header: &Header, association: u64) -> Result<(), Refusal> {
        let Some(series_uid) = header.series_uid.clone() else {
            self.core.totals().refused += 1;
            return Err(Refusal::new(Status::CannotUnderstand, "the data set names no series"));
        };
        // Scanners that count every slice as an acquisition of its own say 1, which tells nothing of the series.
        let expected = header.images_in_acquisition.filter(|&n| n > 1 && header.number_of_frames == 1);
        let HashedSpool { spool, hash } = spool;
        let instance = NewInstance {
            study_uid: header.study_uid.clone(),
            series_uid: series_uid.clone(),
            sop_uid: header.sop_uid.clone(),
            sha256: hex(hash),
            bytes: spool.bytes(),
            expected,
            received: self.core.clock.wall(),
        };
        let put = self.core.store.put(spool, &instance).map_err(|error| self.refuse(&error))?;
        let new = put == Put::New;
        if let Put::Duplicate { same_bytes: false } = put {
            tracing::warn!(association, "an instance came again with another content; the first is kept");
        }
        self.core.totals().received += 1;
        if new {
            let path = self.core.store.instance_path(&series_uid, &header.sop_uid);
            let early = !self.restored.contains(&series_uid);
            let tasks = if early { self.core.tasks.early(header) } else { Vec::new() };
            let tasks = self.core.early.begin(&series_uid, tasks);
            self.core.early.arrived(header.clone(), path, tasks);
        }
        let at = self.core.clock.monotonic();
        self.tell(Event::Instance { series_uid, association, expected, new, at });
        Ok(())
    }

    fn ended(&self, association: u64, how: End) {
        let (released, at) = (how == End::Released, self.core.clock.monotonic());
        self.tell(Event::AssociationEnded { association, released, at });
    }
}

impl Intake {
    fn tell(&self, event: Event) {
        // The assembler ends after the listener; what it does not hear any more is open at the next start.
        let _ = self.calls.send(Call::Event(event));
    }

    /// What a sender is told where the store takes nothing.
    fn refuse(&self, error: &StoreError) -> Refusal {
        self.core.totals().refused += 1;
        tracing::warn!(%error, "an instance cannot be stored");
        let reason = if error.is_full() { "there is no room left" } else { "the instance cannot be stored" };
        Refusal::new(Status::OutOfResources, reason)
    }
}
