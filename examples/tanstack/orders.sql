-- The table of server.py, after `socketio-pg init`.
CREATE TABLE tanstack_orders (
    id uuid PRIMARY KEY,
    customer text NOT NULL,
    status text NOT NULL CHECK (status IN ('new', 'paid', 'shipped')),
    changes integer NOT NULL DEFAULT 0
);
SELECT socketio_pg.watch('tanstack_orders');
CREATE ROLE orders_reader NOLOGIN;
GRANT SELECT ON tanstack_orders TO orders_reader;
