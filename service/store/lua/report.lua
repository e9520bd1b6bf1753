-- Report that a replica is alive, at a time of Redis' clock, which is the same for all replicas.
--
-- KEYS as in look.lua
-- ARGV[1] replica   ARGV[2] its report, as JSON   ARGV[3] seconds after which the report of a dead replica is deleted
local now = redis.call('TIME')[1]
redis.call('HSET', KEYS[5], ARGV[1], '{"at":' .. now .. ',"report":' .. ARGV[2] .. '}')
local reports = redis.call('HGETALL', KEYS[5])
for i = 1, #reports, 2 do
  local at = tonumber(string.match(reports[i + 1], '"at": ?(%d+)'))
  if at and now - at > tonumber(ARGV[3]) then redis.call('HDEL', KEYS[5], reports[i]) end
end
return 1
