//! `--device`.

mod cuda;
mod memory;

use tch::{Cuda, Device};

pub use memory::peak_bytes;
pub(crate) use memory::upload;

use crate::Error;

/// `cpu`, `cuda` (the first GPU) or `cuda:N`; whether there is such a GPU is for [`open`] to find out.
pub fn parse(text: &str) -> Result<Device, Error> {
    let index = match text {
        "cpu" => return Ok(Device::Cpu),
        "cuda" => Some(0),
        _ => text.strip_prefix("cuda:").and_then(|n| n.parse().ok()),
    };
    index.map(Device::Cuda).ok_or_else(|| unusable(text, "expected cpu, cuda or cuda:N"))
}

/// The device that `text` names, ready for use.
///
/// Where libtorch's CUDA form is not loaded yet, this starts the program again with it and does not return, so only a
/// program that has done nothing yet may call it.
pub fn open(text: &str) -> Result<Device, Error> {
    let device = parse(text)?;
    if let Device::Cuda(index) = device {
        // Before the first question to libtorch, which remembers a "no".
        let torch = cuda::load().map_err(|problem| unusable(text, &problem))?;
        if !Cuda::is_available() {
            let problem = format!(
                "the libtorch in {} sees no GPU: nvidia-smi shows what the driver has",
                torch.display()
            );
            return Err(unusable(text, &problem));
        }
        let count = Cuda::device_count();
        if index as i64 >= count {
            return Err(unusable(text, &format!("the last GPU here is cuda:{}", count - 1)));
        }
    }
    Ok(device)
}

fn unusable(device: &str, problem: &str) -> Error {
    Error::Device { device: device.into(), problem: problem.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_as_in_libtorch() {
        assert_eq!(parse("cpu").unwrap(), Device::Cpu);
        assert_eq!([parse("cuda").unwrap(), parse("cuda:3").unwrap()], [Device::Cuda(0), Device::Cuda(3)]);
        for bad in ["gpu", "cuda:", "cuda:x", "cuda:-1", "CPU"] {
            let error = parse(bad).unwrap_err();
            assert!(error.is_bad_input() && error.to_string().contains("cuda:N"), "{error}");
        }
    }
}
