"""The trainer beside the same model in PyTorch: Hugging Face's Dinov2Model with peft's LoRA at the same places.

Starts `bench_fit` (trainer/examples/bench_fit.rs), takes its initial parameters and input, compares the losses of 20 whole
training steps, then times both in turns: a prediction, a plain step, and a step on a long volume, which the trainer encodes twice
at constant memory and PyTorch takes plainly and with activation checkpointing. Prints a table and, with --json, a JSON list.

Needs torch, transformers, peft and safetensors. From the repository's root:
    cargo build --workspace --release --example bench_fit
    python3 trainer/benches/peer/pytorch_fit.py --worker target/release/examples/bench_fit \
        --backbone target/demo/backbone.safetensors --device cuda
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import Dinov2Config, Dinov2Model

STEPS = 20
TARGETS = r".*(attention\.attention\.(query|key|value)|attention\.output\.dense|patch_embeddings\.projection)"
PLACES = {"q": "attention.attention.query", "k": "attention.attention.key", "v": "attention.attention.value", "o": "attention.output.dense"}


class Worker:
    """scanside's half."""

    def __init__(self, arguments, shared):
        words = [str(arguments.worker), "--shared", str(shared)]
        for name in ["backbone", "blocks", "size", "slices", "long", "chunk", "device", "threads", "precision"]:
            words += [f"--{name}", str(getattr(arguments, name))]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.answer("ready")

    def answer(self, expected=None):
        line = self.process.stdout.readline().strip()
        if not line or (expected and line != expected):
            sys.exit(f"bench_fit said {line!r} and its message stands above; expected {expected or 'numbers'}")
        return line

    def ask(self, word):
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        return [float(text) for text in self.answer().split()]


class Peer(torch.nn.Module):
    """The same model in PyTorch."""

    def __init__(self, arguments, shared):
        super().__init__()
        self.precision = {"f32": None, "bf16": torch.bfloat16, "f16": torch.float16}[arguments.precision]
        weights = load_file(arguments.backbone)
        positions = weights["embeddings.position_embeddings"].shape[1] - 1
        width = weights["layernorm.weight"].shape[0]
        patch = weights["embeddings.patch_embeddings.projection.weight"].shape[-1]
        config = Dinov2Config(
            hidden_size=width,
            num_hidden_layers=arguments.blocks,
            num_attention_heads=width // 64,
            mlp_ratio=weights["encoder.layer.0.mlp.fc1.weight"].shape[0] // width,
            image_size=int(positions**0.5) * patch,
            patch_size=patch,
        )
        backbone = Dinov2Model(config)
        known = backbone.state_dict().keys()
        missing, _ = backbone.load_state_dict({name: t for name, t in weights.items() if name in known}, strict=False)
        if set(missing) - {"embeddings.mask_token"}:
            sys.exit(f"the backbone {arguments.backbone} lacks {sorted(missing)[:3]}, expected Hugging Face's names")
        lora = LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS, lora_dropout=0.0, bias="none")
        self.backbone = get_peft_model(backbone, lora).eval()
        self.query = torch.nn.Parameter(shared["param.query"].clone())
        self.head = torch.nn.Linear(width, 1)
        self.adopt(shared)
        self.to(arguments.device)
        factors = [p for p in self.backbone.parameters() if p.requires_grad]
        groups = [
            {"params": factors, "lr": 1e-4, "weight_decay": 1e-5},
            {"params": [self.query, *self.head.parameters()], "lr": 1e-3, "weight_decay": 1e-4},
        ]
        self.optimiser = torch.optim.AdamW(groups)
        enabled = self.precision == torch.float16
        self.scaler = torch.amp.GradScaler(arguments.device.split(":")[0], enabled=enabled)

    def adopt(self, shared):
        mine = dict(self.backbone.named_parameters())
        taken = set()
        for name, value in shared.items():
            parts = name.split(".")
            if not name.startswith("param.lora."):
                continue
            if parts[2] == "patch":
                place = "embeddings.patch_embeddings.projection"
            else:
                place = f"encoder.layer.{parts[3]}.{PLACES[parts[4]]}"
            target = mine[f"base_model.model.{place}.lora_{parts[-1]}.default.weight"]
            target.data.copy_(value.reshape(target.shape))
            taken.add(id(target))
        left = [n for n, p in mine.items() if p.requires_grad and id(p) not in taken]
        if left:
            sys.exit(f"the trainer has no factor for {left[:3]}")
        self.head.weight.data.copy_(shared["param.head.weight"])
        self.head.bias.data.copy_(shared["param.head.bias"])

    def forward(self, slices):
        device = self.query.device
        with torch.autocast(device.type, dtype=self.precision or torch.bfloat16, enabled=self.precision is not None):
            cls = self.backbone(pixel_values=slices.to(device)).last_hidden_state[:, 0]
        cls = cls.float()
        weights = torch.softmax(cls @ self.query / cls.shape[1] ** 0.5, 0)
        return self.head(weights @ cls)

    def step(self, slices, target):
        logits = self(slices)
        loss = F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))
        self.optimiser.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimiser)
        self.scaler.update()
        return loss.item()

    @torch.no_grad()
    def predict(self, slices):
        return self(slices).cpu()

    def checkpointing(self, on):
        model = self.backbone.base_model.model
        # Only modules in training mode are checkpointed; there is no dropout to wake.
        model.train(on)
        model.gradient_checkpointing_enable({"use_reentrant": False}) if on else model.gradient_checkpointing_disable()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", type=Path, required=True)
    parser.add_argument("--backbone", type=Path, required=True, help="safetensors with Hugging Face's names")
    parser.add_argument("--blocks", type=int, default=11)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--slices", type=int, default=16)
    parser.add_argument("--long", type=int, default=128)
    parser.add_argument("--chunk", type=int, default=16, help="most slices that the trainer holds activations of")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--precision", default="f32", choices=["f32", "bf16", "f16"])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cuda = arguments.device.startswith("cuda")
    with tempfile.TemporaryDirectory() as folder:
        worker = Worker(arguments, Path(folder) / "shared")
        shared = load_file(Path(folder) / "shared")
    peer = Peer(arguments, shared)
    volumes, long = shared["volumes"], shared["long"]
    target = lambda n: 1.0 - n % 2

    ours = worker.ask("losses")
    theirs = [peer.step(volumes[n % len(volumes)], target(n)) for n in range(STEPS)]
    apart = max(abs(a - b) for a, b in zip(ours, theirs))
    print(f"losses of {STEPS} steps from {ours[0]:.4f} to {ours[-1]:.4f}, at most {apart:.1e} apart", flush=True)

    def timed(work):
        start = time.perf_counter()
        work()
        if cuda:
            torch.cuda.synchronize()
        return (time.perf_counter() - start) * 1e3

    def peak():
        if cuda:
            return torch.cuda.max_memory_allocated() / 1e6
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6

    rows = [{"name": "losses of 20 steps, largest difference", "unit": "", "scanside": None, "peers": {}, "ratio": apart}]

    def compare(name, word, slices, variants):
        """Each run of one side is followed by a run of the others."""
        works = {label: work for label, (_, work) in variants.items()}
        times, mine, peaks = {label: [] for label in variants}, [], {}
        for pair in range(-2, arguments.pairs):
            ms = worker.ask(word)[0]
            if pair >= 0:
                mine.append(ms)
            for label, (prepare, _) in variants.items():
                prepare()
                if cuda:
                    torch.cuda.reset_peak_memory_stats()
                ms = timed(works[label])
                if pair >= 0:
                    times[label].append(ms)
                peaks[label] = peak()
        rate = lambda all_ms: slices / statistics.median(all_ms) * 1e3
        for label in variants:
            ratios = sorted(b / a for a, b in zip(mine, times[label]))
            row = {
                "name": name,
                "unit": "slices/s",
                "scanside": rate(mine),
                "peers": {label: rate(times[label])},
                "ratio": statistics.median(ratios),
                "spread": [ratios[0], ratios[-1]],
                "peak_mb": {"scanside": worker.ask("peak")[0], label: peaks[label]},
            }
            rows.append(row)
            print(
                f"{name}: {row['scanside']:.1f} slices/s, {label} {row['peers'][label]:.1f}, ratio {row['ratio']:.2f} "
                f"({ratios[0]:.2f} to {ratios[-1]:.2f}); peak {row['peak_mb']['scanside']:.0f} and {peaks[label]:.0f} MB",
                flush=True,
            )

    plainly = lambda: peer.checkpointing(False)
    turn = iter(range(10**9))

    def one():
        n = next(turn)
        peer.step(volumes[n % len(volumes)], target(n))

    # A GPU's peak is the trainer's since its start, so what needs least comes first.
    compare("predict", "predict", arguments.slices, {"PyTorch": (plainly, lambda: peer.predict(volumes[0]))})
    compare("plain fit", "fit", arguments.slices, {"PyTorch": (plainly, one)})
    if arguments.long:
        whole = lambda: peer.step(long, 1.0)
        variants = {"PyTorch": (plainly, whole), "PyTorch, checkpointing": (lambda: peer.checkpointing(True), whole)}
        compare(f"fit of {arguments.long} slices", "long", arguments.long, variants)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
