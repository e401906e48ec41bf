-- Removes a worker, with its members and counts, and announces the changes. At most ARGV[5] of them in one call, so
-- that the server is not blocked.
--
--   ARGV[3]  the life to remove
--   ARGV[4]  1: also if its lease has not expired (the worker stops, or has taken a new life)
--
-- For example {GENERATION, 61, 1}: some of its members are still there, call again. 0: all is done. -1: it is alive.

load_state(false)
local life = ARGV[3]
local till = redis.call('ZSCORE', P .. 'workers', life)
if ARGV[4] ~= '1' and (not till or tonumber(till) >= now) then
    return { generation, top, -1 }
end
redis.call('ZADD', P .. 'workers', -1, life)
local function channel_of(id)
    return string.match(id, '^([^:]*):(.*)$')
end
for _, each in ipairs(redis.call('SRANDMEMBER', P .. 'held:' .. life, ARGV[5])) do
    local id, socket = string.match(each, '^m (.*) (%S+)$')
    if id then
        local app, channel = channel_of(id)
        depart(id, app, channel, socket, life)
    else
        id = string.sub(each, 3)
        local app, channel = channel_of(id)
        if uncount(life, id, app, channel) and redis.call('EXISTS', P .. 'a:' .. id) == 1 then
            announce(id, app, channel)
        end
    end
    redis.call('SREM', P .. 'held:' .. life, each)
end
local more = redis.call('EXISTS', P .. 'held:' .. life)
if more == 0 then
    redis.call('ZREM', P .. 'workers', life)
    redis.call('HDEL', P .. 'nodes', life)
end
finish()
return { generation, top, more }
