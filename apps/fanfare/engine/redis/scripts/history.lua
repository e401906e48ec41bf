-- A page of a channel's history.
--
--   ARGV[3]  the channel's id
--   ARGV[4]  entries after this offset
--   ARGV[5]  entries before this offset; 0: no bound
--   ARGV[6]  how many
--   ARGV[7]  1: the newest of them first
--
-- For example {'Gs12', 5, {ENTRY, ENTRY}}: the epoch, the newest offset, and two entries. Empty: there is no stream.

generation = redis.call('HGET', KEYS[1], 'generation')
local head = redis.call('HMGET', P .. 'h:' .. ARGV[3], 'e', 'o', 't')
if not head[1] or not generation then
    return {}
end
local list = P .. 'l:' .. ARGV[3]
local top = tonumber(head[2])
local length = redis.call('LLEN', list)
local oldest = now - tonumber(head[3]) * 1000
local first = math.max(tonumber(ARGV[4]) + 1, top - length + 1)
local last = top
if tonumber(ARGV[5]) > 0 then
    last = math.min(last, tonumber(ARGV[5]) - 1)
end
local count = tonumber(ARGV[6])
local found = {}
-- An entry that is too old may still be there: they are at the list's beginning.
while first <= last and struct.unpack('>I8', redis.call('LINDEX', list, first - top - 1), 22) < oldest do
    first = first + 1
end
if ARGV[7] == '1' then
    first = math.max(first, last - count + 1)
else
    last = math.min(last, first + count - 1)
end
if first <= last and count > 0 then
    for _, entry in ipairs(redis.call('LRANGE', list, first - top - 1, last - top - 1)) do
        if ARGV[7] == '1' then
            table.insert(found, 1, entry)
        else
            found[#found + 1] = entry
        end
    end
end
return { epoch_of(head[1]), top, found }
