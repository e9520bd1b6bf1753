-- Delete the keys of a tokenizer whose time is over.
--
-- KEYS[1] to KEYS[4] as in announce.lua   KEYS[5…] the tokenizer's codes, vectors, trie and log
-- ARGV[1] tokenizer
--
-- Returns 1, or 0 if they are kept: the tokenizer is active again, or a change to it is under way.
local due = redis.call('ZSCORE', KEYS[4], ARGV[1])
if not due or tonumber(due) > tonumber(redis.call('TIME')[1]) then return 0 end
if redis.call('GET', KEYS[1]) == ARGV[1] then return 0 end
local phase = redis.call('HGET', KEYS[2], 'phase')
if (phase == 'reading' or phase == 'joining') and redis.call('HGET', KEYS[2], 'tokenizer') == ARGV[1] then
  return 0
end
redis.call('ZREM', KEYS[4], ARGV[1])
for i = 5, #KEYS do redis.call('UNLINK', KEYS[i]) end
return 1
