//! A C-STORE request while its data set arrives: into a file, from the first byte to the last.

use std::io::{self, Write};

use super::command::Command;
use super::negotiation::{Context, IMPLEMENTATION_CLASS, IMPLEMENTATION_NAME};
use super::{Options, Receiver, Refusal, Spooled, Status};
use crate::volume::Header;

/// A request that waits for the rest of its data set.
pub(super) struct Message<S> {
    pub(super) command: Command,
    /// The presentation context that the command came in.
    pub(super) context: u8,
    sink: Result<S, Refusal>,
    bytes: u64,
}

impl<S: Spooled> Message<S> {
    /// Begins a C-STORE request. What is to be refused is so from the start; its data set is then read and dropped, since
    /// the sender takes no answer before it has sent all.
    pub(super) fn store<R: Receiver<Spool = S>>(
        command: Command,
        id: u8,
        context: &Context,
        options: &Options,
        receiver: &R,
    ) -> Self {
        let sink = begin(&command, context, options, receiver);
        Self { command, context: id, sink, bytes: 0 }
    }

    /// A request that is refused whatever follows.
    pub(super) fn refused(command: Command, id: u8, refusal: Refusal) -> Self {
        Self { command, context: id, sink: Err(refusal), bytes: 0 }
    }

    /// More of the data set.
    pub(super) fn write(&mut self, data: &[u8], options: &Options) {
        self.bytes = self.bytes.saturating_add(data.len() as u64);
        let Ok(spool) = &mut self.sink else { return };
        if self.bytes > options.max_instance_bytes {
            let limit = options.max_instance_bytes;
            self.sink =
                Err(Refusal::new(Status::OutOfResources, format!("the data set exceeds {limit} bytes")));
        } else if let Err(error) = spool.write_all(data) {
            self.sink = Err(unwritable(&error));
        }
    }

    /// The data set is whole: checks that it is what the command says, and gives it to the receiver.
    pub(super) fn end<R: Receiver<Spool = S>>(self, receiver: &R, association: u64) -> Result<(), Refusal> {
        let mut spool = self.sink?;
        spool.flush().map_err(|error| unwritable(&error))?;
        let header = Header::read(spool.path()).map_err(|error| {
            tracing::debug!(association, %error, "a data set cannot be read");
            if error.is_bad_input() {
                Refusal::new(Status::CannotUnderstand, "the data set is damaged or lacks what an image needs")
            } else {
                Refusal::new(Status::OutOfResources, "the data set cannot be read back")
            }
        })?;
        let said = |uid: &Option<String>| uid.as_deref().unwrap_or_default().to_owned();
        if header.sop_class != said(&self.command.sop_class) {
            return Err(Refusal::new(Status::DataSetMismatch, "the data set is of another SOP class"));
        }
        if header.sop_uid != said(&self.command.sop_instance) {
            return Err(Refusal::new(Status::DataSetMismatch, "the data set is another SOP instance"));
        }
        receiver.received(spool, &header, association)
    }
}

fn begin<R: Receiver>(
    command: &Command,
    context: &Context,
    options: &Options,
    receiver: &R,
) -> Result<R::Spool, Refusal> {
    let (Some(class), Some(instance)) = (&command.sop_class, &command.sop_instance) else {
        return Err(Refusal::new(
            Status::CannotUnderstand,
            "the command names no SOP class or no SOP instance",
        ));
    };
    if *class != context.abstract_syntax || !options.sop_classes.contains(class) {
        let reason = "the SOP class is not that of the presentation context";
        return Err(Refusal::new(Status::SopClassNotSupported, reason));
    }
    let mut spool = receiver.spool()?;
    let meta = file_meta(class, instance, &context.transfer_syntax);
    spool.write_all(&meta).map_err(|error| unwritable(&error))?;
    Ok(spool)
}

fn unwritable(error: &io::Error) -> Refusal {
    tracing::warn!(%error, "a data set cannot be written");
    Refusal::new(Status::OutOfResources, "the data set cannot be written")
}

/// Preamble, prefix and File Meta Information (PS3.10, 7.1). Nothing of the sender is in it: the same instance by
/// another way is the same file.
fn file_meta(class: &str, instance: &str, transfer_syntax: &str) -> Vec<u8> {
    let mut elements = Vec::new();
    let mut text = |element: u16, vr: [u8; 2], value: &str, padding: u8| {
        let mut value = value.as_bytes().to_vec();
        if value.len() % 2 == 1 {
            value.push(padding);
        }
        elements.extend([2, 0]);
        elements.extend(element.to_le_bytes());
        elements.extend(vr);
        elements.extend((value.len() as u16).to_le_bytes());
        elements.extend(value);
    };
    text(0x0002, *b"UI", class, 0);
    text(0x0003, *b"UI", instance, 0);
    text(0x0010, *b"UI", transfer_syntax, 0);
    text(0x0012, *b"UI", IMPLEMENTATION_CLASS, 0);
    text(0x0013, *b"SH", IMPLEMENTATION_NAME, b' ');
    let version = [2, 0, 1, 0, b'O', b'B', 0, 0, 2, 0, 0, 0, 0, 1];
    let mut out = vec![0; 128];
    out.extend(b"DICM");
    out.extend([2, 0, 0, 0, b'U', b'L', 4, 0]);
    out.extend(((version.len() + elements.len()) as u32).to_le_bytes());
    out.extend(version);
    out.extend(elements);
    out
}
