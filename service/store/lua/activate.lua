-- Switch every replica to the tokenizer of the change that this replica leads. Safe to repeat.
--
-- KEYS as in announce.lua, KEYS[5] hash  the bundle by which the catalog is in use, see claim.lua
-- ARGV[1] replica   ARGV[2] tokenizer   ARGV[3] seconds for which the previous tokenizer's keys are kept
-- ARGV[4] name of the bundle   ARGV[5] name of its data   ARGV[6] when it was exported
--
-- Returns 1; or 0, without any change, if this replica no longer leads that change.
if redis.call('GET', KEYS[3]) ~= ARGV[1] then return 0 end
if redis.call('HGET', KEYS[2], 'tokenizer') ~= ARGV[2] then return 0 end
local previous = redis.call('GET', KEYS[1])
redis.call('SET', KEYS[1], ARGV[2])
redis.call('HSET', KEYS[5], 'tokenizer', ARGV[2], 'bundle', ARGV[4], 'data', ARGV[5], 'created', ARGV[6],
  'since', redis.call('TIME')[1], 'settled', '1')
redis.call('HSET', KEYS[2], 'phase', 'switched')
redis.call('ZREM', KEYS[4], ARGV[2])
if previous and previous ~= ARGV[2] then
  redis.call('ZADD', KEYS[4], redis.call('TIME')[1] + ARGV[3], previous)
end
return 1
