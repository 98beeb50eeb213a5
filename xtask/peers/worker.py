"""What the peers' halves of `cargo xtask bench` share; `runtime/examples/bench_worker.rs` is scanside's and answers the same words.

usage: onnxruntime_bench.py --graph TASK.onnx --slices S --threads T (openvino_bench.py likewise)

Says `ready MS` (time to load the graph), then answers each line on stdin: `run` with the milliseconds of one run, `logits` with the
last run's logits, `peak` with this process's peak memory in MB.
"""

import argparse
import sys
import time

import numpy as np


def slices(count, height, width):
    """The benchmark's input `[count, 3, height, width]` in [-2, 2): a hash of each value's position."""
    x = np.arange(count * 3 * height * width, dtype=np.uint32)
    x *= np.uint32(2654435761)
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x45D9F3B)
    x ^= x >> np.uint32(16)
    x >>= np.uint32(8)
    values = x.astype(np.float32)
    values *= np.float32(2**-22)
    values -= np.float32(2)
    return values.reshape(count, 3, height, width)


def peak_mb():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024 / 1e6


def serve(load):
    """Answers the words. `load(graph, threads)` gives height and width of a slice, and a function from slices to logits."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--graph", required=True)
    parser.add_argument("--slices", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()

    start = time.perf_counter()
    height, width, run = load(arguments.graph, arguments.threads)
    print(f"ready {(time.perf_counter() - start) * 1e3}", flush=True)
    given, logits = None, []
    for line in sys.stdin:
        word = line.strip()
        if word == "run":
            # Made here, so that `peak` before the first run is what loading took.
            given = slices(arguments.slices, height, width) if given is None else given
            start = time.perf_counter()
            logits = run(given)
            answer = str((time.perf_counter() - start) * 1e3)
        elif word == "logits":
            answer = " ".join(str(value) for value in logits)
        elif word == "peak":
            answer = str(peak_mb())
        else:
            sys.exit(f"unknown word {word!r}: expected run, logits or peak")
        print(answer, flush=True)
