"""gunicorn's settings for this server: ``gunicorn -c python:socketio_pg.gunicorn_config …``.

In a checkout, ``gunicorn.conf.py`` beside the README imports it automatically. The names are gunicorn's.
"""

import contextlib
import logging
import os
import resource
import shlex
import signal
import sys
import time
import warnings
from typing import Any, NoReturn

import gunicorn
from gunicorn.http.message import Message

from socketio_pg.core import green_library

# gunicorn reserves the name `config` for a setting.
from socketio_pg.core.addresses import authority
from socketio_pg.core.config import SPARE_DESCRIPTORS
from socketio_pg.core.errors import ConfigurationError
from socketio_pg.core.loading import load as load_settings
from socketio_pg.core.logs import RateLimitFilter, formatter
from socketio_pg.engine import hosting
from socketio_pg.engine.head import MAX_HEAD_BYTES
from socketio_pg.workers import node

#: gunicorn stops when a worker exits with this status (arbiter.APP_LOAD_ERROR); otherwise it starts another worker.
EXIT_CONFIGURATION = 4

# Replaced by our own line: eventlet's warning, and those of gunicorn's worker class for it.
warnings.filterwarnings("ignore", r"\s*(The )?eventlet( worker)? is deprecated")

#: The green-thread library of the worker.
worker_class = green_library.LIBRARIES[0]
#: gunicorn's default accepts 1,000 clients and lets further ones hang.
worker_connections = 10_000
_green = None
with contextlib.suppress(ConfigurationError):  # the application reports it when it starts
    _settings = load_settings()
    _green = _settings.green
    worker_class = _green or worker_class
    worker_connections = _settings.max_connections


def _refusal() -> str | None:
    # The command line precedes the environment variable, and that the settings above.
    options = [hosting.options_in(sys.argv[1:])]
    options.append(hosting.options_in(shlex.split(os.environ.get("GUNICORN_CMD_ARGS", ""))))
    chosen = next((given.worker_class for given in options if given.worker_class), worker_class)
    refusals = [
        green_library.unknown(),
        hosting.refusal_of_worker_class(chosen, _green, gunicorn.__version__),
        *(hosting.refusal_of_http2(given.http_protocols, given.http2_cleartext) for given in options),
    ]
    return next(filter(None, refusals), None)


# Other programs that import this module have options of their own. gunicorn would print a traceback.
if "gunicorn.app.base" in sys.modules and (_found := _refusal()) is not None:
    sys.stderr.write(f"socketio_pg: {_found}.\n")
    raise SystemExit(EXIT_CONFIGURATION)

backlog = 4096
#: Seconds for the head of a request to arrive completely, and for a connection to idle between two requests. With 0
#: gunicorn would wait for ever for a client that sends a byte now and then.
keepalive = 5
#: The drain takes DRAIN_SECONDS (at most 8); gunicorn then closes the remaining connections. In all under 10 s.
graceful_timeout = 9
#: gunicorn 25's control socket has the same path for all gunicorns of a user, and delays SIGTERM by 3 s.
control_socket_disable = True


def nworkers_changed(server: Any, new: int, old: int | None) -> None:
    """Prepare the node for several workers, before any is forked and before --preload imports the application.

    Refuses a number of workers: at the start with an error, later (SIGTTIN, SIGHUP) by staying with what there was.
    """
    found = node.current()
    refusal = hosting.refusal_of_several(new, started_with_one=old is not None and found is None)
    if refusal is not None:
        server.log.error("socketio_pg: %s.", refusal)
        if old is None:
            raise SystemExit(EXIT_CONFIGURATION)
        server._num_workers = old  # the property would call this function again
    elif new > 1 and found is None:
        found = node.Node.create(server.cfg.uid, server.cfg.gid)
        node.prepare(found)
    if found is not None:
        found.wanted = server._num_workers


def on_exit(server: Any) -> None:
    """Remove the directory of the node."""
    found = node.current()
    if found is not None:
        found.remove()


def on_starting(server: Any) -> None:
    """Raise the limit of descriptors, one of which each client needs, and set the format of gunicorn's log.

    Refuses HTTP/2.
    """
    # gunicorn 25 has no http2_cleartext.
    refusal = hosting.refusal_of_http2(server.cfg.http_protocols, getattr(server.cfg, "http2_cleartext", None))
    if refusal is not None:
        server.log.error("socketio_pg: %s.", refusal)
        raise SystemExit(EXIT_CONFIGURATION)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # gunicorn logs each invalid request, so untrusted clients could fill the disk.
    logging.getLogger("gunicorn.error").addFilter(RateLimitFilter("Invalid request from"))
    logging.getLogger("gunicorn.error").addFilter(_is_no_deprecation)
    _format_log()


def on_reload(server: Any) -> None:
    """Set the format again: gunicorn 27 sets up its log anew at SIGHUP."""
    _format_log()


def _format_log() -> None:
    """Give gunicorn's lines the format of the server's."""
    with contextlib.suppress(ConfigurationError):
        form = formatter(load_settings().log_format)
        for handler in logging.getLogger("gunicorn.error").handlers:
            handler.setFormatter(form)


def _is_no_deprecation(record: logging.LogRecord) -> bool:
    """A filter for gunicorn's log: `websocket` says how to leave eventlet."""
    return not str(record.msg).startswith("The eventlet worker is DEPRECATED")


def _limit_heads() -> None:
    """Limit the size of all headers of a request together. gunicorn calculates its limit when it reads a request."""
    Message.max_buffer_headers = property(lambda self: MAX_HEAD_BYTES, lambda self, value: None)


def pre_request(worker: Any, request: Any) -> None:
    """Close the connection after a request with a large or endless body, and drain at the last of --max-requests.

    Otherwise gunicorn reads the rest of the body to find the next request, without yielding to other green threads; and
    it ends the worker as soon as no request is open, which WebSockets are not.
    """
    for name, value in request.headers:
        if name == "TRANSFER-ENCODING" or (name == "CONTENT-LENGTH" and int(value) > LARGE_BODY):
            request.force_close()
    if worker.nr + 1 >= worker.max_requests:
        # In a green thread, so that this request is still served.
        worker.wsgi.extensions["socketio_pg"].start_draining()


def worker_int(worker: Any) -> None:
    """Drain before --reload ends the worker. gunicorn calls this at SIGINT too, which ends a worker at once."""
    if worker.reloader is not None:
        worker.wsgi.extensions["socketio_pg"].start_draining()


#: Bytes.
LARGE_BODY = 100_000


def post_fork(server: Any, worker: Any) -> None:
    """Let a worker report an application's configuration error with a sentence, and end gunicorn."""
    load = worker.load_wsgi

    def load_wsgi() -> None:
        try:
            load()
        except SystemExit as ended:
            if ended.code != EXIT_CONFIGURATION:
                raise
            _refuse_to_start()
        except Exception as error:
            # Where two libraries have patched, another error can replace the one that says so.
            problem = error.message if isinstance(error, ConfigurationError) else green_library.problem()
            if problem is None:
                raise
            worker.log.error("socketio_pg: %s.", problem.removesuffix("."))
            _refuse_to_start()

    worker.load_wsgi = load_wsgi


def _refuse_to_start() -> NoReturn:
    """End gunicorn: exit with the status at which its master ends.

    Only one of several workers does, and the others wait for the master to stop them: at a second exit with this status
    it would show a traceback, and end with another status.
    """
    found = node.current()
    if found is None or found.is_first_to_refuse():
        raise SystemExit(EXIT_CONFIGURATION)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    while True:
        signal.pause()


def _address(listener: Any, *, secure: bool) -> str:
    """Return the address of a listening socket, as gunicorn shows it: gevent's worker has sockets without a name."""
    name = listener.getsockname()
    if not isinstance(name, tuple):
        return f"unix:{name}"
    return f"{'https' if secure else 'http'}://{authority(name[0], name[1])}"


def post_worker_init(worker: Any) -> None:
    """Connect to PostgreSQL before the first client, and drain at SIGTERM.

    Not at import, because ``--preload`` imports the application before the fork.
    """
    server = worker.wsgi.extensions["socketio_pg"]
    # Other workers may pass connections to this one as soon as it has started.
    server.serve_connections(worker, hooked=worker.cfg.pre_request is not pre_request)
    try:
        server.start([_address(socket, secure=worker.cfg.is_ssl) for socket in worker.sockets])
    except ConfigurationError as error:
        worker.log.error("socketio_pg: %s", error.message)
        _refuse_to_start()
    except OSError as error:  # a full disk: gunicorn starts another worker, and the others go on
        worker.log.error("socketio_pg: this worker cannot join the others: %s", error)
        time.sleep(1)  # gunicorn starts the next one at once; this worker serves nothing that it could hold up
        raise SystemExit(1) from None
    _limit_heads()
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if server.limit_connections(descriptors - SPARE_DESCRIPTORS):
        worker.log.warning("%d descriptors are too few for MAX_CONNECTIONS, which is lowered", descriptors)
    stop_worker = signal.getsignal(signal.SIGTERM)

    def terminate(signum: int, frame: Any) -> None:
        server.start_draining()
        if callable(stop_worker):
            stop_worker(signum, frame)

    signal.signal(signal.SIGTERM, terminate)


def worker_exit(server: Any, worker: Any) -> None:
    """Wait for the drain: WebSockets are no longer requests for which gunicorn would wait. Keep the counters."""
    application = getattr(worker, "wsgi", None)
    if application is not None and "socketio_pg" in application.extensions:
        found = application.extensions["socketio_pg"]
        if os.getppid() != worker.ppid:
            found.drain()  # on gevent, gunicorn's worker may see first that its master was killed
        found.wait_drained(graceful_timeout - 1)
        found.keep_counters()
