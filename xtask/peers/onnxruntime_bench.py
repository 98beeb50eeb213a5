"""onnxruntime's half of `cargo xtask bench`; `runtime/examples/bench_worker.rs` is the other and answers the same words.

usage: onnxruntime_bench.py --graph TASK.onnx --slices S --threads T

Says `ready MS` (time to load the graph), then answers each line on stdin: `run` with the milliseconds of one run, `logits` with the
last run's logits, `peak` with this process's peak memory in MB.
"""

import argparse
import sys
import time

import numpy as np
import onnxruntime as ort


def slices(count, height, width):
    """The benchmark's input `[count, 3, height, width]` in [-2, 2): a hash of each value's position."""
    x = np.arange(count * 3 * height * width, dtype=np.uint32)
    x *= np.uint32(2654435761)
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x45D9F3B)
    x ^= x >> np.uint32(16)
    x >>= np.uint32(8)
    return (x.astype(np.float32) * np.float32(2**-22) - np.float32(2)).reshape(count, 3, height, width)


def peak_mb():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024 / 1e6


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--graph", required=True)
    parser.add_argument("--slices", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()

    start = time.perf_counter()
    options = ort.SessionOptions()
    options.intra_op_num_threads = arguments.threads
    options.inter_op_num_threads = 1
    # The two programs take turns: threads that spin after a run would take the other's processor.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = ort.InferenceSession(arguments.graph, options, providers=["CPUExecutionProvider"])
    ready = time.perf_counter() - start
    shape = session.get_inputs()[0].shape
    feed = {"slices": slices(arguments.slices, shape[2], shape[3])}
    outputs = ["logits", "slice_weights", "heatmap", "slice_embeddings"]
    logits = []

    print(f"ready {ready * 1e3}", flush=True)
    for line in sys.stdin:
        word = line.strip()
        if word == "run":
            start = time.perf_counter()
            logits = session.run(outputs, feed)[0]
            answer = str((time.perf_counter() - start) * 1e3)
        elif word == "logits":
            answer = " ".join(str(value) for value in logits)
        elif word == "peak":
            answer = str(peak_mb())
        else:
            sys.exit(f"unknown word {word!r}: expected run, logits or peak")
        print(answer, flush=True)


main()
