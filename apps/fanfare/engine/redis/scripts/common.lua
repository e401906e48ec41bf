-- The beginning of all scripts of the Redis engine. One call concerns one partition:
--
--   KEYS[1]  the partition's state, for example fanfare:{fanfare.3.0}:state
--   KEYS[2]  a key that never exists. While a cluster moves the slot, a call with one key that is there and one that is
--            not is refused as a whole (TRYAGAIN), so no script runs on half of a partition's keys.
--   ARGV[1]  the run id of the server, or '' to ask the server
--   ARGV[2]  a random generation, used if a new one begins
--
-- A channel's id is APP:CHANNEL. Keys of a partition, behind its prefix:
--
--   state              hash: generation, server (run id), top (sequence of the newest entry), trimmed (entries up to here
--                      may be gone), since (top when the generation began), kinds (bit n: consumers want kind n),
--                      leases_from (ms; no lease before), mark (ms of the newest time mark), beats (heartbeats so
--                      far), lost (ms: when sessions were lost last, or may have been), moved ("TILL MARK" while the
--                      log is moved to another store, till 0 afterwards)
--   log                stream: all entries of the last seconds; the sequence is the first half of the stream's id
--   facts              stream: entries of the kinds that consumers want, until all of them have passed
--   marks              list of "MS SEQUENCE": what was the top when
--   workers, nodes     sorted set: life -> dead after this ms, -1 while it is removed; hash: life -> host and process
--   held:LIFE          set: what the worker has here, "n APP:CHANNEL" (a count) and "m APP:CHANNEL SOCKET" (a member)
--   n:ID  a:ID         hash: life -> subscribers; hash: the last COUNT entry (n, at)
--   occupied:APP       sorted set of the channels with subscribers, all of score 0
--   m:ID               hash: socket -> "LIFE USER"; for a member with a time to live, lease:USER -> "until USER"
--   leased             sorted set: "ID lease:USER" -> end of the member's time
--   u:ID  i:ID  o:ID   hash: user -> connections and leases; hash: user -> info; sorted set: users in the order of their
--                      arrival
--   h:ID  l:ID         hash: the stream's head (e: birth, o: offset, s: size, t: seconds, r: when the list's time to
--                      live was set); list: its newest entries. Offsets have no gaps, so a position is an index
--   born               sorted set: channel -> when its stream began without an entry, kept for BORN_MS, for moves
--   c:ID               string: the cached event; empty after a miss was announced
--   k:ID:KEY           string: the receipt of an idempotency key
--   b:APP:SECOND       string: publications of one second
--   texts:ID           sorted set: stream (a message that grows) -> forgotten after this ms, +inf while it is open
--   text:ID STREAM     hash of a stream: state, seq, size, head, body (once it has ended), offset (of its kept entry)
--   parts:ID STREAM    list: the stream's parts
--   open, opened       sorted set: "ID STREAM" -> end of the producer's lease; hash: APP -> open streams
--   s:APP:TOKEN        hash: a session (r: record, x: expires, w: life, h: holder, k: taken)
--   sessions           sorted set: APP:TOKEN -> expires
--   leases             hash: name -> "TERM LIFE"
--   consumers          hash: name -> "POSITION MOVED_MS KINDS GENERATION", removed CONSUMER_MS after MOVED_MS
--
-- Times are milliseconds of the server's clock. An entry is a header (version, length of all, sequence, offset or 0, time,
-- length of the next part), msgpack [kind, app, channel, user or false, excluded socket or false], and the body.
-- The epoch of a stream is generation .. birth, so a new generation changes every epoch of the partition at once. A
-- stream that was moved here from another store has the birth =GENERATION:EPOCH, and that epoch in that generation.

local P = string.sub(KEYS[1], 1, -6)
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local run = ARGV[1]
if run == '' then
    run = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
end

local generation, top, kinds
local out_to, out, out_size = false, {}, 0
local has_facts = false
local started = 0

local function epoch_of(birth)
    local moved_in, epoch = string.match(birth, '^=(%w+):(%w+)$')
    if not epoch then
        return generation .. birth
    end
    return moved_in == generation and epoch or generation .. epoch
end

local function body_size(entry)
    return #entry - 31 - struct.unpack('>I2', entry, 30)
end

-- Refuses all calls while the log is moved to another store, and afterwards.
local function refuse_moved(moved)
    local till, mark = string.match(moved, '^(%d+) (.*)$')
    if till == '0' or tonumber(till) > now then
        error({ err = 'FANFARE_MOVED ' .. mark })
    end
end

local function begin_generation()
    generation = ARGV[2]
    redis.call('HSET', KEYS[1], 'server', run, 'generation', generation, 'top', top, 'kinds', kinds, 'since', top)
    redis.call('SPUBLISH', P .. 'all', '\0' .. generation)
end

-- A worker has seen more entries or heartbeats of this generation than the state knows: a backup was restored while the
-- server ran, and its run id is the same.
local function check_restored(known, newest, seen)
    if known ~= generation then
        return
    end
    if tonumber(newest) > top or tonumber(seen) > tonumber(redis.call('HGET', KEYS[1], 'beats') or 0) then
        redis.call('HSET', KEYS[1], 'lost', now)
        begin_generation()
    end
end

-- Reads the state. A server with another run id may have lost acknowledged entries, so a new generation begins.
local function load_state(is_first)
    local state = redis.call('HMGET', KEYS[1], 'server', 'generation', 'top', 'kinds', 'moved')
    if state[5] then
        refuse_moved(state[5])
    end
    if state[1] == run then
        generation, top, kinds = state[2], tonumber(state[3]), tonumber(state[4])
    else
        top, kinds = tonumber(state[3] or 0), tonumber(state[4] or 0)
        if not state[2] then
            -- An empty store: after FLUSHALL a worker may not know yet that its lease is lost.
            redis.call('DEL', P .. 'log', P .. 'facts', P .. 'marks')
            redis.call('HSET', KEYS[1], 'trimmed', 0, 'mark', 0, 'leases_from', is_first and 0 or now + LEASE_MS)
        else
            redis.call('HSET', KEYS[1], 'lost', now)
        end
        begin_generation()
    end
    started = top
end

-- The sessions of this partition were lost. A new generation of a store that was emptied is not enough to know it: a new
-- deployment begins in the same way.
local function lose_sessions()
    if redis.call('HEXISTS', KEYS[1], 'lost') == 0 then
        redis.call('HSET', KEYS[1], 'lost', now)
    end
end

local function flush()
    if out_to then
        redis.call('SPUBLISH', out_to, table.concat(out))
        out_to, out, out_size = false, {}, 0
    end
end

-- Publishes an entry; adjacent entries for the same subscribers are one message.
local function send(to, entry)
    if to ~= out_to or out_size > 65536 then
        flush()
        out_to = to
    end
    out[#out + 1] = entry
    out_size = out_size + #entry
end

-- Adds one entry to the log. Returns it.
local function add(kind, meta, body, to, offset)
    top = top + 1
    local entry = struct.pack('>BI4I8I8I8I2', 1, 31 + #meta + #body, top, offset or 0, now, #meta) .. meta .. body
    redis.call('XADD', P .. 'log', top .. '-0', 'e', entry)
    if kinds > 0 and bit.band(kinds, bit.lshift(1, kind)) > 0 then
        redis.call('XADD', P .. 'facts', top .. '-0', 'e', entry)
        has_facts = true
    end
    send(to, entry)
    return entry
end

-- Writes the gathered entries. Every script that adds entries ends with it.
local function finish()
    flush()
    if top > started then
        redis.call('HSET', KEYS[1], 'top', top)
    end
    if has_facts then
        redis.call('SPUBLISH', P .. 'new', '')
    end
end
