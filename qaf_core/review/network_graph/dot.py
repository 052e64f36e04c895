"""The drawing in Graphviz's language: what a browser lays out. Names of layers are foreign text there."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from qaf_core.network.plan.chains import LinkInfo, links_of
from qaf_core.network.plan.layer_info import KEEP, LayerInfo
from qaf_core.network.plan.types import Plan
from qaf_core.network.topology.description import INPUT, LAYER, MERGE
from qaf_core.quantization.grid import FLOAT
from qaf_core.review.network_graph.measures import Measure, Scale, ink_on
from qaf_core.review.network_graph.view import BLOCK, Box, View
from qaf_core.text.said import Translate, untranslated
from qaf_core.text.units import with_prefix

FONT = "Helvetica,Arial,sans-serif"  # Graphviz knows its widths
WORD_JOINER = "\u2060"  # without width
LONGEST_TITLE = 34
SIGNS = {"add": "+", "sub": "−", "mul": "×", "div": "÷", "cat": "cat", "matmul": "matmul"}


@dataclass(frozen=True, kw_only=True)
class Look:
    """Colours of a drawing that mean nothing but the ground they stand on."""

    line: str
    ink: str
    mute: str
    ground: str
    accent: str


LOOKS = {
    False: Look(line="#8A97A8", ink="#18222F", mute="#5B6B7F", ground="#FFFFFF", accent="#C2185B"),
    True: Look(line="#6B7C92", ink="#E6EBF2", mute="#9AA8BA", ground="#141C27", accent="#FF6FA8"),
}


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What is drawn and how.

    Attributes:
        view: Boxes and arrows.
        inventory: The network's rows by name.
        measure: What it is coloured by.
        scale: Its colours.
        told: How a number of the measure is written.
        plan: What the layers become, to draw them after; None: as they are.
        highlighted: The layer that stands out, or None.
    """

    view: View
    inventory: Mapping[str, LayerInfo]
    measure: Measure
    scale: Scale
    told: Callable[[float], str]
    plan: Plan | None = None
    highlighted: str | None = None


def box_ids(view: View) -> dict[str, str]:
    """Box -> what it is called in the drawing."""
    return {box.name: f"n{number}" for number, box in enumerate(view.boxes)}


def dot_text(drawing: Drawing, *, dark: bool = False, _: Translate = untranslated) -> str:
    """The drawing as Graphviz reads it, from left to right."""
    look, ids = LOOKS[dark], box_ids(drawing.view)
    lines = [
        "digraph network {",
        f'graph [rankdir=LR, bgcolor="transparent", nodesep=0.25, ranksep=0.3, fontname="{FONT}", '
        f'fontsize=10, fontcolor="{look.mute}", labeljust=l];',
        f'node [fontname="{FONT}", fontsize=11, shape=box, style="rounded,filled", margin="0.11,0.05", '
        f'height=0.3, color="{look.line}", penwidth=0.8];',
        f'edge [color="{look.line}", arrowsize=0.6, penwidth=1.1];',
        *_boxes(drawing, drawing.view.boxes, 0, dark, _),
    ]
    for arrow in drawing.view.arrows:
        label = _quoted(" · ".join([*arrow.through, *filter(None, [_sizes(arrow.shape)])]) or " ")
        lines.append(f"{ids[arrow.source]} -> {ids[arrow.target]} [tooltip={label}];")
    return "\n".join([*lines, "}"])


def _boxes(drawing: Drawing, boxes: Sequence[Box], depth: int, dark: bool, _: Translate) -> list[str]:
    """Boxes, inside the open blocks they stand in, so many of which are written already."""
    look, lines, inside = LOOKS[dark], list[str](), dict[str, list[Box]]()
    for box in boxes:
        if len(box.within) > depth:
            inside.setdefault(box.within[depth], []).append(box)
        else:
            lines.append(_node(drawing, box, look, _))
    for path, held in inside.items():
        around = held[0].within[depth - 1] if depth else ""
        title = path[len(around) + 1 :] if around else path
        lines += [
            f"subgraph {_quoted(f'cluster {path}')} {{",
            f"label={_quoted(_shortened(title))}; tooltip={_quoted(path)};",
            f'style="rounded"; color="{look.line}70"; margin=7;',
            *_boxes(drawing, held, depth + 1, dark, _),
            "}",
        ]
    return lines


def _node(drawing: Drawing, box: Box, look: Look, _: Translate) -> str:
    name = box_ids(drawing.view)[box.name]
    if box.kind == MERGE:
        return (
            f"{name} [label={_quoted(_shortened(SIGNS.get(box.operation, box.operation)))}, shape=ellipse, "
            f'fillcolor="{look.ground}", fontcolor="{look.ink}", margin="0.04,0.02", width=0.3, '
            f"tooltip={_quoted(_hover(drawing, box))}];"
        )
    if box.kind not in (LAYER, BLOCK):
        label = (_("Input") if box.kind == INPUT else _("Output")) + f" {_sizes(box.shape)}"
        return (
            f'{name} [label={_quoted(label)}, style="rounded,filled,dashed", fillcolor="{look.ground}", '
            f'fontcolor="{look.ink}", width=1.4, tooltip={_quoted(label)}];'
        )
    value = drawing.measure.of(box.layers)
    fill = drawing.scale.colour(value)
    marked = drawing.highlighted is not None and drawing.highlighted in box.layers
    border = f'color="{look.accent}", penwidth=3, ' if marked else ""
    more = "peripheries=2, " if box.kind == BLOCK else ""
    return (
        f'{name} [label=<{_table(drawing, box, value, _)}>, fillcolor="{fill}", fontcolor="{ink_on(fill)}", '
        f"{more}{border}tooltip={_quoted(_hover(drawing, box))}];"
    )


def _table(drawing: Drawing, box: Box, value: float | None, _: Translate) -> str:
    """What stands in a box: its name, what it does, its number; of a replaced layer one line a link."""
    rows = [f"<B>{_escaped(_shortened(box.title))}</B>"]
    if box.kind == BLOCK:
        rows.append(_escaped(_("Layers: {count}").format(count=len(box.layers))))
    else:
        rows += [_escaped(line) for line in _layer_lines(drawing, box)]
    if value is not None:
        rows.append(_escaped(drawing.told(value)))
    cells = "".join(
        f'<TR><TD><FONT POINT-SIZE="{11 if number == 0 else 10}">{row}</FONT></TD></TR>'
        for number, row in enumerate(rows)
    )
    return f'<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="0" CELLPADDING="1">{cells}</TABLE>'


def _layer_lines(drawing: Drawing, box: Box) -> list[str]:
    info = drawing.inventory.get(box.layers[0])
    if info is None:
        return [box.operation]
    row = None
    if drawing.plan is not None:
        row = next((row for row in drawing.plan.layers if row.name == info.name), None)
    if row is None or row.structure == KEEP:
        (link,) = links_of(info, KEEP, None, None)
        return [_link_text(info, link)]
    links = links_of(info, row.structure, row.rank, row.bits)
    return [" · ".join((_link_text(info, link), *_link_costs(link))) for link in links]


def _link_text(info: LayerInfo, link: LinkInfo) -> str:
    """``3×3  16→32``; a depthwise one is marked, a linear one has no kernel."""
    kernel = "" if info.kind == "linear" else f"{_sizes(link.kernel)} "
    channels = f"{link.inputs}→{link.outputs}"
    return f"{kernel}{'dw ' if link.depthwise else ''}{channels}"


def _link_costs(link: LinkInfo) -> tuple[str, str]:
    bits = "float" if link.bits in (None, FLOAT.bits) else f"{link.bits} bit"
    return bits, with_prefix(link.macs, "MACs")


def _hover(drawing: Drawing, box: Box) -> str:
    lines = [box.name]
    if box.kind == LAYER and (info := drawing.inventory.get(box.layers[0])) is not None:
        lines += [info.kind, with_prefix(info.macs, "MACs")]
    if box.shape:
        lines.append(f"→ {_sizes(box.shape)}")
    return " · ".join(lines)


def _sizes(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def _shortened(text: str) -> str:
    """A name of which both ends are told."""
    if len(text) <= LONGEST_TITLE:
        return text
    return f"{text[: LONGEST_TITLE // 2 - 1]}…{text[-LONGEST_TITLE // 2 :]}"


def _plain(text: str) -> str:
    """One line without signs that cannot be seen."""
    return "".join(sign if sign.isprintable() else " " for sign in text) or " "


def _escaped(text: str) -> str:
    """For a label with markup, where Graphviz still puts names for ``\\N`` and ``\\G``, even of entities."""
    return html.escape(_plain(text)).replace("\\", f"\\{WORD_JOINER}")


def _quoted(text: str) -> str:
    """A quoted string of which every sign is meant as it stands.

    Backslashes begin escapes there, and entities of HTML are read.
    """
    escaped = _plain(text).replace("\\", "\\\\").replace('"', '\\"').replace("&", "&amp;")
    return f'"{escaped}"'
