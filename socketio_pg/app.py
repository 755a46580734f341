"""The composition root: settings, database, server, Flask application."""

import dataclasses
import logging

from flask import Flask
from werkzeug.wrappers import Response

from socketio_pg.core import config, loading
from socketio_pg.core.errors import ConfigurationError
from socketio_pg.core.logs import configure_logging
from socketio_pg.postgres.embedded import EmbeddedPostgres
from socketio_pg.web import demo_votes
from socketio_pg.web.demo import add_samples, create_demo_blueprint
from socketio_pg.web.pages import redirect_here
from socketio_pg.websocket import SocketServer

logger = logging.getLogger("socketio_pg")


def create_app(**overrides: object) -> Flask:
    """Return the Flask application; its :class:`SocketServer` is ``app.extensions["socketio_pg"]``.

    ``overrides`` are settings by field name (``debug=True``); they precede environment and ``local.cfg``. Starts an
    embedded PostgreSQL when ``debug`` is set and no database address is.

    Raises :class:`ConfigurationError`.
    """
    settings = loading.load(overrides=overrides)
    configure_logging(settings.log_level, settings.log_format)
    for unknown, suggestion in loading.unknown(loading.given()):
        meant = f": did you mean {suggestion}?" if suggestion else ""
        logger.warning("%s in %s is not a setting%s", unknown.name, unknown.place, meant)
    app = Flask("socketio_pg", static_folder=None)
    app.config["SECRET_KEY"] = settings.flask_secret_key()
    dsn = settings.database_url
    embedded = None
    if dsn is None:
        if not settings.debug:
            raise ConfigurationError(config.NO_DATABASE)
        embedded = EmbeddedPostgres(settings.embedded_data_dir)
        dsn = embedded.start()
        app.extensions["socketio_pg_embedded"] = embedded
        # The embedded database has no other user, so the schema can be installed without asking.
        settings = dataclasses.replace(settings, auto_init=True)
    if settings.debug and settings.test_page and not settings.live_tables and settings.authentication() == "off":
        # For the demo. The role `none` is the server's own.
        settings = dataclasses.replace(settings, live_tables=("socketio_pg_demo.orders",), live_table_role="none")
    if settings.debug and settings.test_page:
        settings = dataclasses.replace(settings, html_channels=(*settings.html_channels, demo_votes.CHANNEL))
    server = SocketServer(app, dsn, enable_test_page=settings.test_page, port=settings.port, settings=settings)
    if settings.debug and settings.test_page:
        database = server.pubsub.database
        app.register_blueprint(create_demo_blueprint(database, is_open=settings.authentication() == "off"))
        if embedded is not None:
            add_samples(database, settings.max_payload)
    if settings.test_page:

        @app.get("/")
        def index() -> Response:
            return redirect_here("socket-test")

    return app
