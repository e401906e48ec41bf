-- A page of a channel's history.
--
--   ARGV[3]  the channel's id
--   ARGV[4]  entries after this offset
--   ARGV[5]  entries before this offset; 0: no bound
--   ARGV[6]  how many
--   ARGV[7]  1: the newest of them first
--   ARGV[8]  the last one is the first with which the bodies have more bytes; 0: no bound
--
-- For example {'Gs12', 5, {ENTRY, ENTRY}}: the epoch, the newest offset, and two entries. Empty: there is no stream.

local PIECE = 16 -- entries

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
local newest_first = ARGV[7] == '1'
local max_bytes = tonumber(ARGV[8])
local bytes = 0
if newest_first then
    first = math.max(first, last - count + 1)
else
    last = math.min(last, first + count - 1)
end
-- With a bound of bytes in pieces, so that little is read beyond it.
local piece = max_bytes > 0 and PIECE or count
while first <= last and piece > 0 and (max_bytes == 0 or bytes <= max_bytes) do
    local from = newest_first and math.max(first, last - piece + 1) or first
    local to = newest_first and last or math.min(last, first + piece - 1)
    local entries = redis.call('LRANGE', list, from - top - 1, to - top - 1)
    for index = 1, #entries do
        local entry = entries[newest_first and #entries + 1 - index or index]
        if max_bytes == 0 or bytes <= max_bytes then
            found[#found + 1] = entry
            bytes = bytes + body_size(entry)
        end
    end
    if newest_first then
        last = from - 1
    else
        first = to + 1
    end
end
return { epoch_of(head[1]), top, found }
