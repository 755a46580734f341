-- Rules for channels (docs/rules.md), and how far the relay has removed messages because of them.

-- A column that is NULL says nothing. core/rules.py has the same limits.
CREATE TABLE IF NOT EXISTS socketio_pg.rule (
    pattern      text COLLATE "C" PRIMARY KEY
        CONSTRAINT pattern_is_a_channel_with_stars CHECK (
            pattern <> '' AND octet_length(pattern) <= 63 AND pattern !~ '[\u0001-\u001f\u007f-\u009f]'
            AND pattern !~ '^[\u0020\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]|[\u0020\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]$')
        CONSTRAINT pattern_has_no_double_star CHECK (strpos(pattern, '**') = 0)
        CONSTRAINT pattern_is_not_reserved CHECK (NOT starts_with(pattern, 'socketio_pg')),
    -- Whether messages go through the log, unless their publisher says otherwise.
    durable      boolean,
    -- Whether clients may replay, take part in presence, and send ephemeral messages.
    history      boolean,
    presence     boolean,
    ephemeral    boolean,
    -- How long the log keeps messages, and how many of each channel.
    max_age      interval CONSTRAINT max_age_from_1_second_to_10_years CHECK (
        extract(epoch FROM max_age) BETWEEN 1 AND 315576000),
    max_messages integer CONSTRAINT max_messages_from_1_to_100000 CHECK (max_messages BETWEEN 1 AND 100000),
    -- Bytes of a payload as JSON.
    max_bytes    integer CONSTRAINT max_bytes_from_1_to_1000000000 CHECK (max_bytes BETWEEN 1 AND 1000000000),
    -- Messages per second of each client.
    rate         double precision CONSTRAINT rate_from_0_001_to_1000000 CHECK (rate BETWEEN 0.001 AND 1000000),
    -- Whether the newest message stays, and subscribers get it first.
    retained     boolean,
    -- Messages per second that each subscriber gets of each key, which is a path in the payload.
    max_rate     double precision CONSTRAINT max_rate_from_0_001_to_1000 CHECK (max_rate BETWEEN 0.001 AND 1000),
    conflate_key text CONSTRAINT conflate_key_has_1_to_256_characters CHECK (length(conflate_key) BETWEEN 1 AND 256)
);

-- The patterns whose channels the relay does not trim together with all others, from the position `since` on: messages of
-- these channels after it are missing only up to the position in channel_trim. `expression` is the pattern for LIKE. The
-- leader keeps the rows; they follow the rules.
CREATE TABLE IF NOT EXISTS socketio_pg.retention (
    pattern    text COLLATE "C" PRIMARY KEY,
    expression text COLLATE "C" NOT NULL,
    since      bigint NOT NULL
);

-- The position up to which messages of one channel were removed because of a rule, in the transaction that has removed them.
-- `number` increases with each of these transactions. `trimmed_at` is not before the last of them.
CREATE TABLE IF NOT EXISTS socketio_pg.channel_trim (
    channel    text COLLATE "C" PRIMARY KEY,
    position   bigint NOT NULL,
    number     bigint NOT NULL,
    trimmed_at timestamptz NOT NULL DEFAULT now()
);

DO $$
BEGIN
    IF to_regclass('socketio_pg.channel_trim_position') IS NULL THEN
        CREATE INDEX channel_trim_position ON socketio_pg.channel_trim (position);
        CREATE INDEX channel_trim_trimmed_at ON socketio_pg.channel_trim (trimmed_at);
    END IF;
END $$;

CREATE SEQUENCE IF NOT EXISTS socketio_pg.trim_number;

-- Notifies all servers, through the log, so that nobody else can.
CREATE OR REPLACE FUNCTION socketio_pg.rules_changed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM pg_current_xact_id();
    INSERT INTO socketio_pg.outbox (channel, payload, size) VALUES ('socketio_pg_rules', 'null', 4);
    RETURN NULL;
END $$;

REVOKE ALL ON FUNCTION socketio_pg.rules_changed() FROM PUBLIC;

DO $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_catalog.pg_trigger WHERE tgrelid = 'socketio_pg.rule'::regclass AND tgname = 'changed'
    ) THEN
        CREATE TRIGGER changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON socketio_pg.rule
            FOR EACH STATEMENT EXECUTE FUNCTION socketio_pg.rules_changed();
    END IF;
END $$;

-- Returns the position up to which messages of a channel may have been removed together with those of others: `trimmed`, that
-- of head, except for channels that rules keep in another way (retention). Of these, what is left is complete.
CREATE OR REPLACE FUNCTION socketio_pg.trimmed_together(channel text, trimmed bigint) RETURNS bigint
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN min(r.since) IS NULL THEN trimmed_together.trimmed ELSE least(min(r.since), coalesce((
        SELECT l.position - 1 FROM socketio_pg.log AS l
        WHERE (l.channel, l.position) > (trimmed_together.channel, 0)
            AND (l.channel, l.position) <= (trimmed_together.channel, 9223372036854775807)
        ORDER BY l.channel, l.position LIMIT 1), min(r.since))) END
    FROM socketio_pg.retention AS r WHERE trimmed_together.channel LIKE r.expression
$$;

REVOKE ALL ON FUNCTION socketio_pg.trimmed_together(text, bigint) FROM PUBLIC;

-- A relay of version 6 removes messages of all channels: then those before its trim may be missing.
CREATE OR REPLACE FUNCTION socketio_pg.note_trim("position" bigint) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    UPDATE socketio_pg.retention AS r SET since = note_trim.position WHERE r.since < note_trim.position
$$;

REVOKE ALL ON FUNCTION socketio_pg.note_trim(bigint) FROM PUBLIC;
