-- The functions of the PostgreSQL engine. {form}, the end of their names, is a hash of this text: releases that run
-- side by side each call their own functions, and a worker that starts replaces no function of another release.
-- {schema} is replaced by the schema's quoted name, {kind...} by the numbers of entry kinds.

CREATE OR REPLACE FUNCTION {schema}.new_epoch_{form}() RETURNS text LANGUAGE sql VOLATILE AS $$
    -- Eight characters of base 62 from random bytes of a UUID.
    SELECT string_agg(
        substr('0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz', 1 + get_byte(bytes, place) % 62, 1), '')
    FROM (SELECT uuid_send(gen_random_uuid()) AS bytes) AS random,
         unnest(ARRAY[0, 1, 2, 3, 10, 11, 12, 13]) AS place
$$;

-- The mark of a move, see moves.py: no row as a rule.
CREATE TABLE IF NOT EXISTS {schema}.moved (mark text NOT NULL);

-- Refuses where the log was moved to another store, or is being filled.
CREATE OR REPLACE FUNCTION {schema}.refuse_moved_{form}() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_mark text;
BEGIN
    SELECT mark INTO v_mark FROM {schema}.moved WHERE mark::json ->> 'what' <> 'arrived';
    IF FOUND THEN
        RAISE EXCEPTION USING ERRCODE = {moved_state}, MESSAGE = v_mark;
    END IF;
END
$$;

-- Keeps the time at which sessions may have been lost, in a session without an application.
CREATE OR REPLACE FUNCTION {schema}.lose_sessions_{form}() RETURNS void LANGUAGE sql VOLATILE AS $$
    INSERT INTO {schema}.sessions
    VALUES ('', {lost_sessions}, '', clock_timestamp() + interval '1 day', '', '', clock_timestamp())
    ON CONFLICT (app, token) DO UPDATE SET expires = excluded.expires, taken = excluded.taken
$$;

-- Begins a new generation where the tables are not those that were written last: a backup was put in their place, so
-- offsets would be given a second time. TRUNCATE and CREATE TABLE give `state` another file. The caller holds the lock.
CREATE OR REPLACE FUNCTION {schema}.check_{form}() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_file text := pg_relation_filenode('{schema}.state')::text;
BEGIN
    IF EXISTS (SELECT 1 FROM {schema}.moved) THEN
        PERFORM {schema}.refuse_moved_{form}();
    END IF;
    UPDATE {schema}.state s
    SET generation = {schema}.new_epoch_{form}() || left({schema}.new_epoch_{form}(), 4),
        server = split_part(s.server, ':', 1) || ':' || split_part(s.server, ':', 2) || ':' || v_file
    WHERE split_part(s.server, ':', 3) <> v_file;
    IF FOUND THEN
        UPDATE {schema}.streams SET epoch = {schema}.new_epoch_{form}();
        PERFORM {schema}.lose_sessions_{form}();
    END IF;
END
$$;

-- Adds one entry; the caller holds the lock. Returns its id.
CREATE OR REPLACE FUNCTION {schema}.log_{form}(p_kind integer, p_app text, p_channel text, p_body bytea, p_user text)
RETURNS bigint LANGUAGE sql VOLATILE AS $$
    INSERT INTO {schema}.log (id, kind, app, channel, user_id, body, created)
    VALUES (nextval('{schema}.log_id'), p_kind, p_app, p_channel, p_user, p_body, clock_timestamp())
    RETURNING id
$$;

-- A channel's number of subscribers, announced if it is news and its time has come. Returns the milliseconds to wait
-- otherwise.
CREATE OR REPLACE FUNCTION {schema}.announce_count_{form}(p_app text, p_channel text) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    v_total bigint;
    v_last {schema}.announced%ROWTYPE;
    v_wait bigint;
BEGIN
    SELECT COALESCE(SUM(subscribers), 0) INTO v_total FROM {schema}.counts WHERE app = p_app AND channel = p_channel;
    SELECT * INTO v_last FROM {schema}.announced WHERE app = p_app AND channel = p_channel;
    IF v_total = 0 OR v_last.subscribers = v_total THEN
        RETURN 0;
    END IF;
    IF v_last.subscribers IS NOT NULL AND v_total > {announce_always} THEN
        v_wait := {announce_ms} - (EXTRACT(EPOCH FROM clock_timestamp() - v_last.at) * 1000)::bigint;
        IF v_wait > 0 AND v_wait <= {announce_ms} THEN
            RETURN v_wait;
        END IF;
    END IF;
    PERFORM {schema}.log_{form}({kind_count}, p_app, p_channel, convert_to(v_total::text, 'UTF8'), NULL);
    INSERT INTO {schema}.announced VALUES (p_app, p_channel, v_total, clock_timestamp())
    ON CONFLICT (app, channel) DO UPDATE SET subscribers = excluded.subscribers, at = excluded.at;
    RETURN 0;
END
$$;

CREATE OR REPLACE FUNCTION {schema}.vacate_{form}(p_app text, p_channel text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM {schema}.log_{form}({kind_vacated}, p_app, p_channel, '', NULL);
    DELETE FROM {schema}.announced WHERE app = p_app AND channel = p_channel;
END
$$;

-- A user's connection has gone from a channel: the departure is announced with the user's last one.
CREATE OR REPLACE FUNCTION {schema}.depart_{form}(p_app text, p_channel text, p_user text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM {schema}.members WHERE app = p_app AND channel = p_channel AND user_id = p_user) THEN
        RETURN;
    END IF;
    UPDATE {schema}.users SET users = users - 1 WHERE app = p_app AND channel = p_channel;
    DELETE FROM {schema}.users WHERE app = p_app AND channel = p_channel AND users <= 0;
    PERFORM {schema}.log_{form}({kind_member_removed}, p_app, p_channel, '', p_user);
END
$$;

-- Everything that one worker holds goes, with what has to be announced.
CREATE OR REPLACE FUNCTION {schema}.remove_worker_{form}(p_worker text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    r record;
BEGIN
    FOR r IN WITH gone AS (DELETE FROM {schema}.members WHERE worker = p_worker RETURNING app, channel, user_id)
             SELECT DISTINCT app, channel, user_id FROM gone ORDER BY app, channel, user_id LOOP
        PERFORM {schema}.depart_{form}(r.app, r.channel, r.user_id);
    END LOOP;
    FOR r IN WITH gone AS (DELETE FROM {schema}.counts WHERE worker = p_worker RETURNING app, channel)
             SELECT app, channel FROM gone WHERE channel <> '' ORDER BY app, channel LOOP
        IF NOT EXISTS (SELECT 1 FROM {schema}.counts WHERE app = r.app AND channel = r.channel) THEN
            PERFORM {schema}.vacate_{form}(r.app, r.channel);
        ELSIF EXISTS (SELECT 1 FROM {schema}.announced WHERE app = r.app AND channel = r.channel) THEN
            PERFORM {schema}.announce_count_{form}(r.app, r.channel);
        END IF;
    END LOOP;
    UPDATE {schema}.leases SET worker = '', until = '-infinity' WHERE worker = p_worker;  -- the term stays
    DELETE FROM {schema}.workers WHERE id = p_worker;
END
$$;

-- Runs the operations of one group in their order, under the lock that makes commit order id order. The arrays are
-- parallel; an operation reads the columns that it needs:
--
--   append     app, channel, body, n = kind, user_id, exclude, size and seconds (retention), key, cache (seconds)
--   budget     app, n = the most publications of a second, size = how many of the next appends it is for
--   join       app, channel, key = socket id, user_id, exclude = info, size = the most members or NULL
--   leave      app, channel, key = socket id
--   counts     app, channel, n = subscribers, size = 1: announce changes
--   announce   app, channel
--   admit      app, n = the most connections
--   session    app, key = token, body, n = seconds, user_id = holder or '', size = 1: nothing holds it afterwards
--   take       app, key = token, user_id = holder; the row's epoch is the holder before
--   stream     app, channel: gives it an epoch before its first entry
--   miss       app, channel, n = seconds until the next miss is announced
--   cursor     key = name, n = position, seconds = kinds, size = 1: forget it, 2: only ask; without a position it is n,
--              or the newest entry for NULL
--   remove     key = worker
--   trim       n = id
--   touch      nothing
--
-- For example, a client event after a join is one call with ('join', …) and ('append', …); both are committed or
-- neither is. A row of the result belongs to the operation at `ord`.
CREATE OR REPLACE FUNCTION {schema}.apply_{form}(
    p_worker text, p_notify boolean, p_op text[], p_app text[], p_channel text[], p_body bytea[], p_n bigint[],
    p_user text[], p_exclude text[], p_size integer[], p_seconds integer[], p_key text[], p_cache integer[]
) RETURNS TABLE (ord integer, id bigint, epoch text, "offset" bigint, flag boolean, limit_ bigint, actual bigint, record bytea)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_count integer := cardinality(p_op);
    v_i integer := 1;
    v_j integer;
    v_k integer;
    v_skip boolean[];
    v_base bigint;
    v_rows bigint;
    v_spent bigint;
    v_second bigint;
    v_user text;
    v_present boolean;
    v_number bigint;
    v_session {schema}.sessions%ROWTYPE;
    r record;
BEGIN
    PERFORM pg_advisory_xact_lock({lock_class}, {lock_key});
    PERFORM {schema}.check_{form}();
    WHILE v_i <= v_count LOOP
        IF p_op[v_i] NOT IN ('append', 'budget') THEN
            ord := v_i; id := NULL; epoch := NULL; "offset" := NULL; flag := false; limit_ := NULL; actual := NULL;
            record := NULL;
            CASE p_op[v_i]
            WHEN 'join' THEN
                -- A socket that was another user, whose leave could not be written.
                DELETE FROM {schema}.members m
                WHERE m.app = p_app[v_i] AND m.channel = p_channel[v_i] AND m.socket_id = p_key[v_i]
                  AND m.user_id <> p_user[v_i] RETURNING m.user_id INTO v_user;
                IF FOUND THEN
                    PERFORM {schema}.depart_{form}(p_app[v_i], p_channel[v_i], v_user);
                END IF;
                v_present := EXISTS (SELECT 1 FROM {schema}.members m WHERE m.app = p_app[v_i]
                                     AND m.channel = p_channel[v_i] AND m.user_id = p_user[v_i]);
                IF NOT v_present AND p_size[v_i] IS NOT NULL THEN
                    SELECT COALESCE(MAX(u.users), 0) INTO v_number FROM {schema}.users u
                    WHERE u.app = p_app[v_i] AND u.channel = p_channel[v_i];
                    IF v_number >= p_size[v_i] THEN
                        flag := true; limit_ := p_size[v_i]; actual := v_number;
                    END IF;
                END IF;
                IF NOT flag THEN
                    INSERT INTO {schema}.members (app, channel, user_id, socket_id, worker, info)
                    VALUES (p_app[v_i], p_channel[v_i], p_user[v_i], p_key[v_i], p_worker, p_exclude[v_i])
                    ON CONFLICT (app, channel, socket_id) DO UPDATE SET info = excluded.info, worker = excluded.worker;
                    IF NOT v_present THEN
                        INSERT INTO {schema}.users AS u VALUES (p_app[v_i], p_channel[v_i], 1)
                        ON CONFLICT (app, channel) DO UPDATE SET users = u.users + 1;
                        PERFORM {schema}.log_{form}({kind_member_added}, p_app[v_i], p_channel[v_i],
                                               convert_to(p_exclude[v_i], 'UTF8'), p_user[v_i]);
                    END IF;
                END IF;
            WHEN 'leave' THEN
                DELETE FROM {schema}.members m WHERE m.app = p_app[v_i] AND m.channel = p_channel[v_i]
                    AND m.socket_id = p_key[v_i] RETURNING m.user_id INTO v_user;
                IF FOUND THEN
                    PERFORM {schema}.depart_{form}(p_app[v_i], p_channel[v_i], v_user);
                END IF;
            WHEN 'counts' THEN
                v_present := EXISTS (SELECT 1 FROM {schema}.counts c
                                     WHERE c.app = p_app[v_i] AND c.channel = p_channel[v_i]);
                IF p_n[v_i] > 0 THEN
                    INSERT INTO {schema}.counts VALUES (p_app[v_i], p_channel[v_i], p_worker, p_n[v_i])
                    ON CONFLICT (app, channel, worker) DO UPDATE SET subscribers = excluded.subscribers;
                    IF NOT v_present AND p_channel[v_i] <> '' THEN
                        PERFORM {schema}.log_{form}({kind_occupied}, p_app[v_i], p_channel[v_i], '', NULL);
                    END IF;
                ELSIF v_present THEN
                    DELETE FROM {schema}.counts c WHERE c.app = p_app[v_i] AND c.channel = p_channel[v_i]
                        AND c.worker = p_worker;
                    IF FOUND AND p_channel[v_i] <> '' AND NOT EXISTS (SELECT 1 FROM {schema}.counts c
                            WHERE c.app = p_app[v_i] AND c.channel = p_channel[v_i]) THEN
                        PERFORM {schema}.vacate_{form}(p_app[v_i], p_channel[v_i]);
                    END IF;
                END IF;
                IF p_size[v_i] = 1 THEN
                    actual := {schema}.announce_count_{form}(p_app[v_i], p_channel[v_i]);
                END IF;
            WHEN 'announce' THEN
                actual := {schema}.announce_count_{form}(p_app[v_i], p_channel[v_i]);
            WHEN 'admit' THEN
                SELECT COALESCE(SUM(c.subscribers), 0) - 1 INTO v_number FROM {schema}.counts c
                WHERE c.app = p_app[v_i] AND c.channel = '';
                flag := v_number >= p_n[v_i]; limit_ := p_n[v_i]; actual := v_number;
            WHEN 'session' THEN
                INSERT INTO {schema}.sessions AS s
                VALUES (p_app[v_i], p_key[v_i], p_body[v_i], clock_timestamp() + p_n[v_i] * interval '1 second',
                        CASE WHEN p_size[v_i] = 1 OR p_user[v_i] = '' THEN '' ELSE p_worker END,
                        CASE WHEN p_size[v_i] = 1 THEN '' ELSE p_user[v_i] END)
                ON CONFLICT (app, token) DO UPDATE
                SET record = excluded.record, expires = excluded.expires,
                    worker = CASE WHEN p_user[v_i] = '' THEN s.worker ELSE excluded.worker END,
                    holder = CASE WHEN p_user[v_i] = '' THEN s.holder ELSE excluded.holder END
                WHERE p_user[v_i] = '' OR s.holder IN ('', p_user[v_i]);
            WHEN 'take' THEN
                SELECT * INTO v_session FROM {schema}.sessions s WHERE s.app = p_app[v_i] AND s.token = p_key[v_i];
                actual := (EXTRACT(EPOCH FROM clock_timestamp() - v_session.taken) * 1000)::bigint;
                IF v_session.holder <> '' AND v_session.holder <> p_user[v_i]
                   AND EXISTS (SELECT 1 FROM {schema}.workers w WHERE w.id = v_session.worker) THEN
                    epoch := v_session.holder;
                    v_session.taken := clock_timestamp();
                    PERFORM {schema}.log_{form}({kind_session_taken}, p_app[v_i], '#worker-' || v_session.worker,
                        convert_to(json_build_object('token', p_key[v_i], 'changed_s',
                                                     round(actual / 1000.0, 3))::text, 'UTF8'),
                        v_session.holder);
                END IF;
                IF v_session.expires > clock_timestamp() - {late_seconds} * interval '1 second'
                   AND length(v_session.record) > 0 THEN
                    record := v_session.record;
                END IF;
                INSERT INTO {schema}.sessions
                VALUES (p_app[v_i], p_key[v_i], COALESCE(record, ''),
                        GREATEST(v_session.expires, clock_timestamp() + {taken_seconds} * interval '1 second'),
                        p_worker, p_user[v_i], v_session.taken)
                ON CONFLICT (app, token) DO UPDATE
                SET record = excluded.record, expires = excluded.expires, worker = excluded.worker,
                    holder = excluded.holder, taken = excluded.taken;
            WHEN 'stream' THEN
                INSERT INTO {schema}.streams
                VALUES (p_app[v_i], p_channel[v_i], {schema}.new_epoch_{form}(), 0, 1, 1, {empty_stream_seconds},
                        clock_timestamp() + interval '1 hour') ON CONFLICT DO NOTHING;
            WHEN 'miss' THEN
                INSERT INTO {schema}.cache AS c
                VALUES (p_app[v_i], p_channel[v_i], NULL, clock_timestamp() + p_n[v_i] * interval '1 second')
                ON CONFLICT (app, channel) DO UPDATE SET body = NULL, expires = excluded.expires
                WHERE c.expires <= clock_timestamp();
                IF FOUND THEN
                    PERFORM {schema}.log_{form}({kind_cache_miss}, p_app[v_i], p_channel[v_i], '', NULL);
                END IF;
            WHEN 'cursor' THEN
                IF p_size[v_i] = 1 THEN
                    DELETE FROM {schema}.cursors c WHERE c.name = p_key[v_i];
                ELSE
                    v_number := p_n[v_i];
                    IF p_size[v_i] = 2 THEN
                        SELECT GREATEST(s.trimmed_to, COALESCE((SELECT MAX(l.id) FROM {schema}.log l), 0)) INTO v_base
                        FROM {schema}.state s;
                        -- A position above the newest entry belongs to a log that was replaced.
                        v_number := LEAST(
                            COALESCE((SELECT c.position FROM {schema}.cursors c WHERE c.name = p_key[v_i]), v_number), v_base
                        );
                    END IF;
                    INSERT INTO {schema}.cursors
                    VALUES (p_key[v_i], v_number, clock_timestamp(), COALESCE(p_seconds[v_i], 0))
                    ON CONFLICT (name) DO UPDATE
                    SET position = excluded.position, moved = excluded.moved, kinds = excluded.kinds;
                    actual := v_number;
                    SELECT s.generation INTO epoch FROM {schema}.state s;
                END IF;
            WHEN 'remove' THEN
                PERFORM {schema}.remove_worker_{form}(p_key[v_i]);
            WHEN 'touch' THEN
                SELECT GREATEST(s.trimmed_to, COALESCE((SELECT MAX(l.id) FROM {schema}.log l), 0)) INTO actual
                FROM {schema}.state s;
            ELSE
                RAISE EXCEPTION 'fanfare: unknown operation %', p_op[v_i];
            END CASE;
            RETURN NEXT;
            v_i := v_i + 1;
            CONTINUE;
        END IF;

        -- A run of publications is written as a whole: one statement for all of them.
        v_j := v_i;
        v_skip := '{}';
        WHILE v_j <= v_count AND p_op[v_j] IN ('append', 'budget') LOOP
            IF p_op[v_j] = 'budget' THEN
                v_second := EXTRACT(EPOCH FROM clock_timestamp())::bigint;
                SELECT COALESCE(MAX(b.spent), 0) INTO v_spent FROM {schema}.budgets b
                WHERE b.app = p_app[v_j] AND b.second = v_second;
                IF v_spent + p_size[v_j] > p_n[v_j] THEN
                    FOR v_k IN 1 .. p_size[v_j] LOOP
                        v_skip[v_j + v_k] := true;
                    END LOOP;
                    ord := v_j; id := NULL; epoch := NULL; "offset" := NULL; flag := true;
                    limit_ := p_n[v_j]; actual := v_spent + p_size[v_j]; record := NULL;
                    RETURN NEXT;
                ELSE
                    INSERT INTO {schema}.budgets VALUES (p_app[v_j], v_second, v_spent + p_size[v_j])
                    ON CONFLICT (app) DO UPDATE SET second = excluded.second, spent = excluded.spent;
                END IF;
            END IF;
            v_j := v_j + 1;
        END LOOP;
        SELECT last_value + CASE WHEN is_called THEN 1 ELSE 0 END INTO v_base FROM {schema}.log_id;
        v_rows := 0;
        FOR r IN
            WITH input AS MATERIALIZED (
                -- Unnested, and not subscripted: each subscript would walk the whole array.
                SELECT (v_i - 1 + t.n)::integer AS ord, t.app, t.channel, t.body, t.kind::smallint AS kind, t.user_id,
                       t.exclude, t.size, t.seconds, t.key, t.cache
                FROM unnest(p_op[v_i:v_j - 1], p_app[v_i:v_j - 1], p_channel[v_i:v_j - 1], p_body[v_i:v_j - 1],
                            p_n[v_i:v_j - 1], p_user[v_i:v_j - 1], p_exclude[v_i:v_j - 1], p_size[v_i:v_j - 1],
                            p_seconds[v_i:v_j - 1], p_key[v_i:v_j - 1], p_cache[v_i:v_j - 1])
                    WITH ORDINALITY AS t(op, app, channel, body, kind, user_id, exclude, size, seconds, key, cache, n)
                WHERE t.op = 'append' AND v_skip[v_i - 1 + t.n] IS NOT true
            ), marked AS MATERIALIZED (
                SELECT i.*, k.id AS known_id, k.epoch AS known_epoch, k."offset" AS known_offset,
                       k.key IS NOT NULL AS known,
                       -- The publication whose receipt this one gets: the first with the same key, or itself.
                       CASE WHEN i.key IS NULL THEN i.ord
                            ELSE min(i.ord) OVER (PARTITION BY i.app, i.channel, i.key) END AS source
                FROM input i LEFT JOIN {schema}.idempotency k
                ON k.app = i.app AND k.channel = i.channel AND k.key = i.key AND k.expires > clock_timestamp()
            ), fresh AS MATERIALIZED (
                SELECT m.*, v_base - 1 + row_number() OVER (ORDER BY m.ord) AS id,
                       count(m.size) OVER (PARTITION BY m.app, m.channel ORDER BY m.ord) AS nth,
                       count(m.size) OVER (PARTITION BY m.app, m.channel) AS kept
                FROM marked m WHERE NOT m.known AND m.source = m.ord
            ), moved AS (
                INSERT INTO {schema}.streams AS s
                SELECT DISTINCT ON (f.app, f.channel) f.app, f.channel, {schema}.new_epoch_{form}(), f.kept, 1, f.size,
                       f.seconds, clock_timestamp() + {sweep_seconds} * interval '1 second'
                FROM fresh f WHERE f.size IS NOT NULL ORDER BY f.app, f.channel, f.ord DESC
                ON CONFLICT (app, channel) DO UPDATE
                SET "offset" = s."offset" + excluded."offset", size = excluded.size, seconds = excluded.seconds,
                    sweep = CASE WHEN s."offset" + excluded."offset" - s.kept_from >= excluded.size * 1.1 + 16
                                 THEN LEAST(s.sweep, excluded.sweep) ELSE s.sweep END
                RETURNING s.app, s.channel, s.epoch, s."offset"
            ), positioned AS MATERIALIZED (
                SELECT f.*, CASE WHEN f.size IS NOT NULL THEN s.epoch END AS epoch,
                       CASE WHEN f.size IS NOT NULL THEN s."offset" - f.kept + f.nth END AS "offset"
                FROM fresh f LEFT JOIN moved s ON s.app = f.app AND s.channel = f.channel
            ), logged AS (
                INSERT INTO {schema}.log (id, kind, app, channel, "offset", user_id, exclude, body, created)
                SELECT p.id, p.kind, p.app, p.channel, p."offset", p.user_id, p.exclude, p.body, clock_timestamp()
                FROM positioned p ORDER BY p.id
            ), cached AS (
                INSERT INTO {schema}.cache
                SELECT DISTINCT ON (p.app, p.channel) p.app, p.channel, p.body,
                       clock_timestamp() + p.cache * interval '1 second'
                FROM positioned p WHERE p.cache IS NOT NULL ORDER BY p.app, p.channel, p.ord DESC
                ON CONFLICT (app, channel) DO UPDATE SET body = excluded.body, expires = excluded.expires
            ), keyed AS (
                INSERT INTO {schema}.idempotency
                SELECT p.app, p.channel, p.key, p.id, p.epoch, p."offset",
                       clock_timestamp() + {idempotency_seconds} * interval '1 second'
                FROM positioned p WHERE p.key IS NOT NULL
                ON CONFLICT (app, channel, key) DO UPDATE
                SET id = excluded.id, epoch = excluded.epoch, "offset" = excluded."offset", expires = excluded.expires
            )
            SELECT m.ord, COALESCE(m.known_id, p.id) AS id,
                   CASE WHEN m.known THEN m.known_epoch ELSE p.epoch END AS epoch,
                   CASE WHEN m.known THEN m.known_offset ELSE p."offset" END AS "offset",
                   m.known OR m.source <> m.ord AS duplicate
            FROM marked m LEFT JOIN positioned p ON p.ord = m.source
            ORDER BY m.ord
        LOOP
            ord := r.ord; id := r.id; epoch := r.epoch; "offset" := r."offset"; flag := r.duplicate;
            limit_ := NULL; actual := NULL; record := NULL;
            RETURN NEXT;
            v_rows := GREATEST(v_rows, CASE WHEN r.duplicate THEN 0 ELSE r.id - v_base + 1 END);
        END LOOP;
        IF v_rows > 0 THEN
            PERFORM setval('{schema}.log_id', v_base + v_rows - 1);
        END IF;
        v_i := v_j;
    END LOOP;
    IF p_notify THEN
        PERFORM pg_notify({topic}, '');
    END IF;
END
$$;

-- Publications that a transaction of the project has written with its own rows. Committed ones are moved into the log;
-- a rollback leaves nothing. Ids are given out outside of the lock, so they order the publications of one transaction,
-- and those of transactions that follow each other.
CREATE TABLE IF NOT EXISTS {schema}.pending (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    app text NOT NULL,
    channel text NOT NULL,
    body bytea NOT NULL,
    kind bigint NOT NULL,
    user_id text,
    exclude text,
    size integer,                  -- retention
    seconds integer,
    key text,
    cache integer,
    publisher jsonb                -- for the trace of the event, if it is recorded
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
DO $$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM pg_attribute
                   WHERE attrelid = '{schema}.pending'::regclass AND attname = 'publisher') THEN
        -- It waits for the transactions that have published, while publishers wait for the lock of the log: not for
        -- long. The caller tries again.
        SET LOCAL lock_timeout = '1s';
        ALTER TABLE {schema}.pending ADD COLUMN publisher jsonb;
        SET LOCAL lock_timeout = DEFAULT;
    END IF;
END
$$;

-- Moves committed publications into the log, at most `p_rows`, in one step: each is in the log once. Returns how many.
-- The records of their publishers follow in one command, which every worker keeps for the traces of the events.
CREATE OR REPLACE FUNCTION {schema}.move_{form}(p_rows integer) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    v_ids bigint[];
    v_records text;
    r record;
BEGIN
    PERFORM pg_advisory_xact_lock({lock_class}, {lock_key});
    WITH moved AS (
        DELETE FROM {schema}.pending WHERE id IN (SELECT id FROM {schema}.pending ORDER BY id LIMIT p_rows) RETURNING *
    )
    SELECT count(*)::integer AS rows, array_agg('append'::text ORDER BY id) AS op, array_agg(app ORDER BY id) AS app,
           array_agg(channel ORDER BY id) AS channel, array_agg(body ORDER BY id) AS body,
           array_agg(kind ORDER BY id) AS kind, array_agg(user_id ORDER BY id) AS user_id,
           array_agg(exclude ORDER BY id) AS exclude, array_agg(size ORDER BY id) AS size,
           array_agg(seconds ORDER BY id) AS seconds, array_agg(key ORDER BY id) AS key,
           array_agg(cache ORDER BY id) AS cache, array_agg(publisher ORDER BY id) AS publisher,
           count(publisher) > 0 AS is_recorded
    INTO r FROM moved;
    IF r.rows > 0 THEN
        SELECT array_agg(CASE WHEN NOT a.flag THEN a.id END ORDER BY a.ord) INTO v_ids
        FROM {schema}.apply_{form}('', true, r.op, r.app, r.channel, r.body, r.kind, r.user_id, r.exclude, r.size,
                                   r.seconds, r.key, r.cache) a;
    END IF;
    IF r.is_recorded THEN
        SELECT jsonb_agg(recorded.one) INTO v_records FROM (
            SELECT jsonb_build_array(jsonb_build_array(0, m.id), m.publisher || jsonb_build_object(
                       'committed', EXTRACT(EPOCH FROM clock_timestamp()))) AS one
            FROM unnest(v_ids, r.publisher) AS m(id, publisher)
            WHERE m.id IS NOT NULL AND m.publisher IS NOT NULL ORDER BY m.id DESC LIMIT {announced_events}
        ) recorded;
        IF v_records IS NOT NULL THEN
            PERFORM {schema}.log_{form}({kind_control}, '', {publishers}, convert_to(v_records, 'UTF8'), NULL);
        END IF;
    END IF;
    RETURN r.rows;
END
$$;

-- The heartbeat of a worker: renews its life and its leases, and answers the generation and the workers that are dead.
-- `known` is false when the others have taken this worker for dead.
CREATE OR REPLACE FUNCTION {schema}.beat_{form}(p_worker text, p_seconds integer)
RETURNS TABLE (known boolean, generation text, workers bigint, dead text[]) LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    UPDATE {schema}.workers w SET until = clock_timestamp() + p_seconds * interval '1 second' WHERE w.id = p_worker;
    known := FOUND;
    UPDATE {schema}.leases l SET until = clock_timestamp() + p_seconds * interval '1 second' WHERE l.worker = p_worker;
    IF EXISTS (SELECT 1 FROM {schema}.state s
               WHERE split_part(s.server, ':', 3) <> pg_relation_filenode('{schema}.state')::text) THEN
        PERFORM pg_advisory_xact_lock({lock_class}, {lock_key});
        PERFORM {schema}.check_{form}();
    END IF;
    SELECT s.generation INTO generation FROM {schema}.state s;
    SELECT count(*) FILTER (WHERE w.until >= clock_timestamp()),
           COALESCE(array_agg(w.id) FILTER (WHERE w.until < clock_timestamp()), '{}')
    INTO workers, dead FROM {schema}.workers w;
    RETURN NEXT;
END
$$;

-- Removes a worker whose time is over; false if it renewed meanwhile or another worker removed it.
CREATE OR REPLACE FUNCTION {schema}.reap_{form}(p_worker text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock({lock_class}, {lock_key});
    PERFORM 1 FROM {schema}.workers w WHERE w.id = p_worker AND w.until < clock_timestamp() FOR UPDATE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM {schema}.remove_worker_{form}(p_worker);
    PERFORM pg_notify({topic}, '');
    RETURN true;
END
$$;

-- Takes a lease that is free, or whose holder's time is over. NULL: another worker holds it.
CREATE OR REPLACE FUNCTION {schema}.lease_{form}(p_name text, p_worker text, p_seconds integer) RETURNS bigint
LANGUAGE sql AS $$
    INSERT INTO {schema}.leases AS l VALUES (p_name, p_worker, 1, clock_timestamp() + p_seconds * interval '1 second')
    ON CONFLICT (name) DO UPDATE
    SET worker = excluded.worker, until = excluded.until,
        term = CASE WHEN l.worker = excluded.worker THEN l.term ELSE l.term + 1 END
    WHERE l.worker = excluded.worker OR l.until < clock_timestamp()
    RETURNING term
$$;

-- Deletes what is too old: entries without an offset up to an id, but for those that consumers hold back, expired rows,
-- and entries over the bounds of their streams. At most `p_rows` of each, so that the lock is never held for long.
-- `more`: there is more to delete. `dropped`: records of sessions that were too many.
CREATE OR REPLACE FUNCTION {schema}.trim_{form}(p_upto bigint, p_rows integer)
RETURNS TABLE (more boolean, dropped integer) LANGUAGE plpgsql AS $$
DECLARE
    v_trimmed bigint;
    v_released bigint;  -- entries that were held up to here are deleted
    v_held bigint;      -- entries of `v_kinds` after this are held
    v_kinds bigint;
    v_upto bigint;
    v_last bigint;
    v_again boolean := false;
    v_from bigint;
    v_oldest bigint;
    r record;
BEGIN
    more := true;
    dropped := 0;
    IF NOT pg_try_advisory_xact_lock({lock_class}, {lock_key}) THEN
        RETURN NEXT;
        RETURN;
    END IF;
    more := false;
    DELETE FROM {schema}.cursors WHERE moved < clock_timestamp() - {consumer_seconds} * interval '1 second';
    SELECT trimmed_to, held_from INTO v_trimmed, v_released FROM {schema}.state;
    v_upto := p_upto;
    SELECT COALESCE(MIN(position), {largest_id}), COALESCE(bit_or(kinds), 0) INTO v_held, v_kinds
    FROM {schema}.cursors;
    IF v_upto > v_trimmed THEN
        SELECT MAX(id), COUNT(*) = p_rows INTO v_last, more FROM (
            SELECT id FROM {schema}.log WHERE "offset" IS NULL AND id > v_trimmed AND id <= v_upto ORDER BY id LIMIT p_rows
        ) AS batch;
        IF NOT more THEN
            v_last := v_upto;
        END IF;
        DELETE FROM {schema}.log WHERE "offset" IS NULL AND id > v_trimmed AND id <= v_last
            AND (id <= v_held OR (v_kinds >> kind) & 1 = 0);
        UPDATE {schema}.state SET trimmed_to = v_last;
        v_trimmed := v_last;
    END IF;
    v_upto := LEAST(v_held, v_trimmed);
    IF v_upto > v_released THEN
        SELECT MAX(id), COUNT(*) = p_rows INTO v_last, v_again FROM (
            SELECT id FROM {schema}.log WHERE "offset" IS NULL AND id > v_released AND id <= v_upto
            ORDER BY id LIMIT p_rows
        ) AS batch;
        IF NOT v_again THEN
            v_last := v_upto;
        END IF;
        DELETE FROM {schema}.log WHERE "offset" IS NULL AND id > v_released AND id <= v_last;
        UPDATE {schema}.state SET held_from = v_last;
    END IF;
    DELETE FROM {schema}.cache WHERE (app, channel) IN (
        SELECT app, channel FROM {schema}.cache WHERE expires <= clock_timestamp() LIMIT p_rows);
    DELETE FROM {schema}.idempotency WHERE (app, channel, key) IN (
        SELECT app, channel, key FROM {schema}.idempotency WHERE expires <= clock_timestamp() LIMIT p_rows);
    DELETE FROM {schema}.sessions WHERE (app, token) IN (
        SELECT app, token FROM {schema}.sessions
        WHERE expires <= clock_timestamp() - {late_seconds} * interval '1 second' LIMIT p_rows);
    DELETE FROM {schema}.sessions WHERE (app, token) IN (
        SELECT app, token FROM {schema}.sessions WHERE expires <= clock_timestamp()
        ORDER BY expires DESC OFFSET {late_sessions} LIMIT p_rows);
    GET DIAGNOSTICS dropped = ROW_COUNT;
    FOR r IN SELECT * FROM {schema}.streams WHERE sweep <= clock_timestamp() ORDER BY sweep LIMIT 100 LOOP
        IF r.kept_from > r."offset" AND NOT EXISTS (
            SELECT 1 FROM {schema}.counts WHERE app = r.app AND channel = r.channel) THEN
            -- It was empty a sweep ago, and nothing was appended since: its position has been kept long enough.
            DELETE FROM {schema}.streams WHERE app = r.app AND channel = r.channel;
            CONTINUE;
        END IF;
        SELECT MIN("offset") INTO v_from FROM {schema}.log WHERE app = r.app AND channel = r.channel
            AND "offset" > r."offset" - r.size AND created >= clock_timestamp() - r.seconds * interval '1 second';
        v_from := COALESCE(v_from, r."offset" + 1);
        DELETE FROM {schema}.log WHERE app = r.app AND channel = r.channel AND "offset" < v_from AND id <= v_trimmed
            AND (id <= v_held OR (v_kinds >> kind) & 1 = 0);
        SELECT MIN("offset") INTO v_oldest FROM {schema}.log
        WHERE app = r.app AND channel = r.channel AND "offset" IS NOT NULL;
        UPDATE {schema}.streams
        SET kept_from = COALESCE(v_oldest, r."offset" + 1),
            sweep = clock_timestamp() + interval '1 second' * CASE
                WHEN v_oldest IS NULL THEN r.seconds * {position_outlives}
                ELSE GREATEST({sweep_seconds}, r.seconds / 4) END
        WHERE app = r.app AND channel = r.channel;
    END LOOP;
    more := more OR v_again;
    RETURN NEXT;
END
$$;

-- Which part of a stream a subscriber gets: the stream's top, and either the reason why nothing is replayed, or how
-- many entries there are. The worker reads the entries themselves.
CREATE OR REPLACE FUNCTION {schema}.recovery_{form}(
    p_app text, p_channel text, p_epoch text, p_after bigint, p_entries bigint, p_bytes bigint, p_continued boolean
) RETURNS TABLE (epoch text, "offset" bigint, size integer, seconds integer, reason text, missed bigint)
LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_column
DECLARE
    v_created timestamptz;
    v_bytes bigint;
BEGIN
    SELECT s.epoch, s."offset", s.size, s.seconds INTO epoch, "offset", size, seconds FROM {schema}.streams s
    WHERE s.app = p_app AND s.channel = p_channel;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    missed := 0;
    IF p_epoch IS NOT NULL THEN
        missed := "offset" - p_after;
        IF p_epoch <> epoch OR missed < 0 THEN
            reason := 'epoch_changed';
        ELSIF missed > 0 THEN
            SELECT l.created INTO v_created FROM {schema}.log l
            WHERE l.app = p_app AND l.channel = p_channel AND l."offset" = p_after + 1;
            IF v_created IS NULL OR p_after + 1 <= "offset" - size
               OR v_created < clock_timestamp() - seconds * interval '1 second' THEN
                reason := 'position_expired';
            ELSIF NOT p_continued THEN
                IF missed > p_entries THEN
                    reason := 'too_many';
                ELSE
                    SELECT SUM(length(l.body)) INTO v_bytes FROM {schema}.log l
                    WHERE l.app = p_app AND l.channel = p_channel AND l."offset" > p_after;
                    IF v_bytes > p_bytes THEN
                        reason := 'too_many';
                    END IF;
                END IF;
            END IF;
        END IF;
    END IF;
    RETURN NEXT;
END
$$;

-- Streams: messages that grow.
CREATE TABLE IF NOT EXISTS {schema}.texts (
    app text NOT NULL,
    channel text NOT NULL,
    id text NOT NULL,
    state smallint NOT NULL,       -- see interface.StreamState
    seq bigint NOT NULL,
    size bigint NOT NULL,
    until timestamptz NOT NULL,    -- open: end of the lease; ended: when it is forgotten
    "offset" bigint,               -- of its kept entry
    head bytea NOT NULL,
    body bytea,                    -- ended: the frame with the whole text
    PRIMARY KEY (app, channel, id)
) WITH (fillfactor = 50);
CREATE INDEX IF NOT EXISTS texts_open ON {schema}.texts (app, channel) WHERE state = 0;
CREATE INDEX IF NOT EXISTS texts_ended ON {schema}.texts (until) WHERE state > 0;
CREATE TABLE IF NOT EXISTS {schema}.parts (
    app text NOT NULL,
    channel text NOT NULL,
    id text NOT NULL,
    seq bigint NOT NULL,
    part bytea NOT NULL,
    PRIMARY KEY (app, channel, id, seq)
);

-- Changes streams, each independently of the others; the columns are those of interface.StreamWrite. A row of the
-- result belongs to the write at `ord`.
CREATE OR REPLACE FUNCTION {schema}.streams_{form}(
    p_app text[], p_channel text[], p_id text[], p_after bigint[], p_seq bigint[], p_size bigint[], p_part bytea[],
    p_body bytea[], p_head bytea[], p_replaces boolean[], p_state integer[], p_kept integer[], p_kept_seconds integer[],
    p_keeps_parts boolean[], p_seconds integer[], p_in_channel integer[], p_in_app integer[]
) RETURNS TABLE (ord integer, done boolean, state integer, seq bigint, size bigint, limit_ bigint, actual bigint)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_text {schema}.texts%ROWTYPE;
    v_until timestamptz;
    v_number bigint;
    v_offset bigint;
BEGIN
    PERFORM pg_advisory_xact_lock({lock_class}, {lock_key});
    PERFORM {schema}.check_{form}();
    FOR i IN 1 .. cardinality(p_id) LOOP
        ord := i; done := false; state := NULL; seq := 0; size := 0; limit_ := NULL; actual := NULL;
        v_until := clock_timestamp() + p_seconds[i] * interval '1 second';
        SELECT * INTO v_text FROM {schema}.texts t WHERE t.app = p_app[i] AND t.channel = p_channel[i] AND t.id = p_id[i];
        IF p_head[i] IS NOT NULL THEN
            done := v_text.id IS NULL OR (v_text.state IN (2, 4) AND v_text.seq = p_after[i]);
            IF done AND p_in_channel[i] IS NOT NULL THEN
                SELECT count(*) INTO v_number FROM {schema}.texts t
                WHERE t.state = 0 AND t.app = p_app[i] AND t.channel = p_channel[i];
                IF v_number >= p_in_channel[i] THEN
                    done := false; limit_ := p_in_channel[i]; actual := v_number;
                END IF;
            END IF;
            IF done AND p_in_app[i] IS NOT NULL THEN
                SELECT count(*) INTO v_number FROM {schema}.texts t WHERE t.state = 0 AND t.app = p_app[i];
                IF v_number >= p_in_app[i] THEN
                    done := false; limit_ := p_in_app[i]; actual := v_number;
                END IF;
            END IF;
            IF done THEN
                INSERT INTO {schema}.texts AS t
                VALUES (p_app[i], p_channel[i], p_id[i], 0, p_seq[i], p_size[i], v_until, NULL, p_head[i], NULL)
                ON CONFLICT (app, channel, id) DO UPDATE
                SET state = 0, seq = excluded.seq, size = excluded.size, until = excluded.until, head = excluded.head,
                    body = NULL;
                DELETE FROM {schema}.parts p WHERE p.app = p_app[i] AND p.channel = p_channel[i] AND p.id = p_id[i];
            END IF;
        ELSE
            done := v_text.state = 0 AND v_text.seq = p_after[i];
            done := COALESCE(done, false);
            IF done AND p_state[i] = 0 THEN
                UPDATE {schema}.texts t SET seq = p_seq[i], size = p_size[i], until = v_until
                WHERE t.app = p_app[i] AND t.channel = p_channel[i] AND t.id = p_id[i];
                IF p_replaces[i] THEN
                    DELETE FROM {schema}.parts p WHERE p.app = p_app[i] AND p.channel = p_channel[i] AND p.id = p_id[i];
                END IF;
            END IF;
        END IF;
        IF NOT done THEN
            state := v_text.state; seq := COALESCE(v_text.seq, 0); size := COALESCE(v_text.size, 0);
            RETURN NEXT;
            CONTINUE;
        END IF;
        state := p_state[i]; seq := p_seq[i]; size := p_size[i];
        IF p_state[i] = 0 THEN
            IF length(p_part[i]) > 0 THEN
                INSERT INTO {schema}.parts VALUES (p_app[i], p_channel[i], p_id[i], p_seq[i], p_part[i]);
            END IF;
            IF length(p_body[i]) > 0 THEN
                PERFORM {schema}.log_{form}({kind_stream}, p_app[i], p_channel[i], p_body[i], p_id[i]);
            END IF;
            RETURN NEXT;
            CONTINUE;
        END IF;
        v_offset := NULL;
        IF p_kept[i] IS NOT NULL THEN
            INSERT INTO {schema}.streams AS s
            VALUES (p_app[i], p_channel[i], {schema}.new_epoch_{form}(), 1, 1, p_kept[i], p_kept_seconds[i],
                    clock_timestamp() + {sweep_seconds} * interval '1 second')
            ON CONFLICT (app, channel) DO UPDATE
            SET "offset" = s."offset" + 1, size = excluded.size, seconds = excluded.seconds
            RETURNING s."offset" INTO v_offset;
        END IF;
        IF v_text."offset" IS NOT NULL THEN  -- the end of an earlier try, which this one replaces
            UPDATE {schema}.log l SET body = ''
            WHERE l.app = p_app[i] AND l.channel = p_channel[i] AND l."offset" = v_text."offset";
        END IF;
        INSERT INTO {schema}.log (id, kind, app, channel, "offset", user_id, body, created)
        VALUES (nextval('{schema}.log_id'), {kind_stream_end}, p_app[i], p_channel[i], v_offset, p_id[i], p_body[i],
                clock_timestamp());
        UPDATE {schema}.texts t
        SET state = p_state[i], seq = p_seq[i], size = p_size[i], until = v_until, body = p_body[i], "offset" = v_offset
        WHERE t.app = p_app[i] AND t.channel = p_channel[i] AND t.id = p_id[i];
        IF NOT p_keeps_parts[i] THEN
            DELETE FROM {schema}.parts p WHERE p.app = p_app[i] AND p.channel = p_channel[i] AND p.id = p_id[i];
        END IF;
        WITH gone AS (
            DELETE FROM {schema}.texts t WHERE (t.app, t.channel, t.id) IN (
                SELECT o.app, o.channel, o.id FROM {schema}.texts o
                WHERE o.state > 0 AND o.until <= clock_timestamp() LIMIT 100)
            RETURNING t.app, t.channel, t.id
        )
        DELETE FROM {schema}.parts p USING gone g WHERE p.app = g.app AND p.channel = g.channel AND p.id = g.id;
        RETURN NEXT;
    END LOOP;
    PERFORM pg_notify({topic}, '');
END
$$;

-- Gives a kept message a new body, and adds the notice of it. Returns the offset of the notice, NULL if the message is
-- not kept or deleted.
CREATE OR REPLACE FUNCTION {schema}.revise_{form}(
    p_app text, p_channel text, p_epoch text, p_offset bigint, p_body bytea, p_notice bytea
) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    v_offset bigint;
BEGIN
    PERFORM pg_advisory_xact_lock({lock_class}, {lock_key});
    PERFORM {schema}.check_{form}();
    UPDATE {schema}.log l SET body = p_body FROM {schema}.streams s
    WHERE s.app = p_app AND s.channel = p_channel AND s.epoch = p_epoch
      AND l.app = p_app AND l.channel = p_channel AND l."offset" = p_offset AND length(l.body) > 0
      AND l.kind <> {kind_revised};
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    UPDATE {schema}.streams s SET "offset" = s."offset" + 1 WHERE s.app = p_app AND s.channel = p_channel
    RETURNING s."offset" INTO v_offset;
    INSERT INTO {schema}.log (id, kind, app, channel, "offset", body, created)
    VALUES (nextval('{schema}.log_id'), {kind_revised}, p_app, p_channel, v_offset, p_notice, clock_timestamp());
    PERFORM pg_notify({topic}, '');
    RETURN v_offset;
END
$$;

-- Gives a member a new info on all its connections. False: the user is no member of the channel.
CREATE OR REPLACE FUNCTION {schema}.update_member_{form}(p_app text, p_channel text, p_user text, p_info text)
RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock({lock_class}, {lock_key});
    PERFORM {schema}.check_{form}();
    UPDATE {schema}.members m SET info = p_info WHERE m.app = p_app AND m.channel = p_channel AND m.user_id = p_user;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM {schema}.log_{form}({kind_member_updated}, p_app, p_channel, convert_to(p_info, 'UTF8'), p_user);
    PERFORM pg_notify({topic}, '');
    RETURN true;
END
$$;

-- Members with a time to live, without a connection. In place of a worker their row has the end of their time, as text
-- of one length: see interface.lease_until.
CREATE INDEX IF NOT EXISTS members_lease ON {schema}.members ((worker COLLATE "C")) WHERE worker LIKE 'until:%';

CREATE OR REPLACE FUNCTION {schema}.lease_until_{form}(p_seconds double precision) RETURNS text LANGUAGE sql AS $$
    SELECT 'until:' || lpad((EXTRACT(EPOCH FROM clock_timestamp()) * 1000 + p_seconds * 1000)::bigint::text, 16, '0')
$$;

-- Makes a user a member for so long, or renews that. `joined`: it was no member before. `users`: they are too many.
CREATE OR REPLACE FUNCTION {schema}.lease_member_{form}(
    p_app text, p_channel text, p_user text, p_socket text, p_info text, p_seconds double precision, p_limit integer
) RETURNS TABLE (joined boolean, users bigint) LANGUAGE plpgsql AS $$
DECLARE
    v_before text;
    v_info text;
    v_users bigint;
BEGIN
    PERFORM pg_advisory_xact_lock({lock_class}, {lock_key});
    PERFORM {schema}.check_{form}();
    SELECT m.info INTO v_before FROM {schema}.members m
    WHERE m.app = p_app AND m.channel = p_channel AND m.user_id = p_user ORDER BY m.seq DESC LIMIT 1;
    joined := NOT FOUND;
    IF joined AND p_limit IS NOT NULL THEN
        SELECT COALESCE(MAX(u.users), 0) INTO v_users FROM {schema}.users u
        WHERE u.app = p_app AND u.channel = p_channel;
        IF v_users >= p_limit THEN
            users := v_users;
            RETURN NEXT;
            RETURN;
        END IF;
    END IF;
    v_info := COALESCE(p_info, v_before, 'null');
    INSERT INTO {schema}.members (app, channel, user_id, socket_id, worker, info)
    VALUES (p_app, p_channel, p_user, p_socket, {schema}.lease_until_{form}(p_seconds), v_info)
    ON CONFLICT (app, channel, socket_id) DO UPDATE SET worker = excluded.worker;
    IF joined THEN
        INSERT INTO {schema}.users AS u VALUES (p_app, p_channel, 1)
        ON CONFLICT (app, channel) DO UPDATE SET users = u.users + 1;
        PERFORM {schema}.log_{form}({kind_member_added}, p_app, p_channel, convert_to(v_info, 'UTF8'), p_user);
        PERFORM pg_notify({topic}, '');
    ELSIF v_info <> v_before THEN
        UPDATE {schema}.members m SET info = v_info
        WHERE m.app = p_app AND m.channel = p_channel AND m.user_id = p_user;
        PERFORM {schema}.log_{form}({kind_member_updated}, p_app, p_channel, convert_to(v_info, 'UTF8'), p_user);
        PERFORM pg_notify({topic}, '');
    END IF;
    RETURN NEXT;
END
$$;

CREATE OR REPLACE FUNCTION {schema}.release_member_{form}(p_app text, p_channel text, p_socket text) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    v_user text;
BEGIN
    PERFORM pg_advisory_xact_lock({lock_class}, {lock_key});
    PERFORM {schema}.check_{form}();
    DELETE FROM {schema}.members m WHERE m.app = p_app AND m.channel = p_channel AND m.socket_id = p_socket
    RETURNING m.user_id INTO v_user;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM {schema}.depart_{form}(p_app, p_channel, v_user);
    PERFORM pg_notify({topic}, '');
    RETURN true;
END
$$;

-- Members whose time is over leave. Every worker calls it; the lock is taken only where there are such members.
CREATE OR REPLACE FUNCTION {schema}.expire_members_{form}() RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    v_now text := {schema}.lease_until_{form}(0);
    r record;
BEGIN
    IF NOT EXISTS (SELECT 1 FROM {schema}.members m WHERE m.worker LIKE 'until:%' AND m.worker COLLATE "C" < v_now) THEN
        RETURN false;
    END IF;
    PERFORM pg_advisory_xact_lock({lock_class}, {lock_key});
    PERFORM {schema}.check_{form}();
    FOR r IN WITH gone AS (DELETE FROM {schema}.members m WHERE m.worker LIKE 'until:%' AND m.worker COLLATE "C" < v_now
                           RETURNING m.app, m.channel, m.user_id)
             SELECT gone.app, gone.channel, gone.user_id FROM gone ORDER BY 1, 2, 3 LOOP
        PERFORM {schema}.depart_{form}(r.app, r.channel, r.user_id);
    END LOOP;
    PERFORM pg_notify({topic}, '');
    RETURN true;
END
$$;
