-- Open streams whose producer's lease has expired. After common.lua.
--
--   ARGV[3]  how many
--
-- For example {'1:private-chat-7 answer'}: application, channel and stream.

return redis.call('ZRANGEBYSCORE', P .. 'open', '-inf', '(' .. string.format('%d', now), 'LIMIT', 0, ARGV[3])
