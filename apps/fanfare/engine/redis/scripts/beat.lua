-- The heartbeat of a worker, once a second: renews its life, trims the log, removes members whose time is over, and
-- answers the state of the partition. After common.lua, append.lua and presence.lua.
--
--   ARGV[3]  the worker's life
--   ARGV[4]  how long it lasts, ms
--   ARGV[5]  how long entries stay, ms
--   ARGV[6]  how many sessions may be late here
--   ARGV[7]  the sequence of the newest entry that the worker has seen
--   ARGV[8]  its generation
--   ARGV[9]  the number of the last heartbeat whose answer it has got
--
-- For example {GENERATION, 57, 1, 3, {'5d3a…'}, 90, 20, 4, 812}: the newest entry before this call is 57, this worker is
-- known, three are alive, the one with the life 5d3a… is dead and not removed yet, and of 90 sessions 20 are late, after
-- this call has deleted 4 that were too many. It is heartbeat 812 of all workers. The entries of this call are not in 57:
-- Redis 7.2 sends their messages after the answer.

load_state(false)
check_restored(ARGV[8], ARGV[7], ARGV[9])
local beats = redis.call('HINCRBY', KEYS[1], 'beats', 1)
local till = redis.call('ZSCORE', P .. 'workers', ARGV[3])
local known = till and tonumber(till) >= 0
if known then
    redis.call('ZADD', P .. 'workers', now + ARGV[4], ARGV[3])
end

local function late_sessions()
    return redis.call('ZCOUNT', P .. 'sessions', '-inf', now)
end

local dropped = 0
local mark = tonumber(redis.call('HGET', KEYS[1], 'mark') or 0)
if now - mark >= 1000 or now < mark then
    redis.call('HSET', KEYS[1], 'mark', now)
    redis.call('RPUSH', P .. 'marks', string.format('%d %d', now, top))
    local upto
    while true do
        local at, sequence = string.match(redis.call('LINDEX', P .. 'marks', 0) or '', '^(%d+) (%d+)$')
        if not at or (tonumber(at) > now - ARGV[5] and tonumber(at) <= now) then
            break
        end
        redis.call('LPOP', P .. 'marks')
        upto = tonumber(sequence)
    end
    if upto and upto > tonumber(redis.call('HGET', KEYS[1], 'trimmed') or 0) then
        redis.call('HSET', KEYS[1], 'trimmed', upto)
        redis.call('XTRIM', P .. 'log', 'MINID', string.format('%d-0', upto + 1))
        local wanted = 0
        local consumers = redis.call('HGETALL', P .. 'consumers')
        for index = 1, #consumers, 2 do
            local position, moved, mask = string.match(consumers[index + 1], '^(%d+) (%d+) (%d+)')
            if tonumber(moved) < now - CONSUMER_MS then
                redis.call('HDEL', P .. 'consumers', consumers[index])
            else
                upto = math.min(upto, tonumber(position))
                wanted = bit.bor(wanted, tonumber(mask))
            end
        end
        redis.call('HSET', KEYS[1], 'kinds', wanted)
        redis.call('XTRIM', P .. 'facts', 'MINID', string.format('%d-0', upto + 1))
    end
    redis.call('ZREMRANGEBYSCORE', P .. 'born', '-inf', now - BORN_MS)
    redis.call('ZREMRANGEBYSCORE', P .. 'sessions', '-inf', now - LATE_MS)
    dropped = math.max(0, math.min(late_sessions() - ARGV[6], 200))
    if dropped > 0 then
        for _, name in ipairs(redis.call('ZRANGE', P .. 'sessions', 0, dropped - 1)) do
            redis.call('DEL', P .. 's:' .. name)
            redis.call('ZREM', P .. 'sessions', name)
        end
    end
end

for _, name in ipairs(redis.call('ZRANGEBYSCORE', P .. 'leased', '-inf', now, 'LIMIT', 0, EXPIRED_AT_ONCE)) do
    local id, app, channel, socket = string.match(name, '^(([^:]*):(%S+)) (.*)$')
    depart(id, app, channel, socket)
    redis.call('ZREM', P .. 'leased', name)
end
finish()

local dead = redis.call('ZRANGEBYSCORE', P .. 'workers', '-inf', '(' .. now, 'LIMIT', 0, 10)
local alive = redis.call('ZCOUNT', P .. 'workers', now, '+inf')
local sessions = redis.call('ZCOUNT', P .. 'sessions', '-inf', '+inf')
return { generation, started, known and 1 or 0, alive, dead, sessions, late_sessions(), dropped, beats }
