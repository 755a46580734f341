CREATE SCHEMA IF NOT EXISTS socketio_pg_demo;

CREATE TABLE IF NOT EXISTS socketio_pg_demo.person (
  id   serial PRIMARY KEY,
  name text NOT NULL,
  lat  double precision NOT NULL,
  lon  double precision NOT NULL
);

-- The map needs only the new positions:
-- no old row images.
SELECT socketio_pg.watch(
    'socketio_pg_demo.person',
    channel => 'people', old => false);

INSERT INTO socketio_pg_demo.person (name, lat, lon)
SELECT name, 50.93 + random() * 0.02,
    6.94 + random() * 0.04
FROM unnest('{Ada,Alan,Barbara,Claude,Donald,
    Edsger,Frances,Grace,Hedy,Jean,Joan,Ken,
    Leslie,Lynn,Margaret,Niklaus,Radia,Sophie,
    Tim,Tony}'::text[]) AS name
WHERE NOT EXISTS (
    SELECT FROM socketio_pg_demo.person);
