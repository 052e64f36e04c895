"""Train a shipped sample model and write its weights and its card.

    python sample_models/train.py inspection/resnet20     (or any other shipped model, or all)
    python sample_models/train.py all --card-only         measures stored weights again, without training

The weights go to `sample_models/NAME.safetensors` in half precision; the card (JSON) beside them says what
they are and how well they do on the built-in evaluation images, measured with the stored weights in float32.
Inspection images are drawn anew for every epoch, so no image is seen twice.
"""

from __future__ import annotations

import argparse
import json
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

from qaf_core.data.formats.builtin import INSPECTION_SEEDS
from qaf_core.data.inspection import dataset
from qaf_core.data.load import load_images, to_batches
from qaf_core.data.models.architectures import build_architecture
from qaf_core.data.models.catalogue import (
    CARD_SCHEMA_VERSION,
    ModelSource,
    build_model,
    find_model,
    weights_path,
)
from qaf_core.network.graph.inventory import take_inventory
from qaf_core.network.topology.trace import trace_topology
from qaf_core.pipeline.tasks import find_task, predict


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
    "inspection/unet": Recipe(epochs=10, images_per_epoch=8000, batch_size=32, peak_rate=0.004),
    "inspection/detector": Recipe(epochs=12, images_per_epoch=8000, batch_size=32, peak_rate=0.002),
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
            f"{model_id}: {metric['name']} {metric['value']:.4f} "
            f"[{metric['ci95'][0]:.4f}, {metric['ci95'][1]:.4f}]",
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
        for images, targets in training_batches(source, recipe, epoch):
            loss = LOSSES[source.task](network, images, targets)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += loss.item() * recipe.batch_size / recipe.images_per_epoch
        print(
            f"{source.id} epoch {epoch}: loss {total:.4f}, {time.perf_counter() - started:.0f} s", flush=True
        )
        save_weights(network, weights_path(source.id))  # so that a training cut off leaves something
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
    """Normalised, augmented batches of one epoch: images, and labels (B,) or class masks (B, H, W)."""
    images, targets = training_images(source, recipe, epoch)
    generator = np.random.default_rng((SEED, epoch))
    order = generator.permutation(len(images))
    for start in range(0, len(images) - recipe.batch_size + 1, recipe.batch_size):
        chosen = order[start : start + recipe.batch_size]
        batch, target = images[chosen], targets[chosen]
        if source.default_data == "digits":
            batch = shift(batch, generator)
        else:
            batch, target = turn(batch, target, generator)
        yield source.preprocessing.normalise(batch), torch.from_numpy(np.ascontiguousarray(target)).long()


def training_images(
    source: ModelSource, recipe: Recipe, epoch: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.integer[Any]]]:
    """All images of one epoch: the digits again, or the next stretch of the endless inspection images."""
    if source.default_data == "digits":
        digits = load_images("builtin", source, split="train")
        return np.asarray(digits.images), digits.labels
    count = recipe.images_per_epoch
    drawn = dataset.render(
        count, INSPECTION_SEEDS["train"], first=epoch * count, workers=torch.get_num_threads()
    )
    return drawn.images, drawn.labels if source.task == "classification" else dataset.class_masks(drawn)


def classification_loss(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of the images."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(images)
    loss: Tensor = functional.cross_entropy(logits.float(), labels)
    return loss


def segmentation_loss(network: nn.Module, images: Tensor, masks: Tensor) -> Tensor:
    """Cross entropy of the pixels plus the soft Dice loss of the classes (Milletari et al. 2016)."""
    with torch.autocast("cpu", torch.bfloat16):
        scores = network(images)
    scores = scores.float()
    shares = scores.softmax(dim=1)
    truth = functional.one_hot(masks, shares.shape[1]).movedim(-1, 1).float()
    overlap = (shares * truth).sum(dim=(0, 2, 3))
    size = shares.sum(dim=(0, 2, 3)) + truth.sum(dim=(0, 2, 3))
    loss: Tensor = functional.cross_entropy(scores, masks) + (1 - (2 * overlap + 1) / (size + 1)).mean()
    return loss


def detection_loss(network: nn.Module, images: Tensor, masks: Tensor) -> Tensor:
    """What torchvision's detector gives in training, added up; the boxes are those around the masks."""
    boxes = torch.from_numpy(dataset.defect_boxes(masks.numpy()))
    labels = masks.amax(dim=(1, 2))
    ends = [row + int(label > 0) for row, label in enumerate(labels)]  # a sound image has no box
    targets = [{"boxes": boxes[row:end], "labels": labels[row:end]} for row, end in enumerate(ends)]
    # Boxes need more digits than bfloat16 has: only the convolutions run in it.
    handle = network.get_submodule("head").register_forward_hook(
        lambda _module, _inputs, outputs: {name: value.float() for name, value in outputs.items()}
    )
    with torch.autocast("cpu", torch.bfloat16):
        losses = network(images, targets)
    handle.remove()
    total: Tensor = sum(losses.values(), torch.zeros(()))
    return total


LOSSES = {
    "classification": classification_loss,
    "segmentation": segmentation_loss,
    "detection": detection_loss,
}


def turn(
    batch: npt.NDArray[np.uint8], targets: npt.NDArray[np.integer[Any]], generator: np.random.Generator
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.integer[Any]]]:
    """Images, and masks with them, turned by a multiple of 90 degrees and mirrored half of the time."""
    quarters, mirrored = int(generator.integers(4)), generator.random() < 0.5

    def turned(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if values.ndim == 1:
            return values
        return np.rot90(values, quarters, axes=(1, 2))[:, :, :: -1 if mirrored else 1]

    return turned(batch), turned(targets)


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
    task = find_task(source.task)
    predictions = predict(task, network, to_batches(images, source))
    evaluation = task.metric(predictions, task.collate(images), source.classes)
    data = {
        "inspection": "procedural surface-inspection images, made by qaf_core.data.inspection.dataset",
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
        "mean": list(source.preprocessing.mean),
        "std": list(source.preprocessing.std),
        "metric": {
            "name": evaluation.metric,
            "value": round(evaluation.value, 6),
            "n": evaluation.n,
            "ci95": [round(bound, 6) for bound in evaluation.ci95],
            "split": "evaluation",
            "per_class": {name: round(value, 4) for name, value in evaluation.per_class.items()},
            "extra": {name: round(value, 6) for name, value in evaluation.extra.items()},
        },
        "training": training,
        "weights": {
            "file": weights_path(source.id).name,
            "dtype": "float16",
            "size_bytes": weights_path(source.id).stat().st_size,
            "parameters": sum(value.numel() for value in network.parameters()),
        },
        "inventory": [row.to_dict() for row in take_inventory(network, source.input_shape)],
        "graph": trace_topology(network, source.input_shape).to_dict(),
    }


def write_json(card: dict[str, Any], path: Path) -> None:
    """One row of the inventory and of the graph a line: a card stays readable and its changes reviewable."""
    lists = {"inventory": card["inventory"], **card["graph"]}
    bare = {**card, "inventory": [], "graph": {key: [] for key in card["graph"]}}
    text = json.dumps(bare, indent=2, ensure_ascii=False)
    for name, rows in lists.items():
        lines = ",\n".join("    " + json.dumps(row, ensure_ascii=False) for row in rows)
        text = text.replace(f'"{name}": []', f'"{name}": [\n{lines}\n  ]')
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(path)


if __name__ == "__main__":
    main()
