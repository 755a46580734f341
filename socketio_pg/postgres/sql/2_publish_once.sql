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

-- Publishes JSON text for the server: through the log or with NOTIFY, and once for each id that is not NULL. Returns the
-- number of the message: with the log, that is its id in the outbox. If the id was published before, it publishes nothing
-- and returns the negative number of the first message.
CREATE OR REPLACE FUNCTION socketio_pg.publish_as(channel text, payload text, durable boolean, id text) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    problem text;
    number bigint;
    earlier bigint;
BEGIN
    durable := durable IS NOT FALSE;
    IF durable THEN
        PERFORM socketio_pg.publish(channel, payload::jsonb);
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
        PERFORM pg_notify(channel, payload);
    END IF;
    RETURN number;
END $$;

REVOKE ALL ON FUNCTION socketio_pg.publish_as(text, text, boolean, text) FROM PUBLIC;

-- Publishes as publish(channel, payload) does, or with NOTIFY if `durable` is false. With an `id`, returns false and
-- publishes nothing if it was published on the channel within the last five minutes. Raises SG008 for an invalid id.
--
-- These are functions of their own, and their `durable` and `id` have no defaults that the function of two arguments could
-- be mistaken for: that one stays as it is, with its privileges and what depends on it.
CREATE OR REPLACE FUNCTION socketio_pg.publish(channel text, payload jsonb, durable boolean, id text DEFAULT NULL)
RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF id IS NULL AND durable IS NOT FALSE THEN
        PERFORM socketio_pg.publish(channel, payload);
        RETURN true;
    END IF;
    RETURN socketio_pg.publish_as(channel, coalesce(payload, 'null')::text, durable IS NOT FALSE, id) > 0;
END $$;

CREATE OR REPLACE FUNCTION socketio_pg.publish(channel text, payload jsonb, id text)
RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN socketio_pg.publish(channel, payload, true, id);
END $$;

REVOKE ALL ON FUNCTION socketio_pg.publish(text, jsonb, boolean, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION socketio_pg.publish(text, jsonb, text) FROM PUBLIC;
