-- Ends what lease_member.lua began; connections of the same user stay members. After common.lua, append.lua and
-- presence.lua.
--
--   ARGV[3]  msgpack: {app, channel, socket}
--
-- For example, with {'1', 'presence-room', 'lease:bot'} the answer is 1. 0: there was nothing to end.

load_state(false)
local app, channel, socket = unpack(cmsgpack.unpack(ARGV[3]))
local id = app .. ':' .. channel
local was_leased = redis.call('ZREM', P .. 'leased', id .. ' ' .. socket)
depart(id, app, channel, socket)
finish()
return was_leased
