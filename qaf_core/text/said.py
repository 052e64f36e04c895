"""What is said as a template and its values, so that catalogues of other languages can hold the template."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from string import Formatter
from typing import Any

Translate = Callable[[str], str]
_NAMES = "{names}"  # no sentence: there is nothing to translate
_LONGEST_SPEC = 4  # of how a value is written, as ,.1f


def untranslated(text: str) -> str:
    """The translation function of those who want English."""
    return text


@dataclass(frozen=True)
class Said:
    """One sentence.

    Attributes:
        template: In English, with ``{name}`` where a value stands; the key of the catalogues. Without values
            it is a text as it stands, braces and all.
        values: Plain JSON values by name; a ``Said`` is put in words first, a list of texts
            is joined by commas; numbers, as of a shape, keep their brackets.
    """

    template: str
    values: Mapping[str, Any] = field(default_factory=dict)

    def text(self, _: Translate = untranslated) -> str:
        """The sentence in the language of ``_``."""
        text = _(self.template)
        return (
            text.format(**{key: in_words(value, _) for key, value in self.values.items()})
            if self.values
            else text
        )

    def __str__(self) -> str:
        return self.text()


def say(template: str, **values: Any) -> Said:
    """A sentence of a template and its values."""
    return Said(template, values)


def listing(names: Iterable[str], limit: int = 5) -> Said:
    """Names for a message: the first few and how many more."""
    listed = list(names)
    first, more = listed[:limit], len(listed) - limit
    if more > 0:
        return say("{names} and {count} more", names=first, count=more)
    return Said(_NAMES, {"names": first})


def either(choices: Iterable[str | Said]) -> Said:
    """One of several, for a message."""
    first, *others = choices
    message = first if isinstance(first, Said) else Said(first)
    for other in others:
        message = say("{one} or {other}", one=message, other=other)
    return message


def in_words(value: Any, _: Translate = untranslated) -> Any:
    """A sentence as text in the language of ``_``, lists of such joined by its commas; else as it is."""
    if isinstance(value, list) and value and all(isinstance(each, str | Said) for each in value):
        return _(", ").join(str(in_words(each, _)) for each in value)
    return value.text(_) if isinstance(value, Said) else value


def to_plain(value: Any) -> Any:
    """A sentence, or a value, as JSON can hold it: a sentence as its ``template`` and ``values``."""
    if isinstance(value, Said):
        return {
            "template": value.template,
            "values": {key: to_plain(one) for key, one in value.values.items()},
        }
    if isinstance(value, list):
        return [to_plain(each) for each in value]
    return value if isinstance(value, str | int | float | None) else str(value)


def from_plain(stored: Any) -> Any:
    """What `to_plain` gave.

    Raises:
        ValueError: If a template, which may come from a stranger's workspace, would fill in anything else
            than its values, or fill them up.
    """
    if isinstance(stored, list):
        return [from_plain(each) for each in stored]
    if not isinstance(stored, Mapping):
        return stored
    template, values = str(stored.get("template")), stored.get("values") or {}
    if not isinstance(values, Mapping):
        raise ValueError("values without names")
    if values and any(
        name is not None and (name not in values or len(spec or "") > _LONGEST_SPEC or "{" in (spec or ""))
        for _, name, spec, _ in Formatter().parse(template)
    ):
        raise ValueError("a template of another form")
    return Said(template, {key: from_plain(one) for key, one in values.items()})


def templates_of(*sentences: Said | str) -> dict[str, Any]:
    """By sentence in English its template and values as JSON can hold them, to be kept beside it."""
    return {each.text(): to_plain(each) for each in sentences if isinstance(each, Said)}


def said_of(line: str, kept: Mapping[str, Any]) -> Said:
    """A sentence that was kept, by its template; as it stands where that was not kept.

    Args:
        line: In English.
        kept: What ``templates_of`` gave.
    """
    try:
        sentence = from_plain(kept[line])
        if isinstance(sentence, Said) and sentence.text() == line:
            return sentence
    except (ValueError, TypeError, LookupError, AttributeError):
        pass
    return Said(line)


def retell(line: str, kept: Mapping[str, Any], _: Translate) -> str:
    """The same in the language of ``_``."""
    return said_of(line, kept).text(_)
