-- Find what is wrong with one item, and repair what the other data determine. Atomic; safe to repeat.
--
-- KEYS as in put.lua
-- ARGV[1] item id; '' for members without an id   ARGV[2] mark for the log
-- ARGV[3] how many changes the log keeps           ARGV[4] number of slots
-- ARGV[5] how many codes each level has, "64-64-32"
-- ARGV[6] '1' if this tokenizer is served: then every item has codes, and all codes are of an item's present text
-- ARGV[7] '1' to repair   ARGV[8] '1' if the log contradicts the codes: then a repair logs the item again
-- ARGV[9…] members with this item's id, seen in the trie or in the log
--
-- Returns {{kind, 1 if it was repaired else 0}, …}; empty if nothing is wrong. fsck_report.py explains the kinds.
local items, codes_of, trie, log = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local id, num_slots = ARGV[1], tonumber(ARGV[4])
local is_served, mends, log_is_wrong = ARGV[6] == '1', ARGV[7] == '1', ARGV[8] == '1'
local HASH_LENGTH = 32
local levels = {}
for num_codes in string.gmatch(ARGV[5], '%d+') do levels[#levels + 1] = tonumber(num_codes) end
local SID_LENGTH = 2 * #levels + 2

local found, is_mendable, changed = {}, false, false
-- Returns whether to repair it now.
local function report(kind, can_be_mended)
  local now = mends and can_be_mended
  found[#found + 1] = {kind, now and 1 or 0}
  is_mendable, changed = is_mendable or can_be_mended, changed or now
  return now
end

local function fits(sid)
  for level, num_codes in ipairs(levels) do
    if struct.unpack('>I2', sid, 2 * level - 1) >= num_codes then return false end
  end
  return struct.unpack('>I2', sid, 2 * #levels + 1) < num_slots
end

-- The sid at the beginning of codes or of a member, or nil.
local function sid_in(value)
  local sid = string.sub(value, 1, SID_LENGTH)
  return #sid == SID_LENGTH and fits(sid) and sid or nil
end

local function sid_of_codes(value)
  return value and #value == SID_LENGTH + HASH_LENGTH and sid_in(value) or nil
end

-- Ids are UTF-8, so no id has the byte 255.
local function first_of(sid) return '[' .. sid end
local function end_of(sid) return '(' .. sid .. '\255' end

-- Whether the codes of another item have this slot too. If both are in the trie, the first one keeps it.
local function is_taken(sid, is_in_trie)
  for _, member in ipairs(redis.call('ZRANGE', trie, first_of(sid), end_of(sid), 'BYLEX')) do
    local other = string.sub(member, SID_LENGTH + 1)
    if other ~= id and sid_of_codes(redis.call('HGET', codes_of, other)) == sid then
      if not is_in_trie or other < id then return true end
    end
  end
  return false
end

local function free_sid(codes)
  for slot = 0, num_slots - 1 do
    local sid = codes .. struct.pack('>I2', slot)
    if redis.call('ZLEXCOUNT', trie, first_of(sid), end_of(sid)) == 0 then return sid end
  end
  return nil
end

local version, after = last_change(log)
local item, held = redis.call('HGET', items, id), redis.call('HGET', codes_of, id)
local held_sid = sid_of_codes(held)
local members, told, told_sid = {}, {}, nil
local is_named = {}
local function name(member)
  if is_named[member] then return end
  is_named[member] = true
  local list = redis.call('ZSCORE', trie, member) and members or told
  list[#list + 1] = member
end
if held_sid then name(held_sid .. id) end
for i = 9, #ARGV do name(ARGV[i]) end
for _, list in ipairs({members, told}) do
  for _, member in ipairs(list) do told_sid = told_sid or sid_in(member) end
end

-- The sid that the item should have, if any: that of its codes, or else one from the trie or the log.
local sid = nil
if item then sid = held_sid or told_sid elseif not is_served then sid = held_sid end

if held and not (item or sid) and report('codes_without_item', true) then redis.call('HDEL', codes_of, id) end
if item and not held_sid and (held or sid or is_served) then
  local kind = held and 'unreadable_codes' or sid and 'missing_codes' or 'unread'
  if report(kind, sid and #item > HASH_LENGTH) then
    held = sid .. string.sub(item, 1, HASH_LENGTH)
    redis.call('HSET', codes_of, id, held)
  end
end
if item and held_sid and is_served and string.sub(held, -HASH_LENGTH) ~= string.sub(item, 1, HASH_LENGTH) then
  report('outdated_codes', false)
end

if sid and sid_of_codes(held) then
  local is_in_trie = redis.call('ZSCORE', trie, sid .. id)
  if held_sid and not is_in_trie then report('missing_member', true) end
  if is_taken(sid, is_in_trie) then
    local other = free_sid(string.sub(sid, 1, -3))
    if report('shared_slot', other ~= nil) then
      redis.call('ZREM', trie, sid .. id)
      sid, is_in_trie = other, nil
      redis.call('HSET', codes_of, id, sid .. string.sub(held, -HASH_LENGTH))
    end
  end
  if mends and not is_in_trie then redis.call('ZADD', trie, 0, sid .. id) end
end

for _, member in ipairs(members) do
  local score = redis.call('ZSCORE', trie, member)  -- nil if it was moved above
  if score and not (sid and member == sid .. id) then
    if report('stray_member', true) then redis.call('ZREM', trie, member) end
  elseif score and score ~= '0' and report('wrong_score', true) then
    redis.call('ZADD', trie, 0, member)
  end
end

if log_is_wrong and not is_mendable then report('log_disagrees', true) end
if changed and sid then
  append(log, version, after, ARGV[2], ARGV[3], 'put', id, sid, '')
elseif changed and (held_sid or told_sid) then  -- otherwise no replica knows the item
  append(log, version, after, ARGV[2], ARGV[3], 'drop', id, held_sid or told_sid, '')
end
return found
