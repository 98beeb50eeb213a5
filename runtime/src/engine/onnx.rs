//! ONNX's protobuf messages and files of them: a file's weights are held once while it is read, and a model's not a second time for its
//! digest.

mod messages;

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use prost::Message;
use sha2::{Digest, Sha256};

pub use self::messages::*;
use crate::tensor::hex;

/// Numbers of the fields that hold the weights: a model's graph, a graph's initializers, a tensor's raw data.
const GRAPH: u64 = 7;
const INITIALIZER: u64 = 5;
const RAW_DATA: u64 = 9;
/// A field's kind in protobuf's encoding: its length, then as many bytes.
const DELIMITED: u64 = 2;

/// Why a file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The operating system's word.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// What is not as protobuf or ONNX has it.
    #[error("not ONNX: {0}")]
    Malformed(String),
}

/// Decodes an ONNX file.
pub fn decode(bytes: &[u8]) -> Result<ModelProto, String> {
    ModelProto::decode(bytes).map_err(|e| format!("not ONNX: {e}"))
}

/// Encodes an ONNX file; equal models give equal bytes.
pub fn encode(model: &ModelProto) -> Vec<u8> {
    model.encode_to_vec()
}

/// Reads an ONNX file in one pass; with its SHA-256, taken over the very bytes that were decoded.
pub fn read(path: &Path) -> Result<(ModelProto, String), ReadError> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    read_from(BufReader::with_capacity(1 << 16, file), length)
}

/// As [`read`], from the first `length` bytes of a reader.
pub fn read_from(reader: impl Read, length: u64) -> Result<(ModelProto, String), ReadError> {
    let mut wire = Wire { reader, hash: Sha256::new(), left: length };
    let (mut graph, mut initializers, mut has_graph) = (Vec::new(), Vec::new(), false);
    let model = wire.message(length, GRAPH, &mut |wire, length| {
        has_graph = true;
        let rest = wire.message(length, INITIALIZER, &mut |wire, length| {
            let mut raw_data = Vec::new();
            let rest = wire.message(length, RAW_DATA, &mut |wire, length| {
                raw_data = wire.bytes(length)?;
                Ok(())
            })?;
            let mut tensor = TensorProto::decode(&*rest).map_err(malformed)?;
            tensor.raw_data = raw_data;
            initializers.push(tensor);
            Ok(())
        })?;
        // A message that comes in parts is the parts one after another.
        graph.extend(rest);
        Ok(())
    })?;
    let mut model = ModelProto::decode(&*model).map_err(malformed)?;
    if has_graph {
        let mut graph = GraphProto::decode(&*graph).map_err(malformed)?;
        graph.initializer = initializers;
        model.graph = Some(graph);
    }
    Ok((model, hex(wire.hash)))
}

/// The SHA-256 of what [`encode`] gives, a constant at a time.
pub fn sha256(model: &ModelProto) -> String {
    let (mut hash, mut piece) = (Sha256::new(), Vec::new());
    let mut put = |key: Option<u64>, message: &dyn Fn(&mut Vec<u8>)| {
        piece.clear();
        piece.extend(key.map(|field| (field << 3 | DELIMITED) as u8));
        message(&mut piece);
        hash.update(&piece);
    };
    // Fields are written in the order of their numbers, so what stands before and after the heavy ones is encoded without them.
    let written = "a vector has room";
    let Some(graph) = &model.graph else {
        put(None, &|out| model.encode(out).expect(written));
        return hex(hash);
    };
    let before = ModelProto {
        ir_version: model.ir_version,
        producer_name: model.producer_name.clone(),
        ..ModelProto::default()
    };
    let after = ModelProto {
        opset_import: model.opset_import.clone(),
        metadata_props: model.metadata_props.clone(),
        ..ModelProto::default()
    };
    put(None, &|out| before.encode(out).expect(written));
    put(Some(GRAPH), &|out| prost::encode_length_delimiter(graph.encoded_len(), out).expect(written));
    let head = GraphProto { node: graph.node.clone(), name: graph.name.clone(), ..GraphProto::default() };
    put(None, &|out| head.encode(out).expect(written));
    for tensor in &graph.initializer {
        put(Some(INITIALIZER), &|out| tensor.encode_length_delimited(out).expect(written));
    }
    let tail =
        GraphProto { input: graph.input.clone(), output: graph.output.clone(), ..GraphProto::default() };
    put(None, &|out| tail.encode(out).expect(written));
    put(None, &|out| after.encode(out).expect(written));
    hex(hash)
}

fn malformed(detail: impl std::fmt::Display) -> ReadError {
    ReadError::Malformed(detail.to_string())
}

/// Protobuf's encoding, read once from front to end.
struct Wire<R> {
    reader: R,
    hash: Sha256,
    /// Bytes of the file that have not been read.
    left: u64,
}

impl<R: Read> Wire<R> {
    /// Reads a message of that length and returns it without the field `heavy`, of each of which `read` takes the bytes.
    fn message(
        &mut self,
        length: u64,
        heavy: u64,
        read: &mut dyn FnMut(&mut Self, u64) -> Result<(), ReadError>,
    ) -> Result<Vec<u8>, ReadError> {
        let mut rest = Vec::new();
        let end = self.left.checked_sub(length).ok_or_else(too_short)?;
        while self.left > end {
            let key = self.varint()?;
            let (field, kind) = (key >> 3, key & 7);
            if (field, kind) == (heavy, DELIMITED) {
                let length = self.varint()?;
                read(self, length)?;
                continue;
            }
            prost::encode_length_delimiter(key as usize, &mut rest).map_err(malformed)?;
            let bytes = match kind {
                0 => {
                    let value = self.varint()?;
                    put_varint(value, &mut rest);
                    0
                }
                1 => 8,
                DELIMITED => {
                    let length = self.varint()?;
                    put_varint(length, &mut rest);
                    length
                }
                5 => 4,
                kind => return Err(malformed(format!("a field of kind {kind}"))),
            };
            rest.extend(self.bytes(bytes)?);
        }
        if self.left == end { Ok(rest) } else { Err(malformed("a field that is longer than its message")) }
    }

    fn varint(&mut self) -> Result<u64, ReadError> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.bytes(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(malformed("a number of more than 64 bits"))
    }

    fn bytes(&mut self, length: u64) -> Result<Vec<u8>, ReadError> {
        // Before anything is allocated.
        self.left = self.left.checked_sub(length).ok_or_else(too_short)?;
        let mut bytes = vec![0; usize::try_from(length).map_err(malformed)?];
        self.reader.read_exact(&mut bytes)?;
        self.hash.update(&bytes);
        Ok(bytes)
    }
}

fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn too_short() -> ReadError {
    malformed("it ends too early")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> ModelProto {
        let tensor = |name: &str, n: usize| TensorProto {
            name: name.into(),
            dims: vec![n as i64],
            data_type: 1,
            raw_data: (0..4 * n).map(|i| i as u8).collect(),
            ..TensorProto::default()
        };
        let graph = GraphProto {
            name: "graph".into(),
            node: vec![NodeProto { name: "node".into(), op_type: "Add".into(), ..NodeProto::default() }],
            initializer: vec![tensor("a", 300), tensor("b", 0), tensor("c", 5)],
            input: vec![ValueInfoProto { name: "x".into(), ..ValueInfoProto::default() }],
            output: vec![ValueInfoProto { name: "y".into(), ..ValueInfoProto::default() }],
        };
        let property = StringStringEntryProto { key: "k".into(), value: "v".into() };
        ModelProto {
            ir_version: 8,
            producer_name: "tests".into(),
            graph: Some(graph),
            opset_import: vec![OperatorSetIdProto { domain: String::new(), version: 17 }],
            metadata_props: vec![property],
        }
    }

    #[test]
    fn a_file_is_read_as_it_was_written_and_digested_without_being_held() {
        for model in [model(), ModelProto { graph: None, ..model() }] {
            let bytes = encode(&model);
            let digest = crate::tensor::sha256(&bytes);
            assert_eq!(sha256(&model), digest);
            let (found, digest_of_file) = read_from(&*bytes, bytes.len() as u64).unwrap();
            assert_eq!((found, digest_of_file), (model, digest));
        }
    }

    #[test]
    fn whatever_is_cut_or_changed_is_refused_or_read_as_prost_reads_it() {
        let bytes = encode(&model());
        let read = |bytes: &[u8]| read_from(bytes, bytes.len() as u64).map(|(model, _)| model);
        for end in 0..bytes.len() {
            assert_eq!(read(&bytes[..end]).ok(), decode(&bytes[..end]).ok(), "{end} bytes");
        }
        for at in 0..bytes.len() {
            for flip in [1, 0x80] {
                let mut bytes = bytes.clone();
                bytes[at] ^= flip;
                if let (Ok(found), Ok(expected)) = (read(&bytes), decode(&bytes)) {
                    assert_eq!(found, expected, "byte {at} changed by {flip}");
                }
            }
        }
        // A length that no file has is not allocated.
        let error = read(&[0x3a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]).unwrap_err();
        assert_eq!(error.to_string(), "not ONNX: it ends too early");
    }
}
