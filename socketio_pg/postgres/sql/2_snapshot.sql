-- The token that makes rows and a subscription fit: log/starts.py parses it.

-- Returns a token of the messages that the calling statement can see; in REPEATABLE READ and SERIALIZABLE, of those that
-- the transaction can see. It names the newest position of the log, and the ids in the outbox: a message is in the snapshot
-- if it is in one of them. A message in the outbox gets its position later, whatever the snapshot says.
--
-- Not pg_current_snapshot(), which on a hot standby lacks the open transactions, and never has what the present
-- transaction itself has published: that is in the outbox for its own statements.
--
-- STABLE: its query uses the snapshot of the calling statement. With VOLATILE it would have a newer one. Its owner's
-- privileges are needed to read the tables; the token has no data of the messages.
--
-- Format: snapshot:EPOCH:POSITION:IDS, and :XID if the transaction has written and sees messages in the outbox. It may
-- still be open when the token is used, and then its own ids are not in the outbox for others. IDS are ranges, separated
-- by '_': the distance to the end of the one before, and after '.' how many more ids follow. Only characters that need no
-- encoding in URLs, and short enough for one.
CREATE OR REPLACE FUNCTION socketio_pg.snapshot() RETURNS text
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    messages bigint;
    token text;
BEGIN
    WITH waiting AS (
        SELECT o.id FROM socketio_pg.outbox AS o ORDER BY o.id LIMIT 100001
    ), ranges AS (
        SELECT min(n.id) AS first, max(n.id) AS last
        FROM (SELECT w.id, w.id - row_number() OVER (ORDER BY w.id) AS offset_of_range FROM waiting AS w) AS n
        GROUP BY n.offset_of_range
    ), parts AS (
        SELECT r.first, concat(r.first - lag(r.last, 1, 0::bigint) OVER (ORDER BY r.first),
            CASE WHEN r.last > r.first THEN '.' || (r.last - r.first) END) AS part
        FROM ranges AS r
    )
    SELECT (SELECT count(*) FROM waiting), concat_ws(':', 'snapshot', h.epoch,
        greatest(h.trimmed, (SELECT l.position FROM socketio_pg.log AS l ORDER BY l.position DESC LIMIT 1)),
        (SELECT coalesce(string_agg(p.part, '_' ORDER BY p.first), '') FROM parts AS p),
        CASE WHEN EXISTS (SELECT FROM waiting) THEN pg_current_xact_id_if_assigned() END)
    INTO messages, token
    FROM socketio_pg.head AS h;
    IF token IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'SG009', MESSAGE = 'the log has no head',
            HINT = 'Run "socketio-pg init".';
    ELSIF messages > 100000 OR length(token) > 3500 THEN
        RAISE EXCEPTION USING ERRCODE = 'SG009',
            MESSAGE = format('too many messages wait in the outbox for a snapshot: %s', CASE
                WHEN messages > 100000 THEN 'more than 100000' ELSE format('%s, with many gaps between their ids', messages) END),
            HINT = 'Try again when a server has relayed them. "socketio-pg doctor" shows why none does.';
    END IF;
    RETURN token;
END $$;

REVOKE ALL ON FUNCTION socketio_pg.snapshot() FROM PUBLIC;
