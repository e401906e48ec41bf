-- The streams of a channel that are open or ended lately. After common.lua and texts.lua.
--
--   ARGV[3]  the channel's id
--   ARGV[4]  a stream, or '' for all
--
-- For example {{'answer', 0, 2, 5, HEAD, false, 0, {'he', 'llo'}}}: an open stream with two parts (see texts.lua).

if ARGV[4] == '' then
    return read_texts(ARGV[3])
end
return { read_text(ARGV[3], ARGV[4]) or nil }
