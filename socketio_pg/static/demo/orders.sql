CREATE SCHEMA IF NOT EXISTS socketio_pg_demo;

CREATE TABLE IF NOT EXISTS socketio_pg_demo.orders (
  id       serial PRIMARY KEY,
  customer text NOT NULL,
  item     text NOT NULL,
  total    numeric(8, 2) NOT NULL,
  status   text NOT NULL DEFAULT 'new',
  card     text
);

-- From now on, every committed change
-- becomes a message.
SELECT socketio_pg.watch(
    'socketio_pg_demo.orders', exclude => '{card}');

INSERT INTO socketio_pg_demo.orders
    (customer, item, total, status)
SELECT * FROM (VALUES
    ('Grace', 'keyboard', 129.00, 'shipped'),
    ('Edsger', 'notebook', 12.50, 'packed'),
    ('Hedy', 'headphones', 249.90, 'packed'),
    ('Ken', 'cable', 7.95, 'paid'),
    ('Ada', 'lamp', 64.00, 'new')) AS sample
WHERE NOT EXISTS (
    SELECT FROM socketio_pg_demo.orders);
