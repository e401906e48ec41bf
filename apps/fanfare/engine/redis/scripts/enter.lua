-- A worker begins to follow the partition, or continues after its connection was lost.
--
--   ARGV[3]  the worker's life
--   ARGV[4]  how long it lasts, ms
--   ARGV[5]  the generation that it followed; '' for a new life
--   ARGV[6]  the sequence after which it needs the entries
--   ARGV[7]  how many entries to answer at most
--   ARGV[8]  host name and process id, for the console
--   ARGV[9]  1 if the process starts: on an empty store, leases need no delay. 2 if the worker comes from another
--            generation: if the store was emptied since then, it has lost the sessions
--   ARGV[10] the sequence of the newest entry that it has seen
--   ARGV[11] the number of the last heartbeat whose answer it has got
--
-- For example {GENERATION, 57, '', {ENTRY, ENTRY}}: the two entries after the worker's position; or
-- {GENERATION, 57, 'trimmed', {}}: the worker has a gap and enters again with a new life.

load_state(ARGV[9] == '1')
check_restored(ARGV[5], ARGV[10], ARGV[11])
if ARGV[9] == '2' then
    lose_sessions()
end

local reason = ''
if ARGV[5] ~= '' then
    local till = redis.call('ZSCORE', P .. 'workers', ARGV[3])
    if ARGV[5] ~= generation then
        reason = 'generation_changed'
    elseif not till or tonumber(till) < 0 then
        reason = 'worker_unknown'
    elseif tonumber(ARGV[6]) < tonumber(redis.call('HGET', KEYS[1], 'trimmed') or 0) then
        reason = 'trimmed'
    end
end
if reason ~= '' then
    return { generation, top, reason, {} }
end
redis.call('ZADD', P .. 'workers', now + ARGV[4], ARGV[3])
redis.call('HSET', P .. 'nodes', ARGV[3], ARGV[8])
local found = {}
if ARGV[5] ~= '' then
    for index, each in ipairs(redis.call('XRANGE', P .. 'log', '(' .. ARGV[6] .. '-0', '+', 'COUNT', ARGV[7])) do
        found[index] = each[2][2]
    end
end
return { generation, top, '', found }
