-- Note the layout of a catalog's keys, unless a newer one is noted. Atomic; safe to repeat.
--
-- KEYS[1] hash  the bundle by which the catalog is in use, see claim.lua; its field `schema` is the layout
-- ARGV[1] the layout that this release writes
--
-- Returns the layout that is noted now. If it is higher than ARGV[1], nothing was changed.
local held = tonumber(redis.call('HGET', KEYS[1], 'schema') or '0') or 0
local mine = tonumber(ARGV[1])
if held >= mine then return held end
redis.call('HSET', KEYS[1], 'schema', ARGV[1])
return mine
