-- The tables of the PostgreSQL engine, all in one schema. {schema} is replaced by its quoted name.
-- Times are of the server's clock, so that no worker's clock matters.

-- CREATE SCHEMA IF NOT EXISTS needs the right to create schemas even where this one is there.
DO $$
BEGIN
    IF to_regnamespace('{schema}') IS NULL THEN
        CREATE SCHEMA {schema};
    END IF;
END
$$;

CREATE TABLE {schema}.state (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    version integer NOT NULL,      -- of these tables
    generation text NOT NULL,      -- changes when acknowledged entries may be gone
    server text NOT NULL,          -- that wrote last: system identifier, timeline or its start, file of this table
    trimmed_to bigint NOT NULL,    -- entries without an offset up to this id may be gone, no other entry is
    held_from bigint NOT NULL      -- entries up to this id that were held for consumers may be gone
);

CREATE SEQUENCE {schema}.log_id;

CREATE TABLE {schema}.log (
    id bigint PRIMARY KEY,         -- given out under the lock: the order of ids is the order of commits
    kind smallint NOT NULL,
    app text NOT NULL,
    channel text NOT NULL,
    "offset" bigint,               -- the position in the channel's stream; NULL: not kept
    user_id text,
    exclude text,
    body bytea NOT NULL,
    created timestamptz NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000,
        autovacuum_vacuum_insert_threshold = -1, autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 50000);
CREATE UNIQUE INDEX log_stream ON {schema}.log (app, channel, "offset") WHERE "offset" IS NOT NULL;
CREATE INDEX log_announcements ON {schema}.log (id) WHERE "offset" IS NULL;

CREATE TABLE {schema}.streams (
    app text NOT NULL,
    channel text NOT NULL,
    epoch text NOT NULL,
    "offset" bigint NOT NULL,      -- of the newest entry
    kept_from bigint NOT NULL,     -- entries before this offset are gone
    size integer NOT NULL,         -- the retention of the newest publication
    seconds integer NOT NULL,
    sweep timestamptz NOT NULL,    -- when to look for entries that are too old
    PRIMARY KEY (app, channel)
) WITH (fillfactor = 70);
CREATE INDEX streams_sweep ON {schema}.streams (sweep);

CREATE TABLE {schema}.idempotency (
    app text NOT NULL,
    channel text NOT NULL,
    key text NOT NULL,
    id bigint NOT NULL,
    epoch text,
    "offset" bigint,
    expires timestamptz NOT NULL,
    PRIMARY KEY (app, channel, key)
);
CREATE INDEX idempotency_expires ON {schema}.idempotency (expires);

CREATE TABLE {schema}.cache (
    app text NOT NULL,
    channel text NOT NULL,
    body bytea,                    -- NULL: a miss was announced and nothing was published since
    expires timestamptz NOT NULL,
    PRIMARY KEY (app, channel)
) WITH (fillfactor = 70);
CREATE INDEX cache_expires ON {schema}.cache (expires);

CREATE TABLE {schema}.announced (  -- the last COUNT entry of a channel
    app text NOT NULL,
    channel text NOT NULL,
    subscribers bigint NOT NULL,
    at timestamptz NOT NULL,
    PRIMARY KEY (app, channel)
) WITH (fillfactor = 70);

CREATE TABLE {schema}.budgets (
    app text PRIMARY KEY,
    second bigint NOT NULL,        -- Unix time
    spent bigint NOT NULL          -- publications in it
) WITH (fillfactor = 50);

CREATE TABLE {schema}.sessions (
    app text NOT NULL,
    token text NOT NULL,
    record bytea NOT NULL,         -- empty: taken, and nothing saved yet
    expires timestamptz NOT NULL,
    worker text NOT NULL,          -- of the holder
    holder text NOT NULL,          -- empty: released
    taken timestamptz,             -- when it was last taken from a holder that was alive
    PRIMARY KEY (app, token)
) WITH (fillfactor = 70);
CREATE INDEX sessions_expires ON {schema}.sessions (expires);

CREATE TABLE {schema}.cursors (
    name text PRIMARY KEY,
    position bigint NOT NULL,      -- everything up to this id is processed
    moved timestamptz NOT NULL,
    kinds bigint NOT NULL          -- the entries that are held for it: bit n for kind n
) WITH (fillfactor = 50);

CREATE TABLE {schema}.workers (
    id text PRIMARY KEY,
    node text NOT NULL,            -- host name and process id, for people
    until timestamptz NOT NULL     -- it is dead after this, unless it renews
) WITH (fillfactor = 50);

CREATE TABLE {schema}.counts (
    app text NOT NULL,
    channel text NOT NULL,
    worker text NOT NULL,
    subscribers bigint NOT NULL,   -- absolute, as the worker last wrote; no row for 0
    PRIMARY KEY (app, channel, worker)
) WITH (fillfactor = 70);
CREATE INDEX counts_worker ON {schema}.counts (worker);

CREATE TABLE {schema}.members (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,  -- the order in which they came
    app text NOT NULL,
    channel text NOT NULL,
    user_id text NOT NULL,
    socket_id text NOT NULL,
    worker text NOT NULL,
    info text NOT NULL
);
CREATE UNIQUE INDEX members_socket ON {schema}.members (app, channel, socket_id);
CREATE INDEX members_user ON {schema}.members (app, channel, user_id);
CREATE INDEX members_worker ON {schema}.members (worker);

CREATE TABLE {schema}.users (      -- how many distinct users a channel has; no row for 0
    app text NOT NULL,
    channel text NOT NULL,
    users bigint NOT NULL,
    PRIMARY KEY (app, channel)
) WITH (fillfactor = 70);

CREATE TABLE {schema}.leases (
    name text PRIMARY KEY,
    worker text NOT NULL,
    term bigint NOT NULL,          -- grows with each new holder, so a row is never deleted
    until timestamptz NOT NULL
) WITH (fillfactor = 50);
