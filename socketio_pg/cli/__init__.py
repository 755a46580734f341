"""The command ``socketio-pg``: one file per command, or per group of related commands.

In: arguments, the settings (environment and ``local.cfg``), and for ``publish`` JSON on standard input.
Out: results on standard output as text or JSON, everything else on standard error, and an exit code.

Open `main.py` first: the list of commands. `command.py` has their shared options and exit codes, `terminal.py` their
output. `listening.py` is the source of messages for ``listen``; ``bench`` is in `selftest.py`.
"""
