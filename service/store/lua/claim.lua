-- Claim a new catalog for the bundle that will put its items into it. Atomic; safe to repeat.
--
-- KEYS[1] string  the active tokenizer
-- KEYS[2] hash    the bundle by which the catalog is in use: tokenizer, bundle, data, created, since, settled
-- KEYS[3] to KEYS[6]  items, codes, trie and log as in put.lua, of the claiming bundle
-- ARGV[1] tokenizer   ARGV[2] name of the bundle   ARGV[3] name of its data   ARGV[4] when it was exported
--
-- Returns 1; or 0, without any change, if the catalog is not new or another tokenizer has claimed it.
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
local owner = redis.call('HGET', KEYS[2], 'tokenizer')
if owner then return (owner == ARGV[1] and redis.call('HGET', KEYS[2], 'settled') ~= '1') and 1 or 0 end
if redis.call('EXISTS', KEYS[3], KEYS[4], KEYS[5], KEYS[6]) > 0 then return 0 end
redis.call('HSET', KEYS[2], 'tokenizer', ARGV[1], 'bundle', ARGV[2], 'data', ARGV[3], 'created', ARGV[4],
  'since', redis.call('TIME')[1], 'settled', '0')
return 1
