-- Durable consumers: programs that do their work in the transaction that moves their position (docs/consumer.md).

CREATE TABLE IF NOT EXISTS socketio_pg.consumer (
    name            text COLLATE "C" PRIMARY KEY,
    -- For the operator: the channels of the last call; NULL for all.
    channels        text[],
    epoch           uuid NOT NULL,
    -- All messages up to this position are done.
    position        bigint NOT NULL,
    -- Messages that were deleted by hand up to this position have been reported.
    removed         bigint NOT NULL,
    -- Ids in the outbox of messages that were in the snapshot from which it started: they are done as well.
    seen            int8range[],
    created_at      timestamptz NOT NULL DEFAULT now(),
    moved_at        timestamptz NOT NULL DEFAULT now(),
    -- The message whose work has failed since the last success, how often, when last, and why.
    failed_position bigint,
    failures        integer NOT NULL DEFAULT 0,
    failed_at       timestamptz,
    error           text
) WITH (
    -- A few rows that are updated all the time.
    fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000
);

-- Not ADD COLUMN IF NOT EXISTS, which takes its lock before it checks.
DO $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_catalog.pg_attribute WHERE attrelid = 'socketio_pg.consumer'::regclass AND attname = 'trims'
    ) THEN
        -- The number of the last trim of single channels (channel_trim) that has been reported.
        ALTER TABLE socketio_pg.consumer ADD COLUMN trims bigint NOT NULL DEFAULT 0;
    END IF;
END $$;

-- Returns the position up to which messages of some channels (NULL: of all) after `position` were removed from the log; NULL
-- if none were, or only in trims up to the number `trims`. If only rules of single channels have removed some, that is
-- `position` itself: other channels are complete after it.
CREATE OR REPLACE FUNCTION socketio_pg.trimmed_after(channels text[], "position" bigint, trims bigint, trimmed bigint)
RETURNS bigint LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    together bigint := trimmed;
BEGIN
    IF channels IS NOT NULL AND EXISTS (SELECT FROM socketio_pg.retention) THEN
        SELECT max(socketio_pg.trimmed_together(wanted, trimmed)) INTO together FROM unnest(channels) AS wanted;
    END IF;
    IF together > position THEN
        RETURN together;
    ELSIF channels IS NULL THEN
        PERFORM FROM socketio_pg.channel_trim AS t WHERE t.position > trimmed_after.position AND t.number > trims
            AND NOT starts_with(t.channel, 'socketio_pg') LIMIT 1;
    ELSE
        PERFORM FROM socketio_pg.channel_trim AS t WHERE t.channel = ANY (channels)
            AND t.position > trimmed_after.position AND t.number > trims LIMIT 1;
    END IF;
    RETURN CASE WHEN FOUND THEN position END;
END $$;

REVOKE ALL ON FUNCTION socketio_pg.trimmed_after(text[], bigint, bigint, bigint) FROM PUBLIC;

-- Returns where a consumer starts: 'now', 'earliest', after a cursor ('epoch:position'), at a time with its zone (ISO 8601),
-- or with what a snapshot does not have (the token of snapshot(), which describes its format).
CREATE OR REPLACE FUNCTION socketio_pg.consumer_start(
    start text, OUT epoch uuid, OUT "position" bigint, OUT seen int8range[]
) LANGUAGE plpgsql AS $$
DECLARE
    current uuid;
    trimmed bigint;
    newest bigint;
    known bigint;
    part text;
    first bigint;
    last bigint := 0;
BEGIN
    SELECT h.epoch, h.trimmed, greatest(h.trimmed, (SELECT l.position FROM socketio_pg.log AS l ORDER BY 1 DESC LIMIT 1))
    INTO STRICT current, trimmed, newest FROM socketio_pg.head AS h;
    epoch := current;
    IF start = 'now' THEN
        position := newest;
    ELSIF start = 'earliest' THEN
        position := trimmed;
    ELSIF start ~ '^[0-9a-fA-F-]{36}:[0-9]{1,18}$' THEN
        epoch := split_part(start, ':', 1)::uuid;
        position := split_part(start, ':', 2)::bigint;
    ELSIF start ~ '^snapshot:[0-9a-fA-F-]{36}:[0-9]{1,18}:([0-9]{1,18}([.][0-9]{1,18})?(_|:|$))*[0-9]*$' THEN
        epoch := split_part(start, ':', 2)::uuid;
        position := split_part(start, ':', 3)::bigint;
        FOREACH part IN ARRAY string_to_array(split_part(start, ':', 4), '_') LOOP
            first := last + split_part(part, '.', 1)::bigint;
            last := first + coalesce(nullif(split_part(part, '.', 2), ''), '0')::bigint;
            seen := seen || int8range(first, last, '[]');
        END LOOP;
    ELSIF start ~ '^[0-9]{4}-[0-9]{2}-[0-9]{2}[T ].*(Z|[+-][0-9]{2}(:?[0-9]{2})?)$' THEN
        -- The log's times increase with the positions, which have no holes: a binary search.
        WITH RECURSIVE search (low, high) AS (
            SELECT trimmed + 1, newest + 1
            UNION ALL
            SELECT CASE WHEN probe.logged_at < start::timestamptz THEN probe.position + 1 ELSE low END,
                CASE WHEN probe.logged_at < start::timestamptz THEN high ELSE middle END
            FROM search CROSS JOIN LATERAL (SELECT low + (high - low) / 2 AS middle) AS half CROSS JOIN LATERAL (
                SELECT l.position, l.logged_at FROM socketio_pg.log AS l WHERE l.position >= middle ORDER BY 1 LIMIT 1
            ) AS probe
            WHERE low < high
        )
        SELECT search.low - 1 INTO position FROM search WHERE low >= high LIMIT 1;
    ELSE
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE =
            'a consumer starts from ''now'', ''earliest'', ''epoch:position'', a time with its zone, or a snapshot token';
    END IF;
    -- It would skip the messages up to there. After the newest one may be a position whose message was deleted by hand.
    IF epoch = current AND position > newest THEN
        SELECT greatest(r.last_value, n.last_value) INTO known
        FROM socketio_pg.removed_position AS r CROSS JOIN socketio_pg.newest_position AS n;
        IF position > known THEN
            RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
                MESSAGE = format('the log has no position %s yet: its newest one is %s', position, greatest(newest, known));
        END IF;
    END IF;
END $$;

REVOKE ALL ON FUNCTION socketio_pg.consumer_start(text) FROM PUBLIC;

-- That of version 6 has two columns less. Its privileges are handed on at the end.
DO $$
BEGIN
    IF EXISTS (
        SELECT FROM pg_catalog.pg_proc WHERE oid = to_regprocedure('socketio_pg.consume(text, text[], integer, text)')
            AND NOT 'sender' = ANY (proargnames)
    ) THEN
        ALTER FUNCTION socketio_pg.consume(text, text[], integer, text) RENAME TO consume_6;
    END IF;
END $$;

-- Returns the consumer's next messages, and moves its position past them: in the caller's transaction, so do the work on
-- them in the same one. Returns nothing while another transaction of this consumer is open. The first call makes the
-- consumer, which starts from `start`. `sender` is the identity of the client that has published the message; NULL for an
-- anonymous one, and for other publishers. Returns at most `most` messages, and a megabyte or one message.
--
-- Raises SG021 if messages of the log that the consumer has not got were trimmed or deleted, and SG022 if the log has
-- another epoch. The detail is JSON: the reason, `since`, the consumer's position, and `epoch` and `position` from which
-- consumer_move() lets it continue.
CREATE OR REPLACE FUNCTION socketio_pg.consume(
    consumer text, channels text[] DEFAULT NULL, most integer DEFAULT 1, start text DEFAULT 'now'
) RETURNS TABLE (
    epoch uuid, "position" bigint, channel text, payload jsonb, published_at timestamptz, sender jsonb, traceparent text
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    here socketio_pg.consumer;
    work boolean;
    page record;
    newest bigint;
    returned bigint := 0;
    complete boolean := true;
BEGIN
    IF consumer IS NULL OR octet_length(consumer) NOT BETWEEN 1 AND 63 OR consumer ~ '[\u0001-\u001f\u007f-\u009f]' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'the name of a consumer must have 1 to 63 bytes and no control characters';
    ELSIF most IS NULL OR most NOT BETWEEN 1 AND 1000 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'a consumer takes 1 to 1000 messages at a time';
    END IF;
    -- Most calls at rest end here, without a lock and a transaction id. A position that nothing moves is moved each
    -- minute, before the messages of other channels behind it are trimmed.
    SELECT c.epoch <> h.epoch OR r.last_value > greatest(c.position, c.removed)
        OR CASE WHEN EXISTS (SELECT FROM socketio_pg.retention) OR EXISTS (SELECT FROM socketio_pg.channel_trim)
            THEN socketio_pg.trimmed_after(consume.channels, c.position, c.trims, h.trimmed) IS NOT NULL
            ELSE h.trimmed > c.position END
        OR (newest.position > c.position AND c.moved_at < now() - interval '1 minute')
        OR CASE WHEN consume.channels IS NULL THEN EXISTS (
            SELECT FROM socketio_pg.log AS l WHERE l.position > c.position AND NOT starts_with(l.channel, 'socketio_pg')
        ) ELSE EXISTS (
            SELECT FROM unnest(consume.channels) AS wanted (channel)
            WHERE EXISTS (SELECT FROM socketio_pg.log AS l
                WHERE (l.channel, l.position) > (wanted.channel, c.position)
                    AND (l.channel, l.position) <= (wanted.channel, newest.position))
        ) END
    INTO work
    FROM socketio_pg.consumer AS c CROSS JOIN socketio_pg.head AS h CROSS JOIN socketio_pg.removed_position AS r
        CROSS JOIN LATERAL (
            SELECT greatest(h.trimmed, (SELECT l.position FROM socketio_pg.log AS l ORDER BY 1 DESC LIMIT 1))
        ) AS newest (position)
    WHERE c.name = consumer;
    IF NOT FOUND THEN
        -- A position of the past must be checked, which the next call does.
        INSERT INTO socketio_pg.consumer (name, channels, epoch, position, seen, removed, trims)
        SELECT consumer, consume.channels, s.epoch,
            -- With all that is left of these channels.
            CASE WHEN start = 'earliest' AND consume.channels IS NOT NULL THEN (
                SELECT max(socketio_pg.trimmed_together(wanted, s.position)) FROM unnest(consume.channels) AS wanted
            ) ELSE s.position END, s.seen,
            CASE WHEN start ~ '^(snapshot:|[^:]{36}:)' THEN least(s.position, r.last_value) ELSE r.last_value END,
            CASE WHEN start IN ('now', 'earliest') THEN (
                SELECT coalesce(max(t.number), 0) FROM socketio_pg.channel_trim AS t) ELSE 0 END
        FROM socketio_pg.consumer_start(start) AS s CROSS JOIN socketio_pg.removed_position AS r
        ON CONFLICT DO NOTHING;
    ELSIF NOT work THEN
        RETURN;
    END IF;
    SELECT * INTO here FROM socketio_pg.consumer AS c WHERE c.name = consumer FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    -- In one statement, and so of one snapshot: read apart, a trim in between would go unnoticed.
    FOR page IN
        SELECT h.epoch AS log_epoch, h.missing, r.last_value AS removed, newest.position AS newest, found.*
        FROM (
            SELECT one.epoch, one.trimmed,
                CASE WHEN EXISTS (SELECT FROM socketio_pg.retention) OR EXISTS (SELECT FROM socketio_pg.channel_trim)
                    THEN socketio_pg.trimmed_after(consume.channels, here.position, here.trims, one.trimmed)
                    WHEN one.trimmed > here.position THEN one.trimmed END AS missing
            FROM socketio_pg.head AS one OFFSET 0
        ) AS h CROSS JOIN socketio_pg.removed_position AS r
        CROSS JOIN LATERAL (
            SELECT greatest(h.trimmed, (SELECT l.position FROM socketio_pg.log AS l ORDER BY 1 DESC LIMIT 1))
        ) AS newest (position)
        LEFT JOIN LATERAL (
            SELECT * FROM (
                SELECT picked.*, count(*) OVER () AS found, sum(picked.size) OVER (ORDER BY picked.position) - picked.size AS before
                FROM (
                    (SELECT l.position, l.channel, l.payload, l.published_at, l.size, l.meta FROM socketio_pg.log AS l
                    WHERE consume.channels IS NULL AND l.position > here.position AND l.position <= newest.position
                        AND NOT starts_with(l.channel, 'socketio_pg')
                        AND (here.seen IS NULL OR NOT coalesce(l.id <@ ANY (here.seen), false))
                    ORDER BY l.position LIMIT most)
                    UNION ALL
                    (SELECT one.* FROM (
                        SELECT DISTINCT wanted FROM unnest(consume.channels) AS wanted
                        WHERE NOT starts_with(wanted, 'socketio_pg')
                    ) AS own CROSS JOIN LATERAL (
                        SELECT l.position, l.channel, l.payload, l.published_at, l.size, l.meta FROM socketio_pg.log AS l
                        WHERE (l.channel, l.position) > (own.wanted, here.position)
                            AND (l.channel, l.position) <= (own.wanted, newest.position)
                            AND (here.seen IS NULL OR NOT coalesce(l.id <@ ANY (here.seen), false))
                        ORDER BY l.channel, l.position LIMIT most
                    ) AS one ORDER BY one.position LIMIT most)
                ) AS picked
            ) AS sized WHERE sized.before < 1000000
        ) AS found ON true
        ORDER BY found.position
    LOOP
        IF returned = 0 AND page.log_epoch <> here.epoch THEN
            RAISE EXCEPTION USING ERRCODE = 'SG022',
                MESSAGE = format('consumer %s: the log has another epoch: its messages since position %s may be lost',
                    consumer, here.position),
                HINT = 'Check what is missing, then call socketio_pg.consumer_move().',
                DETAIL = jsonb_build_object('reason', 'epoch_changed', 'epoch', page.log_epoch, 'position', page.newest,
                    'since', jsonb_build_object('epoch', here.epoch, 'position', here.position));
        ELSIF returned = 0 AND (page.missing IS NOT NULL OR page.removed > greatest(here.position, here.removed)) THEN
            RAISE EXCEPTION USING ERRCODE = 'SG021',
                MESSAGE = format('consumer %s: messages after position %s were removed from the log before it got them',
                    consumer, here.position),
                HINT = 'Check what is missing, then call socketio_pg.consumer_move().',
                DETAIL = jsonb_build_object('reason', 'trimmed', 'epoch', page.log_epoch,
                    'position', greatest(page.missing, here.position),
                    'since', jsonb_build_object('epoch', here.epoch, 'position', here.position));
        END IF;
        newest := page.newest;
        EXIT WHEN page.position IS NULL;
        returned := returned + 1;
        complete := page.found < most AND returned = page.found;
        epoch := page.log_epoch;
        position := page.position;
        channel := page.channel;
        payload := page.payload;
        published_at := page.published_at;
        sender := page.meta -> 'from';
        traceparent := page.meta ->> 'traceparent';
        RETURN NEXT;
    END LOOP;
    IF newest IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = 'the log''s head is missing: run ''socketio-pg init''';
    END IF;
    -- Past the messages of other channels too, unless there may be more of its own. Here `position` is the last row's.
    UPDATE socketio_pg.consumer AS c SET moved_at = clock_timestamp(), channels = consume.channels,
        position = CASE WHEN complete THEN greatest(here.position, newest) ELSE consume.position END,
        failed_position = NULL, failures = 0, failed_at = NULL, error = NULL
    WHERE c.name = consumer;
END $$;

REVOKE ALL ON FUNCTION socketio_pg.consume(text, text[], integer, text) FROM PUBLIC;

-- Moves a consumer to a start as in consumer_start(). Messages in between are not delivered, or again. Makes the consumer if there is none. Waits for the consumer's open transaction. With `expected`, a cursor, only if
-- that is its position; returns whether it has moved.
CREATE OR REPLACE FUNCTION socketio_pg.consumer_move(consumer text, target text, expected text DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO socketio_pg.consumer AS c (name, epoch, position, seen, removed, trims)
    SELECT consumer, s.epoch, s.position, s.seen, r.last_value,
        (SELECT coalesce(max(t.number), 0) FROM socketio_pg.channel_trim AS t)
    FROM socketio_pg.consumer_start(target) AS s CROSS JOIN socketio_pg.removed_position AS r
    ON CONFLICT (name) DO UPDATE SET epoch = excluded.epoch, position = excluded.position, seen = excluded.seen,
        removed = excluded.removed, trims = excluded.trims, moved_at = clock_timestamp(), failed_position = NULL, failures = 0, failed_at = NULL, error = NULL
    WHERE expected IS NULL OR c.epoch || ':' || c.position = expected;
    RETURN FOUND;
END $$;

REVOKE ALL ON FUNCTION socketio_pg.consumer_move(text, text, text) FROM PUBLIC;

-- Notes that the work on a message has failed, for the view; returns how often in a row.
CREATE OR REPLACE FUNCTION socketio_pg.consumer_failed(consumer text, "position" bigint, error text) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    times integer;
BEGIN
    UPDATE socketio_pg.consumer AS c SET failed_position = consumer_failed.position, failed_at = clock_timestamp(),
        failures = CASE WHEN c.failed_position = consumer_failed.position THEN c.failures + 1 ELSE 1 END,
        error = left(consumer_failed.error, 1000)
    WHERE c.name = consumer AND c.position < consumer_failed.position RETURNING c.failures INTO times;
    RETURN coalesce(times, 0);
END $$;

REVOKE ALL ON FUNCTION socketio_pg.consumer_failed(text, bigint, text) FROM PUBLIC;

-- Forgets a consumer. Returns whether there was one.
CREATE OR REPLACE FUNCTION socketio_pg.consumer_drop(consumer text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    DELETE FROM socketio_pg.consumer AS c WHERE c.name = consumer;
    RETURN FOUND;
END $$;

REVOKE ALL ON FUNCTION socketio_pg.consumer_drop(text) FROM PUBLIC;

-- For operators. `lag` is the number of positions, of all channels, from the consumer's to the newest; 0 if none of its
-- own messages is among them. `age`: since when its oldest message has been in the log. `lost`: it cannot continue
-- without consumer_move(), as in consume().
CREATE OR REPLACE VIEW socketio_pg.consumers AS
    SELECT c.name, c.channels, c.position, CASE WHEN oldest.logged_at IS NULL THEN 0 ELSE newest.position - c.position END
        AS lag, now() - oldest.logged_at AS age, c.moved_at, c.failures, c.failed_position, c.failed_at, c.error,
        CASE WHEN c.epoch <> h.epoch THEN 'epoch_changed'
            WHEN r.last_value > greatest(c.position, c.removed) OR gone.position > c.position OR EXISTS (
                SELECT FROM socketio_pg.channel_trim AS t WHERE t.position > c.position AND t.number > c.trims
                    AND CASE WHEN c.channels IS NULL THEN NOT starts_with(t.channel, 'socketio_pg')
                        ELSE t.channel = ANY (c.channels) END
            ) THEN 'trimmed' END AS lost
    FROM socketio_pg.consumer AS c CROSS JOIN socketio_pg.head AS h CROSS JOIN socketio_pg.removed_position AS r
    CROSS JOIN LATERAL (
        SELECT greatest(h.trimmed, (SELECT l.position FROM socketio_pg.log AS l ORDER BY 1 DESC LIMIT 1))
    ) AS newest (position)
    -- As in trimmed_after(), which the reader of this view may not call.
    CROSS JOIN LATERAL (
        SELECT CASE WHEN c.channels IS NULL OR NOT EXISTS (SELECT FROM socketio_pg.retention) THEN h.trimmed ELSE (
            SELECT max((
                SELECT CASE WHEN min(k.since) IS NULL THEN h.trimmed ELSE least(min(k.since), coalesce((
                    SELECT l.position - 1 FROM socketio_pg.log AS l
                    WHERE (l.channel, l.position) > (wanted, 0)
                        AND (l.channel, l.position) <= (wanted, 9223372036854775807)
                    ORDER BY l.channel, l.position LIMIT 1), min(k.since))) END
                FROM socketio_pg.retention AS k WHERE wanted LIKE k.expression))
            FROM unnest(c.channels) AS wanted) END
    ) AS gone (position)
    LEFT JOIN LATERAL (
        (SELECT l.position, l.logged_at FROM socketio_pg.log AS l
        WHERE c.channels IS NULL AND l.position > c.position AND NOT starts_with(l.channel, 'socketio_pg')
        ORDER BY l.position LIMIT 1)
        UNION ALL
        (SELECT one.position, one.logged_at FROM unnest(c.channels) AS wanted CROSS JOIN LATERAL (
            SELECT l.position, l.logged_at FROM socketio_pg.log AS l
            WHERE (l.channel, l.position) > (wanted, c.position) AND (l.channel, l.position) <= (wanted, newest.position)
            ORDER BY l.channel, l.position LIMIT 1
        ) AS one ORDER BY one.position LIMIT 1)
    ) AS oldest ON true;
