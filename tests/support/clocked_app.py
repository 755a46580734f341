"""The standard application, with a clock that tests can move."""

from socketio_pg.core import green

green.patch()

from socketio_pg.app import create_app  # noqa: E402
from tests.support.clock import add_clock  # noqa: E402

app = create_app()
add_clock(app)
