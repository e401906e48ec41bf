-- Occupied channels of an application whose names contain a text, in the order of their bytes. After common.lua,
-- append.lua and presence.lua.
--
--   ARGV[3]  the application
--   ARGV[4]  where to begin, as ZRANGEBYLEX takes it
--   ARGV[5]  the text
--   ARGV[6]  how many to answer at most
--   ARGV[7]  how many names to read at most, so that the server is not blocked
--
-- For example {'room-8', 'room-7', 12, 0, 'room-8', 3, 2}: the name to continue at ('': there are no more), then each
-- channel, its subscribers and its users.

local names = redis.call('ZRANGEBYLEX', P .. 'occupied:' .. ARGV[3], ARGV[4], '+', 'LIMIT', 0, ARGV[7])
local found = { #names == tonumber(ARGV[7]) and names[#names] or '' }
local left = tonumber(ARGV[6])
for _, channel in ipairs(names) do
    if string.find(channel, ARGV[5], 1, true) then
        local id = ARGV[3] .. ':' .. channel
        found[#found + 1] = channel
        found[#found + 1] = total(id)
        found[#found + 1] = redis.call('HLEN', P .. 'u:' .. id)
        left = left - 1
        if left == 0 then
            found[1] = channel
            break
        end
    end
end
return found
