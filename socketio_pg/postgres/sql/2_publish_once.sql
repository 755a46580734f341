-- Publishing with an id: the same id on a channel within five minutes is published once. docs/publishing.md describes it.

-- Claims an id of a channel for the message with this number in the outbox. Returns NULL, or the number of the message that
-- was published with the id before.
--
-- Waits for a transaction that has claimed the same id and is still open, and for no other. In REPEATABLE READ and
-- SERIALIZABLE it raises 40001 (serialization_failure) if the id was claimed after the transaction's snapshot: the
-- transaction is to be repeated, as after any such error. The time counts from the call.
CREATE OR REPLACE FUNCTION socketio_pg.claim(channel text, id text, number bigint) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    earlier bigint;
BEGIN
    IF id = '' OR octet_length(id) > 64 OR id ~ '[\u0001-\u001f\u007f-\u009f]' THEN
        RAISE EXCEPTION USING ERRCODE = 'SG008',
            MESSAGE = 'id must have 1 to 64 bytes of UTF-8 and no control characters';
    END IF;
    LOOP
        INSERT INTO socketio_pg.published (channel, id, number) VALUES (claim.channel, claim.id, claim.number)
        ON CONFLICT DO NOTHING;
        EXIT WHEN FOUND;
        -- The relay deletes older rows now and then. Not ON CONFLICT DO UPDATE, which would lock the row of a repeat.
        UPDATE socketio_pg.published AS p SET number = claim.number, published_at = clock_timestamp()
        WHERE p.channel = claim.channel AND p.id = claim.id AND p.published_at < clock_timestamp() - interval '5 minutes';
        EXIT WHEN FOUND;
        SELECT p.number INTO earlier FROM socketio_pg.published AS p
        WHERE p.channel = claim.channel AND p.id = claim.id;
        EXIT WHEN FOUND;
        -- The relay has deleted the row in between.
    END LOOP;
    RETURN earlier;
END $$;

REVOKE ALL ON FUNCTION socketio_pg.claim(text, text, bigint) FROM PUBLIC;

-- Publishes through the log as publish() does, with `meta`, which may be NULL. For the servers' role only: see
-- publish_with_meta(). A copy of publish(), and not called by it, for speed.
CREATE OR REPLACE FUNCTION socketio_pg.add_with_meta(channel text, payload jsonb, meta jsonb) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    problem text := socketio_pg.channel_problem(channel);
    bytes integer;
BEGIN
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'SG001', MESSAGE = problem;
    END IF;
    payload := coalesce(payload, 'null');
    bytes := octet_length(payload::text);
    IF bytes > @MAX_PAYLOAD@ THEN
        RAISE EXCEPTION USING ERRCODE = 'SG002',
            MESSAGE = format('payload has %s bytes of UTF-8 as JSON; at most @MAX_PAYLOAD@ are allowed', bytes),
            HINT = 'Set MAX_PAYLOAD and run "socketio-pg init" to allow more.';
    END IF;
    bytes := bytes + coalesce(octet_length(meta::text), 0);
    PERFORM pg_current_xact_id();
    IF current_setting('socketio_pg.place', true) <> '' THEN
        PERFORM socketio_pg.note_sending();
        INSERT INTO socketio_pg.outbox (channel, payload, size, meta, place, xid)
        VALUES (add_with_meta.channel, add_with_meta.payload, bytes, add_with_meta.meta, socketio_pg.next_place(),
            pg_current_xact_id());
    ELSE
        INSERT INTO socketio_pg.outbox (channel, payload, size, meta)
        VALUES (add_with_meta.channel, add_with_meta.payload, bytes, add_with_meta.meta);
    END IF;
END $$;

REVOKE ALL ON FUNCTION socketio_pg.add_with_meta(text, jsonb, jsonb) FROM PUBLIC;

-- Returns the metadata that publishers may choose, as the column `meta` has it; NULL if they choose none. Raises SG010.
CREATE OR REPLACE FUNCTION socketio_pg.chosen_meta(exclude text, traceparent text) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    -- Most messages have none.
    IF exclude IS NULL AND traceparent IS NULL THEN
        RETURN NULL;
    ELSIF exclude !~ '^[!-~]{1,64}$' THEN
        RAISE EXCEPTION USING ERRCODE = 'SG010', MESSAGE = 'exclude must be the id of a Socket.IO client';
    ELSIF traceparent !~ '^(00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}|(?!00|ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-[!-~]{0,72})?)$' THEN
        RAISE EXCEPTION USING ERRCODE = 'SG010', MESSAGE = 'traceparent must have the form of W3C Trace Context: '
            '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01';
    END IF;
    RETURN jsonb_strip_nulls(jsonb_build_object('exclude', exclude, 'traceparent', traceparent));
END $$;

REVOKE ALL ON FUNCTION socketio_pg.chosen_meta(text, text) FROM PUBLIC;

-- Publishes JSON text: through the log or with NOTIFY, and once for each id that is not NULL. Returns the number of the
-- message: with the log, that is its id in the outbox. If the id was published before, it publishes nothing and returns the
-- negative number of the first message.
--
-- For the servers' role only: `meta` may have `from`, the identity of the client that publishes. `companion`: what to send
-- with NOTIFY on socketio_pg_meta, directly before the message. Alone it would be taken for that of a later message.
CREATE OR REPLACE FUNCTION socketio_pg.publish_with_meta(
    channel text, payload text, durable boolean, id text, meta jsonb, companion text
) RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    problem text;
    number bigint;
    earlier bigint;
BEGIN
    durable := durable IS NOT FALSE;
    IF durable THEN
        IF meta IS NULL THEN
            PERFORM socketio_pg.publish(channel, payload::jsonb);
        ELSE
            PERFORM socketio_pg.add_with_meta(channel, payload::jsonb, meta);
        END IF;
        number := currval('socketio_pg.outbox_id_seq');
    ELSE
        problem := socketio_pg.channel_problem(channel);
        IF problem IS NOT NULL THEN
            RAISE EXCEPTION USING ERRCODE = 'SG001', MESSAGE = problem;
        ELSIF octet_length(payload) > 7999 THEN
            RAISE EXCEPTION USING ERRCODE = 'SG002',
                MESSAGE = format('payload has %s bytes of UTF-8 as JSON; NOTIFY carries at most 7999', octet_length(payload));
        END IF;
        -- As in publish(): first the transaction's id.
        PERFORM pg_current_xact_id();
        number := nextval('socketio_pg.outbox_id_seq');
    END IF;
    IF id IS NOT NULL THEN
        earlier := socketio_pg.claim(channel, id, number);
        IF earlier IS NOT NULL THEN
            IF durable THEN
                DELETE FROM socketio_pg.outbox AS o WHERE o.id = number;
            END IF;
            RETURN -earlier;
        END IF;
    END IF;
    IF NOT durable THEN
        IF companion IS NOT NULL THEN
            PERFORM pg_notify('socketio_pg_meta', companion);
        END IF;
        PERFORM pg_notify(channel, payload);
    END IF;
    RETURN number;
END $$;

REVOKE ALL ON FUNCTION socketio_pg.publish_with_meta(text, text, boolean, text, jsonb, text) FROM PUBLIC;

-- The same for publishers, which cannot set `from`. With NOTIFY, `exclude` and `traceparent` have no effect: only a server
-- can send them along.
CREATE OR REPLACE FUNCTION socketio_pg.publish_as(
    channel text, payload text, durable boolean, id text, exclude text, traceparent text
) RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN socketio_pg.publish_with_meta(
        channel, payload, durable, id, socketio_pg.chosen_meta(exclude, traceparent), NULL);
END $$;

REVOKE ALL ON FUNCTION socketio_pg.publish_as(text, text, boolean, text, text, text) FROM PUBLIC;

-- As servers and programs of version 6 call it.
CREATE OR REPLACE FUNCTION socketio_pg.publish_as(channel text, payload text, durable boolean, id text) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN socketio_pg.publish_with_meta(channel, payload, durable, id, NULL, NULL);
END $$;

REVOKE ALL ON FUNCTION socketio_pg.publish_as(text, text, boolean, text) FROM PUBLIC;

-- Publishes as publish(channel, payload) does, or with NOTIFY if `durable` is false. With an `id`, returns false and
-- publishes nothing if it was published on the channel within the last five minutes. Raises SG008 for an invalid id.
-- `exclude` is the Socket.IO id of a client that does not get the message, `traceparent` that of W3C Trace Context; both
-- need the log. Raises SG010 if they are invalid.
--
-- The form of version 6, which had two parameters less, is dropped at the end: together they would be ambiguous.
--
-- These are functions of their own, and their `durable` and `id` have no defaults that the function of two arguments could
-- be mistaken for: that one stays as it is, with its privileges and what depends on it.
CREATE OR REPLACE FUNCTION socketio_pg.publish(
    channel text, payload jsonb, durable boolean, id text DEFAULT NULL, exclude text DEFAULT NULL,
    traceparent text DEFAULT NULL
) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF id IS NULL AND durable IS NOT FALSE AND exclude IS NULL AND traceparent IS NULL THEN
        PERFORM socketio_pg.publish(channel, payload);
        RETURN true;
    ELSIF durable IS FALSE AND (exclude IS NOT NULL OR traceparent IS NOT NULL) THEN
        RAISE EXCEPTION USING ERRCODE = 'SG010', MESSAGE = 'exclude and traceparent need the log, not NOTIFY';
    END IF;
    RETURN socketio_pg.publish_as(
        channel, coalesce(payload, 'null')::text, durable IS NOT FALSE, id, exclude, traceparent) > 0;
END $$;

REVOKE ALL ON FUNCTION socketio_pg.publish(text, jsonb, boolean, text, text, text) FROM PUBLIC;

CREATE OR REPLACE FUNCTION socketio_pg.publish(channel text, payload jsonb, id text)
RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN socketio_pg.publish(channel, payload, true, id);
END $$;

REVOKE ALL ON FUNCTION socketio_pg.publish(text, jsonb, text) FROM PUBLIC;
