-- Take the events that were not taken before, and tell every replica of them. Safe to repeat.
--
-- KEYS[1] zset    event id -> the second of Redis' clock when it was taken
-- KEYS[2] stream  the events as they were taken: request, item
-- ARGV[1] seconds to know an event again, at least   ARGV[2] how many events the stream keeps
-- ARGV[3…] event id, request id, item id, of each event
--
-- Returns how many were new.
local now, num_new = tonumber(redis.call('TIME')[1]), 0
for i = 3, #ARGV, 3 do
  -- The first write, as ZADD is refused when memory is full and the first write decides for all of them.
  if redis.call('ZADD', KEYS[1], 'NX', now, ARGV[i]) == 1 then
    redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[2], '*', 'request', ARGV[i + 1], 'item', ARGV[i + 2])
    num_new = num_new + 1
  end
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - tonumber(ARGV[1]))
-- Where nobody posts events any more, nothing of them stays.
redis.call('EXPIRE', KEYS[1], ARGV[1] + 1)
redis.call('EXPIRE', KEYS[2], ARGV[1] + 1)
return num_new
