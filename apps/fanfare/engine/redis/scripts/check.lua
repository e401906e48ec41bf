-- Runs each command that the other scripts use, on a key of its own, so that a user without the rights is refused when a
-- worker starts and not at its first event.
--
--   KEYS[1]  for example fanfare:{fanfare.3.0}:check
--
-- The answer is 1, or the name of the command that is refused, with Redis' message, which does not name it.

local key = KEYS[1]
local refused
local function run(name, ...)
    local answer = redis.pcall(name, ...)
    if not refused and type(answer) == 'table' and answer.err then
        refused = name .. ': ' .. answer.err
    end
end
local function write(...)
    run('DEL', key)
    run(...)
end
run('TIME')
run('INFO', 'server')
write('SET', key, '1', 'PX', 1000)
run('GET', key)
run('EXISTS', key)
run('PERSIST', key)
run('PEXPIRE', key, 1000)
run('PEXPIREAT', key, 1)
write('HSET', key, 'a', '1')
run('HMGET', key, 'a')
run('HGET', key, 'a')
run('HGETALL', key)
run('HVALS', key)
run('HLEN', key)
run('HEXISTS', key, 'a')
run('HINCRBY', key, 'a', 1)
run('HDEL', key, 'a')
write('RPUSH', key, '1')
run('LINDEX', key, 0)
run('LLEN', key)
run('LRANGE', key, 0, -1)
run('LSET', key, 0, '2')
run('LTRIM', key, 0, 1)
run('LPOP', key)
write('SADD', key, '1')
run('SRANDMEMBER', key, 1)
run('SREM', key, '1')
write('ZADD', key, 1, '1')
run('ZSCORE', key, '1')
run('ZCOUNT', key, 0, 1)
run('ZRANGE', key, 0, 1)
run('ZRANGEBYSCORE', key, 0, 1)
run('ZRANGEBYLEX', key, '-', '+')
run('ZREMRANGEBYSCORE', key, 5, 6)
run('ZREM', key, '1')
write('XADD', key, '1-0', 'a', '1')
run('XRANGE', key, '-', '+')
run('XREVRANGE', key, '+', '-')
run('XTRIM', key, 'MINID', '1-0')
run('DEL', key)
run('SPUBLISH', key, '')
return refused or 1
