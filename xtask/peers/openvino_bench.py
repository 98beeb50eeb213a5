"""OpenVINO's half of `cargo xtask bench`: `worker.py` says what it is asked."""

import openvino as ov

import worker


def load(graph, threads):
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        # Left alone it would take bf16 where the processor has it.
        "INFERENCE_PRECISION_HINT": "f32",
    }
    model = ov.Core().compile_model(graph, "CPU", settings)
    request = model.create_infer_request()
    _, _, height, width = model.input("slices").partial_shape
    run = lambda slices: request.infer({"slices": slices}, share_inputs=True)["logits"].ravel()
    return height.get_length(), width.get_length(), run


worker.serve(load)
