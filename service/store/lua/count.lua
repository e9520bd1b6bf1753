-- Add what one event adds to the counts of items that were taken together. Atomic; safe to repeat.
--
-- KEYS[1] hash    item id -> its row: popularity and the time of the row (seconds of Redis' clock), each as 8 bytes;
--                 then for each neighbor its count as 4 bytes, the length of its id as 2 bytes, and the id.
--                 All numbers are big-endian. Popularity and counts are those at the time of the row.
-- KEYS[2] stream  the log of changed rows, see log.lua: `op` is "rows", and `id` has the length and the id of each item
-- KEYS[3] zset    event -> the time when it was counted
-- ARGV[1] event   ARGV[2] seconds for which it is recognized, at least   ARGV[3] seconds until a count has halved
-- ARGV[4] how many neighbors a row keeps   ARGV[5] mark for the log   ARGV[6] how many changes the log keeps
-- ARGV[7] number of popularities   then for each: item id, amount
-- ARGV[…] the rest, for each pair: item id of the row, item id of its neighbor, amount
--
-- Returns {1, or 0 if the event was counted before, version of the log}.
local rows, log, counted = KEYS[1], KEYS[2], KEYS[3]
local half_life, num_kept = tonumber(ARGV[3]), tonumber(ARGV[4])
local HEAD, ENTRY, NAME = '>dd', '>fI2c0', '>I2c0'
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
math.randomseed(tonumber(time[2]))  -- Redis begins every script with the same random numbers

-- Numbers that 4 bytes hold. What has faded further is forgotten.
local function is_count(number) return number > 1e-30 and number < 1e30 end

-- The row as it is now: all that it counts has faded alike. An item without a row was taken at least once, as it is in
-- a history. A row that cannot be read begins anew.
local function parsed(value)
  local row = {popularity = 1, counts = {}}
  if not value then return row end
  local popularity, at, place = struct.unpack(HEAD, value)
  local left = 2 ^ (-math.max(0, now - at) / half_life)
  assert(at < 1e11)  -- about the year 5000
  row.popularity = popularity * left
  assert(is_count(row.popularity))
  while place <= #value do
    local count, id
    count, id, place = struct.unpack(ENTRY, value, place)
    if is_count(count * left) then row.counts[id] = count * left end
  end
  return row
end

local read, names = {}, {}
local function row_of(id)
  if not read[id] then
    local value = redis.call('HGET', rows, id)
    local is_read, row = pcall(parsed, value)
    read[id] = is_read and row or parsed(nil)
    read[id].is_new = not (value and is_read)
    names[#names + 1] = id
  end
  return read[id]
end

-- A full row stays open for new neighbors. The weakest place takes the amount, and changes its owner with the
-- probability that keeps every expected count right: Unbiased Space Saving (Ting, "Data Sketches for Disaggregated
-- Subset Sum and Frequent Item Estimation", SIGMOD 2018, section 4).
local function add(counts, id, amount)
  local num, weakest = 0, nil
  for other, count in pairs(counts) do
    num = num + 1
    if not weakest or count < counts[weakest] then weakest = other end
  end
  if counts[id] or num < num_kept then
    counts[id] = (counts[id] or 0) + amount
    return
  end
  local total = counts[weakest] + amount
  if math.random() * total < amount then
    counts[weakest] = nil
    weakest = id
  end
  counts[weakest] = total
end

local function packed(row)
  local ids = {}
  for id in pairs(row.counts) do ids[#ids + 1] = id end
  table.sort(ids, function(one, other)
    local first, second = row.counts[one], row.counts[other]
    if first ~= second then return first > second end
    return one < other
  end)
  -- An item in many histories that nobody reported as taken is as popular as its strongest pair says.
  local popularity = math.max(row.popularity, ids[1] and row.counts[ids[1]] or 0)
  local parts = {struct.pack(HEAD, popularity, now)}
  for i = 1, math.min(#ids, num_kept) do
    parts[#parts + 1] = struct.pack(ENTRY, row.counts[ids[i]], #ids[i], ids[i])
  end
  return table.concat(parts)
end

-- All reads come first, so an error in one of them changes nothing.
local version, after = last_change(log)
if redis.call('ZSCORE', counted, ARGV[1]) then return {0, version} end
local last = 7 + 2 * tonumber(ARGV[7])
for i = 8, last, 2 do
  local row = row_of(ARGV[i])
  row.popularity = (row.is_new and 0 or row.popularity) + tonumber(ARGV[i + 1])
end
for i = last + 1, #ARGV, 3 do
  add(row_of(ARGV[i]).counts, ARGV[i + 1], tonumber(ARGV[i + 2]))
end

-- HSET comes first: Redis refuses it when memory is full, and a script's first write decides for all its writes.
local changed = {}
for i, id in ipairs(names) do
  redis.call('HSET', rows, id, packed(read[id]))
  changed[i] = struct.pack(NAME, #id, id)
end
redis.call('ZADD', counted, now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', counted, '-inf', now - tonumber(ARGV[2]))
redis.call('EXPIRE', counted, ARGV[2] + 1)
version = append(log, version, after, ARGV[5], ARGV[6], 'rows', table.concat(changed), '', '')
return {1, version}
