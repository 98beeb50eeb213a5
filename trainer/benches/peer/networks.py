"""The networks that are fitted whole beside those that they follow: MONAI's, torchvision's and PyTorch's own.

Builds them small, fills weights and input by a formula that the trainer's tests compute too, and writes what comes out (logits, a
loss in training mode, norms of its gradients, running statistics after it) for trainer/src/rival/tests/parity.rs. With --count it
prints the numbers of parameters at full size instead.

Needs torch, torchvision, einops and monai 1.3 or 1.4, as later versions merge patches otherwise than VoCo's weights were fitted.
From the repository's root:
    python3 trainer/benches/peer/networks.py --out trainer/src/rival/tests/parity.json
"""

import argparse
import inspect
import json
import sys
from functools import partial
from pathlib import Path

import monai
import numpy as np
import torch
import torchvision
from monai.networks.nets import DenseNet, DenseNet121, ResNet, SwinUNETR, resnet18, resnet50
from torch import nn
from torchvision.models.efficientnet import EfficientNet, FusedMBConvConfig, MBConvConfig


def values(name, shape):
    """Numbers from -1 to 1 that follow from a name and their places."""
    seed = 2166136261
    for byte in name.encode():
        seed = (seed ^ byte) * 16777619 % 2**32
    x = (np.arange(int(np.prod(shape)), dtype=np.uint64) * 2654435761 + seed) % 2**32
    for _ in range(2):
        x = (x ^ (x >> np.uint64(16))) * 73244475 % 2**32
    return torch.from_numpy((x / 2.0**31 - 1.0).astype(np.float32)).reshape(shape)


def fill(network):
    """Gives every weight and running statistic its numbers, in a range that keeps the size of what goes through."""
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if not tensor.is_floating_point():
                continue
            x = values(name, tensor.shape)
            if name.endswith("running_var"):
                x = 1.0 + 0.5 * x
            elif name.endswith(("bias", "running_mean")) or name.endswith("cls_token"):
                x = 0.2 * x
            elif tensor.dim() == 1:
                x = 1.0 + 0.3 * x
            elif not name.endswith("bias_table"):
                x = x * (6.0 * tensor.shape[0] / tensor.numel()) ** 0.5
            tensor.copy_(x)
    return network


class SliceCnn(nn.Module):
    """Features of a slice and its neighbours, an LSTM over the slices, two layers on the maximum."""

    def __init__(self):
        super().__init__()
        fused = partial(FusedMBConvConfig, kernel=3, stride=2)
        stages = [
            fused(expand_ratio=1, input_channels=8, out_channels=8, num_layers=2),
            fused(expand_ratio=4, input_channels=8, out_channels=16, num_layers=1),
            MBConvConfig(4, 3, 2, 16, 24, 2),
        ]
        norm = partial(nn.BatchNorm2d, eps=1e-3)
        self.features = EfficientNet(stages, 0.0, 0.0, norm_layer=norm, last_channel=32).features
        self.lstm = nn.LSTM(32, 256, 2, bidirectional=True, batch_first=True)
        self.head = nn.Sequential(nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 1))

    def forward(self, x):
        x = x.squeeze(1)
        beside = torch.stack([torch.cat([x[:, :1], x[:, :-1]], 1), x, torch.cat([x[:, 1:], x[:, -1:]], 1)], 2)
        rows = self.features(beside.flatten(0, 1)).mean([2, 3]).unflatten(0, x.shape[:2])
        return self.head(self.lstm(rows)[0].amax(1))


class Fusion(nn.Module):
    """What MST has after its backbone."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(48, 12, 48, dropout=0.0, batch_first=True, norm_first=True)
        self.cls_token = nn.Parameter(torch.empty(48))
        self.slice_fusion = nn.TransformerEncoder(layer, 1, nn.LayerNorm(48), enable_nested_tensor=False)
        self.linear = nn.Linear(48, 1)

    def forward(self, x):
        x = torch.cat([self.cls_token.expand(len(x), 1, 48), x], 1)
        return self.linear(self.slice_fusion(x)[:, 0])


def swin_unetr(width, labels):
    """Version 2, as VoCo has it."""
    size = {"img_size": (96, 96, 96)} if "img_size" in inspect.signature(SwinUNETR).parameters else {}
    return SwinUNETR(in_channels=1, out_channels=labels, feature_size=width, use_v2=True, **size)


class Voco(nn.Module):
    """Mean over the decoder's voxels and a linear layer."""

    def __init__(self, width):
        super().__init__()
        whole = swin_unetr(width, 1)
        whole.out = nn.Identity()
        self.__dict__["whole"] = whole
        for name, part in whole.named_children():
            self.add_module(name, part)
        self.head = nn.Linear(width, 1)

    def forward(self, x):
        self.hidden = self.swinViT(x)
        return self.head(self.whole(x).mean([2, 3, 4]))


def resnet(kind):
    sizes = {"n_input_channels": 1, "conv1_t_stride": 2, "num_classes": 1, "bias_downsample": False}
    return ResNet(kind, [1, 2, 1, 1], [4, 8, 16, 32], **sizes)


def networks():
    dense = DenseNet(3, 1, 1, init_features=8, growth_rate=4, block_config=(1, 2, 1, 1))
    yield "densenet121-3d", dense, (2, 1, 48, 70, 65)
    yield "resnet18-3d", resnet("basic"), (2, 1, 48, 70, 65)
    yield "resnet50-3d", resnet("bottleneck"), (2, 1, 48, 70, 65)
    yield "cnn-bilstm", SliceCnn(), (2, 1, 5, 37, 45)
    yield "mst", Fusion(), (2, 5, 48)
    yield "voco", Voco(12), (2, 1, 32, 64, 64)


def told(network, shape):
    """What a network gives, in evaluation and then in training mode."""
    x = values("input", shape)
    fill(network).eval()
    with torch.no_grad():
        found = {"input": shape, "logits": network(x).flatten().tolist()}
    if hasattr(network, "hidden"):
        flat = [part.flatten() for part in network.hidden]
        found["hidden"] = [[part[len(part) * n // 5].item() for n in range(5)] for part in flat]
    loss = network.train()(x).square().sum()
    loss.backward()
    named = [(name, tensor) for name, tensor in network.named_parameters() if tensor.grad is not None]
    norms = {name: tensor.grad.norm().item() for name, tensor in named}
    shown = [name for name in norms if name.endswith("bias_table")][:2] or [named[len(named) // 2][0]]
    found |= {"loss": loss.item(), "gradients": {name: norms[name] for name in [named[0][0], *shown]}}
    found["gradient"] = sum(norm**2 for norm in norms.values()) ** 0.5
    running = {name: tensor for name, tensor in network.named_buffers() if "running" in name}
    found["running"] = {name: tensor.norm().item() for name, tensor in list(running.items())[-2:]}
    return found


def count():
    """Parameters at full size, one channel and one label."""
    number = lambda network: sum(tensor.numel() for tensor in network.parameters())
    sizes = {"spatial_dims": 3, "n_input_channels": 1, "num_classes": 1}
    print("densenet121-3d", number(DenseNet121(3, 1, 1)))
    for name, make in [("resnet18-3d", resnet18), ("resnet50-3d", resnet50)]:
        # MedicalNet's shortcuts have no bias, MONAI's by default have.
        print(name, number(make(**sizes, bias_downsample=False)), "with biases", number(make(**sizes)))
    print("cnn-bilstm features", number(torchvision.models.efficientnet_v2_s().features))
    print("cnn-bilstm lstm", number(nn.LSTM(1280, 256, 2, bidirectional=True)))
    for name, width in [("voco B", 48), ("voco L", 96)]:
        whole = swin_unetr(width, 1)
        encoders = [part for part, _ in whole.named_children() if part.startswith(("swinViT", "encoder"))]
        encoders = sum(number(getattr(whole, part)) for part in encoders)
        print(name, number(whole), "encoder", encoders, "swinViT", number(whole.swinViT))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("--count", action="store_true")
    arguments = parser.parse_args()
    if arguments.count:
        return count()
    if tuple(map(int, monai.__version__.split(".")[:2])) >= (1, 5):
        sys.exit(f"monai is {monai.__version__}; expected 1.3 or 1.4, whose patch merging VoCo's weights were fitted with")
    torch.manual_seed(0)
    made = {"versions": {peer.__name__: peer.__version__ for peer in (torch, torchvision, monai)}}
    made["networks"] = {name: told(network, shape) for name, network, shape in networks()}
    text = json.dumps(made, indent=1)
    arguments.out.write_text(text + "\n") if arguments.out else print(text)


if __name__ == "__main__":
    main()
