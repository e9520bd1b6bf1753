-- Drop a kept picture that no item refers to, if item and picture are still as the caller has seen them.
--
-- KEYS[1] hash  item id -> item   KEYS[2] hash  item id -> picture; see put.lua
-- ARGV[1] item id   ARGV[2] the item's value; '' for none   ARGV[3] the picture's value
--
-- Returns 1, or 0 if one of them has changed.
if (redis.call('HGET', KEYS[1], ARGV[1]) or '') ~= ARGV[2] then return 0 end
if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[3] then return 0 end
return redis.call('HDEL', KEYS[2], ARGV[1])
