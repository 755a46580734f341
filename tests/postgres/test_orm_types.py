"""@publishes: values of every type have PostgreSQL's JSON, in the new row and in values that the session had loaded."""

import datetime
import decimal
import enum
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg
from sqlalchemy.orm import DeclarativeBase

from socketio_pg.orm.hooks import publishes
from tests.support.orm import OrmDatabase, orm_database
from tests.support.postgres import Cluster

pytestmark = pytest.mark.majors


class Base(DeclarativeBase):
    pass


class Mood(enum.Enum):
    HAPPY = "very happy"
    SAD = "sad, \"quoted\", 'é'"


class Cents(sa.types.TypeDecorator[decimal.Decimal]):
    """Euros in Python, cents in the database."""

    impl = sa.Integer
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return None if value is None else int(value * 100)

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return None if value is None else decimal.Decimal(value) / 100


class DateRanges(sa.types.TypeDecorator[Any]):
    """A multirange; a text, which stays NULL, in PostgreSQL 13, which has none."""

    impl = pg.DATEMULTIRANGE
    cache_ok = True

    def load_dialect_impl(self, dialect: Any) -> Any:
        return dialect.type_descriptor(self.impl_instance if dialect.server_version_info >= (14,) else sa.Text())


class Positive(sa.types.UserDefinedType[int]):
    """A domain."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "positive"


def moment(offset: float, micro: int = 0) -> datetime.datetime:
    zone = datetime.timezone(datetime.timedelta(hours=offset))
    return datetime.datetime(2024, 2, 29, 23, 59, 58, micro, tzinfo=zone)


def values_enum(members: Any) -> list[str]:
    return [member.value for member in members]


#: Column → its type and two values. An UPDATE replaces one with the other.
TYPES: dict[str, tuple[Any, Any, Any]] = {
    "boolean": (sa.Boolean, True, False),
    "smallint": (sa.SmallInteger, -5, 0),
    "integer": (sa.Integer, 2**31 - 1, 7),
    "bigint": (sa.BigInteger, 2**63 - 1, -(2**63)),
    "real": (sa.REAL, 1.1, 1e-20),
    "double": (sa.Double, 0.1, 1.5e300),
    "not_a_number": (sa.Double, float("nan"), float("inf")),
    "money_like": (sa.Numeric(10, 2), decimal.Decimal("1.5"), decimal.Decimal("99999999.99")),
    "forty_digits": (sa.Numeric, decimal.Decimal("1" * 40 + ".10"), decimal.Decimal("0.0000000000000000000000000001")),
    "as_float": (sa.Numeric(10, 3, asdecimal=False), 1.25, 2.5),
    "varchar": (sa.String(50), "é 🐘 \\ \" ' {} %s :x \x7f", ""),
    "char": (sa.CHAR(5), "ab", "abcde"),
    "text": (sa.Text, "line\nline\ttab\u2028", "null"),
    "timestamp": (sa.DateTime, datetime.datetime(2024, 1, 1, 0, 0, 0, 1), datetime.datetime(1, 1, 1)),
    "timestamptz": (sa.DateTime(timezone=True), moment(5.5, 120000), moment(-11)),
    "date": (sa.Date, datetime.date(2024, 2, 29), datetime.date(9999, 12, 31)),
    "time": (sa.Time, datetime.time(1, 2, 3, 400), datetime.time(0)),
    "timetz": (sa.Time(timezone=True), datetime.time(1, 2, 3, tzinfo=datetime.timezone.utc), moment(2).timetz()),
    "interval": (sa.Interval, datetime.timedelta(days=400, seconds=1.5), datetime.timedelta(days=-1)),
    "uuid": (sa.Uuid, uuid.UUID(int=1), uuid.uuid4()),
    "bytea": (sa.LargeBinary, b"\x00\xff'\\", b""),
    "enum": (sa.Enum(Mood, name="mood", values_callable=values_enum), Mood.HAPPY, Mood.SAD),
    "enum_names": (sa.Enum(Mood, native_enum=False), Mood.HAPPY, Mood.SAD),
    "json": (sa.JSON, {"b": [1, 2.50, None], "a": "\\u00e9 é"}, "text"),
    "jsonb": (pg.JSONB, [{"b": 1, "a": {"x": True}}], {}),
    "integers": (pg.ARRAY(sa.Integer), [1, None, 3], []),
    "matrix": (pg.ARRAY(sa.Integer, dimensions=2), [[1, 2], [3, 4]], [[5]]),
    "texts": (pg.ARRAY(sa.Text), ["a,b", 'c"d', "{e}", ""], ["NULL"]),
    "moods": (pg.ARRAY(sa.Enum(Mood, name="mood", values_callable=values_enum)), [Mood.SAD, Mood.HAPPY], [Mood.SAD]),
    "numerics": (pg.ARRAY(sa.Numeric(6, 2)), [decimal.Decimal("1.5"), decimal.Decimal(2)], []),
    "inet": (pg.INET, "192.0.2.1", "2001:db8::1"),
    "cidr": (pg.CIDR, "192.0.2.0/24", "2001:db8::/32"),
    "macaddr": (pg.MACADDR, "08:00:2b:01:02:03", "08:00:2b:01:02:04"),
    "bits": (pg.BIT(4), "0101", "1111"),
    "integer_range": (pg.INT4RANGE, pg.Range(1, 5), pg.Range(empty=True)),
    "numeric_range": (pg.NUMRANGE, pg.Range(decimal.Decimal("1.5"), None), pg.Range(None, None)),
    "moment_range": (pg.TSTZRANGE, pg.Range(moment(0), moment(-1)), pg.Range(moment(0), None, bounds="(]")),
    "date_ranges": (
        DateRanges,
        [pg.Range(datetime.date(2024, 1, 1), datetime.date(2024, 2, 1))],
        [pg.Range(datetime.date(2024, 1, 1), None), pg.Range(None, datetime.date(2023, 1, 1))],
    ),
    "tsvector": (pg.TSVECTOR, "'cat':1 'sat':2", "'dog':1"),
    "decorated": (Cents, decimal.Decimal("12.34"), decimal.Decimal(0)),
    "pickle": (sa.PickleType, {"a": (1, 2)}, [3]),
    "domain": (Positive, 5, 6),
    'quoted "Name" ü': (sa.Text, "x", "y"),
}


@publishes("everything")
class Everything(Base):
    __table__ = sa.Table(
        "everything",
        Base.metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        *(sa.Column(name, type_, key=f"c{i}") for i, (name, (type_, _, _)) in enumerate(TYPES.items())),
    )


FIRST = {f"c{i}": first for i, (_, first, _) in enumerate(TYPES.values())}
SECOND = {f"c{i}": second for i, (_, _, second) in enumerate(TYPES.values())}
NOTHING: dict[str, None] = dict.fromkeys(FIRST)


@pytest.fixture(scope="module")
def database(backend: tuple[Cluster, str]) -> Iterator[OrmDatabase]:
    def prepare(made: OrmDatabase) -> None:
        made.sql("CREATE DOMAIN positive AS integer CHECK (VALUE > 0)")

    with orm_database(*backend, "orm_types", Base.metadata, prepare) as made:
        yield made


def row(database: OrmDatabase) -> str:
    """Return the row as ``to_jsonb`` writes it."""
    [(text,)] = database.sql("SELECT to_jsonb(e)::text FROM everything AS e")
    return str(text)


def images(database: OrmDatabase) -> tuple[str, str | None, str | None]:
    """Return op, and the texts of new and old, of the one message that was sent."""
    [(op, new, old)] = database.sql(
        "WITH gone AS (DELETE FROM socketio_pg.outbox RETURNING payload)"
        " SELECT payload->>'op', (payload->'new')::text, (payload->'old')::text FROM gone"
    )
    return op, new, old


def writable(database: OrmDatabase, values: dict[str, Any]) -> dict[str, Any]:
    """Return the ``values`` that the driver can write, and the server has types for."""
    names = dict(zip(values, TYPES, strict=True))
    dialect: Any = database.engine.dialect
    left_out = {"date_ranges"} if dialect.driver == "psycopg2" or dialect.server_version_info < (14,) else set()
    return {key: value for key, value in values.items() if names[key] not in left_out}


@pytest.mark.parametrize(
    ("before", "after"),
    [(FIRST, SECOND), (SECOND, FIRST), (FIRST, NOTHING), (NOTHING, SECOND)],
    ids=["first-second", "second-first", "first-null", "null-second"],
)
def test_all_types_are_sent_as_to_jsonb(database: OrmDatabase, before: dict[str, Any], after: dict[str, Any]) -> None:
    before, after = writable(database, before), writable(database, after)
    with database.session() as session:
        thing = Everything(id=1, **before)
        session.add(thing)
        session.commit()
        first = row(database)
        assert images(database) == ("INSERT", first, "null")
        session.refresh(thing)
        for key, value in after.items():
            setattr(thing, key, value)
        session.commit()
        second = row(database)
        assert second != first
        assert images(database) == ("UPDATE", second, first)
        session.refresh(thing)
        session.delete(thing)
        session.commit()
        assert images(database) == ("DELETE", "null", second)


def test_changed_lists_every_changed_column(database: OrmDatabase) -> None:
    with database.session() as session:
        thing = Everything(id=1, **writable(database, FIRST))
        session.add(thing)
        session.flush()
        session.refresh(thing)
        for key, value in writable(database, SECOND).items():
            setattr(thing, key, value)
        session.flush()
        session.delete(thing)
        session.commit()
    assert database.sent()[1][1]["changed"] == [
        name for name, key in zip(TYPES, FIRST, strict=True) if key in writable(database, FIRST)
    ]
