-- Drop an item's picture or vector, if it and what it belongs to are still as the caller has seen them.
--
-- KEYS[1] hash  item id -> item, or codes   KEYS[2] hash  item id -> picture, or vector; see put.lua
-- ARGV[1] item id   ARGV[2] the value in KEYS[1]; '' for none   ARGV[3] the value in KEYS[2]
--
-- Returns 1, or 0 if one of them has changed.
if (redis.call('HGET', KEYS[1], ARGV[1]) or '') ~= ARGV[2] then return 0 end
if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[3] then return 0 end
return redis.call('HDEL', KEYS[2], ARGV[1])
