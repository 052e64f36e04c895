"""Detectors up to the outputs of their heads: how many boxes are chosen from these depends on the image."""

from __future__ import annotations

from torch import Tensor, nn

HEAD_PARTS = ("transform", "backbone", "head")
FIRST_OUTPUT = "cls_logits"


class DetectorHeads(nn.Module):
    """A one-stage detector of torchvision's kind without its choice of boxes.

    Args:
        detector: Has ``transform``, ``backbone`` and ``head``.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.transform = detector.get_submodule("transform")
        self.backbone = detector.get_submodule("backbone")
        self.head = detector.get_submodule("head")

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Class scores ``(B, places, classes)`` and what else the heads put out by place."""
        prepared, _ = self.transform(list(images))
        features = self.backbone(prepared.tensors)
        maps = [features] if isinstance(features, Tensor) else list(features.values())
        outputs: dict[str, Tensor] = self.head(maps)
        return {key: outputs[key] for key in sorted(outputs, key=lambda key: key != FIRST_OUTPUT)}


def without_choice_of_boxes(network: nn.Module) -> nn.Module:
    """The heads of a one-stage detector; any other network as it is."""
    if all(isinstance(getattr(network, part, None), nn.Module) for part in HEAD_PARTS):
        return DetectorHeads(network)
    return network
