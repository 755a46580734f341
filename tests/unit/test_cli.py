"""The command line without a database or server: help, docs, output, exit codes of usage errors."""

import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import jwt
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from socketio_pg.access.tokens import TokenVerifier
from socketio_pg.cli import terminal
from socketio_pg.cli.command import duration, failures, names
from socketio_pg.cli.listen import gap_line, message_line
from socketio_pg.cli.listening import OfThisEpoch, Text, parse_since
from socketio_pg.cli.main import MODULES, main
from socketio_pg.cli.selftest import percentile
from socketio_pg.core.channels import match_pattern
from socketio_pg.core.config import Settings
from socketio_pg.core.errors import (
    ConfigurationError,
    DatabaseUnavailableError,
    InvalidChannelError,
    InvalidRequestError,
    LogNotInstalledError,
    PayloadTooLargeError,
)

pytestmark = pytest.mark.usefixtures("clean_settings")

SECRET = "a secret of this test: 0123456789abcdef"


def invoke(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(main, arguments, env=environment, prog_name="socketio-pg")


def commands() -> Iterator[tuple[str, click.Command]]:
    context = click.Context(main)
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        assert command is not None
        yield name, command


# -- help and docs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODULES)
def test_every_command_has_help_with_examples(name: str) -> None:
    result = invoke(name, "--help")
    assert result.exit_code == 0
    assert f"socketio-pg {name}" in result.output.partition("Examples:")[2]
    assert max(map(len, result.output.splitlines())) <= 80


def test_help_of_commands_is_not_truncated_in_the_list() -> None:
    result = invoke("--help")
    listed = result.output.partition("Commands:\n")[2].partition("\n\n")[0]
    assert [line.split()[0] for line in listed.splitlines()] == [*MODULES]
    assert "..." not in listed


def test_every_option_has_a_help_text() -> None:
    for name, command in commands():
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help or parameter.show_default, f"{name} {parameter.name}"


def test_examples_are_valid_command_lines(root: Path) -> None:
    """Check the examples of --help and of docs/cli.md."""
    docs = (root / "docs" / "cli.md").read_text("utf-8")
    typed_lines = 0
    for name, command in commands():
        lines = re.findall(rf"^.*?socketio-pg {name}\b(.*)", f"{command.epilog}\n{docs}", re.MULTILINE)
        for line in lines:
            typed = shlex.split(re.split(r"[|>)`]", line)[0], comments=True)
            assert command.make_context(name, typed).command is command
            typed_lines += 1
    assert typed_lines > len(MODULES)


def test_docs_have_every_command_and_exit_code(root: Path) -> None:
    text = (root / "docs" / "cli.md").read_text("utf-8")
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    documented = re.findall(r"`([a-z-]+)`", " ".join(headings))
    assert sorted(documented) == sorted(MODULES)
    assert re.findall(r"^\| (\d+) \|", text, re.MULTILINE) == ["0", "1", "2", "3", "130"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(shell: str) -> None:
    result = invoke("completion", shell)
    assert result.exit_code == 0
    assert f"_SOCKETIO_PG_COMPLETE={shell}_complete" in result.output


def test_shell_completion_lists_options() -> None:
    asked = {"_SOCKETIO_PG_COMPLETE": "bash_complete", "COMP_WORDS": "socketio-pg listen --h", "COMP_CWORD": "2"}
    result = invoke(**asked)
    assert "--history" in result.output


def test_rich_is_not_imported_without_a_terminal(root: Path) -> None:
    program = (
        "import sys, click; from socketio_pg.cli.main import main\n"
        "for name in main.list_commands(click.Context(main)): main.get_command(click.Context(main), name)\n"
        "from socketio_pg.cli.terminal import table; table(['a'], [[1]])\n"
        "sys.exit('rich' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "A\n1\n"), done.stderr


# -- exit codes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigurationError("x"), 1),
        (LogNotInstalledError("x"), 1),
        (InvalidChannelError("x"), 2),
        (PayloadTooLargeError("x"), 2),
        (DatabaseUnavailableError("x"), 3),
        (ConnectionError("x"), 3),
        (TimeoutError("x"), 3),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_error_is_a_message_and_an_exit_code(error: Exception, code: int) -> None:
    with pytest.raises(click.ClickException) as caught, failures():
        raise error
    assert (caught.value.message, caught.value.exit_code) == ("x", code)


def test_ctrl_c_exits_with_130() -> None:
    with pytest.raises(click.exceptions.Exit) as caught, failures():
        raise KeyboardInterrupt
    assert caught.value.exit_code == 130


def test_unexpected_error_keeps_its_traceback() -> None:
    with pytest.raises(KeyError), failures():
        raise KeyError("x")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["publish", "a", "{"], ["not JSON: expecting property name", "at character 2"]),
        (["publish", "a", "NaN"], ["not JSON"]),
        (["publish", "a", "text"], ["not JSON", "quotes"]),
        (["publish", " a", "1"], ["must not start or end with a space"]),
        (["publish", "socketio_pg", "1"], ["reserved"]),
        (["publish", "a" * 64, "1"], ["63 bytes"]),
        (["publish", "a"], ["JSON"]),
        (["listen"], ["CHANNEL"]),
        (["listen", "a*"], ["'*'"]),
        (["listen", "a", "--since", "x"], ["EPOCH:POSITION"]),
        (["listen", "a", "--since", "1", "--history", "1"], ["do not go together"]),
        (["listen", "a", "--timeout", "soon"], ["s, m, h or d"]),
        (["listen", "a", "--history", "1001"], ["1000"]),
        (["watch", "a", "--operations", "SELECT"], ["SELECT", "INSERT"]),
        (["watch", "a", "--tier", "gold"], ["log"]),
        (["token", "--claim", "x"], ["KEY=JSON"]),
        (["token", "--claim", "x=y"], ["KEY=JSON"]),
        (["token", "--expires", "-1"], ["s, m, h or d"]),
        (["bench", "--subscribers", "0"], ["1<=x"]),
        (["completion", "tcsh"], ["bash"]),
        (["nothing"], ["No such command 'nothing'."]),
        (["publsh"], ["No such command 'publsh'. Did you mean 'publish'?"]),
        (["watchs"], ["Did you mean 'watches' or 'watch'", "?"]),
        (["migrate"], ["Did you mean 'init'?"]),
    ],
    ids=" ".join,
)
def test_usage_error_exits_with_2(arguments: list[str], words: list[str]) -> None:
    result = invoke(*arguments, JWT_SECRET=SECRET)
    assert result.exit_code == 2, result.output
    for word in words:
        assert word in " ".join(result.output.split())


@pytest.mark.parametrize(
    "arguments",
    [["init"], ["drop"], ["publish", "a", "1"], ["listen", "a"], ["status"], ["watches"], ["watch", "a"],
     ["unwatch", "a"], ["bench"]],
    ids=" ".join,
)  # fmt: skip
def test_missing_database_is_reported_with_the_setting(arguments: list[str]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 1
    assert "DATABASE_URL" in result.output


# -- values of options -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("15m", 900), ("1.5h", 5400), (" 7d ", 604_800), ("0", 0)]
)
def test_duration_is_parsed(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "1 m", "-1", "1w", "1e3", "٣"])
def test_invalid_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a number"):
        duration(text)


def test_since_is_parsed() -> None:
    assert parse_since("earliest") == parse_since("start") == "earliest"
    assert parse_since("0") == OfThisEpoch(0)
    assert parse_since("2f80-9a:17") == Text("2f80-9a:17")
    assert parse_since("2026-11-24T12:00:00Z") == Text("2026-11-24T12:00:00Z")
    for text in ("", "x", ":", "1:", "-1", "1:-1", str(2**63)):
        with pytest.raises(InvalidRequestError, match="POSITION"):
            parse_since(text)


def test_names_can_be_repeated_or_separated_by_commas() -> None:
    assert names(()) is None
    assert names(("a, b", "c,")) == ["a", "b", "c"]


def test_percentile() -> None:
    assert percentile([], 0.5) == 0
    assert percentile([1.0], 0.99) == 1
    assert [percentile([1.0, 2.0, 3.0, 4.0], share) for share in (0, 0.5, 0.99, 1)] == [1, 3, 4, 4]


# -- output ------------------------------------------------------------------------------------------------------------


def test_message_line() -> None:
    body: dict[str, Any] = {"channel": "a", "payload": {"text": "é"}}
    assert click.unstyle(message_line(body))[8:] == '  a  {"text":"é"}'
    body |= {"position": 7, "published_at": "2026-11-24T10:00:01.123456Z", "replayed": True}
    assert re.fullmatch(r'\d\d:\d\d:01  a  #7  {"text":"é"}  \(replayed\)', click.unstyle(message_line(body)))


def test_message_line_has_the_sender() -> None:
    body: dict[str, Any] = {"channel": "a", "payload": 1}
    assert click.unstyle(message_line(body | {"from": {"sub": "Zoë\x9b"}}))[8:] == '  a  1  from "Zo\\u00eb\\u009b"'
    line = click.unstyle(message_line(body | {"from": {"sub": "7", "name": "Zo"}}))
    assert line[8:] == '  a  1  from {"sub": "7", "name": "Zo"}'


def test_control_characters_in_a_payload_are_escaped() -> None:
    line = message_line({"channel": "a", "payload": "\x1b[2J\x9b2J\x7f"})
    assert r'"\u001b[2J\u009b2J\u007f"' in line


def test_payload_can_have_large_integers() -> None:
    assert str(10**30) in message_line({"channel": "a", "payload": [10**30]})


def test_gap_line() -> None:
    assert click.unstyle(gap_line({"channel": "a", "tier": "log", "reason": "trimmed"})) == (
        "gap in a: messages of the log may have been missed (trimmed)"
    )
    assert "NOTIFY may have been missed between x and y" in gap_line(
        {"channel": "a", "tier": "notify", "reason": "r", "since": "x", "until": "y"}
    )


def test_control_characters_in_names_are_replaced() -> None:
    assert terminal.clean("a\x1b[31m\n\x9bé\tb") == "a\ufffd[31m\ufffd\ufffdé\tb"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, ""), (0.31, "0.3 s"), (42.4, "42 s"), (300, "5 min"), (11_160, "3.1 h"), (172_800, "2.0 d")],
)
def test_age(seconds: float | None, text: str) -> None:
    assert terminal.age(seconds) == text


def test_table_in_a_pipe_is_plain_text(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.table(["name", "n"], [["long name", 1], ["é", None]])
    assert capsys.readouterr().out == "NAME       N\nlong name  1\né\n"


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard output is a terminal with 80 columns."""
    monkeypatch.setattr(terminal, "width", lambda error=False: 80)
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("length", [5, 20, 60])
def test_table_on_a_terminal_breaks_no_words(capsys: pytest.CaptureFixture[str], length: int) -> None:
    """A long cell is wrapped, and a table that is still too wide is printed as blocks."""
    operations = ["INSERT", "UPDATE", "DELETE", "TRUNCATE"]
    rows = [["public.orders", "a" * length, operations, "new.state = 'paid' AND old.state = 'open'", None]]
    terminal.table(["table", "channel", "operations", "when", "nothing"], rows)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    words = {"public.orders", "a" * length, "INSERT,", "TRUNCATE", "new.state", "old.state"}
    assert words <= set(printed.split())
    assert "nothing" not in printed, "a column without values"


@given(st.lists(st.lists(st.text("ab 界", max_size=12), min_size=3, max_size=3), min_size=1), st.integers(0, 60))
def test_column_widths_fit(lines: list[list[str]], limit: int) -> None:
    words = [
        max((cells_of(word) for cell in column for word in cell.split()), default=0)
        for column in zip(*lines, strict=True)
    ]
    widths = terminal.column_widths(lines, limit)
    if widths is None:
        assert sum(words) > limit
        return
    assert sum(widths) <= limit
    assert all(width >= word for width, word in zip(widths, words, strict=True))
    whole = [max(map(cells_of, column)) for column in zip(*lines, strict=True)]
    assert widths == whole or sum(widths) == limit, "no line is wrapped without need"


def cells_of(text: str) -> int:
    return len(text) + text.count("界")


@pytest.mark.usefixtures("narrow")
def test_sentences_and_errors_are_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.tell("word " * 40)
    assert {len(line) for line in capsys.readouterr().out.splitlines()} == {79, 39}
    lines = invoke("status").output.splitlines()
    assert len(lines) > 1
    assert lines[0].startswith("Error: No database is configured: set DATABASE_URL")
    assert max(map(len, lines)) < 80
    lines = invoke("publish", "orders", "{id: 8}").output.splitlines()
    assert lines[-2].startswith("Error: Invalid value for JSON: not JSON: ")
    assert max(map(len, lines)) < 80, "an error of click's"
    assert "Choose from: bash, zsh, fish" in invoke("completion").output


@pytest.mark.usefixtures("narrow")
def test_entry_is_wrapped_below_its_text(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.entry("log", "word " * 20 + "x" * 90)
    first, *others, last = capsys.readouterr().out.splitlines()
    assert first.startswith("log           word word")
    assert all(line.startswith(" " * 14 + "w") and len(line) < 80 for line in others)
    assert last == " " * 14 + "x" * 90, "an address stays in one piece"


def test_progress_is_shown_on_a_terminal_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with terminal.Progress() as progress:
        progress.show("working")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "20")
    with terminal.Progress() as progress:
        progress.show("half of it is done: 12 of 24")
    assert capsys.readouterr().err == "\r\x1b[Khalf of it is done:\r\x1b[K", "one line, erased at the end"


# -- token -------------------------------------------------------------------------------------------------------------


def mint(*arguments: str, **environment: str) -> str:
    result = invoke("token", *arguments, **environment)
    assert result.exit_code == 0, result.output
    assert "development" in result.stderr
    return result.stdout.strip()


def test_token_is_accepted_by_the_server() -> None:
    signed = mint("--sub", "alice", JWT_SECRET=SECRET, JWT_ISSUER="me", JWT_AUDIENCE="us,them")
    verifier = TokenVerifier(Settings(jwt_secret=SECRET, jwt_issuer="me", jwt_audience=("us",)))
    assert verifier.verify(signed).subject == "alice"


def test_token_has_the_given_claims() -> None:
    signed = mint(
        "--role", "web", "--subscribe", "a:*", "--subscribe", "b", "--publish", "a:1", "--expires", "15m",
        "--claim", 'tenant={"id": 1}', "--claim", "admin=true", JWT_SECRET=SECRET, JWT_ROLE_CLAIM="pgrole",
    )  # fmt: skip
    claims = jwt.decode(signed, SECRET, ["HS256"])
    assert abs(claims.pop("exp") - time.time() - 900) < 60
    assert claims.pop("iat") <= time.time()
    assert claims == {
        "sub": "developer", "pgrole": "web", "subscribe": ["a:*", "b"], "publish": ["a:1"], "tenant": {"id": 1},
        "admin": True,
    }  # fmt: skip
    assert match_pattern(claims["subscribe"][0], "a:7")


def test_token_uses_an_accepted_algorithm() -> None:
    long = SECRET * 2
    assert jwt.get_unverified_header(mint(JWT_SECRET=long, JWT_ALGORITHMS="RS256,HS512"))["alg"] == "HS512"
    assert jwt.get_unverified_header(mint("--secret", SECRET))["alg"] == "HS256"


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, "set JWT_SECRET"),
        ({"JWKS_URL": "https://example.com/keys"}, "only public keys"),
        ({"JWT_SECRET": "short"}, "needs at least 32"),
        ({"JWT_SECRET": SECRET, "JWT_ALGORITHMS": "RS256"}, "HS256"),
    ],
)
def test_unusable_token_is_not_created(environment: dict[str, str], words: str) -> None:
    result = invoke("token", **environment)
    assert result.exit_code == 1
    assert words in result.stderr
    assert result.stdout == ""


def test_dataclass_is_printed_as_json() -> None:
    assert json.loads(terminal.json_text({"s": OfThisEpoch(1)})) == {"s": {"position": 1}}
