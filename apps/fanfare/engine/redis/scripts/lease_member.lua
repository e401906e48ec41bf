-- Makes a user a member for some time, without a connection, or renews that. After common.lua, append.lua and
-- presence.lua. scripts/beat.lua removes members whose time is over.
--
--   ARGV[3]  msgpack: {app, channel, user, socket, info or false, milliseconds, limit or false}
--
-- For example, with {'1', 'presence-room', 'bot', 'lease:bot', '{"name":"Bot"}', 30000, 100} the answer is {1}: the user
-- was no member before, and the channel's subscribers get MEMBER_ADDED. The same again answers {0}. {0, 100} instead: the
-- channel has 100 users, and this one is not among them.

load_state(false)
local app, channel, user, socket, info, ms, limit = unpack(cmsgpack.unpack(ARGV[3]))
local id = app .. ':' .. channel
local users = users_over(id, user, limit)
if users then
    return { 0, users }
end
local before = redis.call('HGET', P .. 'i:' .. id, user)
info = info or before or 'null'
if redis.call('HSET', P .. 'm:' .. id, socket, 'until ' .. user) == 1 then
    arrive(id, app, channel, user, info)
end
if before and info ~= before then
    report(MEMBER_UPDATED, app, channel, user, info)
end
redis.call('HSET', P .. 'i:' .. id, user, info)
redis.call('ZADD', P .. 'leased', now + ms, id .. ' ' .. socket)
finish()
return { before and 0 or 1 }
