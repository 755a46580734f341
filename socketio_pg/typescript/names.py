"""Identifiers, string literals and comments of TypeScript for names from a database, which may be any text. No I/O."""

import json
import re
from collections.abc import Iterable

#: Property names that need no quotes.
_PLAIN = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]*")
_WORD = re.compile(r"[^\W_]+")


def pascal(*names: str) -> str:
    """Return ``names`` as one identifier: ``order_items`` is ``OrderItems``; characters without a place are left out.

    The result may be empty.
    """
    words = [word for name in names for word in _WORD.findall("".join(map(_kept, name)))]
    joined = "".join("".join(map(_kept, word[0].upper())) + word[1:] for word in words)
    return joined if not joined or joined.isidentifier() else "_" + joined


def _kept(character: str) -> str:
    """Return a character of an identifier, or a space. Older targets of the compiler have the basic plane only."""
    return character if ("_" + character).isidentifier() and character <= "\uffff" else " "


def declared_name(schema: str, name: str) -> str:
    """Return the name of the declaration for a table or type, without the schema if that is ``public``."""
    return pascal(name) if schema == "public" else pascal(schema, name)


def string(text: str) -> str:
    """Return ``text`` as a string literal. Escapes characters that are not printed, such as those that reverse text."""
    return _escaped(json.dumps(text, ensure_ascii=False))


def property_name(name: str) -> str:
    """Return ``name`` as the name of a property: quoted unless it is an identifier."""
    return name if _PLAIN.fullmatch(name) else string(name)


def comment(text: str) -> str:
    """Return ``text`` on one line, without an end of the comment in it."""
    return _escaped(" ".join(text.split()).replace("*/", "*\\/"))


def union(texts: Iterable[str]) -> str:
    """Return the union of types, each once, in the order of their first place."""
    return " | ".join(dict.fromkeys(texts)) or "never"


def _escaped(text: str) -> str:
    return "".join(character if character.isprintable() else _escape(character) for character in text)


def _escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[n : n + 2].hex()}" for n in range(0, len(units), 2))


class Identifiers:
    """Gives each declaration of a file its own name: the first gets the one that it wants, others a number after it."""

    def __init__(self, reserved: Iterable[str]) -> None:
        self._taken = set(reserved)

    def take(self, wanted: str) -> str:
        name, number = wanted or "Unnamed", 1
        while name in self._taken:
            number += 1
            # `A2` and another 2 are not to become `A22`.
            name = f"{wanted or 'Unnamed'}{'_' if wanted[-1:].isdigit() else ''}{number}"
        self._taken.add(name)
        return name
