CREATE SCHEMA IF NOT EXISTS socketio_pg_demo;

CREATE TABLE IF NOT EXISTS
    socketio_pg_demo.orders (
  id       serial PRIMARY KEY,
  customer text NOT NULL,
  item     text NOT NULL,
  total    numeric(8, 2) NOT NULL,
  status   text NOT NULL DEFAULT 'new',
  card     text
);

-- From now on, every committed
-- change becomes a message.
SELECT socketio_pg.watch(
    'socketio_pg_demo.orders',
    exclude => '{card}');
