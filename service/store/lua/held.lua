-- The codes of items, and which pictures are kept for them. It reads the pictures here, so only headers travel.
--
-- KEYS[1] hash  item id -> sid, content hash; see put.lua   KEYS[2] hash  item id -> picture; see put.lua
-- ARGV[1] bytes of a picture's header   ARGV[2…] item ids
--
-- Returns {codes, header} for each item; false for what is absent.
local found = {}
for i = 2, #ARGV do
  local picture = redis.call('HGET', KEYS[2], ARGV[i])
  found[i - 1] = {redis.call('HGET', KEYS[1], ARGV[i]), picture and string.sub(picture, 1, ARGV[1])}
end
return found
