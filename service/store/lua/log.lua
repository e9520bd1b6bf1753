-- The log of changes. Every script begins with this file.
--
-- The log is a stream. Its ids are the catalog's versions, 1-0, 2-0, 3-0, … without gaps. So a reader that misses
-- a number knows that the log was trimmed. Each entry has a random `mark` and, in `after`, the mark of the previous
-- entry. So a reader also notices if Redis lost its last changes and continued with others.
-- A put has in `attrs` the item's attributes for filters, in the encoding of records.py. They are those of this
-- version, while a look-up might find later ones. `attrs` is absent if the writer did not have the item at hand.

-- Returns the log's version and last mark; 0 and '' for a new log.
local function last_change(log)
  local version, mark = 0, ''
  if redis.call('EXISTS', log) == 0 then return version, mark end
  local info, last_id = redis.call('XINFO', 'STREAM', log), nil
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then
      last_id = info[i + 1]
      version = tonumber(string.match(last_id, '^%d+'))
    elseif info[i] == 'last-entry' and info[i + 1] and info[i + 1][1] == last_id then
      local fields = info[i + 1][2]
      for j = 1, #fields, 2 do
        if fields[j] == 'mark' then mark = fields[j + 1] end
      end
    end
  end
  return version, mark
end

-- Returns the new version. Trimming is approximate and keeps the newest entries.
local function append(log, version, after, mark, log_length, op, item_id, sid, attrs)
  local entry = {'op', op, 'id', item_id, 'sid', sid, 'after', after, 'mark', mark}
  if attrs ~= '' then
    entry[#entry + 1] = 'attrs'
    entry[#entry + 1] = attrs
  end
  redis.call('XADD', log, 'MAXLEN', '~', log_length, string.format('%.0f-0', version + 1), unpack(entry))
  return version + 1
end
