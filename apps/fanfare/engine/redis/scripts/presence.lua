-- Presence and counts: entries that the scripts add by themselves. After common.lua and append.lua.

local function target(app, channel)
    if channel == '#users' then
        return P .. 'all'
    end
    return P .. '@' .. app .. ':' .. channel
end

local function report(kind, app, channel, user, body)
    add(kind, cmsgpack.pack({ kind, app, channel, user or false, false }), body, target(app, channel))
end

local function total(id)
    local sum = 0
    for _, each in ipairs(redis.call('HVALS', P .. 'n:' .. id)) do
        sum = sum + tonumber(each)
    end
    return sum
end

-- A channel's number of subscribers, announced if it changed and the announcement is due. Otherwise returns the
-- milliseconds to wait.
local function announce(id, app, channel)
    local subscribers = total(id)
    local last = redis.call('HMGET', P .. 'a:' .. id, 'n', 'at')
    if subscribers == 0 or tonumber(last[1]) == subscribers then
        return 0
    end
    if last[1] and subscribers > ANNOUNCE_ALWAYS then
        local wait = tonumber(last[2]) + ANNOUNCE_MS - now
        if wait > 0 and wait <= ANNOUNCE_MS then
            return wait
        end
    end
    report(COUNT, app, channel, false, tostring(subscribers))
    redis.call('HSET', P .. 'a:' .. id, 'n', subscribers, 'at', now)
    return 0
end

-- A worker has no subscribers on a channel any more.
local function uncount(life, id, app, channel)
    if redis.call('HDEL', P .. 'n:' .. id, life) == 0 then
        return false
    end
    redis.call('SREM', P .. 'held:' .. life, 'n ' .. id)
    if channel ~= '' and redis.call('EXISTS', P .. 'n:' .. id) == 0 then
        redis.call('ZREM', P .. 'occupied:' .. app, channel)
        redis.call('DEL', P .. 'a:' .. id)
        outlive(id, tonumber(redis.call('HGET', P .. 'h:' .. id, 't') or 0))
        report(VACATED, app, channel, false, '')
    end
    return true
end

-- How many users a channel has, if another one is over the limit.
local function users_over(id, user, limit)
    if limit and redis.call('HEXISTS', P .. 'u:' .. id, user) == 0 then
        local users = redis.call('HLEN', P .. 'u:' .. id)
        return users >= limit and users
    end
end

-- A user has one connection or lease more. Returns whether the user was no member before.
local function arrive(id, app, channel, user, info)
    if redis.call('HINCRBY', P .. 'u:' .. id, user, 1) > 1 then
        return false
    end
    report(MEMBER_ADDED, app, channel, user, info)
    redis.call('ZADD', P .. 'o:' .. id, top, user)
    return true
end

-- A socket is not a member any more. `life`: only if it is this worker's.
local function depart(id, app, channel, socket, life)
    local member = redis.call('HGET', P .. 'm:' .. id, socket)
    if not member then
        return
    end
    local owner, user = string.match(member, '^(%w+) (.*)$')
    if life and owner ~= life then
        return
    end
    redis.call('SREM', P .. 'held:' .. owner, 'm ' .. id .. ' ' .. socket)
    redis.call('HDEL', P .. 'm:' .. id, socket)
    if redis.call('HINCRBY', P .. 'u:' .. id, user, -1) <= 0 then
        redis.call('HDEL', P .. 'u:' .. id, user)
        redis.call('HDEL', P .. 'i:' .. id, user)
        redis.call('ZREM', P .. 'o:' .. id, user)
        report(MEMBER_REMOVED, app, channel, user, '')
    end
end

local function is_alive(life)
    local till = redis.call('ZSCORE', P .. 'workers', life)
    return till and tonumber(till) >= now
end
