-- Store the events that are new, and tell all replicas of them. Safe to repeat.
--
-- KEYS[1] zset    event id -> the time, in seconds of Redis' clock, when it was stored
-- KEYS[2] stream  the new events, in order: request, item
-- ARGV[1] seconds for which an event is recognized, at least   ARGV[2] how many events the stream keeps
-- ARGV[3…] event id, request id, item id of each event
--
-- Returns how many were new.
local now, num_new = tonumber(redis.call('TIME')[1]), 0
for i = 3, #ARGV, 3 do
  -- ZADD comes first: Redis refuses it when memory is full, and a script's first write decides for all its writes.
  if redis.call('ZADD', KEYS[1], 'NX', now, ARGV[i]) == 1 then
    redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[2], '*', 'request', ARGV[i + 1], 'item', ARGV[i + 2])
    num_new = num_new + 1
  end
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - tonumber(ARGV[1]))
-- If no more events are posted, both keys expire.
redis.call('EXPIRE', KEYS[1], ARGV[1] + 1)
redis.call('EXPIRE', KEYS[2], ARGV[1] + 1)
return num_new
