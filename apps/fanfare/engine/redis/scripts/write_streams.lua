-- Changes streams of one partition, each independently of the others. After common.lua, append.lua and kept.lua.
--
--   ARGV[3]  msgpack: the writes, each an array of the fields of interface.StreamWrite:
--            {app, channel, id, after, seq, size, part, body, head or false, replaces, state, entries to keep or false,
--            their seconds, keeps parts, seconds, open streams in the channel or false, in the application or false}
--   ARGV[4]  msgpack: {[app] = open streams of the application in the other partitions}
--
-- For example, with {{'1', 'chat', 'answer', 0, 0, 0, '', OPENED, HEAD, …, 0, …}, {'1', 'chat', 'answer', 0, 1, 2, 'hi',
-- PIECE, false, …}} the answer is {{1, 0, 0, 0}, {1, 0, 1, 2}}: both writes were done, and the stream is open (state 0)
-- with number 1 and length 2. The second one again answers {0, 0, 1, 2}: its `after` is not the stream's number any more.
-- A third and fourth number after these are a limit of open streams, and how many there are.

load_state(false)
local OPEN, FAILED, INTERRUPTED = 0, 2, 4 -- interface.StreamState
local others = cmsgpack.unpack(ARGV[4])

local function open_in_app(app)
    return tonumber(redis.call('HGET', P .. 'opened', app) or 0)
end

-- The limit of open streams that is reached, and how many there are.
local function over(app, id, in_channel, in_app)
    local open = in_channel and redis.call('ZCOUNT', P .. 'texts:' .. id, '+inf', '+inf')
    if open and open >= in_channel then
        return in_channel, open
    end
    open = in_app and open_in_app(app) + (others[app] or 0)
    if open and open >= in_app then
        return in_app, open
    end
end

local function write(app, channel, stream, after, seq, size, part, body, head, replaces, state, kept, kept_seconds,
        keeps_parts, seconds, in_channel, in_app)
    local id = app .. ':' .. channel
    local name = id .. ' ' .. stream
    local key, parts, index = P .. 'text:' .. name, P .. 'parts:' .. name, P .. 'texts:' .. id
    local text = redis.call('HMGET', key, 'state', 'seq', 'size', 'offset')
    local before, number = tonumber(text[1]), tonumber(text[2] or 0)
    local done, limit, actual
    if head then
        done = not before or ((before == FAILED or before == INTERRUPTED) and number == after)
        if done then
            limit, actual = over(app, id, in_channel, in_app)
            done = not limit
        end
    else
        done = before == OPEN and number == after
    end
    if not done then
        return { 0, before or -1, number, tonumber(text[3] or 0), limit, actual }
    end
    if head then
        redis.call('HSET', key, 'head', head)
        redis.call('HDEL', key, 'body')
        redis.call('PERSIST', key)
        redis.call('PERSIST', index)
        redis.call('ZADD', index, '+inf', stream)
        redis.call('HINCRBY', P .. 'opened', app, 1)
    end
    if head or replaces then
        redis.call('DEL', parts)
    end
    local till = now + seconds * 1000
    redis.call('HSET', key, 'state', state, 'seq', seq, 'size', size)
    if state == OPEN then
        redis.call('ZADD', P .. 'open', till, name)
        if #part > 0 then
            redis.call('RPUSH', parts, part)
        end
        if #body > 0 then
            add(STREAM, cmsgpack.pack({ STREAM, app, channel, stream, false }), body, P .. '@' .. id)
        end
        return { 1, state, seq, size }
    end

    redis.call('ZREM', P .. 'open', name)
    if redis.call('HINCRBY', P .. 'opened', app, -1) <= 0 then
        redis.call('HDEL', P .. 'opened', app)
    end
    if text[4] then
        local former, at = kept_at(id, tonumber(text[4]))
        local about = former and cmsgpack.unpack((split(former)))
        if about and about[1] == STREAM_END and about[4] == stream then
            replace(id, at, former, '') -- the end of an earlier try: this one takes its place
        end
    end
    local meta = cmsgpack.pack({ STREAM_END, app, channel, stream, false })
    if kept then
        redis.call('HSET', key, 'offset', keep(id, kept, kept_seconds, STREAM_END, meta, body, P .. '@' .. id).offset)
    else
        redis.call('HDEL', key, 'offset')
        add(STREAM_END, meta, body, P .. '@' .. id)
    end
    redis.call('HSET', key, 'body', body)
    if not keeps_parts then
        redis.call('DEL', parts)
    end
    redis.call('PEXPIREAT', key, till)
    redis.call('PEXPIREAT', parts, till)
    redis.call('ZREMRANGEBYSCORE', index, '-inf', now)
    redis.call('ZADD', index, till, stream)
    if redis.call('ZCOUNT', index, '+inf', '+inf') == 0 then
        local newest = redis.call('ZRANGE', index, -1, -1, 'WITHSCORES')
        redis.call('PEXPIREAT', index, newest[2])
    end
    return { 1, state, seq, size }
end

local results = {}
for number, each in ipairs(cmsgpack.unpack(ARGV[3])) do
    results[number] = write(unpack(each, 1, 17))
end
write_heads()
finish()
return results
