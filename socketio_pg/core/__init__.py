"""Shared foundations: errors, settings, green threads, channels, messages, metrics and logs. Imports no other folder.

In: setting values, channel names, JSON payloads, events to count or log.
Out: `Settings`, validated names, encoded messages, exceptions with wire codes, Prometheus metrics, log lines.

Open `errors.py` for the exceptions, `config.py` for the table of settings, `messages.py` for the way from a JSON value
to a Socket.IO frame. `green.py` is the only interface to the green-thread library.
"""
