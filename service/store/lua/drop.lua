-- Remove one item from items, pictures, codes, vectors and trie, and log it. Safe to repeat.
--
-- KEYS as in put.lua
-- ARGV[1] item id   ARGV[2] mark for the log   ARGV[3] how many changes the log keeps
-- ARGV[4] '1' to keep an item that exists: remove only codes whose item was dropped under another tokenizer
-- ARGV[5] the revisions that may be dropped, as ARGV[9] of put.lua; '' or '*' for any
--
-- Returns {1 if the item existed else 0, version}. If nothing was done: {-1, version} if its revision is none of
-- ARGV[5]; {-2, version} if Redis has lost the codes or the trie, so the item would stay in what is left.
local items, codes_of, trie, log, pictures, vectors = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local id = ARGV[1]
local HASH_LENGTH = 32

local version, after = last_change(log)
if (redis.call('HLEN', codes_of) == 0) ~= (redis.call('ZCARD', trie) == 0) then return {-2, version} end
local existed, held = redis.call('HEXISTS', items, id), redis.call('HGET', codes_of, id)
if existed == 1 and ARGV[4] == '1' then return {existed, version} end
if existed == 1 and ARGV[5] ~= '' and ARGV[5] ~= '*' then
  local revision = redis.sha1hex(redis.call('HGET', items, id) .. string.sub(held or '', 1, -HASH_LENGTH - 1))
  if not string.find(',' .. ARGV[5] .. ',', ',' .. revision .. ',', 1, true) then return {-1, version} end
end
-- HDEL and ZREM are allowed when memory is full, and after them so is XADD. So dropping items always works.
if existed == 1 then redis.call('HDEL', items, id) end
redis.call('HDEL', pictures, id)
redis.call('HDEL', vectors, id)
if held then
  local sid = string.sub(held, 1, -HASH_LENGTH - 1)
  redis.call('HDEL', codes_of, id)
  redis.call('ZREM', trie, sid .. id)
  version = append(log, version, after, ARGV[2], ARGV[3], 'drop', id, sid, '')
end
return {existed, version}
