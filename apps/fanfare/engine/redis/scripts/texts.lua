-- Reads streams: messages that grow. After common.lua.

-- A stream, or false: {id, state, seq, size, head, body or false, offset or 0, {part, …}}
local function read_text(id, stream)
    local name = id .. ' ' .. stream
    local text = redis.call('HMGET', P .. 'text:' .. name, 'state', 'seq', 'size', 'head', 'body', 'offset')
    if not text[1] then
        return false
    end
    return { stream, tonumber(text[1]), tonumber(text[2]), tonumber(text[3]), text[4], text[5],
        tonumber(text[6] or 0), redis.call('LRANGE', P .. 'parts:' .. name, 0, -1) }
end

-- The streams of a channel that are open or ended lately.
local function read_texts(id)
    local found = {}
    for _, stream in ipairs(redis.call('ZRANGEBYSCORE', P .. 'texts:' .. id, now, '+inf')) do
        found[#found + 1] = read_text(id, stream) or nil
    end
    return found
end
