"""Decodes changes of tables from the WAL, in its order: the output of PostgreSQL's plugin ``pgoutput``, version 1.

The format: https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html
"""

import struct
from typing import Any

Row = dict[str, str | None]


def changes(cursor: Any, slot: str, publication: str) -> list[tuple[str, str, Row | None, Row | None]]:
    """Return and consume the committed changes in a slot as (table, operation, old row, new row), values as texts.

    The tables must have REPLICA IDENTITY FULL.
    """
    cursor.execute(
        "SELECT data FROM pg_logical_slot_get_binary_changes(%s, NULL, NULL, 'proto_version', '1',"
        " 'publication_names', %s)",
        (slot, publication),
    )
    tables: dict[int, tuple[str, list[str]]] = {}
    found: list[tuple[str, str, Row | None, Row | None]] = []
    for (data,) in cursor.fetchall():
        message = _Message(bytes(data))
        kind = message.letter()
        if kind == "R":
            oid = message.number("I")
            message.text()
            name = message.text()
            message.letter()
            tables[oid] = name, [message.column() for _ in range(message.number("H"))]
        elif kind == "T":
            count = message.number("I")
            message.number("B")
            found += [(tables[message.number("I")][0], "TRUNCATE", None, None) for _ in range(count)]
        elif kind in "IUD":
            name, columns = tables[message.number("I")]
            rows: dict[str, Row] = {}
            while message.left():
                image = message.letter()
                rows[image] = dict(zip(columns, message.values(), strict=True))
            operation = {"I": "INSERT", "U": "UPDATE", "D": "DELETE"}[kind]
            found.append((name, operation, rows.get("O"), rows.get("N")))
    return found


class _Message:
    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def left(self) -> bool:
        return self._at < len(self._data)

    def _take(self, size: int) -> bytes:
        self._at += size
        return self._data[self._at - size : self._at]

    def letter(self) -> str:
        return self._take(1).decode()

    def number(self, form: str) -> int:
        return int(struct.unpack(">" + form, self._take(struct.calcsize(form)))[0])

    def text(self) -> str:
        end = self._data.index(0, self._at)
        text = self._take(end - self._at).decode()
        self._at += 1
        return text

    def column(self) -> str:
        self.number("B")
        name = self.text()
        self._take(8)
        return name

    def values(self) -> list[str | None]:
        return [self._value() for _ in range(self.number("H"))]

    def _value(self) -> str | None:
        return self._take(self.number("I")).decode() if self.letter() == "t" else None
