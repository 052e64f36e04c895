"""Random networks of all kinds through capture, compression, the packed file and INT8 ONNX.

    python benchmarks/fuzz.py [--count 300] [--first 0] [--no-export]

Each network must come out right, or be refused in words (a ``QafError``). Right is: the captured graph equals
the network (``capture`` proves that itself), 8-bit weights and activations keep the scores within
``LARGEST_ERROR``, the packed file read back into a network with other weights gives the same scores, and
ONNX Runtime's answers are those of the file. Prints a line for each fault and one JSON object at the end.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from qaf_core.deploy.onnx_export.export import export_onnx
from qaf_core.deploy.packed.read import load_packed
from qaf_core.deploy.packed.write import save_packed
from qaf_core.errors import QafError
from qaf_core.network.graph.capture import capture
from qaf_core.network.graph.inventory import take_inventory
from qaf_core.network.graph.proof import largest_difference
from qaf_core.network.plan.rules import plan_for_ratio
from qaf_core.pipeline.compress.compress import compress_network

SIDE = 12
PROGRESS = 10  # networks between two lines on how far it is
SHAPE = (3, SIDE, SIDE)
LARGEST_ERROR = 0.2  # relative, of scores; random networks amplify rounding
#: Half precision of scales moves some values to the next code. A network that makes much of any change (its
#: compressed form is far from the original already) may make half as much again of this one.
LARGEST_FILE_ERROR, SHARE_OF_ERROR = 0.1, 0.5
CARD = {"model": "fuzz", "input_shape": list(SHAPE), "activation_bits": 8}


class Functional(nn.Module):
    """A block written as a function over parameters of its own."""

    def __init__(self, function: Callable[..., Tensor], **parameters: Tensor) -> None:
        super().__init__()
        self.function = function
        for name, values in parameters.items():
            self.register_parameter(name, nn.Parameter(values))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, **dict(self.named_parameters()))


class Residual(nn.Module):
    """Adds what two blocks make of the same input, or puts them side by side."""

    def __init__(self, first: nn.Module, second: nn.Module, joins: bool) -> None:
        super().__init__()
        self.first, self.second, self.joins = first, second, joins

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.first(x), self.second(x)
        if self.joins:
            return torch.cat([one, two], 1)
        one += two
        return one


class Twice(nn.Module):
    """One block used twice."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return self.block(F.relu(self.block(x)))


class Remembers(nn.Module):
    """Leaves its input on itself for later."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        self.kept = x
        return self.block(x) + self.kept.mean()


class Reshaped(nn.Module):
    """A block on pictures seen as sequences, volumes or tokens."""

    def __init__(self, block: nn.Module, seen_as: str) -> None:
        super().__init__()
        self.block, self.seen_as = block, seen_as

    def forward(self, x: Tensor) -> Tensor:
        if self.seen_as == "sequence":
            return self.block(x.flatten(2)).unflatten(2, x.shape[2:])
        if self.seen_as == "volume":
            return self.block(x.unsqueeze(2)).squeeze(2)
        return self.block(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, x.shape[2:])


class Attention(nn.Module):
    """PyTorch's packed attention on tokens."""

    def __init__(self, channels: int, same: bool) -> None:
        super().__init__()
        self.inner, self.same = nn.MultiheadAttention(channels, 2, batch_first=True), same

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x, x if self.same else F.relu(x), x, need_weights=self.same)[0]


class NormAct(nn.BatchNorm2d):
    """BatchNorm and activation in one."""

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(super().forward(x), 0.1)


class Standardised(nn.Conv2d):
    """Weight standardisation."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight - self.weight.mean((1, 2, 3), True)
        return F.conv2d(x, w / (w.std((1, 2, 3), keepdim=True) + 1e-5), self.bias, 1, 1)


class Draw:
    """Draws blocks that keep the picture's size and the number of channels known.

    Args:
        seed: The same seed draws the same network, whatever its weights.
    """

    def __init__(self, seed: int) -> None:
        self.r = random.Random(seed)

    def network(self) -> nn.Module:
        """A network from pictures to ten scores."""
        channels = self.r.choice((8, 12, 16))
        blocks: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1, bias=self.r.random() < 0.5)]
        for _ in range(self.r.randint(2, 5)):
            block, channels = self.block(channels)
            blocks += [block, self.after(channels)]
        head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.2), nn.Linear(4 * channels, 10)]
        return nn.Sequential(*blocks, *head)

    def after(self, channels: int) -> nn.Module:
        """Normalisation and activation."""
        norm = self.r.choice((
            lambda: nn.BatchNorm2d(channels), lambda: NormAct(channels), nn.Identity,
            lambda: nn.GroupNorm(2, channels), lambda: nn.InstanceNorm2d(channels, affine=True),
            lambda: nn.BatchNorm2d(channels, affine=False),
            lambda: Reshaped(nn.LayerNorm(channels), "tokens"),
        ))()  # fmt: skip
        act = self.r.choice((
            lambda: nn.ReLU(inplace=True), nn.ReLU6, nn.GELU, nn.SiLU, nn.Hardswish,
            lambda: nn.PReLU(channels), nn.Identity, nn.ELU, nn.Softplus, nn.Tanh,
        ))()  # fmt: skip
        return nn.Sequential(norm, act)

    def block(self, c: int) -> tuple[nn.Module, int]:
        """A block and the channels it puts out."""
        o = self.r.choice((8, 12, 16))
        kinds = (
            self.conv, self.conv, self.conv, self.transposed, self.sequence, self.volume, self.tokens,
            self.functional, self.computed, self.nested, self.hooked, self.patched, self.odd,
        )  # fmt: skip
        return self.r.choice(kinds)(c, o)

    def conv(self, c: int, o: int) -> tuple[nn.Module, int]:
        kernel = self.r.choice((1, 3, (3, 1), 5, (2, 3)))
        groups = self.r.choice((1, 1, 1, 2, c))
        o = c if groups == c else o
        mode = self.r.choice(("zeros", "zeros", "circular", "reflect", "replicate"))
        dilation = self.r.choice((1, 1, 2))
        return nn.Conv2d(
            c, o, kernel, padding="same", groups=groups, dilation=dilation, padding_mode=mode,
            bias=self.r.random() < 0.6,
        ), o  # fmt: skip

    def transposed(self, c: int, o: int) -> tuple[nn.Module, int]:
        up = nn.ConvTranspose2d(c, o, 3, stride=2, padding=1, output_padding=1, groups=self.r.choice((1, 2)))
        return nn.Sequential(up, nn.MaxPool2d(2)), o

    def sequence(self, c: int, o: int) -> tuple[nn.Module, int]:
        inner = nn.Conv1d(c, o, 3, padding=1, dilation=1, groups=self.r.choice((1, 2)))
        turned = nn.ConvTranspose1d(c, o, 3, padding=1)
        return Reshaped(self.r.choice((inner, turned)), "sequence"), o

    def volume(self, c: int, o: int) -> tuple[nn.Module, int]:
        return Reshaped(nn.Conv3d(c, o, (1, 3, 3), padding=(0, 1, 1)), "volume"), o

    def tokens(self, c: int, o: int) -> tuple[nn.Module, int]:
        module = self.r.choice((
            lambda: nn.Sequential(nn.Linear(c, 2 * c), nn.ReLU(), nn.Linear(2 * c, o)),
            lambda: nn.Linear(c, o, bias=False),
            lambda: nn.Sequential(Attention(c, self.r.random() < 0.5), nn.Linear(c, o)),
            lambda: nn.Sequential(
                nn.TransformerEncoderLayer(c, 2, 2 * c, batch_first=True, norm_first=self.r.random() < 0.5),
                nn.Linear(c, o),
            ),
        ))()  # fmt: skip
        return Reshaped(module, "tokens"), o

    def functional(self, c: int, o: int) -> tuple[nn.Module, int]:
        wide, small = torch.randn(o, c) / c**0.5, torch.randn(o)
        module = self.r.choice((
            lambda: Functional(lambda x, w, b: F.conv2d(x, w[:, :, None, None], b), w=wide, b=small),
            lambda: Functional(lambda x, w: torch.einsum("bchw,oc->bohw", x, w), w=wide),
            lambda: Functional(lambda x, w: torch.tensordot(x, w, dims=([1], [1])).movedim(-1, 1), w=wide),
            lambda: Functional(lambda x, w: (w @ x.flatten(2)).unflatten(2, x.shape[2:]), w=wide),
            lambda: Functional(lambda x, w: (x.movedim(1, -1) @ w.T).movedim(-1, 1), w=wide),
            lambda: Functional(_linear_of_last, w=wide, b=small),
        ))()  # fmt: skip
        return module, o

    def computed(self, c: int, o: int) -> tuple[nn.Module, int]:
        conv = nn.Conv2d(c, o, 3, padding=1)
        module = self.r.choice((
            lambda: parametrizations.weight_norm(conv), lambda: parametrizations.spectral_norm(conv),
            lambda: nn.utils.spectral_norm(conv), lambda: Standardised(c, o, 3),
            lambda: parametrizations.orthogonal(conv),
        ))()  # fmt: skip
        return module, o

    def nested(self, c: int, o: int) -> tuple[nn.Module, int]:
        kind = self.r.choice(("residual", "cat", "twice", "remembers"))
        if kind == "residual":
            return Residual(nn.Conv2d(c, o, 3, padding=1), nn.Conv2d(c, o, 1), joins=False), o
        if kind == "cat":
            return Residual(nn.Conv2d(c, o, 3, padding=1), nn.Conv2d(c, 8, 1), joins=True), o + 8
        if kind == "twice":
            return Twice(nn.Conv2d(c, c, 3, padding=1)), c
        return Remembers(nn.Conv2d(c, o, 3, padding=1)), o

    def hooked(self, c: int, o: int) -> tuple[nn.Module, int]:
        conv = nn.Conv2d(c, o, 3, padding=1)
        conv.register_forward_hook(_halved)
        return conv, o

    def patched(self, c: int, o: int) -> tuple[nn.Module, int]:
        conv = nn.Conv2d(c, o, 3)
        inner = conv.forward
        conv.forward = lambda x: inner(F.pad(x, (1, 1, 1, 1), mode="circular"))  # type: ignore[method-assign]
        return conv, o

    def odd(self, c: int, o: int) -> tuple[nn.Module, int]:
        one, two = nn.Conv2d(c, o, 3, padding=1), nn.Conv2d(c, o, 3, padding=2, dilation=2)
        two.weight = one.weight
        joins = self.r.random() < 0.5
        return Residual(one, two, joins=joins), o * (1 + joins)


def _linear_of_last(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.linear(x.movedim(1, -1), w, b).movedim(-1, 1)


def _halved(_layer: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    return F.relu(output) * 0.5


def build(seed: int, weights: int) -> nn.Module:
    """The network of a seed, with weights of another."""
    torch.manual_seed(1000 + weights)
    network = Draw(seed).network()
    norms = [part for part in network.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = None
        norm.train()
    network.eval()
    for norm in norms:
        norm.train()
    with torch.no_grad():
        network(pictures(32, 5))
    return network.eval()


def pictures(count: int, seed: int) -> Tensor:
    """Smooth random pictures ``(count, 3, SIDE, SIDE)``."""
    small = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(small, size=SIDE, mode="bicubic")


def try_network(seed: int, folder: Path, *, export: bool) -> str:
    """What became of a network: ``right``, ``refused: …`` or ``WRONG: …``."""
    network = build(seed, 0)
    images, unseen = pictures(32, 6), pictures(16, 7)
    try:
        captured = capture(network, SHAPE)
        inventory = take_inventory(captured, SHAPE)
        method = "joint" if seed % 4 == 3 else "dense"
        ratio = 1.0 if method == "dense" else 1.1
        plan = plan_for_ratio(inventory, model="fuzz", ratio=ratio, bits=8, method=method)
        compression = compress_network(captured, plan, inventory, method=method, calibration=images)
        with torch.no_grad():
            expected, memory = network(unseen), compression.model(unseen)
        path = folder / "model.safetensors"
        save_packed(path, compression.model, inventory, CARD)
        opened = load_packed(path, copy.deepcopy(build(seed, 1)))
        with torch.no_grad():
            packed = opened(unseen)
        error = largest_difference(expected, memory)
        if method == "dense" and error > LARGEST_ERROR:
            return f"WRONG: scores are off by {error:.2g}"
        file_error = largest_difference(memory, packed)
        if file_error > max(LARGEST_FILE_ERROR, SHARE_OF_ERROR * error):
            return f"WRONG: the file is off by {file_error:.2g}"
        if export:
            export_onnx(opened, folder / "model.onnx", input_shape=SHAPE, images=[unseen])
    except QafError as error:
        return f"refused: {error}"
    return "right"


def run(count: int, first: int = 0, *, export: bool = True) -> dict[str, Any]:
    """Try networks; how many came out how, and what was wrong."""
    began, outcomes, faults = time.monotonic(), Counter[str](), []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(first, first + count):
            try:
                outcome = try_network(seed, Path(folder), export=export)
            except Exception as error:
                outcome = f"WRONG: {type(error).__name__}: {error}".splitlines()[0]
                place = traceback.extract_tb(error.__traceback__)[-1]
                outcome += f" ({Path(place.filename).name}:{place.lineno})"
            outcomes[outcome.split(":")[0]] += 1
            if outcome != "right":
                faults.append({"seed": seed, "told": outcome[:300]})
                print(seed, outcome[:300], flush=True)
            if (seed - first + 1) % PROGRESS == 0:
                print(f"{seed - first + 1} networks, {dict(outcomes)}", file=sys.stderr, flush=True)
    return {"networks": count, **outcomes, "not_right": faults, "seconds": round(time.monotonic() - began, 1)}


def main() -> None:
    shown = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=shown)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--no-export", action="store_true")
    arguments = parser.parse_args()
    print(json.dumps(run(arguments.count, arguments.first, export=not arguments.no_export)))


if __name__ == "__main__":
    main()
