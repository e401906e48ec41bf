-- Runs a group of publications: what apply.lua does, without the functions that only other operations need. Making those
-- costs more than publishing one event. After common.lua and append.lua.
--
--   ARGV[4]  msgpack: the operations `a` and `b`
--
-- For example, {{'a', 0, META, '{"event":"created"}', '@1:news'}} answers {GENERATION, 57, {57}, {}}.

load_state(false)
local results = {}
for index, operation in ipairs(cmsgpack.unpack(ARGV[4])) do
    local fine, result = pcall(run_operation[operation[1]], operation)
    results[index] = fine and result or { err = 'FANFARE ' .. (type(result) == 'table' and result.err or tostring(result)) }
end
write_heads()
finish()
return { generation, top, results, {} }
