"""Names of tensors in a file set against the names a network uses, by majority."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from qaf_core.data.weights.checkpoints import choose, is_averaged

#: What wrapping a network puts before the names of its weights.
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "net.", "network.")
#: Counters kept beside the weights, without effect on the results: of BatchNorm and of averaged weights.
COUNTERS = ("num_batches_tracked", "n_averaged")
DEEPEST_PREFIX = 4
_LEAST_SHARE = 0.5  # of the network's names that a group under one prefix must hold
# What training leaves in a state dict: parts of a loss or a metric, and the counters of thop.
_FOREIGN_PARTS = {
    "criterion", "criteria", "loss", "losses", "loss_fn", "loss_func", "loss_function", "metric", "metrics",
    "train_metrics", "val_metrics", "test_metrics", "train_acc", "val_acc", "test_acc", "optimizer",
}  # fmt: skip
_FOREIGN_ENDS = ("total_ops", "total_params")


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Names that are the network's once a prefix is taken off and another put on."""

    off: str
    on: str
    names: frozenset[str]


def rename(
    names: Iterable[str],
    expected: Collection[str] | None,
    selector: str | None = None,
    file: str = "the file",
) -> dict[str, str]:
    """New names of tensors, once what a wrapper put before them is taken off (or put on).

    Args:
        names: As saved, for example from ``nn.DataParallel`` (``module.``), among whatever else was saved.
        expected: Names of the network; None when they are not known.
        selector: Which weights are meant where prefixes tell several sets apart, see `checkpoints`.
        file: Name of the file, for messages.

    Returns:
        New name by old name, without counters that no network keeps and without what is no weight.

    Raises:
        WeightsError: If several sets of weights fit the network and it cannot be told which is meant.
    """
    kept = [name for name in names if not name.endswith("n_averaged")]
    known = set(expected or ())
    groups = _find_groups(kept, known)
    if not groups:
        return _without_common_prefixes(kept)
    labels = [(group.off.rstrip("."), is_averaged(group.off)) for group in groups]
    named = [label for label, averaged in labels if selector in (label, "ema" if averaged else "raw")]
    # A name that is none of the prefixes was that of a dict, and has been followed already.
    chosen = groups[choose(labels, selector if named else None, file)] if len(groups) > 1 else groups[0]
    new_names = {name: chosen.on + name.removeprefix(chosen.off) for name in kept if name in chosen.names}
    covered = set(new_names.values())
    for other in groups:
        if is_averaged(chosen.off) and not is_averaged(other.off):  # what was not averaged, such as buffers
            renamed = {name: other.on + name.removeprefix(other.off) for name in other.names}
            new_names.update({old: new for old, new in renamed.items() if new not in covered})
    left_out = tuple(group.off for group in groups if group is not chosen and group.off)
    for name in kept:
        short = name.removeprefix(chosen.off)
        if name in new_names or (left_out and name.startswith(left_out)) or _is_foreign(name, short):
            continue
        if any(name in group.names for group in groups):
            continue
        new_names[name] = chosen.on + short if name.startswith(chosen.off) else name
    return new_names


def _find_groups(names: list[str], known: set[str]) -> list[_Group]:
    """Sets of names that hold most of the network's, the largest first; also those that fit as they are."""
    sizes: dict[tuple[str, str], set[str]] = {}
    commons = _common_prefixes(known)
    for name in names:
        for off in _leading(name):
            for on in commons:
                if on + name[len(off) :] in known:
                    sizes.setdefault((off, on), set()).add(name)
    ordered = sorted(sizes, key=lambda key: (-len(sizes[key]), len(key[1]), len(key[0]), key))
    needed = {name for name in known if not name.endswith(COUNTERS)}
    groups: list[_Group] = []
    for off, on in ordered:
        members = sizes[off, on]
        enough = sum(not name.endswith(COUNTERS) for name in members) >= _LEAST_SHARE * len(needed)
        as_they_are = not (off or on or groups)
        if (enough or as_they_are) and all(group.names.isdisjoint(members) for group in groups):
            groups.append(_Group(off=off, on=on, names=frozenset(members)))
    return groups


def _leading(name: str) -> list[str]:
    """The prefixes a name could have, the empty one first."""
    parts = name.split(".")
    return [
        "".join(f"{part}." for part in parts[:count]) for count in range(min(len(parts), DEEPEST_PREFIX + 1))
    ]


def _common_prefixes(known: set[str]) -> list[str]:
    """Prefixes that all names of a network share, the empty one first."""
    first = next(iter(known), "")
    return [prefix for prefix in _leading(first) if all(name.startswith(prefix) for name in known)]


def _is_foreign(name: str, short: str) -> bool:
    """Whether a name that no network knows is that of no weight, or of averaged weights in another form."""
    first = {text.partition(".")[0] for text in (name, short) if "." in text}
    return bool(
        first & _FOREIGN_PARTS or name.endswith(_FOREIGN_ENDS) or any(is_averaged(part) for part in first)
    )


def _without_common_prefixes(names: list[str]) -> dict[str, str]:
    """Names without the known prefixes that most of them have, and without averaged weights beside others."""
    kept = [name for name in names if not _is_foreign(name, name)] or names
    new = {name: name for name in kept}
    while new:
        averaged = {
            name.partition(".")[0] + "." for name in new.values() if is_averaged(name.partition(".")[0])
        }
        led = {
            prefix: sum(name.startswith(prefix) for name in new.values())
            for prefix in (*PREFIXES, *sorted(averaged))
        }
        prefix = max(led, key=lambda prefix: led[prefix])
        if led[prefix] * 2 <= len(new):
            break
        new = {old: name.removeprefix(prefix) for old, name in new.items()}
    return new
