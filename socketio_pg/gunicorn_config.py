"""What gunicorn needs to know to run this server: ``gunicorn -c python:socketio_pg.gunicorn_config …``.

In a checkout the ``gunicorn.conf.py`` beside the README brings it in without being asked. The names are gunicorn's.
"""

import contextlib
import logging
import resource
import signal
from typing import Any

from socketio_pg.core import green

# Under another name: gunicorn takes `config` for one of its settings.
from socketio_pg.core.config import SPARE_DESCRIPTORS
from socketio_pg.core.config import load as load_settings
from socketio_pg.core.errors import ConfigurationError
from socketio_pg.core.logs import SeldomFilter, formatter

worker_class = "eventlet"
#: One: the rooms are in the memory of one process. More nodes are more gunicorns (docs/architecture.md).
workers = 1
#: gunicorn's own default holds 1,000 clients and lets the next ones hang.
worker_connections = 10_000
with contextlib.suppress(ConfigurationError):  # what is wrong is said once, when the application starts
    worker_connections = load_settings().max_connections
backlog = 4096
#: Seconds in which the head of a request must have come as a whole, and that a connection may idle between two. Without
#: it (0) gunicorn would wait for ever for a client that sends a byte now and then.
keepalive = 5
#: Our own drain takes DRAIN_SECONDS (8 at most); then whatever still hangs is cut off. In all under 10 s.
graceful_timeout = 9
#: gunicorn 25's control socket lies on one path for all gunicorns of a user, and delays the handling of SIGTERM by 3 s.
control_socket_disable = True


def on_starting(server: Any) -> None:
    """As many descriptors as the system allows: each client is one; and the log's format."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # A line for each request that is none: strangers could fill the disk.
    logging.getLogger("gunicorn.error").addFilter(SeldomFilter("Invalid request from"))
    # Its own lines from here on look like ours.
    with contextlib.suppress(ConfigurationError):
        form = formatter(load_settings().log_format)
        for handler in logging.getLogger("gunicorn.error").handlers:
            handler.setFormatter(form)


def pre_request(worker: Any, request: Any) -> None:
    """After a request with a body that is large or without an end, close the connection.

    gunicorn would read what the application has not, to find the next request: as fast as it comes, giving way to
    nobody.
    """
    for name, value in request.headers:
        if name == "TRANSFER-ENCODING" or (name == "CONTENT-LENGTH" and int(value) > LARGE_BODY):
            request.force_close()


#: Bytes.
LARGE_BODY = 100_000


def post_worker_init(worker: Any) -> None:
    """Connect to PostgreSQL now and not with the first client, and drain at SIGTERM.

    Here, because with ``--preload`` the application was imported before the fork.
    """
    server = worker.wsgi.extensions["socketio_pg"]
    server.start()
    green.keep_accepting()
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if server.limit_connections(descriptors - SPARE_DESCRIPTORS):
        worker.log.warning("%d descriptors are too few for MAX_CONNECTIONS: it is lowered", descriptors)
    stop_worker = signal.getsignal(signal.SIGTERM)

    def terminate(signum: int, frame: Any) -> None:
        server.start_draining()
        if callable(stop_worker):
            stop_worker(signum, frame)

    signal.signal(signal.SIGTERM, terminate)


def worker_exit(server: Any, worker: Any) -> None:
    """Let the drain end: WebSockets are no requests any more that gunicorn would wait for."""
    application = getattr(worker, "wsgi", None)
    if application is not None and "socketio_pg" in application.extensions:
        application.extensions["socketio_pg"].wait_drained(graceful_timeout - 1)
