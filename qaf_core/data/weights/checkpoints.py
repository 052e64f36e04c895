"""Which weights of a checkpoint are meant: raw or averaged ones, those of one network or of another.

Training scripts save more than one set of weights: in dicts beside each other (``state_dict`` and
``state_dict_ema``), or in one dict under prefixes (``model.`` and ``ema_model.``). Averaged weights (EMA,
SWA) are the ones that are evaluated, so they are taken where there is a choice, and that is said;
``FILE#raw``, ``FILE#ema`` or ``FILE#NAME`` chooses. Needs no torch: tensors are whatever has a shape.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qaf_core.errors import WeightsError
from qaf_core.text.said import say

RAW, AVERAGED = "raw", "ema"
#: Names under which training scripts put weights.
WRAPPERS = (
    "state_dict", "model", "model_state_dict", "module", "net", "network", "params", "weights", "model_state",
    "net_state_dict", "network_state_dict", "model_weights",
)  # fmt: skip
DEEPEST_WRAPPING = 4
_AVERAGED_WORDS = {"ema", "shadow", "averaged", "swa", "polyak"}
#: Names, and beginnings of names, for what is no weights of a network, though it may hold tensors.
_OTHER_NAMES = {"opt", "amp", "args", "cfg", "rng", "meta", "loops", "loss", "history", "callbacks"}
_OTHER_BEGINNINGS = (
    "optim", "sched", "lr_", "scaler", "amp_", "native_amp", "loss_", "criteri", "config", "hyper_",
    "hparams", "rng_", "random_", "metrics",
)  # fmt: skip
_SCALARS = (int, float, str, bytes, type(None))
_MOST_NAMED = 6


@dataclass(frozen=True, kw_only=True)
class Part:
    """One set of weights in a file.

    Attributes:
        name: Keys that lead to it, with dots between; empty for the file itself.
        averaged: It is an average over the training.
        state: Its tensors by name, and what else stands between them.
    """

    name: str
    averaged: bool
    state: Mapping[Any, Any]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What was chosen of a file.

    Attributes:
        state: The tensors by name.
        note: Which weights they are, where the file holds others too and nobody said which.
    """

    state: Any
    note: str | None = None


def split_part(weights: str | Path) -> tuple[Path, str | None]:
    """A path of weights, and which of the file's weights are asked for: ``FILE#ema`` or ``FILE#raw``.

    A file whose own name holds a ``#`` is found as it is.

    Raises:
        OSError, RuntimeError: If the path cannot be looked at.
    """
    path = Path(weights).expanduser()
    text, _, part = str(path).rpartition("#")
    if not text or not part or "/" in part or path.is_file():
        return path, None
    return Path(text), part


def is_averaged(name: str) -> bool:
    """Whether a key or prefix is that of averaged weights."""
    return not _AVERAGED_WORDS.isdisjoint(re.split(r"[._\-/ ]", name.lower()))


def pick_weights(loaded: Any, selector: str | None, file: str) -> Choice:
    """The weights meant by what a training script saved.

    Args:
        loaded: The whole content of the file, with tensors or descriptions of them.
        selector: ``raw``, ``ema``, a name of a part, or None.
        file: Name of the file, for messages.

    Returns:
        The tensors by name; what was loaded where it holds none, so that it can be told what it is.

    Raises:
        WeightsError: If it cannot be told which are meant, or those asked for are not there.
    """
    parts = _parts(loaded)
    if not parts:
        if selector is not None:
            raise _not_there(selector, [], file)
        return Choice(state=loaded)
    inside = [part for part in parts if selector is not None and has_part(part.state, selector)]
    if len(parts) == 1 and inside:  # prefixes tell the sets apart, see `tensor_names`
        return Choice(state=parts[0].state)
    chosen = choose([(part.name, part.averaged) for part in parts], selector, file)
    part, raw = parts[chosen], [other for other in parts if not other.averaged]
    note = None
    if selector is None and len(parts) > 1:
        note = describe_choice(file, part.name, [other.name for other in parts if other is not part])
    elif selector is None:
        note = _note_of_prefixes(part.state, file) or _note_of_lists(loaded, file)
    state = part.state
    if part.averaged and len(raw) == 1:
        state = _completed(state, raw[0].state)
    return Choice(state=state, note=note)


def choose(parts: Sequence[tuple[str, bool]], selector: str | None, file: str) -> int:
    """The number of the part that is meant.

    Args:
        parts: Name of each, and whether it is averaged.
        selector: As in :func:`pick_weights`.
        file: For messages.

    Raises:
        WeightsError: If that could be several, or none.
    """
    numbers = range(len(parts))
    if selector in (RAW, AVERAGED):
        fitting = [number for number in numbers if parts[number][1] == (selector == AVERAGED)]
    elif selector is not None:
        fitting = [n for n in numbers if selector in (parts[n][0], parts[n][0].rpartition(".")[2])]
    else:
        fitting = [number for number in numbers if parts[number][1]] or list(numbers)
    names = [name for name, _ in parts]
    if selector is None and len(fitting) > 1:  # names that are the network's as they are need no choice
        fitting = [number for number in fitting if not names[number]] or fitting
    if not fitting:
        raise _not_there(selector or "", names, file)
    if len(fitting) > 1:
        labels = [names[number] or "the file itself" for number in fitting]
        raise WeightsError(
            say("weights file {file} holds several sets of weights", file=file),
            got=", ".join(labels[:_MOST_NAMED]),
            remedy=say("say which: {file}#{told}", file=file, told=labels[0]),
        )
    return fitting[0]


def describe_choice(file: str, part: str, others: Sequence[str]) -> str:
    """One sentence on which of a file's weights are taken."""
    left = ", ".join(name or "the file itself" for name in others[:_MOST_NAMED])
    what = "the averaged ones" if is_averaged(part) else "those"
    return (
        f"{file} holds several sets of weights: {what} under {part or 'no name'} are taken, not {left}; "
        f"--weights {file}#{RAW if is_averaged(part) else AVERAGED} takes the other ones"
    )


def has_part(names: Iterable[Any], selector: str) -> bool:
    """Whether some of the names, not all, begin with the prefix of such a part."""
    leading = [_leading(str(name)) for name in names]
    matches = [_is_part(lead, selector) for lead in leading]
    return any(matches) and (selector != RAW or not all(matches))


def check_part(names: Iterable[str], selector: str | None, file: str) -> str | None:
    """What is to be said of a file that holds one dict of tensors; None where there is nothing.

    Raises:
        WeightsError: If the part asked for is not there.
    """
    kept = list(names)
    if selector is None:
        return _note_of_prefixes(kept, file)
    if not has_part(kept, selector) and not (selector == RAW and not any(map(_is_led_averaged, kept))):
        raise _not_there(selector, sorted({_leading(name)[0] for name in kept if "." in name}), file)
    return None


def _is_led_averaged(name: str) -> bool:
    lead = _leading(name)
    return bool(lead) and is_averaged(lead[0])


def _leading(name: str) -> tuple[str, ...]:
    return tuple(name.split(".")[:-1][:DEEPEST_WRAPPING])


def _is_part(lead: tuple[str, ...], selector: str) -> bool:
    averaged = bool(lead) and any(map(is_averaged, lead[:2]))
    if selector in (RAW, AVERAGED):
        return averaged == (selector == AVERAGED)
    spelt = tuple(selector.strip(".").split("."))
    return lead[: len(spelt)] == spelt


def _parts(loaded: Any, path: tuple[str, ...] = (), averaged: bool = False) -> list[Part]:
    """Every set of weights in nested dicts, those of known names first."""
    if not isinstance(loaded, Mapping) or len(path) > DEEPEST_WRAPPING:
        return []
    inner = {key: value for key, value in loaded.items() if isinstance(key, str) and _is_filled(value)}
    known = [key for key in inner if key in WRAPPERS or is_averaged(key)]
    parts = [part for key in known for part in _parts(inner[key], (*path, key), averaged or is_averaged(key))]
    tensors = any(_is_tensor(value) for value in loaded.values())
    if not parts and not tensors:
        others = [key for key in inner if not _is_other_state(key)]
        parts = [part for key in others for part in _parts(inner[key], (*path, key), averaged)]
    if tensors:
        parts.insert(0, Part(name=".".join(path), averaged=averaged, state=_cleaned(loaded)))
    return parts


def _cleaned(state: Mapping[Any, Any]) -> dict[Any, Any]:
    """A dict of tensors without the counters and settings that stand between them."""

    def is_other(key: Any, value: Any) -> bool:
        known = isinstance(key, str) and (key in WRAPPERS or is_averaged(key) or _is_other_state(key))
        return isinstance(value, _SCALARS) or (known and isinstance(value, Mapping | list | tuple))

    return {key: value for key, value in state.items() if not is_other(key, value)}


def _completed(averaged: Mapping[Any, Any], raw: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """Averaged weights, and the buffers that were not averaged; as they are where all is there."""
    own, other = _plain_names(averaged), _plain_names(raw)
    missing = [name for name in other if name not in own]
    if not missing or not own.keys() <= other.keys():
        return averaged
    return {name: averaged[own[name]] if name in own else raw[other[name]] for name in other}


def _plain_names(state: Mapping[Any, Any]) -> dict[str, Any]:
    """Names without a ``module.`` before all of them, and the key that each has."""
    names = {str(key): key for key in state if str(key) != "n_averaged"}
    while names and all(name.startswith("module.") for name in names):
        names = {name.removeprefix("module."): key for name, key in names.items()}
    return names


def _note_of_prefixes(names: Iterable[Any], file: str) -> str | None:
    """A sentence where averaged and other weights stand in one dict."""
    averaged = {lead[0]: None for name in names if (lead := _leading(str(name))) and is_averaged(lead[0])}
    others = [str(name) for name in names if not _is_led_averaged(str(name))]
    if not averaged or not others:
        return None
    prefix = next(iter(averaged))
    return (
        f"{file} holds averaged weights under {prefix}. beside others: they are taken where they fit the "
        f"network; --weights {file}#{RAW} takes the other ones"
    )


def _note_of_lists(loaded: Any, file: str, depth: int = 0) -> str | None:
    """A sentence where averaged weights are there without names, as a list."""
    if not isinstance(loaded, Mapping) or depth > DEEPEST_WRAPPING:
        return None
    for key, value in loaded.items():
        filled = isinstance(value, list | tuple) and value and all(map(_is_tensor, value))
        if filled and is_averaged(str(key)):
            return (
                f"{file} holds averaged weights without names ({key}), which are not read: raw ones are taken"
            )
        note = _note_of_lists(value, file, depth + 1)
        if note is not None:
            return note
    return None


def _is_other_state(key: str) -> bool:
    return key.lower() in _OTHER_NAMES or key.lower().startswith(_OTHER_BEGINNINGS)


def _is_filled(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value)


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "shape")


def _not_there(selector: str, names: Sequence[str], file: str) -> WeightsError:
    return WeightsError(
        say("weights file {file} holds no weights of this name", file=file),
        got=f"#{selector}",
        expected=", ".join(f"#{name}" for name in names[:_MOST_NAMED] if name)
        or "no # at the end of the path",
    )
