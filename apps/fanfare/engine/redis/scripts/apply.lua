-- Runs the operations of one group in their order, then reads what the subscribers of the group wait for. A group of
-- publications alone is run by publish.lua. After common.lua, append.lua, presence.lua and texts.lua.
--
--   ARGV[3]  the worker's life
--   ARGV[4]  msgpack: the operations, each an array of its name and its arguments (see below)
--   ARGV[5]  msgpack: the wants, each read once however many subscribers wait for it, after all operations
--
-- For example, with the operations {{'a', 0, META, '{"event":"created"}', '@1:news'}} and without wants the answer is
-- {GENERATION, 57, {57}, {}}: entry 57 is in the log and was published to the subscribers of channel `news` of
-- application 1. The answer follows these messages in the connection's buffer, so it is a barrier: a subscriber
-- whose snapshot is in it has seen exactly the entries up to 57.

load_state(false)
local life = ARGV[3]

local function sequence_of(each)
    return tonumber(string.match(each[1], '^%d+'))
end

-- Adds the entries that `facts` lacks after a position, from the log: at the time of their append no consumer wanted
-- their kinds. The numbers of a stream only grow, so it is written again. FILL_ENTRIES bounds the time of the server: of
-- more entries the oldest are not added, and a longer `facts` stays as it is.
local function fill_facts(after, mask)
    local facts = redis.call('XRANGE', P .. 'facts', '-', '+', 'COUNT', FILL_ENTRIES + 1)
    if #facts > FILL_ENTRIES then
        return
    end
    local has, lacks = {}, {}
    for _, each in ipairs(facts) do
        has[each[1]] = true
    end
    local from = '(' .. string.format('%d', after) .. '-0'
    for _, each in ipairs(redis.call('XREVRANGE', P .. 'log', '+', from, 'COUNT', FILL_ENTRIES)) do
        local kind = string.byte(each[2][2], 33) or 32 -- after the header and a byte of msgpack
        if not has[each[1]] and kind < 32 and bit.band(mask, bit.lshift(1, kind)) ~= 0 then
            lacks[#lacks + 1] = each
        end
    end
    if #lacks == 0 then
        return
    end
    redis.call('DEL', P .. 'facts')
    local last = #lacks -- the newest come first
    local function add_before(sequence)
        while last > 0 and sequence_of(lacks[last]) < sequence do
            redis.call('XADD', P .. 'facts', lacks[last][1], 'e', lacks[last][2][2])
            last = last - 1
        end
    end
    for _, each in ipairs(facts) do
        add_before(sequence_of(each))
        redis.call('XADD', P .. 'facts', each[1], 'e', each[2][2])
    end
    add_before(top + 1)
end

local run_other = {
    -- join: id, app, channel, socket, user, info, limit or false. Answers 0, or {limit, actual}.
    j = function(op)
        local id, app, channel, socket, user, info, limit = unpack(op, 2, 8)
        local member = redis.call('HGET', P .. 'm:' .. id, socket)
        local known = member and string.match(member, '^%w+ (.*)$')
        if known and known ~= user then
            depart(id, app, channel, socket) -- a socket that was another user, whose leave could not be written
            known = nil
        end
        if not known then
            local users = users_over(id, user, limit)
            if users then
                return { limit, users }
            end
            arrive(id, app, channel, user, info)
        end
        redis.call('HSET', P .. 'm:' .. id, socket, life .. ' ' .. user)
        redis.call('HSET', P .. 'i:' .. id, user, info)
        redis.call('SADD', P .. 'held:' .. life, 'm ' .. id .. ' ' .. socket)
        return 0
    end,

    -- leave: id, app, channel, socket
    l = function(op)
        depart(op[2], op[3], op[4], op[5])
        return 0
    end,

    -- counts: id, app, channel, subscribers, announce. Answers the milliseconds until a change is to be announced.
    n = function(op)
        local id, app, channel, subscribers = unpack(op, 2, 5)
        if subscribers == 0 then
            uncount(life, id, app, channel)
        elseif redis.call('HSET', P .. 'n:' .. id, life, subscribers) == 1 then
            redis.call('SADD', P .. 'held:' .. life, 'n ' .. id)
            if channel ~= '' and redis.call('HLEN', P .. 'n:' .. id) == 1 then
                redis.call('ZADD', P .. 'occupied:' .. app, 0, channel)
                redis.call('PERSIST', P .. 'h:' .. id)
                report(OCCUPIED, app, channel, false, '')
            end
        end
        return op[6] and announce(id, app, channel) or 0
    end,

    -- announce: id, app, channel. Answers as counts do.
    c = function(op)
        return announce(op[2], op[3], op[4])
    end,

    -- admit: id, limit. Answers {limit, others} if one more connection does not fit.
    q = function(op)
        local others = total(op[2]) - 1
        return others >= op[3] and { op[3], others } or 0
    end,

    -- session: app, token, record, seconds, holder or '', release (2: again, because the answer to the first was lost; it
    -- is written only if the first was not). The holder from which it was taken last (f) writes no
    -- more, also after the holder since then has released it: a worker that was frozen still sends its records.
    s = function(op)
        local app, token, record, seconds, holder, release = unpack(op, 2, 7)
        local name = app .. ':' .. token
        local key = P .. 's:' .. name
        if holder ~= '' then
            local before, former = unpack(redis.call('HMGET', key, 'h', 'f'))
            if former == holder or (before and before ~= '' and before ~= holder) then
                return 0
            end
            if release == 2 and before ~= holder then
                return 0
            end
            redis.call('HSET', key, 'w', release and '' or life, 'h', release and '' or holder)
        end
        local expires = now + seconds * 1000
        if expires + LATE_MS <= now then
            redis.call('DEL', key)
            redis.call('ZREM', P .. 'sessions', name)
            return 0
        end
        redis.call('HSET', key, 'r', record, 'x', expires)
        redis.call('PEXPIREAT', key, expires + LATE_MS)
        redis.call('ZADD', P .. 'sessions', expires, name)
        return 0
    end,

    -- take: app, token, holder. Answers {record or '', previous holder or '', milliseconds since it changed or -1,
    -- milliseconds since the partition lost sessions or -1}.
    t = function(op)
        local app, token, holder = unpack(op, 2, 4)
        local name = app .. ':' .. token
        local key = P .. 's:' .. name
        local found = redis.call('HMGET', key, 'r', 'x', 'w', 'h', 'k', 'f')
        local taken = tonumber(found[5] or 0)
        local changed = taken > 0 and now - taken or -1
        local before = ''
        local former = found[6] ~= holder and found[6] or ''
        if found[4] and found[4] ~= '' and found[4] ~= holder then
            former = found[4]
            if is_alive(found[3]) then
                before = found[4]
                taken = now
                local channel = '#worker-' .. found[3]
                local body = cjson.encode({ token = token, changed_s = changed >= 0 and changed / 1000 or cjson.null })
                local meta = cmsgpack.pack({ SESSION_TAKEN, app, channel, before, false })
                add(SESSION_TAKEN, meta, body, P .. 'w:' .. found[3])
            end
        end
        local expires = math.max(tonumber(found[2] or 0), now + TAKEN_MS)
        redis.call('HSET', key, 'r', found[1] or '', 'x', expires, 'w', life, 'h', holder, 'k', taken, 'f', former)
        redis.call('PEXPIREAT', key, expires + LATE_MS)
        redis.call('ZADD', P .. 'sessions', expires, name)
        if not redis.call('ZSCORE', P .. 'workers', life) then
            lose_sessions() -- the store was emptied, and this worker has not noticed yet
        end
        local lost = redis.call('HGET', KEYS[1], 'lost')
        return { found[1] or '', before, changed, lost and now - lost or -1 }
    end,

    -- lease: name. Answers its term, or 0 while another worker holds it.
    e = function(op)
        local term, owner = string.match(redis.call('HGET', P .. 'leases', op[2]) or '', '^(%d+) (%w*)$')
        if tonumber(redis.call('HGET', KEYS[1], 'leases_from') or 0) > now then
            return 0
        end
        if owner and owner ~= '' and owner ~= life and is_alive(owner) then
            return 0
        end
        -- In a store that was emptied the terms start again, so the clock is part of a term.
        local next_term = math.max(tonumber(term or 0) + 1, now)
        redis.call('HSET', P .. 'leases', op[2], string.format('%d %s', next_term, life))
        return next_term
    end,

    -- release: name
    r = function(op)
        local term, owner = string.match(redis.call('HGET', P .. 'leases', op[2]) or '', '^(%d+) (%w*)$')
        if owner == life then
            redis.call('HSET', P .. 'leases', op[2], term .. ' ')
        end
        return 0
    end,

    -- consumer: name, position, kinds, begins, forget, the ms that a transient one lasts or false. Answers its position.
    -- One that begins has its stored position, or without one the given one, or the newest entry for false. A transient
    -- consumer begins at the newest entry, and `facts` keeps nothing for it beyond the time of the log: what counts for
    -- the trim is the top, not what it has read. It is stored with a MOVED_MS in the past, for example 23 h 59 min 30 s
    -- ago if it lasts 30 s, so the beat of any release removes it in time.
    k = function(op)
        local name, position, mask, begins, forget, lasts = unpack(op, 2, 7)
        local key = P .. 'consumers'
        if forget then
            redis.call('HDEL', key, name)
        else
            local held, moved
            if lasts then
                position = position or top
                held, moved = top, now - CONSUMER_MS + lasts
            else
                local at, began = string.match(redis.call('HGET', key, name) or '', '^(%d+) %d+ %d+ (%w+)$')
                local before = tonumber(at or top)
                if begins and at then
                    position = before
                    if began ~= generation then
                        -- After `since` the numbers belong to other entries than those that the consumer has read.
                        position = math.min(position, tonumber(redis.call('HGET', KEYS[1], 'since')))
                    end
                end
                position = math.min(position or top, top)
                if position < before then
                    fill_facts(position, mask)
                end
            end
            local value = string.format('%d %d %d %s', held or position, moved or now, mask, generation)
            redis.call('HSET', key, name, value)
        end
        local wanted = 0
        for _, each in ipairs(redis.call('HVALS', key)) do
            wanted = bit.bor(wanted, tonumber(string.match(each, '^%d+ %d+ (%d+)')))
        end
        if wanted ~= kinds then
            kinds = wanted
            redis.call('HSET', KEYS[1], 'kinds', kinds)
        end
        return position or 0
    end,
}

local function entries_of(stream, after, count)
    local found = {}
    for index, each in ipairs(redis.call('XRANGE', P .. stream, '(' .. string.format('%d', after) .. '-0', '+', 'COUNT', count)) do
        found[index] = each[2][2]
    end
    return found
end

-- {epoch, top offset, reason or '', entries to recover, their first part}
local function recover(id, epoch, after, max_entries, max_bytes, continued, rewind_count, rewind_seconds)
    local head = redis.call('HMGET', P .. 'h:' .. id, 'e', 'o', 't')
    local birth, offset, seconds = head[1], tonumber(head[2] or 0), tonumber(head[3] or 0)
    local occupied = redis.call('EXISTS', P .. 'n:' .. id) == 1
    if not birth then
        birth = 'e' .. top
        redis.call('HSET', P .. 'h:' .. id, 'e', birth, 'o', 0, 's', 1, 't', EMPTY_STREAM_SECONDS)
        redis.call('ZADD', P .. 'born', now, id)
        seconds = EMPTY_STREAM_SECONDS
    end
    if not occupied then
        outlive(id, seconds)
    end
    local answer = { epoch_of(birth), offset, '', 0, {} }
    local list = P .. 'l:' .. id
    local oldest = now - seconds * 1000
    if epoch then
        local missed = offset - after
        answer[4] = missed
        if epoch ~= answer[1] or missed < 0 then
            answer[3] = 'epoch_changed'
        elseif missed > 0 then
            local first = redis.call('LINDEX', list, -missed)
            if not first or struct.unpack('>I8', first, 22) < oldest then
                answer[3] = 'position_expired'
            elseif not continued and missed > max_entries then
                answer[3] = 'too_many'
            else
                local last = continued and math.min(-1, CHUNK_ENTRIES - missed - 1) or -1
                local bytes, is_full = 0, false
                for index, entry in ipairs(redis.call('LRANGE', list, -missed, last)) do
                    bytes = bytes + body_size(entry)
                    is_full = is_full or index > CHUNK_ENTRIES or (bytes > CHUNK_BYTES and index > 1)
                    if not is_full then
                        answer[5][index] = entry
                    end
                end
                if not continued and bytes > max_bytes then
                    answer[3], answer[5] = 'too_many', {}
                end
            end
        end
        if answer[3] ~= '' then
            answer[4] = 0
        end
    elseif rewind_count then
        local wanted = CHUNK_ENTRIES
        if rewind_count > 0 and rewind_count < wanted then
            wanted = rewind_count
        end
        if rewind_seconds > 0 then
            oldest = math.max(oldest, now - rewind_seconds * 1000)
        end
        local found, bytes = redis.call('LRANGE', list, -wanted, -1), 0
        local first = #found + 1
        while first > 1 and struct.unpack('>I8', found[first - 1], 22) >= oldest do
            bytes = bytes + body_size(found[first - 1])
            if bytes > CHUNK_BYTES and first <= #found then
                break
            end
            first = first - 1
        end
        for index = first, #found do
            answer[5][#answer[5] + 1] = found[index]
        end
        answer[4] = #answer[5]
    end
    return answer
end

local read_want = {
    -- members: id. {user, info, user, info, …}, oldest first
    m = function(want)
        local users, found = redis.call('ZRANGE', P .. 'o:' .. want[2], 0, -1), {}
        for first = 1, #users, 1000 do
            local last = math.min(first + 999, #users)
            for index, info in ipairs(redis.call('HMGET', P .. 'i:' .. want[2], unpack(users, first, last))) do
                found[#found + 1] = users[first + index - 1]
                found[#found + 1] = info or 'null'
            end
        end
        return found
    end,

    -- cached: id, app, channel. The cached event or false; the first miss since the last event is announced.
    c = function(want)
        local body = redis.call('GET', P .. 'c:' .. want[2])
        if not body then
            redis.call('SET', P .. 'c:' .. want[2], '', 'EX', MISS_SECONDS)
            report(CACHE_MISS, want[3], want[4], false, '')
        end
        return body and body ~= '' and body
    end,

    -- subscribers: id
    n = function(want)
        return total(want[2])
    end,

    -- online: id, users. 1 or 0 for each
    o = function(want)
        local found = {}
        for index, user in ipairs(want[3]) do
            found[index] = redis.call('HEXISTS', P .. 'u:' .. want[2], user)
        end
        return found
    end,

    -- history: see recover
    h = function(want)
        return recover(unpack(want, 2, 9))
    end,

    -- streams: id. See texts.lua
    t = function(want)
        return read_texts(want[2])
    end,

    -- log: after, count. The entries since a position, for channels that the worker has begun to listen to
    l = function(want)
        return entries_of('log', want[2], want[3])
    end,

    -- facts: after, count
    f = function(want)
        return entries_of('facts', want[2], want[3])
    end,
}

local results = {}
for index, operation in ipairs(cmsgpack.unpack(ARGV[4])) do
    -- An error in one operation must not stop the others.
    local fine, result = pcall(run_operation[operation[1]] or run_other[operation[1]], operation)
    results[index] = fine and result or { err = 'FANFARE ' .. (type(result) == 'table' and result.err or tostring(result)) }
end
write_heads()
local found = {}
for index, want in ipairs(cmsgpack.unpack(ARGV[5])) do
    found[index] = read_want[want[1]](want)
end
finish()
return { generation, top, results, found }
