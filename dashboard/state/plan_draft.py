"""The plan being made on the Explore page: table rows to a checked plan and its predicted cost; pure."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from dashboard.text import _
from qaf_core.network.plan.chains import rank_for_ratio
from qaf_core.network.plan.cost import Cost, layer_cost, original_cost, original_layer_cost
from qaf_core.network.plan.layer_info import KEEP, LayerInfo
from qaf_core.network.plan.types import LayerPlan, Plan
from qaf_core.network.plan.validation import check_layer_plan
from qaf_core.quantization.grid import BITS_ACCEPTED
from qaf_core.text.units import MISSING, bits_text, rank_text

_SEPARATOR = re.compile(r"[\s,;/×x*]+")


@dataclass(frozen=True, kw_only=True)
class DraftRow:
    """One layer as typed into the table: texts, not yet checked."""

    structure: str
    rank: str
    bits: str


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A plan as far as it is made.

    Attributes:
        base: The plan the bulk controls made, before edits.
        rows: The table's rows with the edits, one for each row of ``base``.
        layers: The layer plans read from the rows; the row of ``base`` where a row has a problem.
        problems: What is wrong, in words, by layer name; empty when the plan can be run.
    """

    base: Plan
    rows: tuple[DraftRow, ...]
    layers: tuple[LayerPlan, ...]
    problems: Mapping[str, tuple[str, ...]]

    @property
    def plan(self) -> Plan:
        """The plan; rows with a problem are as in ``base``."""
        return replace(self.base, layers=self.layers)


def make_draft(
    inventory: Sequence[LayerInfo], base: Plan, edits: Mapping[str, Mapping[str, str]], ratio: float
) -> Draft:
    """Apply the table's edits to a plan and check every row.

    Args:
        inventory: The network.
        base: The plan the table started from.
        edits: What was typed, by layer, then column (``structure``, ``rank``, ``bits``).
        ratio: Gives the rank of a row whose structure was changed and whose rank was not.
    """
    infos = {info.name: info for info in inventory}
    rows, layers, problems = [], [], {}
    for planned in base.layers:
        info = infos[planned.name]
        row = _edited_row(info, planned, edits.get(planned.name) or {}, ratio)
        read, faults = read_row(info, row)
        rows.append(row)
        layers.append(planned if read is None else read)
        if faults:
            problems[planned.name] = faults
    return Draft(base=base, rows=tuple(rows), layers=tuple(layers), problems=problems)


def differing(draft: Draft, reference: Plan) -> dict[str, frozenset[str]]:
    """The rows that are other than the controls' plan: what differs (``structure``, ``rank``, ``bits``)."""
    differences = {}
    for row in draft.layers:
        own, base = row.to_dict(), reference.layer(row.name).to_dict()
        names = frozenset(name for name in own if own[name] != base[name])
        if names or row.name in draft.problems:
            differences[row.name] = names
    return differences


def _edited_row(info: LayerInfo, planned: LayerPlan, edit: Mapping[str, str], ratio: float) -> DraftRow:
    structure = edit.get("structure") or planned.structure
    rank, bits = planned.rank, planned.bits
    if structure != planned.structure:
        rank = rank_for_ratio(info, structure, ratio) if structure in info.structures else None
        bits = None if structure == KEEP else bits if bits is not None else 8
    return DraftRow(
        structure=structure,
        rank=edit.get("rank", rank_text(rank)).strip(),
        bits=edit.get("bits", bits_text(bits)).strip(),
    )


def read_row(info: LayerInfo, row: DraftRow) -> tuple[LayerPlan | None, tuple[str, ...]]:
    """Read a row's texts.

    Returns:
        The layer plan and no messages, or None and what is wrong with the row.
    """
    rank, rank_ok = _integers(row.rank)
    bits, bits_ok = _integers(row.bits)
    messages = []
    if not rank_ok:
        messages.append(
            _("rank must be a whole number such as 12 (two for Tucker-2): got {got}").format(got=row.rank)
        )
    if not bits_ok:
        messages.append(
            _("bits must be a whole number, {accepted}: got {got}").format(
                accepted=BITS_ACCEPTED, got=row.bits
            )
        )
    if messages:
        return None, tuple(messages)
    planned = LayerPlan(name=info.name, structure=row.structure, rank=_single(rank), bits=_single(bits))
    messages = [message.text(_) for _field, message in check_layer_plan(info, planned)]
    return (None, tuple(messages)) if messages else (planned, ())


def _integers(text: str) -> tuple[tuple[int, ...], bool]:
    parts = [part for part in _SEPARATOR.split(text.strip()) if part]
    if not all(re.fullmatch(r"[+-]?\d{1,9}", part) for part in parts):
        return (), False
    return tuple(int(part) for part in parts), True


def _single(numbers: tuple[int, ...]) -> Any:
    return None if not numbers else numbers[0] if len(numbers) == 1 else numbers


@lru_cache(maxsize=64)
def cost_before(inventory: tuple[LayerInfo, ...]) -> Cost:
    """The cost of the network as it is."""
    return original_cost(inventory)


@lru_cache(maxsize=8192)
def _layer_share(info: LayerInfo, planned: LayerPlan | None, activation_bits: int) -> tuple[int, int]:
    """Bytes and bit-operations of one layer, as planned or (None) as it is."""
    cost = original_layer_cost(info) if planned is None else layer_cost(info, planned, activation_bits)
    return cost.size_bytes, cost.bops


def plan_rows(
    inventory: Sequence[LayerInfo], draft: Draft, kinds: Mapping[str, str], edited: Container[str] = ()
) -> list[dict[str, Any]]:
    """The rows of the table of layers.

    Args:
        inventory: The network.
        draft: The plan as far as it is made.
        kinds: The name of each kind of layer on screens.
        edited: The rows that are to be marked.

    Returns:
        For each: texts, the cells as typed, percentages (None for none), and whether it has a ``problem``.
    """
    infos = {info.name: info for info in inventory}
    params = sum(info.params for info in inventory) or 1
    bops = sum(_layer_share(info, None, 0)[1] for info in inventory) or 1
    rows = []
    for row, planned in zip(draft.rows, draft.layers, strict=True):
        info = infos[planned.name]
        size_before, bops_before = _layer_share(info, None, 0)
        size_after, bops_after = _layer_share(info, planned, draft.base.activation_bits)
        messages = draft.problems.get(planned.name, ())
        rows.append(
            {
                "layer": planned.name,
                "edited": planned.name in edited,
                "kind": kind_label(info, kinds),
                "shape": shape_label(info),
                "params": 100 * info.params / params,
                "bops": 100 * bops_before / bops,
                **vars(row),
                "problem": bool(messages),
                "check": "✗ " + "; ".join(messages) if messages else _note(info),
                "size_after": 100 * size_after / size_before if size_before else None,
                "bops_after": 100 * bops_after / bops_before if bops_before else None,
            }
        )
    return rows


def _note(info: LayerInfo) -> str:
    if info.eligible or not info.skip_reason:
        return "✓"
    return "✓ " + _("not factorized: {reason}").format(reason=_(info.skip_reason))


def kind_label(info: LayerInfo, kinds: Mapping[str, str]) -> str:
    """What a layer is, with its kernel: ``Convolution 3×3``."""
    name = kinds.get(
        "depthwise" if info.kind == "conv2d" and 1 < info.groups == info.in_channels else info.kind, info.kind
    )
    return f"{name} {info.kernel[0]}×{info.kernel[1]}" if info.kind == "conv2d" else name


def shape_label(info: LayerInfo) -> str:
    """Channels in and out, and the size of the output image: ``64 → 128, 28×28``."""
    if len(info.weight_shape) < 2:
        return " × ".join(str(size) for size in info.weight_shape) or MISSING
    text = f"{info.in_channels} → {info.out_channels}"
    return f"{text}, {info.output_hw[0]}×{info.output_hw[1]}" if info.output_hw else text
