//! One connection, from its first byte to its last.

use std::collections::BTreeMap;
use std::net::{IpAddr, TcpStream};
use std::sync::Arc;
use std::time::Instant;

use dicom_ul::pdu::{AbortRQServiceProviderReason, AbortRQSource, PDataValue, PDataValueType, Pdu};

use super::command::{C_CANCEL_RQ, C_ECHO_RQ, C_STORE_RQ, Command, MAX_COMMAND};
use super::message::Message;
use super::negotiation::{Context, MAX_REQUEST, busy, negotiate};
use super::wire::{Broken, LINGER, Wire};
use super::{End, Options, Place, Receiver, Refusal, Shared, Status};

/// Serves a connection that was accepted at `started`.
pub(super) fn serve<R: Receiver>(mut place: Place<R>, socket: TcpStream, peer: IpAddr, started: Instant) {
    let shared = place.shared.clone();
    let options = place.options.clone();
    let handshake = started + options.handshake;
    let Ok(mut wire) = Wire::new(socket, options.tls.as_ref(), handshake) else { return };
    let request = match wire.receive(MAX_REQUEST) {
        Ok(Pdu::AssociationRQ(request)) => request,
        Ok(_) => return goodbye(wire, handshake, AbortRQServiceProviderReason::UnexpectedPdu),
        Err(Broken::Garbage) => {
            tracing::debug!(%peer, "closed a connection that does not speak DICOM");
            return goodbye(wire, handshake, AbortRQServiceProviderReason::UnrecognizedPdu);
        }
        Err(broken) => {
            tracing::debug!(%peer, ?broken, "a connection ended before an association");
            return;
        }
    };
    let (calling, called) = (request.calling_ae_title.clone(), request.called_ae_title.clone());
    let agreed = negotiate(request, &options)
        .and_then(|agreed| if place.associate() { Ok(agreed) } else { Err(busy()) });
    let agreed = match agreed {
        Ok(agreed) => agreed,
        Err(rejection) => {
            let reason = rejection.source.to_string();
            tracing::warn!(%peer, calling, called, reason, "rejected an association");
            if wire.send(&Pdu::AssociationRJ(rejection)).is_ok() {
                wire.finish();
            }
            return;
        }
    };
    if wire.send(&Pdu::AssociationAC(agreed.reply)).is_err() {
        return;
    }
    let number = place.number;
    tracing::info!(association = number, %peer, calling, called, "association accepted");
    // Told even if something panics.
    let mut ended = Ended { receiver: shared.receiver.clone(), association: number, how: End::Lost };
    let association = Association {
        shared: &shared,
        options: &options,
        wire,
        number,
        contexts: agreed.contexts,
        deadline: started + options.deadline,
        command: (0, Vec::new()),
        message: None,
        bytes: 0,
        kept: 0,
        refused: 0,
    };
    let (end, wire, reason) = association.run();
    // Whoever waits for the end, or for the place, does not wait for the goodbye.
    ended.how = end;
    drop(ended);
    place.dissociate();
    match reason {
        Some(reason) => goodbye(wire, Instant::now() + LINGER, reason),
        None => wire.finish(),
    }
}

/// Tells the receiver, once.
struct Ended<R: Receiver> {
    receiver: Arc<R>,
    association: u64,
    how: End,
}

impl<R: Receiver> Drop for Ended<R> {
    fn drop(&mut self) {
        self.receiver.ended(self.association, self.how);
    }
}

/// Aborts and closes; the peer is given until `until` at the most to take it.
fn goodbye(mut wire: Wire, until: Instant, reason: AbortRQServiceProviderReason) {
    wire.until(until);
    if wire.send(&Pdu::AbortRQ { source: AbortRQSource::ServiceProvider(reason) }).is_ok() {
        wire.finish();
    }
}

struct Association<'a, R: Receiver> {
    shared: &'a Shared<R>,
    options: &'a Options,
    wire: Wire,
    number: u64,
    contexts: BTreeMap<u8, Context>,
    deadline: Instant,
    /// The fragments of a command so far, and their presentation context.
    command: (u8, Vec<u8>),
    /// The request whose data set is arriving.
    message: Option<Message<R::Spool>>,
    /// Of all data sets.
    bytes: u64,
    kept: u64,
    refused: u64,
}

/// Why the association cannot go on.
enum Stop {
    Wire(Broken),
    Peer(End),
    /// Abort it.
    Abort(AbortRQServiceProviderReason),
}

impl<R: Receiver> Association<'_, R> {
    /// Until it ends: how, and what the peer is to be told.
    fn run(mut self) -> (End, Wire, Option<AbortRQServiceProviderReason>) {
        let stop = loop {
            if let Err(stop) = self.step() {
                break stop;
            }
        };
        let halted = self.shared.halted();
        let (end, reason) = match stop {
            Stop::Peer(end) => (end, None),
            _ if halted => (End::Stopped, Some(AbortRQServiceProviderReason::ReasonNotSpecified)),
            Stop::Wire(Broken::Lost) => (End::Lost, None),
            Stop::Wire(Broken::TimedOut) => {
                (End::TimedOut, Some(AbortRQServiceProviderReason::ReasonNotSpecified))
            }
            Stop::Wire(broken) => (broken.end(), Some(AbortRQServiceProviderReason::UnrecognizedPdu)),
            Stop::Abort(reason) => (End::Violated, Some(reason)),
        };
        let (association, kept, refused, bytes) = (self.number, self.kept, self.refused, self.bytes);
        tracing::info!(association, ?end, kept, refused, bytes, "association ended");
        (end, self.wire, reason)
    }

    /// Takes one PDU.
    fn step(&mut self) -> Result<(), Stop> {
        use AbortRQServiceProviderReason as Reason;
        if self.shared.halted() {
            return Err(Stop::Wire(Broken::Lost));
        }
        self.give_time();
        match self.wire.receive(self.options.max_pdu).map_err(Stop::Wire)? {
            Pdu::PData { data } => data.into_iter().try_for_each(|value| self.value(value)),
            Pdu::ReleaseRQ if self.message.is_none() && self.command.1.is_empty() => {
                self.wire.send(&Pdu::ReleaseRP).map_err(Stop::Wire)?;
                Err(Stop::Peer(End::Released))
            }
            Pdu::AbortRQ { .. } => Err(Stop::Peer(End::Aborted)),
            Pdu::Unknown { .. } => Err(Stop::Abort(Reason::UnrecognizedPdu)),
            _ => Err(Stop::Abort(Reason::UnexpectedPdu)),
        }
    }

    /// For the next whole PDU, or for an answer.
    fn give_time(&mut self) {
        let idle = Instant::now() + self.options.idle;
        self.wire.until(idle.min(self.deadline));
    }

    /// Takes one fragment of a command or data set (PS3.8, 9.3.5.1).
    fn value(&mut self, value: PDataValue) -> Result<(), Stop> {
        use AbortRQServiceProviderReason as Reason;
        let PDataValue { presentation_context_id: id, value_type, is_last, data } = value;
        if !self.contexts.contains_key(&id) {
            return Err(Stop::Abort(Reason::InvalidPduParameter));
        }
        match value_type {
            PDataValueType::Command => {
                let (begun, bytes) = &mut self.command;
                let fits = bytes.len() + data.len() <= MAX_COMMAND && (bytes.is_empty() || *begun == id);
                if self.message.is_some() || !fits {
                    return Err(Stop::Abort(Reason::UnexpectedPduParameter));
                }
                *begun = id;
                bytes.extend(data);
                if is_last {
                    let command = Command::parse(&std::mem::take(bytes));
                    return self.begin(id, command.ok_or(Stop::Abort(Reason::InvalidPduParameter))?);
                }
            }
            PDataValueType::Data => {
                self.bytes = self.bytes.saturating_add(data.len() as u64);
                if self.bytes > self.options.max_association_bytes {
                    return Err(Stop::Abort(Reason::ReasonNotSpecified));
                }
                let Some(message) = self.message.as_mut().filter(|message| message.context == id) else {
                    return Err(Stop::Abort(Reason::UnexpectedPduParameter));
                };
                message.write(&data, self.options);
                if is_last && let Some(message) = self.message.take() {
                    return self.end(message);
                }
            }
        }
        Ok(())
    }

    /// A command is whole.
    fn begin(&mut self, id: u8, command: Command) -> Result<(), Stop> {
        let (options, receiver) = (self.options, &self.shared.receiver);
        let Some(context) = self.contexts.get(&id) else { return Ok(()) };
        let message = match command.field {
            // Nothing here takes long enough to be cancelled.
            C_CANCEL_RQ => return Ok(()),
            C_ECHO_RQ if !command.has_data_set => return self.answer(&command, id, &Ok(())),
            C_STORE_RQ if command.has_data_set => {
                Message::store(command, id, context, options, receiver.as_ref())
            }
            C_STORE_RQ => {
                let refusal = Refusal::new(Status::CannotUnderstand, "no data set follows the command");
                return self.answer(&command, id, &Err(refusal));
            }
            _ if command.is_request() => {
                let refusal =
                    Refusal::new(Status::UnrecognizedOperation, "only C-STORE and C-ECHO are served");
                if !command.has_data_set {
                    return self.answer(&command, id, &Err(refusal));
                }
                Message::refused(command, id, refusal)
            }
            _ => return Err(Stop::Abort(AbortRQServiceProviderReason::UnexpectedPduParameter)),
        };
        self.message = Some(message);
        Ok(())
    }

    /// A data set is whole.
    fn end(&mut self, message: Message<R::Spool>) -> Result<(), Stop> {
        let (command, id) = (message.command.clone(), message.context);
        let outcome = message.end(self.shared.receiver.as_ref(), self.number);
        match &outcome {
            Ok(()) => self.kept += 1,
            Err(refusal) => {
                self.refused += 1;
                tracing::warn!(association = self.number, %refusal, "refused an instance");
            }
        }
        self.answer(&command, id, &outcome)
    }

    fn answer(&mut self, command: &Command, id: u8, outcome: &Result<(), Refusal>) -> Result<(), Stop> {
        let (status, comment) = match outcome {
            Ok(()) => (Status::Success, ""),
            Err(refusal) => (refusal.status, refusal.reason.as_str()),
        };
        let value_type = PDataValueType::Command;
        let data = command.answer(status, comment);
        let value = PDataValue { presentation_context_id: id, value_type, is_last: true, data };
        self.give_time();
        self.wire.send(&Pdu::PData { data: vec![value] }).map_err(Stop::Wire)
    }
}
