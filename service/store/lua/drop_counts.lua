-- Remove a row, if it still is what the caller has read. Safe to repeat.
--
-- KEYS as in count.lua
-- ARGV[1] item id   ARGV[2] the row   ARGV[3] mark for the log   ARGV[4] how many changes the log keeps
--
-- Returns 1 if the row was removed, else 0.
local version, after = last_change(KEYS[2])
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[1], ARGV[1])
append(KEYS[2], version, after, ARGV[3], ARGV[4], 'rows', struct.pack('>I2c0', #ARGV[1], ARGV[1]), '', '')
return 1
