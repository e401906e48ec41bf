-- A page of the occupied channels of an application.
--
--   ARGV[3]  the application
--   ARGV[4], ARGV[5]  the bounds of the names, as ZRANGEBYLEX takes them
--   ARGV[6]  how many
--
-- For example {'news', 12, 0, 'presence-room', 3, 2}: each channel, its subscribers and its users.

local found = {}
for _, channel in ipairs(redis.call('ZRANGEBYLEX', P .. 'occupied:' .. ARGV[3], ARGV[4], ARGV[5], 'LIMIT', 0, ARGV[6])) do
    local id = ARGV[3] .. ':' .. channel
    found[#found + 1] = channel
    found[#found + 1] = total(id)
    found[#found + 1] = redis.call('HLEN', P .. 'u:' .. id)
end
return found
