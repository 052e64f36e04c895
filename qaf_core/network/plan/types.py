"""A plan as data: what each layer becomes, and its versioned JSON form. Free of torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qaf_core.errors import PlanError
from qaf_core.factorization.structures import Rank
from qaf_core.records import Record
from qaf_core.text.said import Said, either, listing, say

SCHEMA_VERSION = 1

Bits = int | tuple[int, ...] | None

_NONE = type(None)
_LAYER_FIELDS: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "structure": (str,),
    "rank": (int, list, _NONE),
    "bits": (int, list, _NONE),
}
_PLAN_FIELDS: dict[str, tuple[type, ...]] = {
    "schema_version": (int,),
    "model": (str,),
    "layers": (list,),
    "activation_bits": (int,),
    "options": (dict,),
    "seed": (int,),
}
_TYPE_NAMES: dict[type, Said | str] = {
    str: say("text"), int: say("a whole number"), list: say("a list"), dict: say("an object"), _NONE: "null",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LayerPlan(Record):
    """What one layer becomes.

    Attributes:
        name: The layer, as in the inventory.
        structure: ``cp``, ``tucker2``, ``svd``, ``dense`` (quantized, not factorized) or ``keep`` (as it is).
        rank: R for ``cp`` and ``svd``, (R_out, R_in) for ``tucker2``, None otherwise.
        bits: Weight bits, 2 to 8 or 32 for floating point; a tuple gives one per factor, in the order of
            ``factor_shapes``; None for ``keep``.
    """

    name: str
    structure: str
    rank: Rank = None
    bits: Bits = None

    @classmethod
    def from_dict(cls, data: Any) -> LayerPlan:
        """Read what ``to_dict`` wrote.

        Raises:
            PlanError: If a field is missing, unknown, or of the wrong type.
        """
        named = data.get("name") if isinstance(data, dict) else None
        unnamed = say("a layer of the plan")
        where = say("layer {name} of the plan", name=named) if isinstance(named, str) else unnamed
        fields = _read_fields(where, data, _LAYER_FIELDS, required=("name", "structure"))
        for key in ("rank", "bits"):
            value = fields.get(key)
            if isinstance(value, list):
                fields[key] = tuple(value)
                if not all(is_integer(part) for part in value):
                    raise PlanError(
                        say("{where}: {key} is of the wrong type", where=where, key=key),
                        got=value,
                        expected="whole numbers only",
                    )
        return cls(**fields)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a whole network becomes.

    Attributes:
        model: Id of the model it was made for.
        layers: One row for every 2-d convolution and linear layer of the inventory.
        activation_bits: Bits of the input of every convolution and linear layer: 2 to 8, or 32 for none.
        options: Solver options by name; checked where the solver starts.
        seed: Of every random start.
        schema_version: Of the JSON form.
    """

    schema_version: int = SCHEMA_VERSION
    model: str
    layers: tuple[LayerPlan, ...]
    activation_bits: int = 8
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    def layer(self, name: str) -> LayerPlan:
        """The row of one layer.

        Raises:
            PlanError: If there is none.
        """
        for row in self.layers:
            if row.name == name:
                return row
        raise PlanError(
            "the plan has no such layer", got=name, expected=listing(row.name for row in self.layers)
        )

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain JSON types."""
        return {
            "schema_version": self.schema_version,
            "model": self.model,
            "activation_bits": self.activation_bits,
            "seed": self.seed,
            "options": dict(self.options),
            "layers": [row.to_dict() for row in self.layers],
        }

    def to_json(self) -> str:
        """The plan as JSON text."""
        return json.dumps(self.to_dict(), indent=1)

    @classmethod
    def from_dict(cls, data: Any) -> Plan:
        """Read what ``to_dict`` wrote.

        Raises:
            PlanError: If a field is missing, unknown, of the wrong type, or the version is not this one.
        """
        version = data.get("schema_version", SCHEMA_VERSION) if isinstance(data, dict) else SCHEMA_VERSION
        if is_integer(version) and version != SCHEMA_VERSION:
            newer = version > SCHEMA_VERSION
            raise PlanError(
                "the plan is written in a newer form than this program knows"
                if newer
                else "unknown plan version",
                got=f"schema_version {version}",
                expected=f"schema_version {SCHEMA_VERSION}",
                remedy="update this program" if newer else "make a new plan",
            )
        fields = _read_fields(say("the plan"), data, _PLAN_FIELDS, required=("model", "layers"))
        return cls(**{**fields, "layers": tuple(LayerPlan.from_dict(row) for row in fields["layers"])})

    @classmethod
    def from_json(cls, text: str | bytes) -> Plan:
        """Read what ``to_json`` wrote.

        Raises:
            PlanError: If the text is no JSON, or as in ``from_dict``.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise PlanError(
                "the plan is not valid JSON", got=str(error), remedy="give a plan this program wrote"
            ) from error
        return cls.from_dict(data)


def is_integer(value: Any) -> bool:
    """Whether a value is a whole number, and no truth value."""
    return isinstance(value, int) and not isinstance(value, bool)


def _read_fields(
    where: Said, data: Any, known: Mapping[str, tuple[type, ...]], required: tuple[str, ...]
) -> dict[str, Any]:
    """The fields of a JSON object, checked by name and type."""
    if not isinstance(data, dict):
        raise PlanError(
            say("{where} is of the wrong type", where=where), got=_short(data), expected="a JSON object"
        )
    if unknown := sorted(map(str, data.keys() - known.keys())):
        raise PlanError(
            say("{where} has unknown fields", where=where), got=listing(unknown), expected=", ".join(known)
        )
    if missing := [key for key in required if key not in data]:
        raise PlanError(
            say("{where} lacks fields", where=where),
            got=say("no {missing}", missing=listing(missing)),
            expected=", ".join(required),
        )
    for key, value in data.items():
        if not isinstance(value, known[key]) or isinstance(value, bool):
            expected = either(_TYPE_NAMES[kind] for kind in known[key])
            raise PlanError(
                say("{where}: {key} is of the wrong type", where=where, key=key),
                got=_short(value),
                expected=expected,
            )
    return dict(data)


def _short(value: Any) -> str:
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else f"{text[:57]}..."
