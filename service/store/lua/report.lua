-- Report that a replica is alive, at a time of Redis' clock, which is the same for all replicas.
--
-- KEYS as in look.lua
-- ARGV[1] replica   ARGV[2] its report, as JSON
redis.call('HSET', KEYS[5], ARGV[1], '{"at":' .. redis.call('TIME')[1] .. ',"report":' .. ARGV[2] .. '}')
return 1
