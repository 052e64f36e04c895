"""The files that a run's network is measured in, beside each other. Free of heavy imports."""

from __future__ import annotations

from enum import StrEnum


class ModelFile(StrEnum):
    """A file by the name that results and folders know it by.

    Attributes:
        label: On screens; to be translated.
        short: On the command line.
        description: In a kit, for whoever gets it.
    """

    label: str
    short: str
    description: str

    def __new__(cls, name: str, label: str, short: str, description: str) -> ModelFile:
        """A member from its row of the table."""
        member = str.__new__(cls, name)
        member._value_ = name
        member.label, member.short, member.description = label, short, description
        return member

    ORIGINAL = (
        "original_fp32", "Original, 32-bit", "original, fp32",
        "the original network, 32-bit floating point",
    )  # fmt: skip
    DENSE = (
        "dense_int8", "Original, 8-bit by ONNX Runtime", "dense INT8",
        "the original network, quantized by ONNX Runtime's own quantizer",
    )  # fmt: skip
    FLOAT = (
        "factorized_fp32", "Compressed, 32-bit", "factorized, fp32",
        "the factorized network, 32-bit floating point",
    )  # fmt: skip
    FAST = (
        "factorized_int8", "Compressed, integers, fastest", "factorized, int8-fast",
        "the factorized network, fast file: outputs of layers and additions in INT8 too",
    )  # fmt: skip
    EXACT = (
        "factorized_int8_exact", "Compressed, integers, exact", "factorized, int8 (exact)",
        "the factorized network, exact file: the evaluated network's outputs",
    )  # fmt: skip

    @property
    def is_compressed(self) -> bool:
        """Whether it holds the factorized network."""
        return self not in (ModelFile.ORIGINAL, ModelFile.DENSE)


PROFILED = (ModelFile.ORIGINAL, ModelFile.DENSE, ModelFile.FAST)  # timed layer by layer
COMPARED = {ModelFile.DENSE, ModelFile.FAST}  # without a time of either nothing can be said
