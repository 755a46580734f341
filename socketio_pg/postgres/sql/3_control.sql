-- For the application and operators: tells all servers to disconnect or reach a user, when the transaction has committed.
-- Through the log, since every role can forge and read a notification. Only roles to which it was granted may call this.

CREATE OR REPLACE FUNCTION socketio_pg.control(action jsonb) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF char_length(coalesce(action ->> 'sub', action ->> 'sid')) NOT BETWEEN 1 AND 1000
        OR coalesce(action ->> 'sub', action ->> 'sid') IS NULL
    THEN
        RAISE EXCEPTION USING ERRCODE = 'SG011', MESSAGE = 'name the user or the connection with 1 to 1000 characters';
    END IF;
    -- As in publish().
    PERFORM pg_current_xact_id();
    INSERT INTO socketio_pg.outbox (channel, payload, size)
    VALUES ('socketio_pg_control', action, octet_length(action::text));
END $$;

REVOKE ALL ON FUNCTION socketio_pg.control(jsonb) FROM PUBLIC;

-- Disconnects all connections of the user whose claim `sub` it is. Stock clients do not come back by themselves.
CREATE OR REPLACE FUNCTION socketio_pg.disconnect_user(sub text) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT socketio_pg.control(jsonb_build_object('action', 'disconnect_user', 'sub', sub));
$$;

REVOKE ALL ON FUNCTION socketio_pg.disconnect_user(text) FROM PUBLIC;

-- Disconnects one connection, by the id of its Socket.IO client or stream.
CREATE OR REPLACE FUNCTION socketio_pg.disconnect_connection(sid text) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT socketio_pg.control(jsonb_build_object('action', 'disconnect_connection', 'sid', sid));
$$;

REVOKE ALL ON FUNCTION socketio_pg.disconnect_connection(text) FROM PUBLIC;

-- Ends the subscriptions of a user that get messages of a channel, which may be a pattern.
CREATE OR REPLACE FUNCTION socketio_pg.unsubscribe_user(sub text, channel text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    problem text := socketio_pg.channel_problem(replace(channel, '*', '-'));
BEGIN
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'SG001', MESSAGE = problem;
    END IF;
    PERFORM socketio_pg.control(
        jsonb_build_object('action', 'unsubscribe_user', 'sub', sub, 'channel', channel));
END $$;

REVOKE ALL ON FUNCTION socketio_pg.unsubscribe_user(text, text) FROM PUBLIC;

-- Sends the event `direct` to all connections that a user has when the transaction commits. Raises SG002 if it is too large.
CREATE OR REPLACE FUNCTION socketio_pg.send_to_user(sub text, payload jsonb) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    -- As text: its numbers keep all their digits.
    encoded CONSTANT text := coalesce(payload, 'null')::text;
BEGIN
    IF octet_length(encoded) > @MAX_PAYLOAD@ THEN
        RAISE EXCEPTION USING ERRCODE = 'SG002', MESSAGE =
            format('payload has %s bytes of UTF-8 as JSON; the log accepts at most @MAX_PAYLOAD@', octet_length(encoded));
    END IF;
    PERFORM socketio_pg.control(jsonb_build_object('action', 'send_to_user', 'sub', sub, 'payload', encoded));
END $$;

REVOKE ALL ON FUNCTION socketio_pg.send_to_user(text, jsonb) FROM PUBLIC;
