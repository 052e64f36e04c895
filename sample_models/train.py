"""Train a shipped sample model and write its weights and its card.

    python sample_models/train.py inspection/resnet20     (or digits/cnn, …/resnet18, …/vgg, all)
    python sample_models/train.py all --card-only         measures stored weights again, without training

The weights go to `sample_models/NAME.safetensors` in half precision; the card (JSON) beside them says what
they are and how well they do on the built-in evaluation images, measured with the stored weights in float32.
Inspection images are drawn anew for every epoch, so no image is seen twice.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from qaf_core.data import inspection
from qaf_core.data.architectures import build_architecture
from qaf_core.data.datasets import INSPECTION_SEEDS, load_images, to_batches
from qaf_core.data.models import (
    CARD_SCHEMA_VERSION,
    ModelSource,
    build_model,
    find_model,
    weights_path,
)
from qaf_core.network.inventory import take_inventory


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one model is trained: AdamW with a one-cycle learning rate."""

    epochs: int
    images_per_epoch: int
    batch_size: int
    peak_rate: float
    weight_decay: float = 0.05


RECIPES = {
    "digits/cnn": Recipe(epochs=60, images_per_epoch=998, batch_size=64, peak_rate=0.003),
    "inspection/resnet20": Recipe(epochs=8, images_per_epoch=8000, batch_size=64, peak_rate=0.004),
    "inspection/resnet18": Recipe(epochs=10, images_per_epoch=10_000, batch_size=64, peak_rate=0.001),
    "inspection/vgg": Recipe(epochs=8, images_per_epoch=8000, batch_size=64, peak_rate=0.001),
}
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("model", choices=[*RECIPES, "all"])
    parser.add_argument(
        "--card-only", action="store_true", help="measure stored weights again, without training"
    )
    parser.add_argument("--threads", type=int, default=0, help="processor threads (default: all)")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    for model_id in RECIPES if options.model == "all" else [options.model]:
        source = find_model(model_id)
        if options.card_only:
            training = source.card["training"]
        else:
            network, training = train(source, RECIPES[model_id])
            save_weights(network, weights_path(model_id))
        card = describe(source, training)
        write_json(card, weights_path(model_id).with_suffix(".json"))
        metric = card["metric"]
        print(
            f"{model_id}: top-1 {metric['value']:.4f} [{metric['ci95'][0]:.4f}, {metric['ci95'][1]:.4f}]",
            flush=True,
        )


def train(source: ModelSource, recipe: Recipe) -> tuple[nn.Module, dict[str, Any]]:
    """Train from a random start; returns the network and what the card says about the training."""
    torch.manual_seed(SEED)
    network = build_architecture(source.architecture, len(source.classes)).to(
        memory_format=torch.channels_last
    )
    steps = recipe.epochs * (recipe.images_per_epoch // recipe.batch_size)
    optimizer = torch.optim.AdamW(decay_groups(network, recipe.weight_decay), lr=recipe.peak_rate, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.peak_rate, total_steps=steps, pct_start=0.2
    )
    started = time.perf_counter()
    for epoch in range(recipe.epochs):
        network.train()
        total = 0.0
        for images, labels in training_batches(source, recipe, epoch):
            with torch.autocast("cpu", torch.bfloat16):
                logits = network(images)
            loss = functional.cross_entropy(logits.float(), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += loss.item() * recipe.batch_size / recipe.images_per_epoch
        print(
            f"{source.id} epoch {epoch}: loss {total:.4f}, {time.perf_counter() - started:.0f} s", flush=True
        )
    return network.eval(), {
        "optimizer": f"AdamW, weight decay {recipe.weight_decay}, one-cycle rate, peak {recipe.peak_rate}",
        "epochs": recipe.epochs,
        "images_per_epoch": recipe.images_per_epoch,
        "batch_size": recipe.batch_size,
        "arithmetic": "bfloat16 autocast",
        "seed": SEED,
        "seconds": round(time.perf_counter() - started, 1),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__.split("+")[0],
        "date": date.today().isoformat(),
    }


def decay_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weights with decay; biases and BatchNorm without."""
    parameters = list(network.parameters())
    return [
        {"params": [value for value in parameters if value.ndim > 1], "weight_decay": weight_decay},
        {"params": [value for value in parameters if value.ndim <= 1], "weight_decay": 0.0},
    ]


def training_batches(source: ModelSource, recipe: Recipe, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalised, augmented batches of one epoch."""
    images, labels = training_images(source, recipe, epoch)
    generator = np.random.default_rng((SEED, epoch))
    order = generator.permutation(len(images))
    mean, std = torch.tensor(source.mean), torch.tensor(source.std)
    for start in range(0, len(images) - recipe.batch_size + 1, recipe.batch_size):
        chosen = order[start : start + recipe.batch_size]
        batch = images[chosen]
        batch = shift(batch, generator) if source.default_data == "digits" else turn(batch, generator)
        pixels = (torch.from_numpy(np.ascontiguousarray(batch)).float() / 255 - mean) / std
        yield pixels.permute(0, 3, 1, 2), torch.from_numpy(labels[chosen])


def training_images(
    source: ModelSource, recipe: Recipe, epoch: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """All images of one epoch: the digits again, or the next stretch of the endless inspection images."""
    if source.default_data == "digits":
        digits = load_images("builtin", source, split="train")
        return digits.images, digits.labels
    count = recipe.images_per_epoch
    drawn = inspection.render(
        count, INSPECTION_SEEDS["train"], first=epoch * count, workers=torch.get_num_threads()
    )
    return drawn.images, drawn.labels


def turn(batch: npt.NDArray[np.uint8], generator: np.random.Generator) -> npt.NDArray[np.uint8]:
    """The batch turned by a multiple of 90 degrees, mirrored half of the time."""
    turned = np.rot90(batch, int(generator.integers(4)), axes=(1, 2))
    return turned[:, :, ::-1] if generator.random() < 0.5 else turned


def shift(batch: npt.NDArray[np.uint8], generator: np.random.Generator) -> npt.NDArray[np.uint8]:
    """The batch moved by up to one pixel."""
    padded = np.pad(batch, ((0, 0), (1, 1), (1, 1), (0, 0)))
    row, column = generator.integers(3, size=2)
    return padded[:, row : row + batch.shape[1], column : column + batch.shape[2]]


def save_weights(network: nn.Module, path: Path) -> None:
    """Store the weights in half precision, without BatchNorm's step counters; replaces the file at once."""
    state = {
        name: value
        for name, value in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    half = {name: value.detach().to(torch.float16).contiguous() for name, value in state.items()}
    temporary = path.with_suffix(".tmp")
    save_file(half, temporary)
    temporary.chmod(0o644)
    temporary.replace(path)


def describe(source: ModelSource, training: dict[str, Any]) -> dict[str, Any]:
    """The card of a model whose weights are stored."""
    network = build_model(source)
    images = load_images("builtin", source, split="evaluation")
    hits = np.zeros(len(source.classes), np.int64)
    counts = np.bincount(images.labels, minlength=len(source.classes))
    with torch.no_grad():
        for pixels, labels in to_batches(images, source):
            right = labels[network(pixels).argmax(1) == labels]
            hits += np.bincount(right.numpy(), minlength=len(source.classes))
    data = {
        "inspection": "procedural surface-inspection images, made by qaf_core.data.inspection",
        "digits": "scikit-learn's 8×8 handwritten digits (UCI, E. Alpaydin and C. Kaynak 1998)",
    }
    return {
        "schema_version": CARD_SCHEMA_VERSION,
        "id": source.id,
        "title": source.title,
        "architecture": source.architecture,
        "task": source.task,
        "data": {"name": source.default_data, "description": data[source.default_data or "inspection"]},
        "input_shape": list(source.input_shape),
        "classes": list(source.classes),
        "mean": list(source.mean),
        "std": list(source.std),
        "metric": {
            "name": "top1",
            "value": round(int(hits.sum()) / len(images), 6),
            "n": len(images),
            "ci95": [round(bound, 6) for bound in wilson_interval(int(hits.sum()), len(images))],
            "split": "evaluation",
            "per_class": {
                name: round(int(hit) / max(int(count), 1), 4)
                for name, hit, count in zip(source.classes, hits, counts, strict=True)
            },
        },
        "training": training,
        "weights": {
            "file": weights_path(source.id).name,
            "dtype": "float16",
            "size_bytes": weights_path(source.id).stat().st_size,
            "parameters": sum(value.numel() for value in network.parameters()),
        },
        "inventory": [row.to_dict() for row in take_inventory(network, source.input_shape)],
    }


def wilson_interval(hits: int, count: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927)."""
    share = hits / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return centre - half, centre + half


def write_json(card: dict[str, Any], path: Path) -> None:
    """One inventory row a line, so that the card stays readable and its changes reviewable."""
    rows = ",\n".join("    " + json.dumps(row, ensure_ascii=False) for row in card["inventory"])
    rest = json.dumps({**card, "inventory": []}, indent=2, ensure_ascii=False)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(
        rest.replace('"inventory": []', f'"inventory": [\n{rows}\n  ]') + "\n", encoding="utf-8"
    )
    temporary.replace(path)


if __name__ == "__main__":
    main()
