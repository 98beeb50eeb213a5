//! Named f32 tensors and their safetensors files.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorView};
use sha2::{Digest, Sha256};

/// A dense f32 tensor in C order.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Length of each axis.
    pub shape: Vec<usize>,
    /// Values, last axis fastest; as many as the product of `shape`.
    pub data: Vec<f32>,
}

/// Tensors by name.
pub type Tensors = BTreeMap<String, Tensor>;

impl Tensor {
    /// A tensor of `shape` with `data`.
    ///
    /// # Panics
    /// Where the number of values is not the product of the shape.
    pub fn new(shape: impl Into<Vec<usize>>, data: Vec<f32>) -> Self {
        let shape = shape.into();
        assert_eq!(shape.iter().product::<usize>(), data.len(), "values of a tensor {shape:?}");
        Self { shape, data }
    }

    /// `[m, n]` to `[n, m]`; any other shape as it is.
    pub(crate) fn transposed(&self) -> Self {
        let [m, n] = self.shape[..] else { return self.clone() };
        let data = (0..n).flat_map(|j| (0..m).map(move |i| self.data[i * n + j])).collect();
        Self::new([n, m], data)
    }

    /// The same values under another shape of the same size.
    pub(crate) fn reshaped(self, shape: impl Into<Vec<usize>>) -> Self {
        Self::new(shape, self.data)
    }
}

/// Why a safetensors file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum TensorError {
    /// The operating system's word.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What happened.
        source: std::io::Error,
    },
    /// The bytes are not safetensors.
    #[error("{path} is not a whole safetensors file ({detail}); fetch or write it again", path = path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// A tensor has a type that is not read.
    #[error("{path}: tensor {name} is of type {found}, expected F32, F16, BF16, F64 or an integer type; convert it", path = path.display())]
    Type {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its type.
        found: String,
    },
}

impl TensorError {
    /// Whether the user's file is at fault, not the machine.
    pub fn is_bad_input(&self) -> bool {
        match self {
            Self::Io { source, .. } => crate::files::names_no_file(source),
            Self::Malformed { .. } | Self::Type { .. } => true,
        }
    }
}

/// What a safetensors file holds.
#[derive(Debug)]
pub struct SafetensorsFile {
    /// Its tensors, converted to f32.
    pub tensors: Tensors,
    /// Its `__metadata__`.
    pub metadata: HashMap<String, String>,
    /// SHA-256 of the file, over the very bytes that the tensors were read from.
    pub sha256: String,
}

/// Reads a safetensors file in one pass; the memory used is that of its tensors and one tensor's bytes.
pub fn read_safetensors(path: &Path) -> Result<SafetensorsFile, TensorError> {
    read_safetensors_where(path, &|_| true)
}

/// Reads the tensors of a safetensors file whose names `keep` approves of; the others are read for the digest only.
pub fn read_safetensors_where(
    path: &Path,
    keep: &dyn Fn(&str) -> bool,
) -> Result<SafetensorsFile, TensorError> {
    let io = |source| TensorError::Io { path: path.into(), source };
    let file = File::open(path).map_err(io)?;
    let length = file.metadata().map_err(io)?.len();
    read_from(BufReader::with_capacity(1 << 20, file), length, path, keep)
}

/// Reads safetensors from memory; `path` names it in errors.
pub fn parse_safetensors(bytes: &[u8], path: &Path) -> Result<SafetensorsFile, TensorError> {
    read_from(bytes, bytes.len() as u64, path, &|_| true)
}

fn read_from(
    mut reader: impl Read,
    length: u64,
    path: &Path,
    keep: &dyn Fn(&str) -> bool,
) -> Result<SafetensorsFile, TensorError> {
    let malformed = |detail: String| TensorError::Malformed { path: path.into(), detail };
    let mut hash = Sha256::new();
    let mut take = |n: usize| -> Result<Vec<u8>, TensorError> {
        let mut bytes = vec![0; n];
        reader.read_exact(&mut bytes).map_err(|source| match source.kind() {
            std::io::ErrorKind::UnexpectedEof => malformed("it ends too early".into()),
            _ => TensorError::Io { path: path.into(), source },
        })?;
        hash.update(&bytes);
        Ok(bytes)
    };

    if length < 8 {
        return Err(malformed(format!("{length} bytes")));
    }
    let mut size = [0; 8];
    size.copy_from_slice(&take(8)?);
    let header_bytes = u64::from_le_bytes(size);
    if header_bytes > (length - 8).min(100 << 20) {
        return Err(malformed(format!("a header of {header_bytes} bytes in a file of {length}")));
    }
    let header: Metadata = serde_json::from_slice(&take(header_bytes as usize)?)
        .map_err(|e| malformed(format!("header: {e}")))?;

    let infos = header.tensors();
    let mut tensors = Tensors::new();
    let mut at = 0;
    for name in header.offset_keys() {
        let info = infos[&name];
        let (start, end) = info.data_offsets;
        let count = info.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let width = info.dtype.bitsize() / 8;
        if start != at || count.and_then(|n| n.checked_mul(width)) != end.checked_sub(start) {
            return Err(malformed(format!(
                "tensor {name} has offsets {start}..{end} for shape {:?}",
                info.shape
            )));
        }
        if end as u64 > length - 8 - header_bytes {
            return Err(malformed(format!("tensor {name} lies behind the end of the file")));
        }
        at = end;
        let bytes = take(end - start)?;
        if !keep(&name) {
            continue;
        }
        let data = to_f32(&bytes, info.dtype).ok_or_else(|| TensorError::Type {
            path: path.into(),
            name: name.clone(),
            found: format!("{:?}", info.dtype),
        })?;
        tensors.insert(name, Tensor::new(info.shape.clone(), data));
    }
    if at as u64 != length - 8 - header_bytes {
        return Err(malformed(format!(
            "{length} bytes, the header accounts for {}",
            at as u64 + 8 + header_bytes
        )));
    }
    let metadata = header.metadata().clone().unwrap_or_default();
    Ok(SafetensorsFile { tensors, metadata, sha256: hex(hash) })
}

fn to_f32(bytes: &[u8], dtype: Dtype) -> Option<Vec<f32>> {
    macro_rules! all {
        ($t:ty, $convert:expr) => {
            bytes
                .chunks_exact(size_of::<$t>())
                .map(|b| $convert(<$t>::from_le_bytes(b.try_into().unwrap_or_default())))
                .collect()
        };
    }
    Some(match dtype {
        Dtype::F32 => all!(f32, |x| x),
        Dtype::F16 => all!(u16, |x| half::f16::from_bits(x).to_f32()),
        Dtype::BF16 => all!(u16, |x| half::bf16::from_bits(x).to_f32()),
        Dtype::F64 => all!(f64, |x| x as f32),
        Dtype::U8 | Dtype::BOOL => all!(u8, f32::from),
        Dtype::I16 => all!(i16, f32::from),
        Dtype::I32 => all!(i32, |x| x as f32),
        Dtype::I64 => all!(i64, |x| x as f32),
        _ => return None,
    })
}

/// The bytes of a safetensors file with these tensors: the same tensors always give the same bytes.
/// At most one entry of `metadata` is written, since the format does not order them.
pub fn safetensors_bytes(tensors: &Tensors, metadata: Option<(&str, &str)>) -> Vec<u8> {
    serialise(tensors, Dtype::F32, |x| x.to_le_bytes().to_vec(), metadata)
}

/// As [`safetensors_bytes`], in half precision: exact for numbers that were [`round_to_f16`].
pub fn safetensors_f16_bytes(tensors: &Tensors) -> Vec<u8> {
    serialise(tensors, Dtype::F16, |x| half::f16::from_f32(x).to_le_bytes().to_vec(), None)
}

fn serialise(
    tensors: &Tensors,
    dtype: Dtype,
    bytes: impl Fn(f32) -> Vec<u8>,
    metadata: Option<(&str, &str)>,
) -> Vec<u8> {
    let bytes: Vec<(&String, &Tensor, Vec<u8>)> =
        tensors.iter().map(|(name, t)| (name, t, t.data.iter().flat_map(|&x| bytes(x)).collect())).collect();
    let views = bytes.iter().map(|(name, t, bytes)| {
        let view = TensorView::new(dtype, t.shape.clone(), bytes).expect("a tensor's bytes fit its shape");
        (name.as_str(), view)
    });
    let metadata = metadata.map(|(k, v)| HashMap::from([(k.to_owned(), v.to_owned())]));
    safetensors::serialize(views, metadata).expect("tensors with few names serialise")
}

/// Rounds to the nearest number of half precision; beyond its range (65,504) a number becomes infinite.
pub fn round_to_f16(data: &mut [f32]) {
    for x in data {
        *x = half::f16::from_f32(*x).to_f32();
    }
}

/// Lower-case hexadecimal of a finished SHA-256.
pub(crate) fn hex(hash: Sha256) -> String {
    let digits = |b: &u8| [b >> 4, b & 15].map(|n| char::from_digit(n.into(), 16).unwrap_or('0'));
    hash.finalize().iter().flat_map(digits).collect()
}

/// SHA-256 of `bytes` in lower-case hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex(Sha256::new_with_prefix(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Tensors {
        let a = Tensor::new([2, 3], (0..6).map(|x| x as f32).collect());
        Tensors::from([("a".into(), a), ("b".into(), Tensor::new([1], vec![-0.5]))])
    }

    #[test]
    fn bytes_are_deterministic_and_read_back() {
        let bytes = safetensors_bytes(&sample(), Some(("name", "x")));
        assert_eq!(bytes, safetensors_bytes(&sample(), Some(("name", "x"))));
        let file = parse_safetensors(&bytes, Path::new("x")).unwrap();
        assert_eq!(file.tensors, sample());
        assert_eq!(file.metadata["name"], "x");
        assert_eq!(file.sha256, sha256(&bytes));
    }

    #[test]
    fn every_truncation_and_any_tail_is_refused() {
        let bytes = safetensors_bytes(&sample(), None);
        for n in 0..bytes.len() {
            let error = parse_safetensors(&bytes[..n], Path::new("cut")).unwrap_err();
            assert!(error.is_bad_input(), "{error}");
        }
        let longer = [bytes.as_slice(), &[0]].concat();
        assert!(parse_safetensors(&longer, Path::new("long")).is_err());
    }
}
