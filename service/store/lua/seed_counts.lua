-- Write rows of items that have none yet. Safe to repeat.
--
-- KEYS as in count.lua, KEYS[4] string  exists after all rows of a bundle were written once
-- ARGV[1] mark for the log   ARGV[2] how many changes the log keeps   ARGV[3] '1' with the last rows
-- ARGV[4…] for each row: item id, its popularity as 8 bytes, its neighbors, both as count.lua describes them
--
-- Returns how many rows were written.
local rows, log = KEYS[1], KEYS[2]
local time = redis.call('TIME')
local at = struct.pack('>d', tonumber(time[1]) + tonumber(time[2]) / 1e6)
local version, after = last_change(log)
local changed = {}
for i = 4, #ARGV, 3 do
  if redis.call('HSETNX', rows, ARGV[i], ARGV[i + 1] .. at .. ARGV[i + 2]) == 1 then
    changed[#changed + 1] = struct.pack('>I2c0', #ARGV[i], ARGV[i])
  end
end
if ARGV[3] == '1' then redis.call('SET', KEYS[4], '1') end
if #changed > 0 then append(log, version, after, ARGV[1], ARGV[2], 'rows', table.concat(changed), '', '') end
return #changed
