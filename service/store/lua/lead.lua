-- Take or renew the lease of the change to one tokenizer, and store its progress. Safe to repeat.
--
-- KEYS as in announce.lua
-- ARGV[1] replica   ARGV[2] lease in ms   ARGV[3] tokenizer   ARGV[4…] fields of the change and their values
--
-- Returns 1; or 0, without any change, if another replica leads or this is no longer the change.
local leader = redis.call('GET', KEYS[3])
if leader and leader ~= ARGV[1] then return 0 end
if redis.call('HGET', KEYS[2], 'tokenizer') ~= ARGV[3] then return 0 end
redis.call('SET', KEYS[3], ARGV[1], 'PX', ARGV[2])
for i = 4, #ARGV, 2 do redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1]) end
return 1
