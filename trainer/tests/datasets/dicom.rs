//! A tiny DICOM writer: explicit VR little endian, single-frame CT.

use std::path::Path;

/// A series to be written.
pub struct Series<'a> {
    /// Series Instance UID; slice k is `UID.k`.
    pub uid: &'a str,
    /// Columns, rows, slices.
    pub dims: [usize; 3],
    /// Distances along them, in mm.
    pub spacing: [f64; 3],
    /// How far each slice is shifted along its rows' axis, in mm, as with a tilted gantry.
    pub tilt: f64,
    /// HU at column, row and slice.
    pub value: &'a dyn Fn(usize, usize, usize) -> i16,
}

impl Series<'_> {
    /// Writes the slices to `folder`, which is made, slice k as `name(k)`.
    pub fn write(&self, folder: &Path, name: impl Fn(usize) -> String) {
        std::fs::create_dir_all(folder).unwrap();
        for k in 0..self.dims[2] {
            std::fs::write(folder.join(name(k)), self.slice(k)).unwrap();
        }
    }

    fn slice(&self, k: usize) -> Vec<u8> {
        let [columns, rows, _] = self.dims;
        let (class, sop) = ("1.2.840.10008.5.1.4.1.1.2", format!("{}.{k}", self.uid));
        let mut meta = Vec::new();
        put(&mut meta, (2, 1), "OB", &[0, 1]);
        text(&mut meta, (2, 2), "UI", class);
        text(&mut meta, (2, 3), "UI", &sop);
        text(&mut meta, (2, 0x10), "UI", "1.2.840.10008.1.2.1");
        text(&mut meta, (2, 0x12), "UI", "1.2.3.4");
        let mut file = vec![0; 128];
        file.extend(b"DICM");
        put(&mut file, (2, 0), "UL", &(meta.len() as u32).to_le_bytes());
        file.extend(meta);
        text(&mut file, (8, 0x16), "UI", class);
        text(&mut file, (8, 0x18), "UI", &sop);
        text(&mut file, (8, 0x60), "CS", "CT");
        text(&mut file, (0x18, 0x50), "DS", &self.spacing[2].to_string());
        text(&mut file, (0x20, 0xd), "UI", "1.2.3.5");
        text(&mut file, (0x20, 0xe), "UI", self.uid);
        text(&mut file, (0x20, 0x13), "IS", &k.to_string());
        let (y, z) = (k as f64 * self.tilt, k as f64 * self.spacing[2]);
        text(&mut file, (0x20, 0x32), "DS", &format!("0\\{y}\\{z}"));
        text(&mut file, (0x20, 0x37), "DS", "1\\0\\0\\0\\1\\0");
        short(&mut file, (0x28, 2), 1);
        text(&mut file, (0x28, 4), "CS", "MONOCHROME2");
        short(&mut file, (0x28, 0x10), rows as u16);
        short(&mut file, (0x28, 0x11), columns as u16);
        text(&mut file, (0x28, 0x30), "DS", &format!("{}\\{}", self.spacing[1], self.spacing[0]));
        for (element, value) in [(0x100, 16), (0x101, 16), (0x102, 15), (0x103, 1)] {
            short(&mut file, (0x28, element), value);
        }
        text(&mut file, (0x28, 0x1052), "DS", "0");
        text(&mut file, (0x28, 0x1053), "DS", "1");
        let pixel = |n: usize| (self.value)(n % columns, n / columns, k).to_le_bytes();
        let pixels: Vec<u8> = (0..rows * columns).flat_map(pixel).collect();
        put(&mut file, (0x7fe0, 0x10), "OW", &pixels);
        file
    }
}

fn text(to: &mut Vec<u8>, tag: (u16, u16), vr: &str, value: &str) {
    let mut bytes = value.as_bytes().to_vec();
    if bytes.len() % 2 == 1 {
        bytes.push(if vr == "UI" { 0 } else { b' ' });
    }
    put(to, tag, vr, &bytes);
}

fn short(to: &mut Vec<u8>, tag: (u16, u16), value: u16) {
    put(to, tag, "US", &value.to_le_bytes());
}

/// An element of even length (PS3.5, 7.1.2).
fn put(to: &mut Vec<u8>, (group, element): (u16, u16), vr: &str, value: &[u8]) {
    to.extend(group.to_le_bytes());
    to.extend(element.to_le_bytes());
    to.extend(vr.as_bytes());
    if vr == "OB" || vr == "OW" {
        to.extend([0, 0]);
        to.extend((value.len() as u32).to_le_bytes());
    } else {
        to.extend((value.len() as u16).to_le_bytes());
    }
    to.extend(value);
}
