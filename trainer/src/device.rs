//! `--device`.

use tch::{Cuda, Device};

use crate::Error;

/// `cpu`, `cuda` (the first GPU) or `cuda:N`.
pub fn parse(text: &str) -> Result<Device, Error> {
    let unusable = |problem: &str| Error::Device { device: text.into(), problem: problem.into() };
    let index = match text {
        "cpu" => return Ok(Device::Cpu),
        "cuda" => 0,
        _ => text
            .strip_prefix("cuda:")
            .and_then(|n| n.parse().ok())
            .ok_or_else(|| unusable("expected cpu, cuda or cuda:N"))?,
    };
    if !Cuda::is_available() {
        return Err(unusable(
            "libtorch sees no GPU; the CPU form of libtorch never does: set LD_PRELOAD to the libtorch_cuda.so of a \
             PyTorch of the same version, or build with LIBTORCH pointing to one with CUDA",
        ));
    }
    match Cuda::device_count() {
        count if (index as i64) < count => Ok(Device::Cuda(index)),
        count => Err(unusable(&format!("there are {count} GPUs, numbered from 0"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_as_in_libtorch() {
        assert_eq!(parse("cpu").unwrap(), Device::Cpu);
        for bad in ["gpu", "cuda:", "cuda:x", "cuda:-1", "CPU"] {
            let error = parse(bad).unwrap_err();
            assert!(error.is_bad_input() && error.to_string().contains("cuda:N"), "{error}");
        }
    }
}
