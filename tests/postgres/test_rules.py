"""The command ``rules`` and the doctor's check of rules, and how servers read the table."""

import json
import re

import pytest

from socketio_pg.core.rules import Rule, Rules
from socketio_pg.log.history import History
from socketio_pg.log.recent import Recent
from socketio_pg.log.rule_reader import RuleReader
from socketio_pg.postgres.database import Database
from tests.support.cli import Base, doctor, level, run
from tests.support.log_database import LogDatabase
from tests.support.patience import PATIENCE
from tests.support.postgres import in_thread

SETTING = '{"chat:*": {"rate": 5, "max_messages": 10}, "a": {"conflate_key": "id"}}'


def test_command_lists_rules_and_explains_those_of_a_channel(base: Base) -> None:
    base.sql(
        "INSERT INTO socketio_pg.rule (pattern, max_age, max_messages, retained)"
        " VALUES ('chat:*', '2 days', 500, NULL), ('*', NULL, NULL, false)"
    )
    done = run("rules", url=base.url, CHANNEL_RULES=SETTING)
    assert (done.returncode, done.stderr) == (0, "")
    assert [re.split("  +", line) for line in done.stdout.splitlines()] == [
        ["PATTERN", "SOURCE", "COLUMNS"],
        ["chat:*", "table", "max_age 2.0 d, max_messages 500"],
        ["chat:*", "CHANNEL_RULES", "max_messages 10, rate 5"],
        ["a", "CHANNEL_RULES", "conflate_key id"],
        ["*", "table", "retained false"],
    ]
    lines = run("rules", "chat:7", url=base.url, CHANNEL_RULES=SETTING).stdout.splitlines()
    rows = {row[0]: tuple(row[1:]) for row in (re.split("  +", line) for line in lines)}
    assert rows["max_messages"] == ("500", "the rule 'chat:*' of the table")
    assert rows["rate"] == ("5", "the rule 'chat:*' of CHANNEL_RULES")
    assert rows["max_bytes"] == ("1000000", "MAX_PAYLOAD")
    assert rows["max_rate"] == ("not set", "default")
    found = json.loads(run("rules", "chat:7", "--json", url=base.url, CHANNEL_RULES=SETTING).stdout)
    assert found["max_age"] == {"value": 172800.0, "source": "table", "pattern": "chat:*"}
    assert run("rules", "a*b", url=base.url).returncode == 2


def test_command_without_the_schema_has_the_rules_of_the_setting(plain: Base) -> None:
    done = run("rules", url=plain.url, CHANNEL_RULES=SETTING)
    assert done.returncode == 0
    assert "not installed" in done.stderr
    assert "chat:*" in done.stdout


def test_doctor_reports_contradictions_and_rules_that_servers_do_not_use(base: Base) -> None:
    assert level(doctor(base.url), "rules") == "ok"
    base.sql("INSERT INTO socketio_pg.rule (pattern, retained, durable) VALUES ('a', true, false)")
    # The announcement waits for a server, which is an error of its own.
    found = doctor(base.url, 1)["rules"]
    assert found["level"] == "warning"
    assert found["found"] == "the rule 'a' has retained, but durable is false: only messages of the log are retained"
    base.sql("DELETE FROM socketio_pg.rule")
    base.sql("ALTER TABLE socketio_pg.rule DROP CONSTRAINT pattern_has_no_double_star")
    base.sql("INSERT INTO socketio_pg.rule (pattern, rate) VALUES ('a**', 5)")
    found = doctor(base.url, 1)["rules"]
    assert (found["level"], "'a**'" in found["found"]) == ("error", True)


@pytest.mark.majors
def test_all_columns_are_read(log: LogDatabase, caplog: pytest.LogCaptureFixture) -> None:
    log.sql(
        "INSERT INTO socketio_pg.rule"
        " VALUES ('a*', true, false, true, false, '1 day 2.5 s', 5, 1000, 2.5, true, 0.5, 'x.y');"
        "INSERT INTO socketio_pg.rule (pattern) VALUES ('b');"
        "ALTER TABLE socketio_pg.rule DROP CONSTRAINT max_messages_from_1_to_100000;"
        "INSERT INTO socketio_pg.rule (pattern, max_messages) VALUES ('c', 0)"
    )
    rules = Rules()

    def read() -> None:
        history = History(Database(log.url), Recent())
        reader = RuleReader(rules, history)
        reader.start()
        reader.wait_known(PATIENCE)
        reader.stop()
        history.stop()

    in_thread(read)
    expected = Rule(True, False, True, False, 86_402.5, 5, 1000, 2.5, True, 0.5, "x.y")
    assert rules.of("ab") == expected
    assert rules.patterns() == ["b", "a*"], "the others are used"
    assert "max_messages of the rule 'c' must be a whole number" in caplog.text


def test_a_role_without_the_right_to_read_rules_has_those_of_the_setting(
    log: LogDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    log.sql("DROP ROLE IF EXISTS no_rules; CREATE ROLE no_rules LOGIN; GRANT USAGE ON SCHEMA socketio_pg TO no_rules")
    rules = Rules(configured={"a": Rule(rate=1.0)})

    def read() -> None:
        history = History(Database(log.url.replace("postgres@", "no_rules@")), Recent())
        reader = RuleReader(rules, history)
        reader.start()
        reader.wait_known(PATIENCE)
        reader.stop()
        history.stop()

    in_thread(read)
    assert rules.of("a").rate == 1.0
    assert "permission denied for table rule" in caplog.text
