-- Gives a member a new info on all its connections. After common.lua, append.lua and presence.lua.
--
--   ARGV[3]  msgpack: {app, channel, user, info}
--
-- For example, with {'1', 'presence-room', 'ann', '{"typing":true}'} the answer is 1, and the channel's subscribers get
-- the entry. 0: the user is no member.

load_state(false)
local app, channel, user, info = unpack(cmsgpack.unpack(ARGV[3]))
local id = app .. ':' .. channel
if redis.call('HEXISTS', P .. 'u:' .. id, user) == 0 then
    return 0
end
redis.call('HSET', P .. 'i:' .. id, user, info)
report(MEMBER_UPDATED, app, channel, user, info)
finish()
return 1
