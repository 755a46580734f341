"""ALTER ROLE has set everything that it can on our role: the server, the relay and the commands still work."""

import time

import pytest

from tests.support.cli import doctor, run
from tests.support.clients import SocketClient, code
from tests.support.log import Log, numbers
from tests.support.postgres import Cluster
from tests.support.server import ServerProcess

#: No setting of a session, or of no use without a second database.
LEFT_OUT = {
    # tests of the schema set it
    "search_path",
    # the transaction's own
    "transaction_deferrable", "transaction_isolation", "transaction_read_only",
    # name objects that do not exist
    "default_table_access_method", "default_tablespace", "local_preload_libraries", "temp_tablespaces",
    "timezone_abbreviations", "default_text_search_config", "createrole_self_grant",
    # the largest value is allocated
    "temp_buffers", "work_mem", "maintenance_work_mem", "logical_decoding_work_mem",
    # reserve descriptors or processes of the machine, or fill the log
    "max_parallel_workers", "debug_print_parse", "debug_print_plan", "debug_print_rewritten", "trace_sort",
}  # fmt: skip

#: Values that hurt more than the smallest and the largest.
CHOSEN = {
    "DateStyle": ("SQL, DMY", "German"),
    "IntervalStyle": ("iso_8601", "sql_standard"),
    "TimeZone": ("Pacific/Kiritimati", "America/Caracas"),
    "application_name": ("x", "y"),
    "client_encoding": ("LATIN1", "EUC_JP"),
    "client_min_messages": ("debug1", "error"),
    "default_transaction_isolation": ("serializable", "repeatable read"),
    "idle_in_transaction_session_timeout": ("1", "1"),
    "idle_session_timeout": ("1000", "1000"),
    "lc_monetary": ("C", "C"), "lc_numeric": ("C", "C"), "lc_time": ("C", "C"),
    "lock_timeout": ("1", "1"),
    "restrict_nonsystem_relation_kind": ("view", "view, foreign-table"),
    "standard_conforming_strings": ("off", "on"),
    "statement_timeout": ("10", "10"),
    "synchronous_commit": ("off", "local"),
    "tcp_user_timeout": ("10000", "0"),
    "transaction_timeout": ("1000", "1000"),
    "plpgsql.extra_errors": ("all", "all"),
    "plpgsql.extra_warnings": ("all", "all"),
}  # fmt: skip


def hostile(cluster: Cluster, which: int) -> dict[str, str]:
    """Return a value of each setting that a role's owner may set: one end of its range, or the other."""
    rows = cluster.sql(
        "SELECT name, vartype, boot_val, min_val, max_val, enumvals FROM pg_settings WHERE context = 'user'"
    )
    values = {}
    for name, kind, usual, low, high, names in rows:
        if name in CHOSEN or name in LEFT_OUT:
            continue
        if kind == "bool":
            values[name] = "off" if usual == "on" else "on"
        elif kind == "enum":
            values[name] = [value for value in names if value != usual or len(names) == 1][-which]
        elif kind in ("integer", "real"):
            values[name] = (low, high)[which].replace("1.79769e+308", "1e+300")
        else:
            raise AssertionError(f"{name} needs a value, or a reason to leave it out")
    known = {row[0] for row in rows} | {"plpgsql.extra_errors", "plpgsql.extra_warnings"}
    return values | {name: both[which] for name, both in CHOSEN.items() if name in known}


class Hostile(Log):
    """A database whose owner has these settings, and installs the schema itself. ``sql()`` runs as superuser."""

    def __init__(self, cluster: Cluster, settings: dict[str, str], **server: str) -> None:
        name = "hostile_settings"
        cluster.sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        cluster.sql(f"DROP ROLE IF EXISTS {name}_client, {name}")
        cluster.sql(f"CREATE ROLE {name} LOGIN")
        cluster.sql(f"CREATE ROLE {name}_client ROLE {name}")
        cluster.sql(f"CREATE DATABASE {name} OWNER {name}")
        cluster.sql(";".join(f"ALTER ROLE {name} SET {setting} = %s" for setting in settings), *settings.values())
        self.url = cluster.url(name)
        self.owner = self.url.replace("postgres@", f"{name}@")
        assert self.owner != self.url
        done = run("init", "--client-role", f"{name}_client", url=self.owner)
        assert done.returncode == 0, done.stderr
        self.sql(f"CREATE POLICY lobby ON socketio_pg.messages FOR ALL TO {name}_client USING (channel <> 'secret')")
        self.server = ServerProcess(
            self.owner, DRAIN_SECONDS="0.2", AUTHORIZATION="rls", ANONYMOUS_ROLE=f"{name}_client", **server
        )


@pytest.mark.parametrize("which", [0, pytest.param(1, marks=pytest.mark.nightly)])
def test_every_setting_of_a_role(newest_pg: Cluster, which: int) -> None:
    log = Hostile(newest_pg, hostile(newest_pg, which))
    try:
        with SocketClient(log.server.url) as client:
            answer = client.call("subscribe", {"channel": "news"})
            assert "position" in answer, (answer, log.server.log)
            assert code(client.call("subscribe", {"channel": "secret"})) == "forbidden"
            text = "a\\b 'c' \u20ac"
            for durable in (False, True):
                sent = client.call("publish", {"channel": "news", "payload": text, "durable": durable})
                assert sent["ok"], (sent, log.server.log)
                assert client.next("event")["payload"] == text
            log.publish("news", 2, 400, pad=100)
            assert numbers(client, 399) == list(range(2, 401))
            time.sleep(1.5)  # longer than idle_session_timeout
            log.publish("news", 401, 401)
            assert numbers(client, 1) == [401]
            with SocketClient(log.server.url) as late:
                since = {"epoch": answer["epoch"], "position": answer["position"]}
                assert late.call("subscribe", {"channel": "news", "since": since})["recovered"] is True
                replayed = [late.next("event")["payload"] for _ in range(401)]
                assert replayed[0] == text
        log.server.wait_ready()
        found = doctor(log.owner, AUTHORIZATION="rls", ANONYMOUS_ROLE="hostile_settings_client")
        levels = {
            check: found[check]["level"] for check in ("LISTEN", "schema", "privileges", "relay", "clock", "nodes")
        }
        assert set(levels.values()) == {"ok"}, found
        for command in (
            ["publish", "news", "1"],
            ["publish", "news", "1", "--durable"],
            ["status"],
            ["status", "--json"],
        ):
            done = run(*command, url=log.owner)
            assert done.returncode == 0, done.stderr
        # The relay logs that it waits for the first read of the key. A connection is opened under the role's settings:
        # on a busy machine that takes longer than its statement_timeout now and then, and the server tries again.
        lines = log.server.log.splitlines(True)
        opening = [line for line in lines if "canceling statement due to statement timeout" in line]
        assert len(opening) < 10, log.server.log
        written = "".join(line for line in lines if line not in opening and "the cluster key has not been" not in line)
        for trouble in ("not listening", "not relaying", "cannot read", "failed", "Traceback"):
            assert trouble not in written, written
    finally:
        log.server.close()
