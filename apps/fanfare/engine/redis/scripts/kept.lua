-- Changes of entries that a history has. After common.lua and append.lua.

-- The meta part and the body of an entry.
local function split(entry)
    local size = struct.unpack('>I2', entry, 30)
    return string.sub(entry, 32, 31 + size), string.sub(entry, 32 + size)
end

-- The entry at an offset, and its index in the list; nil if it is not kept.
local function kept_at(id, offset)
    write_heads()
    local index = offset - head_of(id).offset - 1
    if offset < 1 or index >= 0 then
        return nil
    end
    return redis.call('LINDEX', P .. 'l:' .. id, index), index
end

-- Gives the entry another body. Its position stays the same.
local function replace(id, index, entry, body)
    local version, _, sequence, offset, at = struct.unpack('>BI4I8I8I8', entry)
    local meta = split(entry)
    redis.call('LSET', P .. 'l:' .. id, index,
        struct.pack('>BI4I8I8I8I2', version, 31 + #meta + #body, sequence, offset, at, #meta) .. meta .. body)
end
