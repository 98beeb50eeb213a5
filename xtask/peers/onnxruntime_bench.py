"""onnxruntime's half of `cargo xtask bench`: `worker.py` says what it is asked."""

import onnxruntime as ort

import worker


def load(graph, threads):
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # The programs take turns: threads that spin after a run would take another's processor.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    _, _, height, width = session.get_inputs()[0].shape
    outputs = ["logits", "slice_weights", "heatmap", "slice_embeddings"]
    return height, width, lambda slices: session.run(outputs, {"slices": slices})[0]


worker.serve(load)
