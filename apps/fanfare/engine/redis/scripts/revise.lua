-- Gives a kept message a new body, and adds the notice of it. After common.lua, append.lua and kept.lua.
--
--   ARGV[3]  msgpack: {app, channel, epoch, offset, new body, notice}
--
-- For example, with {'1', 'news', EPOCH, 2, NEW, NOTICE} the answer is 4: the notice is entry 4 of the channel. 0: the
-- message is not kept, or deleted, or is a notice itself.

load_state(false)
local app, channel, epoch, offset, body, notice = unpack(cmsgpack.unpack(ARGV[3]))
local id = app .. ':' .. channel
local head = head_of(id)
if not head.birth or epoch_of(head.birth) ~= epoch then
    return 0
end
local entry, index = kept_at(id, offset)
if not entry then
    return 0
end
local meta, present = split(entry)
if present == '' or cmsgpack.unpack(meta)[1] == REVISED then
    return 0
end
replace(id, index, entry, body)
meta = cmsgpack.pack({ REVISED, app, channel, false, false })
offset = keep(id, nil, nil, REVISED, meta, notice, P .. '@' .. id).offset
write_heads()
finish()
return offset
