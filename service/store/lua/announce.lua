-- Announce a change to another tokenizer, or resume one. Safe to repeat.
--
-- KEYS[1] string  the active tokenizer
-- KEYS[2] hash    the change: bundle, tokenizer, previous, phase, reason, read_to
-- KEYS[3] string  the replica that leads the change; it expires, as a lease
-- KEYS[4] zset    tokenizers no longer served -> the time, in seconds of Redis' clock, when their keys may be deleted
-- ARGV[1] replica   ARGV[2] lease in ms   ARGV[3] bundle   ARGV[4] tokenizer
--
-- Returns 1, or 0 if another replica leads a change that is not finished.
local leader, phase = redis.call('GET', KEYS[3]), redis.call('HGET', KEYS[2], 'phase')
if leader and leader ~= ARGV[1] and (phase == 'reading' or phase == 'joining') then return 0 end
redis.call('DEL', KEYS[2])
redis.call('HSET', KEYS[2], 'bundle', ARGV[3], 'tokenizer', ARGV[4], 'phase', 'reading', 'reason', '',
  'previous', redis.call('GET', KEYS[1]) or '', 'read_to', '0')
redis.call('SET', KEYS[3], ARGV[1], 'PX', ARGV[2])
redis.call('ZREM', KEYS[4], ARGV[4])
return 1
