"""What a measurement of speed holds: times, memory, energy and answers of a run's files on one machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qaf_core.deploy.runtime.measure_kit import BUSY_SHARE, LEAST_AGREEMENT, Latency, Ratio
from qaf_core.deploy.runtime.model_files import ModelFile
from qaf_core.errors import reread
from qaf_core.records import Record, from_plain
from qaf_core.text.said import Said, Translate, listing, say, untranslated

SCHEMA_VERSION = 1
HERE, DEVICE = "this machine", "device kit"
FILES = {  # of qaf export
    ModelFile.FAST: Said("fast file (int8-fast)"),
    ModelFile.EXACT: Said("exact file (int8)"),
}


@dataclass(frozen=True, kw_only=True)
class FileAccuracy:
    """What one file answers to evaluation images.

    Attributes:
        metric, value, n, ci95: As in an ``Evaluation``.
        drop, drop_ci95: The original file's value less this one's, with its paired 95 % interval.
        agreement: Share of answers that are the original file's.
        agreement_with_exact: Of the fast file: share of answers that are the exact file's.
    """

    value: float
    n: int
    metric: str | None = None
    ci95: tuple[float, float] | None = None
    drop: float | None = None
    drop_ci95: tuple[float, float] | None = None
    agreement: float | None = None
    agreement_with_exact: float | None = None


@dataclass(frozen=True, kw_only=True)
class LayerTime:
    """Median milliseconds of a layer in each file; ``slower_than_dense`` is None of one not factorized."""

    layer: str
    structure: str | None = None
    rank: int | tuple[int, ...] | None = None
    original_fp32_ms: float | None = None
    dense_int8_ms: float | None = None
    factorized_int8_ms: float | None = None
    slower_than_dense: bool | None = None

    @property
    def each_ms(self) -> tuple[float | None, float | None, float | None]:
        """Of the original, of dense INT8 and of the fast file."""
        return self.original_fp32_ms, self.dense_int8_ms, self.factorized_int8_ms

    @property
    def ratio(self) -> float | None:
        """Time of the compressed layer over that of the 8-bit original's."""
        if not self.factorized_int8_ms or not self.dense_int8_ms:
            return None
        return self.factorized_int8_ms / self.dense_int8_ms


@dataclass(frozen=True, kw_only=True)
class ModelledEnergy:
    """Joules of one image by the cost model; None where there is no cost."""

    original: float | None = None
    compressed: float | None = None
    source: str | None = None


@dataclass(frozen=True, kw_only=True)
class Energy:
    """Energy of one inference of ``images`` images.

    Attributes:
        joules: By file, as the processor told them; empty where it tells nothing.
        source: How they were measured.
        reason: Why there is no measurement.
        fault: Its parts, so that it can be told in any language.
        images: Images of one inference.
        modelled: By the cost model.
    """

    joules: Mapping[str, float] = field(default_factory=dict)
    source: str | None = None
    reason: str | None = None
    fault: Mapping[str, Any] = field(default_factory=dict)
    images: int = 1
    modelled: ModelledEnergy = field(default_factory=ModelledEnergy)

    def why_not(self, _: Translate = untranslated) -> str:
        """Why there is no measurement, in the language of ``_``; empty where there is one."""
        return reread(self.fault or None, self.reason).text(_) if self.reason else ""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where times were measured."""

    processor: str
    onnxruntime: str
    threads: int
    platform: str = ""
    python: str = ""
    cpu_count: int | None = None


@dataclass(frozen=True, kw_only=True)
class SpeedReport(Record):
    """A measurement of a run's files, by ``qaf latency``, the Export page or a device kit.

    Attributes:
        source: ``HERE`` or ``DEVICE``.
        measured_at: Seconds since 1970.
        threads, batch: Of one inference.
        input_shape: (C, H, W) of an image.
        latencies: By file.
        ratios: By file: its time over that of dense INT8.
        ratio_to_dense_int8: That of the fast file; files of earlier versions have no other.
        others_share: Share of the processors that others used meanwhile; None where that is unknown.
        size_bytes, peak_memory_bytes: By file.
        energy, accuracy, layers: Measured on this machine only.
        same_answers: Measured on a device only: by file, the share of ``compared_images`` that it answers as
            the machine did where the kit was made.
        failed: By file: why it does not run there.
        verdict: ``sentences`` in English.
        machine: Where it was measured.
    """

    schema_version: int = SCHEMA_VERSION
    run_id: str = ""
    source: str
    measured_at: float = 0.0
    threads: int
    batch: int
    input_shape: tuple[int, ...] = ()
    latencies: Mapping[str, Latency]
    ratios: Mapping[str, Ratio] = field(default_factory=dict)
    ratio_to_dense_int8: Ratio | None = None
    others_share: float | None = None
    size_bytes: Mapping[str, int] = field(default_factory=dict)
    peak_memory_bytes: Mapping[str, int | None] = field(default_factory=dict)
    energy: Energy = field(default_factory=Energy)
    accuracy: Mapping[str, FileAccuracy] = field(default_factory=dict)
    layers: tuple[LayerTime, ...] = ()
    same_answers: Mapping[str, float] = field(default_factory=dict)
    compared_images: int | None = None
    failed: Mapping[str, str] = field(default_factory=dict)
    verdict: str = ""
    machine: Machine

    @classmethod
    def from_dict(cls, stored: Any) -> SpeedReport:
        """What ``to_dict`` gave.

        Raises:
            TypeError, ValueError: If something is missing, of another kind or another version.
        """
        if not isinstance(stored, Mapping):
            raise TypeError(f"{stored!r:.60} is no object")
        report = from_plain(cls, {name: value for name, value in stored.items() if value is not None})
        if "schema_version" not in stored or report.schema_version != SCHEMA_VERSION:
            raise ValueError(f"schema_version {stored.get('schema_version')!r:.60}")
        return report

    def ratio(self, file: str = ModelFile.FAST) -> Ratio | None:
        """Time of a file over that of dense INT8; None where one of them was not measured."""
        return self.ratios.get(file, self.ratio_to_dense_int8 if file == ModelFile.FAST else None)

    @property
    def is_disturbed(self) -> bool:
        """Whether others used so much of the machine that intervals were widened."""
        return (self.others_share or 0.0) > BUSY_SHARE

    def sentences(self) -> list[Said]:
        """Whether each factorized INT8 file is faster than dense INT8, and which layers are not."""
        said = [_ratio_sentence(file, ratio) for file in FILES if (ratio := self.ratio(file))]
        if not said:
            said.append(say("Nothing can be said of dense INT8: it or the factorized file did not run."))
        if slower := [row.layer for row in self.layers if row.slower_than_dense]:
            layers = listing(slower)
            said.append(say("In the fast file slower than those they replace: {layers}.", layers=layers))
        if self.layers and all(row.slower_than_dense is None for row in self.layers):
            said.append(say("No layer is factorized."))
        fast = self.accuracy.get(ModelFile.FAST)
        if fast is not None and fast.agreement_with_exact is not None:
            said.append(
                say("The fast file's answers agree with the evaluated network's to {share:.1%}.",
                    share=fast.agreement_with_exact)
            )  # fmt: skip
            if fast.agreement_with_exact < LEAST_AGREEMENT:
                said.append(say("That is too little for qaf export, unless forced."))
        if self.is_disturbed:
            said.append(
                say(
                    "Other programs used {share:.0%} of the processors meanwhile: the intervals are wider "
                    "for it. Measure again when the machine is quiet.",
                    share=self.others_share,
                )
            )
        return said


def _ratio_sentence(file: ModelFile, ratio: Ratio) -> Said:
    values = {"file": FILES[file], "value": ratio.value}
    if ratio.low > 1.0:
        return say("The {file} is slower than dense INT8: it takes {value:.2f} times as long.", **values)
    if ratio.high < 1.0:
        return say("The {file} is faster than dense INT8: it takes {value:.2f} times as long.", **values)
    return say(
        "The {file} is as fast as dense INT8, within the noise of these rounds: "
        "it takes {value:.2f} times as long.",
        **values,
    )
