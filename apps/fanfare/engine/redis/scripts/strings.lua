-- Strings with their ends, for a move to another store. After common.lua.
--
--   ARGV[3...]  names of keys, without the partition's prefix
--
-- For example, msgpack of {'-', 1764340000000, false, -2}: the value of each key and its end in Unix time, ms.

local found = {}
for index = 3, #ARGV do
    found[#found + 1] = redis.call('GET', P .. ARGV[index])
    found[#found + 1] = redis.call('PEXPIRETIME', P .. ARGV[index])
end
return cmsgpack.pack(found)
