"""A scan through a task the way that is usual in Python: nibabel or pydicom, numpy, onnxruntime on all cores.

usage: python_way.py --graph TASK.onnx --plugin TASK.plugin --input SCAN.nii.gz|FOLDER

Prints a JSON of each label's probability. `cargo xtask bench` times it from start to end beside `scanside infer`. Of the plugin it reads
what the scan and the logits need: recipe, labels, temperature and activation.
"""

import argparse
import json
import os
import sys
import tarfile

import nibabel as nib
import numpy as np
import onnxruntime as ort


def read_dicom(folder):
    """Voxels as stored, and the affine to RAS+ of NIfTI."""
    import pydicom

    files = [pydicom.dcmread(os.path.join(folder, name)) for name in os.listdir(folder)]
    row, column = np.array(files[0].ImageOrientationPatient, dtype=float).reshape(2, 3)
    normal = np.cross(row, column)
    files.sort(key=lambda file: np.dot(file.ImagePositionPatient, normal))
    voxels = np.stack(
        [
            file.pixel_array.T * np.float32(file.get("RescaleSlope", 1)) + np.float32(file.get("RescaleIntercept", 0))
            for file in files
        ],
        axis=-1,
    )
    first, last = (np.array(files[n].ImagePositionPatient, dtype=float) for n in (0, -1))
    affine = np.eye(4)
    affine[:3, 0] = row * float(files[0].PixelSpacing[1])
    affine[:3, 1] = column * float(files[0].PixelSpacing[0])
    affine[:3, 2] = (last - first) / (len(files) - 1)
    affine[:3, 3] = first
    return voxels, np.diag([-1, -1, 1, 1]) @ affine


def read(path):
    """Voxels `[R, A, S]` and their distances in mm."""
    if os.path.isdir(path):
        image = nib.Nifti1Image(*read_dicom(path))
    else:
        image = nib.load(path)
    image = nib.as_closest_canonical(image)
    return image.get_fdata(dtype=np.float32), image.header.get_zooms()[:3]


def filter_matrix(length, wanted):
    """Weights `[wanted, length]`: bilinear, antialiased when shrinking, as Pillow's and PyTorch's."""
    scale = length / wanted
    support = max(scale, 1.0)
    centres = (np.arange(wanted) + 0.5) * scale
    distances = np.abs(np.arange(length) + 0.5 - centres[:, None]) / support
    weights = np.maximum(0.0, 1.0 - distances)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def scale(volume, intensity):
    """Least and greatest value that count, as the recipe says."""
    if intensity["kind"] == "window" and len(intensity["windows"]) == 1:
        return intensity["windows"][0]
    if intensity["kind"] == "percentile" and intensity.get("region", "volume") == "volume":
        return np.percentile(volume, [intensity["low"], intensity["high"]])
    sys.exit(f"intensity {intensity} is not done here: use one window, or percentiles of the volume")


def prepare(volume, spacing, recipe):
    """Axial slices `[S, 3, H, W]`, anterior at the top, the patient's right at the left."""
    usual = {"plane": "axial", "fit": "pad", "crop": "none", "slices": "all", "normalize": "imagenet"}
    for key, value in usual.items():
        if recipe.get(key, value) != value:
            sys.exit(f"recipe.{key} = {recipe[key]!r} is not done here: use {value!r}")
    low, high = scale(volume, recipe["intensity"])
    height, width = recipe["size"]
    shown = volume[::-1, ::-1].transpose(2, 1, 0)
    tall, wide = shown.shape[1] * spacing[1], shown.shape[2] * spacing[0]
    if tall * width >= wide * height:
        rows, columns = height, max(1, min(width, int(height * wide / tall + 0.5 + 1e-6)))
    else:
        rows, columns = max(1, min(height, int(width * tall / wide + 0.5 + 1e-6))), width
    resized = filter_matrix(shown.shape[1], rows) @ shown @ filter_matrix(shown.shape[2], columns).T
    scaled = np.zeros((len(shown), height, width), dtype=np.float32)
    top, left = (height - rows) // 2, (width - columns) // 2
    scaled[:, top : top + rows, left : left + columns] = np.clip((resized - low) / (high - low), 0, 1)
    mean = np.array([0.485, 0.456, 0.406], dtype=np.float32)[:, None, None]
    std = np.array([0.229, 0.224, 0.225], dtype=np.float32)[:, None, None]
    return (scaled[:, None] - mean) / std


def main():
    parser = argparse.ArgumentParser()
    for name in ("graph", "plugin", "input"):
        parser.add_argument(f"--{name}", required=True)
    arguments = parser.parse_args()

    with tarfile.open(arguments.plugin) as plugin:
        manifest = json.load(plugin.extractfile("manifest.json"))
    slices = prepare(*read(arguments.input), manifest["recipe"])
    session = ort.InferenceSession(arguments.graph, providers=["CPUExecutionProvider"])
    logits = session.run(["logits"], {"slices": slices})[0] / manifest["temperature"]
    if manifest["activation"] != "sigmoid":
        sys.exit(f"activation {manifest['activation']!r} is not done here: use sigmoid")
    names = [label["name"] for label in manifest["labels"]]
    print(json.dumps(dict(zip(names, (1 / (1 + np.exp(-logits.astype(float)))).tolist()))))


main()
