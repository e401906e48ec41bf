-- Heads of streams, for a move to another store. After common.lua.
--
--   ARGV[3...]  the ids of channels
--
-- For example, msgpack of {GENERATION, {'s5', '7', '100', '3600', 4}}: for each id the birth, the offset, the size and the
-- seconds of its stream, false if there is none, and how many entries its list has.

local found = {}
for index = 3, #ARGV do
    local head = redis.call('HMGET', P .. 'h:' .. ARGV[index], 'e', 'o', 's', 't')
    for field = 1, 4 do
        found[#found + 1] = head[field]
    end
    found[#found + 1] = redis.call('LLEN', P .. 'l:' .. ARGV[index])
end
return cmsgpack.pack({ redis.call('HGET', KEYS[1], 'generation'), found })
