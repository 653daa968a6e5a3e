-- The tenants' only writer: each call is one operation, atomic because Redis runs one script at a time.
--
--   KEYS[1]  prefix of all keys. It holds a hash tag, so on a cluster every key made from it lies in the slot of KEYS[1].
--   ARGV[1]  operation, ARGV[2] time in ms or "" for the server's own clock, the rest is the operation's.
--
--   names            set     every tenant ever created
--   tenant:<name>    hash    created and revoked (ms); requests, tokens: most a minute, absent for no limit
--   keys:<name>      hash    key's id -> {digest, label, created} as JSON
--   digests          hash    SHA-256 of a key, in hex -> <name>:<id>
--   rate:<name>      hash    requests, tokens: what is left in the bucket; at: when that was so, in ms. Gone after KEEP_MS.

local prefix, operation = KEYS[1], ARGV[1]
local now = tonumber(ARGV[2])
if not now then
  local time = redis.call("TIME")
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end

local WINDOW_MS = 60000
local KEEP_MS = 60 * WINDOW_MS -- tokens may be owed for many minutes

local function key(...)
  return prefix .. table.concat({ ... }, ":")
end

local function known(name)
  return redis.call("SISMEMBER", key("names"), name) == 1
end

local function limits(name)
  local found = redis.call("HMGET", key("tenant", name), "requests", "tokens")
  return { requests = tonumber(found[1] or nil), tokens = tonumber(found[2] or nil) }
end

-- What is in a bucket now. It holds what a minute allows, and fills evenly.
local function level(state, limit, at)
  if not state then
    return limit
  end
  return math.min(limit, tonumber(state) + limit * (now - at) / WINDOW_MS)
end

local function levels(name, bound)
  local state = redis.call("HMGET", key("rate", name), "requests", "tokens", "at")
  local at = tonumber(state[3] or nil) or now
  local found = {}
  for index, kind in ipairs({ "requests", "tokens" }) do
    if bound[kind] then
      found[kind] = level(state[index], bound[kind], at)
    end
  end
  return found
end

local function keep(name, found)
  local fields = { "at", now }
  for kind, value in pairs(found) do
    table.insert(fields, kind)
    table.insert(fields, string.format("%.6f", value))
  end
  redis.call("DEL", key("rate", name))
  redis.call("HSET", key("rate", name), unpack(fields))
end

-- Until there is enough again, in ms.
local function wait(found, limit, enough)
  if found >= enough then
    return 0
  end
  return limit == 0 and WINDOW_MS or math.ceil((enough - found) * WINDOW_MS / limit)
end

local operations = {}

function operations.create(name)
  if redis.call("SADD", key("names"), name) == 0 then
    return "exists"
  end
  redis.call("HSET", key("tenant", name), "created", now)
  return "created"
end

function operations.limit(name, kind, amount)
  if not known(name) then
    return "unknown"
  end
  if amount == "" then
    redis.call("HDEL", key("tenant", name), kind)
  else
    redis.call("HSET", key("tenant", name), kind, amount)
  end
  redis.call("DEL", key("rate", name)) -- a new limit begins with a full bucket
  return "limited"
end

function operations.add_key(name, id, digest, label)
  if not known(name) then
    return "unknown"
  end
  if redis.call("HEXISTS", key("keys", name), id) == 1 then
    return "exists"
  end
  redis.call("HSET", key("keys", name), id, cjson.encode({ digest = digest, label = label, created = now }))
  redis.call("HSET", key("digests"), digest, name .. ":" .. id)
  redis.call("HDEL", key("tenant", name), "revoked")
  return "added"
end

function operations.drop_key(name, id)
  local found = redis.call("HGET", key("keys", name), id)
  if not found then
    return "unknown"
  end
  redis.call("HDEL", key("digests"), cjson.decode(found).digest)
  redis.call("HDEL", key("keys", name), id)
  return "dropped"
end

function operations.revoke(name)
  if not known(name) then
    return "unknown"
  end
  for _, found in ipairs(redis.call("HVALS", key("keys", name))) do
    redis.call("HDEL", key("digests"), cjson.decode(found).digest)
  end
  redis.call("DEL", key("keys", name))
  redis.call("HSET", key("tenant", name), "revoked", now)
  return "revoked"
end

function operations.find(digest)
  local found = redis.call("HGET", key("digests"), digest)
  if not found then
    return {}
  end
  local name = string.match(found, "^[^:]+")
  local bound = limits(name)
  return { name, bound.requests or "", bound.tokens or "" }
end

function operations.admit(name)
  local bound = limits(name)
  local found = levels(name, bound)
  local wait_ms = 0
  for kind, value in pairs(found) do
    wait_ms = math.max(wait_ms, wait(value, bound[kind], 1))
  end
  if wait_ms == 0 and found.requests then
    found.requests = found.requests - 1
    keep(name, found)
    redis.call("PEXPIRE", key("rate", name), KEEP_MS)
  end
  local answer = { wait_ms }
  for _, kind in ipairs({ "requests", "tokens" }) do
    if bound[kind] then
      table.insert(answer, bound[kind])
      table.insert(answer, math.floor(math.max(found[kind], 0)))
      table.insert(answer, wait(found[kind], bound[kind], bound[kind]))
    else
      for _ = 1, 3 do
        table.insert(answer, "")
      end
    end
  end
  return answer
end

function operations.used(name, tokens)
  local bound = limits(name)
  if bound.tokens then
    local found = levels(name, bound)
    found.tokens = found.tokens - tonumber(tokens)
    keep(name, found)
    redis.call("PEXPIRE", key("rate", name), KEEP_MS)
  end
  return "used"
end

return operations[operation](unpack(ARGV, 3))
