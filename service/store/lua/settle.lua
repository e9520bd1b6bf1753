-- Make the tokenizer of a replica that starts the active one, if the catalog is still as the replica has seen it.
-- Atomic; safe to repeat.
--
-- KEYS[1], KEYS[2] as in claim.lua   KEYS[3] hash, KEYS[4] zset  the change and the retired tokenizers, see announce.lua
-- ARGV[1] the active tokenizer as the replica has seen it; '' for none
-- ARGV[2] tokenizer   ARGV[3] name of the bundle   ARGV[4] name of its data   ARGV[5] when it was exported
-- ARGV[6] '1' to switch even while a change of the model is under way
-- ARGV[7] version of the log of ARGV[1] up to which the new tokenizer has everything
-- ARGV[8] seconds for which the keys of ARGV[1] are kept
--
-- Returns 1; or 0, without any change, if another tokenizer came into use, or a change to another is under way.
local active = redis.call('GET', KEYS[1]) or ''
if active ~= ARGV[1] and active ~= ARGV[2] then return 0 end
local phase, announced = redis.call('HGET', KEYS[3], 'phase'), redis.call('HGET', KEYS[3], 'tokenizer')
local is_under_way = (phase == 'reading' or phase == 'joining') and announced ~= ARGV[2]
if active ~= ARGV[2] and is_under_way and ARGV[6] ~= '1' then return 0 end

local owner, created = redis.call('HGET', KEYS[2], 'tokenizer'), redis.call('HGET', KEYS[2], 'created')
if owner ~= ARGV[2] then redis.call('HSET', KEYS[2], 'tokenizer', ARGV[2], 'since', redis.call('TIME')[1]) end
if owner ~= ARGV[2] or not created or created <= ARGV[5] then
  redis.call('HSET', KEYS[2], 'bundle', ARGV[3], 'data', ARGV[4], 'created', ARGV[5])
end
redis.call('HSET', KEYS[2], 'settled', '1')
if active == ARGV[2] then return 1 end
redis.call('SET', KEYS[1], ARGV[2])
redis.call('ZREM', KEYS[4], ARGV[2])
if #active == 12 and string.match(active, '^%x+$') then  -- and not the value of another program
  -- As after POST /admin/bundles: replicas that still write under the old tokenizer are followed.
  redis.call('DEL', KEYS[3])
  redis.call('HSET', KEYS[3], 'bundle', ARGV[3], 'tokenizer', ARGV[2], 'phase', 'switched', 'reason', '',
    'previous', active, 'read_to', ARGV[7], 'by', 'start')
  redis.call('ZADD', KEYS[4], redis.call('TIME')[1] + ARGV[8], active)
end
return 1
