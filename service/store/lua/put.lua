-- Give one item a Semantic ID of its own, and keep items, codes, vectors, trie and log consistent. Safe to repeat.
--
-- KEYS[1] hash    item id -> content hash (32 characters), space, the item as JSON
-- KEYS[2] hash    item id -> sid, content hash of the text from which the sid was read
-- KEYS[3] zset    sid .. item id, all scores 0
-- KEYS[4] stream  the log, see log.lua
-- KEYS[5] hash    item id -> the kept picture: SHA-256 of its bytes (32 bytes), width, height (2 each), the bytes
-- KEYS[6] hash    item id -> the first 8 characters of a content hash, the vector of that content: a byte per number
-- KEYS[7] string  only to seed: the active tokenizer
-- A sid is its codes and its slot, each as 2 bytes, big-endian.
--
-- ARGV[1] item id
-- ARGV[2] the value for KEYS[1]; or only the content hash, to give codes to the item that is there
-- ARGV[3] the codes; or '' to keep the present sid
-- ARGV[4] number of slots   ARGV[5] mark for the log   ARGV[6] how many changes the log keeps
-- ARGV[7] attributes of the value for the log; or '' if ARGV[2] is only a hash
-- ARGV[8] '1' to log unchanged items too: a writer of another tokenizer may have changed the item before
-- ARGV[9] the revisions that may be replaced, with commas between; '*' for any; '' also allows to create the item.
--         The revision of an item is the SHA-1 of its value and its sid.
-- ARGV[10] what happens to the picture: 'leave', 'set' or 'drop'
-- ARGV[11] to set it: the value for KEYS[5]; to leave it: the SHA-256 of the picture that must be there, 'none' if
--          there must be none, or '' for any
-- ARGV[12] the vector of the content; or '' if it is not at hand. An item that has one of this content keeps it
--
-- With KEYS[7], the item is put only while no tokenizer is active. After that, it may have been changed or dropped.
--
-- Returns {status, sid, version}:
--   unchanged  nothing to do              created  a new item
--   updated    same sid, changed item     moved    new sid; the old one is free again
--   changed    nothing was done: the item's text or picture differs from what the caller read
--   absent     nothing was done: ARGV[9] asks for an item that is there, and there is none
--   conflict   nothing was done: the item's revision is none of ARGV[9]
--   settled    nothing was done: the catalog is in use
--   damaged    nothing was done: Redis has lost the codes or the trie, so a free slot cannot be told
--   full       nothing was done: all slots of these codes are taken
local HASH_LENGTH = 32
local SHA_LENGTH = 32
local MARK_LENGTH = 8
local SLOT = '>I2'
local items, codes_of, trie, log, pictures, vectors = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local id, value, codes = ARGV[1], ARGV[2], ARGV[3]
local num_slots = tonumber(ARGV[4])
local on_picture, picture, vector = ARGV[10], ARGV[11], ARGV[12]

-- The slots of the same codes ascend without repeats, so the i-th slot is i before the first gap and more after it.
local function smallest_free_slot()
  local from, to = '[' .. codes, '(' .. codes .. '\255\255'
  local high = redis.call('ZLEXCOUNT', trie, from, to)
  if high == 0 then return 0 end
  local first = redis.call('ZRANGE', trie, from, to, 'BYLEX', 'LIMIT', 0, 1)[1]
  local rank, low = redis.call('ZRANK', trie, first), 0
  while low < high do
    local middle = math.floor((low + high) / 2)
    local member = redis.call('ZRANGE', trie, rank + middle, rank + middle)[1]
    if struct.unpack(SLOT, member, #codes + 1) == middle then low = middle + 1 else high = middle end
  end
  return low
end

-- All reads come first, so an error in one of them changes nothing.
local version, after = last_change(log)
if (redis.call('HLEN', codes_of) == 0) ~= (redis.call('ZCARD', trie) == 0) then return {'damaged', '', version} end
if KEYS[7] and redis.call('EXISTS', KEYS[7]) == 1 then return {'settled', '', version} end
local item, held = redis.call('HGET', items, id), redis.call('HGET', codes_of, id)
local hash = string.sub(value, 1, HASH_LENGTH)
if #value == HASH_LENGTH then
  if not item or string.sub(item, 1, HASH_LENGTH) ~= hash then return {'changed', '', version} end
  value = item
end

local held_sid = held and string.sub(held, 1, -HASH_LENGTH - 1)
local allowed = ARGV[9]
if allowed ~= '' then
  if not item then return {'absent', '', version} end
  -- An item that has this value already was given it by an earlier try of this very change.
  if allowed ~= '*' and item ~= value then
    local revision = redis.sha1hex(item .. (held_sid or ''))
    if not string.find(',' .. allowed .. ',', ',' .. revision .. ',', 1, true) then return {'conflict', '', version} end
  end
end

local kept = redis.call('HGET', pictures, id)
if on_picture == 'leave' and picture ~= '' and picture ~= (kept and string.sub(kept, 1, SHA_LENGTH) or 'none') then
  return {'changed', '', version}
end
local is_new_picture = on_picture == 'set' and kept ~= picture
local is_same_picture = not is_new_picture and not (on_picture == 'drop' and kept)

local mark, held_vector = string.sub(hash, 1, MARK_LENGTH), redis.call('HGET', vectors, id)
local has_vector = held_vector and string.sub(held_vector, 1, MARK_LENGTH) == mark and not is_new_picture
local is_new_vector = vector ~= '' and not has_vector

local sid
-- Equal content with a new picture: Redis had lost the bytes, so the codes may come from the text alone.
if held and string.sub(held, -HASH_LENGTH) == hash and not is_new_picture then
  if item == value and ARGV[8] ~= '1' and is_same_picture and not is_new_vector then
    return {'unchanged', held_sid, version}
  end
  sid = held_sid
elseif codes == '' then
  return {'changed', '', version}
elseif held and string.sub(held_sid, 1, #codes) == codes then
  sid = held_sid  -- another text, read as the same codes
else
  local slot = smallest_free_slot()
  if slot >= num_slots then return {'full', '', version} end
  sid = codes .. struct.pack(SLOT, slot)
end

-- HSET comes first: Redis refuses it when memory is full, and a script's first write decides for all its writes.
redis.call('HSET', items, id, value)
redis.call('HSET', codes_of, id, sid .. hash)
if sid ~= held_sid then
  if held then redis.call('ZREM', trie, held_sid .. id) end
  redis.call('ZADD', trie, 0, sid .. id)
end
if is_new_picture then redis.call('HSET', pictures, id, picture) end
if on_picture == 'drop' then redis.call('HDEL', pictures, id) end
if is_new_vector then
  redis.call('HSET', vectors, id, mark .. vector)
elseif held_vector and not has_vector then
  redis.call('HDEL', vectors, id)  -- it is of an older content
end
version = append(log, version, after, ARGV[5], ARGV[6], 'put', id, sid, ARGV[7])
if not held then return {'created', sid, version} end
return {sid == held_sid and 'updated' or 'moved', sid, version}
