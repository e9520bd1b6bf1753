-- Say that a replica lives, by Redis' clock: one for all replicas.
--
-- KEYS as in look.lua
-- ARGV[1] replica   ARGV[2] what it says of itself, as JSON
redis.call('HSET', KEYS[5], ARGV[1], '{"at":' .. redis.call('TIME')[1] .. ',"report":' .. ARGV[2] .. '}')
return 1
