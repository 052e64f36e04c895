"""No text of screens and reports is left untranslated, and every placeholder stands in both languages."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from itertools import chain, combinations
from pathlib import Path
from string import Formatter
from typing import Any

import pytest
from typer.main import get_command

import qaf_core
from qaf_core.cli.entry import program
from qaf_core.data.models.catalogue import list_models
from qaf_core.deploy.runtime.model_files import ModelFile
from qaf_core.deploy.runtime.rapl import MEASURED
from qaf_core.errors import PIECES, QafError, frame
from qaf_core.network.graph import inventory
from qaf_core.network.plan.energy_model import MODELLED
from qaf_core.pipeline.check.plausibility import CHANNELS_EXCHANGED
from qaf_core.pipeline.events import RunStatus
from qaf_core.quantization.grid import BITS_ACCEPTED
from qaf_core.review.decision import criteria, economics
from qaf_core.runs.store.queue import DISCARDED
from qaf_core.search.selection import NOTES
from qaf_core.text.catalogue import read_catalogue, translator
from qaf_core.text.glossary import GLOSSARY, GROUPS
from qaf_core.text.plain import PLAIN_WORDS
from qaf_core.text.said import say

KINDS_IN = ("data.workspace.trust", "network.graph.export", "runs.store.queue")


def every_kind(kind: type[QafError]) -> Iterator[type[QafError]]:
    """All kinds of errors there are."""
    for module in (*(f"qaf_core.{name}" for name in KINDS_IN), "dashboard.state.jobs"):
        import_module(module)
    for part in kind.__subclasses__():
        yield from (part, *every_kind(part))


# Why layers stay as they are.
REASONS = (
    *("NOT_RUN", "DEPTHWISE", "GROUPED", "READ_ELSEWHERE", "PRODUCTS", "PARAMETER", "BY_BATCH"),
    *("NOT_FOLDED", "OTHER_KIND"),
)
CORE = Path(qaf_core.__file__).parent
REVIEW = CORE / "review"
SOURCES = (*sorted(CORE.rglob("*.py")), *sorted((CORE.parent / "dashboard").rglob("*.py")))
VALUES_ONLY = ("", " ", "run: ", "{text}", "{value}")
# Of a text with a form for one, catalogues hold the form for several: their languages have one form.
MARKS = {
    "say": 0,
    "Said": 0,
    "_": 0,
    "plural": 1,
    "echo": 0,
    "warn": 0,
    "print_table": 0,
    "stop_on_interrupt": 0,
}
STAGES = {"stage": 2, "step": 2, "track": 4}  # of progress, by name: its words end before this argument
ERRORS = {kind.__name__ for kind in (QafError, *every_kind(QafError))}
NOTATION = r"[(\[][^()\[\]]*[)\]]|https://…|symmetric=True"  # of shapes and addresses
KEYS_OF_SETTINGS = ("sentence", "remedy", "reason", "split", "message")


@cache
def nodes_of(path: Path) -> tuple[ast.AST, ...]:
    """All nodes of a file's syntax tree, the module first."""
    return tuple(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def marked_texts() -> Iterator[str]:
    """What stands in ``say``, ``Said``, ``_`` and ``plural``, in the tables of names, and in the template."""
    for path in SOURCES:
        yield from error_texts(path)
        for node in nodes_of(path):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in STAGES:
                for part in node.args[: STAGES[node.func.attr]]:  # type: ignore[attr-defined]
                    if isinstance(part, ast.Constant) and isinstance(part.value, str):
                        yield part.value
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in MARKS:
                place = MARKS[node.func.id]  # type: ignore[attr-defined]
                for part in node.args[place : place + 1]:
                    yield from literals(part)
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in (
                "titles",
                "passed",
                "failed",
            ):
                yield from (text for text in literals(node.value) if " " in text)
    yield from criteria.TITLES.values()
    yield from (title for title, _ in economics.ASSUMPTIONS.values())
    yield from economics.SAVINGS.values()
    yield from (preset.label for preset in economics.PRESETS.values())
    yield from (file.label for file in ModelFile)
    yield from chain(*((term.title, term.meaning) for term in GLOSSARY.values()), GROUPS.values())
    yield from PLAIN_WORDS.values()
    yield from (getattr(inventory, name) for name in REASONS)
    yield from form_labels()
    yield from help_texts(get_command(program))
    yield from (f"run: {status}" for status in RunStatus)
    yield from (MODELLED, MEASURED, BITS_ACCEPTED, DISCARDED, *NOTES)
    yield from (source.title.partition(", ")[2] for source in list_models() if source.shipped)
    for parts in chain.from_iterable(combinations(list(PIECES)[1:], count) for count in range(4)):
        yield frame(("what", *parts))
    template = (REVIEW / "report" / "report.html.j2").read_text(encoding="utf-8")
    yield from re.findall(r'_\("([^"]+)"\)', template)


def help_texts(command: Any) -> Iterator[str]:
    """What ``--help`` says of a command, its options and the commands behind it."""
    yield from (part.help for part in (command, *command.params) if getattr(part, "help", None))
    for other in getattr(command, "commands", {}).values():
        yield from help_texts(other)


def form_labels() -> Iterator[str]:
    """What the forms of images are called that a check tries."""
    yield CHANNELS_EXCHANGED
    for node in nodes_of(CORE / "pipeline" / "check" / "input_forms.py"):
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if isinstance(target, ast.Subscript) and getattr(target.value, "id", "") == "forms":
            yield from literals(target.slice)


def error_texts(path: Path) -> Iterator[str]:
    """What errors say in words, also by a constant of the module; ``got`` is data unless ``say`` makes it."""
    constants = {
        node.targets[0].id: node.value
        for node in getattr(nodes_of(path)[0], "body", ())
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    for node in nodes_of(path):
        if isinstance(node, ast.Call) and makes_error(node):
            told = [*node.args, *(part.value for part in node.keywords if part.arg in ("expected", "remedy"))]
            for part in told:
                yield from (text for text in plain_texts(part, constants) if is_words(text))


def makes_error(call: ast.Call) -> bool:
    """Whether a call makes an error, or is an error that makes itself."""
    own = ast.unparse(call.func) == "super().__init__" and any(part.arg == "remedy" for part in call.keywords)
    return own or getattr(call.func, "id", "") in ERRORS


def plain_texts(node: ast.expr, constants: dict[str, ast.expr]) -> Iterator[str]:
    """The texts an expression may be, but not those that a call or an f-string is made of."""
    node = constants.get(node.id, node) if isinstance(node, ast.Name) else node
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp | ast.BoolOp):
        for part in (node.body, node.orelse) if isinstance(node, ast.IfExp) else node.values:
            yield from plain_texts(part, constants)


def is_words(text: str) -> bool:
    """Whether a text is anything else than options, code and numbers."""
    return bool(re.search(r"(?<![\w.-])[a-z]{2,}", text)) and not re.fullmatch(NOTATION, text)


def literals(node: ast.expr) -> Iterator[str]:
    """The texts of an expression, but not the keys that pick a value out of a mapping."""
    keys = {id(part.slice) for part in ast.walk(node) if isinstance(part, ast.Subscript)}
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str) and id(part) not in keys:
            yield part.value


TEXTS = sorted(set(marked_texts()) - set(VALUES_ONLY) - set(KEYS_OF_SETTINGS))


def fields(text: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(text) if name is not None}


def test_every_text_has_a_translation() -> None:
    assert len(TEXTS) > 700
    assert [text for text in TEXTS if text not in read_catalogue("ja")] == []


def test_no_translation_is_left_over() -> None:
    assert sorted(set(read_catalogue("ja")) - set(TEXTS)) == []


def test_no_text_is_translated_twice() -> None:
    seen: dict[str, Path] = {}
    for path in sorted((CORE / "text" / "ja").glob("*.toml")):
        for part in tomllib.loads(path.read_text(encoding="utf-8")).values():
            for english in part:
                assert english not in seen, f"{english!r} in {path.name} and {seen[english].name}"
                seen[english] = path


def test_placeholders_agree() -> None:
    wrong = {
        english: text for english, text in read_catalogue("ja").items() if fields(english) != fields(text)
    }
    assert wrong == {}


def test_signs_of_markdown_agree() -> None:
    """Bold and code are as many in both languages; no English word is left by mistake."""
    wrong = {
        english: text
        for english, text in read_catalogue("ja").items()
        if english.count("**") != text.count("**") or english.count("`") != text.count("`")
    }
    assert wrong == {}


def test_a_sentence_is_said_in_a_language() -> None:
    assert say("{count} layers", count=3).text(translator("ja")) == "3 層"
    assert translator("ja")("no such text") == "no such text"


def test_an_unknown_language_is_refused() -> None:
    with pytest.raises(QafError, match="unknown language"):
        translator("fr")


def test_what_errors_say_with_values_is_a_template() -> None:
    """An f-string, or a text that is put together, cannot be told in another language."""
    finished = [
        f"{path.name}: {ast.unparse(part)}"
        for path in SOURCES
        for node in nodes_of(path)
        if isinstance(node, ast.Call) and makes_error(node)
        for part in (
            *node.args,
            *(each.value for each in node.keywords if each.arg in ("expected", "remedy")),
        )
        if isinstance(part, ast.JoinedStr | ast.BinOp)
        and any(isinstance(each, ast.Constant) and is_phrase(each.value) for each in ast.walk(part))
    ]
    assert finished == []


def is_phrase(text: object) -> bool:
    return isinstance(text, str) and " " in text.strip(" ,") and is_words(text)


def test_templates_take_the_values_they_are_given() -> None:
    wrong = [
        f"{path.name}: {ast.unparse(node)}"
        for path in SOURCES
        for node in nodes_of(path)
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", "") in ("say", "tell", "warn")
        and node.keywords
        if all(part.arg is not None for part in node.keywords)
        for text in literals(node.args[0])
        if fields(text) != {part.arg for part in node.keywords}
    ]
    assert wrong == []
