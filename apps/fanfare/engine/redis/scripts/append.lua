-- Appends: the operations `a` and `b` of scripts/apply.lua. After common.lua.

-- A stream without subscribers outlives its entries, so that a client that reconnects late gets the number it missed.
local function outlive(id, seconds)
    redis.call('PEXPIRE', P .. 'h:' .. id, seconds * POSITION_OUTLIVES * 1000 + 3600000)
end

local heads = {} -- streams that this group has appended to

local function head_of(id)
    local head = heads[id]
    if not head then
        local found = redis.call('HMGET', P .. 'h:' .. id, 'e', 'o', 'r', 's', 't')
        head = { birth = found[1], offset = tonumber(found[2] or 0), renewed = tonumber(found[3] or 0), entries = {},
            size = tonumber(found[4] or 1), seconds = tonumber(found[5] or 0) }
        heads[id] = head
    end
    return head
end

-- Adds an entry with an offset. Returns the head; its newest entry is this one.
local function keep(id, size, seconds, kind, meta, body, to)
    local head = head_of(id)
    head.birth = head.birth or 's' .. (top + 1)
    head.offset = head.offset + 1
    head.size, head.seconds = size or head.size, seconds or head.seconds
    head.entries[#head.entries + 1] = add(kind, meta, body, to, head.offset)
    return head
end

local function write_head(id, head)
    local list = P .. 'l:' .. id
    local length = 0
    for first = 1, #head.entries, 1000 do
        length = redis.call('RPUSH', list, unpack(head.entries, first, math.min(first + 999, #head.entries)))
    end
    if length > head.size then
        redis.call('LTRIM', list, -head.size, -1)
    end
    if now - head.renewed >= 1000 or now < head.renewed then
        -- Every second is enough: each entry has its time, and readers skip those that are too old.
        head.renewed = now
        redis.call('PEXPIRE', list, head.seconds * 1000 + 2000)
        if redis.call('EXISTS', P .. 'n:' .. id) == 0 then
            outlive(id, head.seconds)
        end
    end
    redis.call('HSET', P .. 'h:' .. id, 'e', head.birth, 'o', head.offset, 's', head.size, 't', head.seconds,
        'r', head.renewed)
end

local function write_heads()
    for id, head in pairs(heads) do
        if #head.entries > 0 then
            write_head(id, head)
        end
    end
    heads = {}
end

local run_operation = {
    -- append: kind, meta, body, to[, id, size or false, seconds, idempotency key or false, cache seconds or false].
    -- Answers the entry's sequence, or {epoch, offset, sequence} for a channel with history; 0 for that of a known key.
    a = function(op)
        local id = op[6]
        local key = op[9] and P .. 'k:' .. id .. ':' .. op[9]
        local receipt = key and redis.call('GET', key)
        if receipt then
            local epoch, offset = string.match(receipt, '^(%w+):(%d+)$')
            return epoch and { epoch, tonumber(offset), 0 } or 0
        end
        local answer, known = top + 1, '-'
        if op[7] then
            local head = keep(id, op[7], op[8], op[2], op[3], op[4], P .. op[5])
            answer = { epoch_of(head.birth), head.offset, top }
            known = answer[1] .. ':' .. answer[2]
        else
            add(op[2], op[3], op[4], P .. op[5])
        end
        if key then
            redis.call('SET', key, known, 'EX', IDEMPOTENCY_SECONDS)
        end
        if op[10] then
            if op[10] > 0 then
                redis.call('SET', P .. 'c:' .. id, op[4], 'EX', op[10])
            else
                redis.call('DEL', P .. 'c:' .. id)
            end
        end
        return answer
    end,

    -- budget: app, limit, publications. Answers 0, or {limit, actual} if they exceed the limit.
    b = function(op)
        local key = P .. 'b:' .. op[2] .. ':' .. clock[1]
        local spent = tonumber(redis.call('GET', key) or 0) + op[4]
        if spent > op[3] then
            return { op[3], spent }
        end
        redis.call('SET', key, spent, 'PX', 2000)
        return 0
    end,
}
