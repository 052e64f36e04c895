"""Words for what runs keep in short English names: how a solve ended, sets of images, files, the machine."""

from __future__ import annotations

import re

from qaf_core.text.said import Translate
from qaf_core.text.units import MISSING, times_text

_COUNT = re.compile(r"([\d,]+) images")


def solve_labels(_: Translate) -> dict[str, str]:
    """Why a layer's solve ended, in a few words."""
    return {
        "solving": _("At work"),
        "converged": _("Converged"),
        "stagnated": _("Best kept"),
        "max_iterations": _("Limit reached"),
        "time_limit": _("Time limit"),
        "cancelled": _("Stopped"),
        "diverged": _("Diverged, best kept"),
        "nonfinite": _("Weights not finite"),
    }


def smaller_text(before: float, after: float, _: Translate) -> str:
    """How many times smaller something has become; a dash where there is nothing to divide by."""
    times = times_text(before, after)
    return times if times == MISSING else _("{times}× smaller").format(times=times.rstrip("×"))


def fewer_text(before: float, after: float, _: Translate) -> str:
    """The same of what is counted."""
    times = times_text(before, after)
    return times if times == MISSING else _("{times}× fewer").format(times=times.rstrip("×"))


def image_set_text(name: str, _: Translate) -> str:
    """The name of a set of images, such as ``built-in inspection set, calibration, 512 images``.

    One of a user's own stays as it is but for the number of images at its end.
    """
    first, *rest = name.split(", ")
    sets = {
        "built-in inspection set": _("built-in inspection images"),
        "scikit-learn digits": _("handwritten digits of scikit-learn"),
    }
    parts = {
        "calibration": _("for calibration"),
        "evaluation": _("for evaluation"),
        "train": _("for training"),
    }
    known = parts if first in sets else {}
    words = [sets.get(first, first), *(known.get(part, part) for part in rest)]
    words = [
        _("a part of {n}").format(n=part[10:]) if part.startswith("subset of ") else part for part in words
    ]
    if counted := _COUNT.fullmatch(words[-1]):
        words[-1] = _("{n} images").format(n=counted[1])
    return (" · " if known or counted else ", ").join(words)


def digest_text(name: str, _: Translate) -> str:
    """What a SHA-256 of a review is of."""
    kind, _colon, file = name.partition(": ")
    if kind == "weights":
        return _("Weights: {file}").format(file=file)
    return _("Evaluation images and their targets") if kind == "data" else name


def environment_labels(_: Translate) -> dict[str, str]:
    """What a run keeps of the machine; packages are called by their names."""
    return {
        "platform": _("Operating system"),
        "processor": _("Processor"),
        "cpu_count": _("Processor cores"),
        "threads": _("Threads"),
    }
