-- The state of a change of the model, read atomically for one replica.
--
-- KEYS as in announce.lua, KEYS[5] hash  replica -> its report, see report.lua
--
-- Returns {seconds of Redis' clock, and the contents of KEYS[1], KEYS[2], KEYS[3], KEYS[5], KEYS[4] with scores}.
return {
  tonumber(redis.call('TIME')[1]), redis.call('GET', KEYS[1]), redis.call('HGETALL', KEYS[2]),
  redis.call('GET', KEYS[3]), redis.call('HGETALL', KEYS[5]), redis.call('ZRANGE', KEYS[4], 0, -1, 'WITHSCORES')
}
