"""What stands in a PDF that Chromium printed: its letters, and those for which no font had a glyph."""

from __future__ import annotations

import re
import zlib

Letters = tuple[int, dict[int, str]]
NO_GLYPH = "\ufffd"  # the glyph .notdef stands for no letter
_OBJECT = re.compile(rb"(?:^|\n)(\d+) 0 obj\s*(<<.*?>>)\s*(?:(stream)\r?\n|endobj)", re.S)
_SHOWN = re.compile(rb"/F(\d+) [\d.]+ Tf|<([0-9A-F]+)> Tj")
_PAIR = re.compile(rb"<([0-9A-F]+)> <([0-9A-F]+)>(?: <([0-9A-F]+)>)?")


def read_text(content: bytes) -> str:
    """The text of all pages in the order in which it is drawn.

    Args:
        content: A PDF as Skia writes it: fonts bear the number of their object, texts are hexadecimal.
    """
    objects = _objects(content)
    fonts: dict[int, Letters] = {}
    text, font = "", (2, dict[int, str]())
    for _body, stream in objects.values():
        for number, codes in _SHOWN.findall(stream) if b" Tf" in stream else ():
            if number:
                fonts.setdefault(int(number), _letters_of(int(number), objects))
                font = fonts[int(number)]
                continue
            width, letters = font
            for place in range(0, len(codes), width):
                text += letters.get(int(codes[place : place + width], 16), NO_GLYPH)
    return text


def _objects(content: bytes) -> dict[int, tuple[bytes, bytes]]:
    found = {}
    for part in _OBJECT.finditer(content):
        body, stream = part.group(2), b""
        length = re.search(rb"/Length (\d+)", body)
        if part.group(3) and length:
            stream = content[part.end() : part.end() + int(length.group(1))]
            stream = zlib.decompress(stream) if b"/FlateDecode" in body else stream
        found[int(part.group(1))] = (body, stream)
    return found


def _letters_of(number: int, objects: dict[int, tuple[bytes, bytes]]) -> Letters:
    """How many digits a code of a font has, and which letter each stands for."""
    named = re.search(rb"/ToUnicode (\d+) 0 R", objects[number][0])
    assert named is not None, f"font {number} says not which letters it draws"
    table = objects[int(named.group(1))][1]
    width = re.search(rb"begincodespacerange\s*<([0-9A-F]+)>", table)
    assert width is not None
    letters: dict[int, str] = {}
    for part in re.findall(rb"beginbf(?:char|range)\n(.*?)endbf", table, re.S):
        for first, second, third in _PAIR.findall(part):
            last, text = (second, third) if third else (first, second)
            start = bytes.fromhex(text.decode()).decode("utf-16-be")
            for code in range(int(first, 16), int(last, 16) + 1):
                letters[code] = start[:-1] + chr(ord(start[-1]) + code - int(first, 16))
    return len(width.group(1)), letters
