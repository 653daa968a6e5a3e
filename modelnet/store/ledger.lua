-- The ledger's only writer: each call is one operation, atomic because Redis runs one script at a time.
--
--   KEYS[1]  prefix of all keys. It holds a hash tag, so on a cluster every key made from it lies in the slot of KEYS[1].
--   ARGV[1]  operation, ARGV[2] time in ms or "" for the server's own clock, the rest is the operation's.
--
-- Money is an integer of at most MAX: a Lua number is a double, and above 2^53 it would round.
--
--   balances           hash    account -> balance; MINT is where credits come from, so that all of this and `held` adds up to 0
--   held               hash    account -> sum of its open holds and deposits
--   metered            set     tenants whose tasks are charged
--   limits             hash    <tenant>:<window> -> most that may be spent or held in one
--   grants             hash    <account>:<id> -> amount, for ever: a grant is made once
--   due                zset    <tenant>:<task> -> when the sweep should ask what became of it, in ms
--   holds:<tenant>     zset    task -> when its hold was taken, in ms
--   hold:<tenant>:<task>       hash    state held, settled or released; amount; taken; paid. Kept for KEEP after its end.
--                              deposit:<auction>:<worker> and depositor:<auction>:<worker>: what a worker's owner put up, and who
--   deposits:<owner>   zset    <tenant>:<task>:<auction>:<worker> -> when its deposit was taken, in ms
--   depositors         hash    <owner>:<worker> -> most that this worker may put up for one task
--   spent:<tenant>:<window>:<n>  integer  spent or held in the n-th window since 1970
--   statement:<account>  stream  the last STATEMENT movements

local MAX = 2 ^ 53 - 1
local KEEP_S = 7 * 24 * 3600
local STATEMENT = 1000
local MINT = ":mint" -- no account can be called so
local WINDOWS = { { "hour", 3600 }, { "day", 86400 } }

local prefix, operation = KEYS[1], ARGV[1]
local now = tonumber(ARGV[2])
if not now then
  local time = redis.call("TIME")
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end

local function key(...)
  return prefix .. table.concat({ ... }, ":")
end

local function number(value)
  return tonumber(value or 0) or 0
end

local function balance(account)
  return number(redis.call("HGET", key("balances"), account))
end

-- Of 0 the negative is -0 in Lua, which Redis reads as no integer.
local function negative(amount)
  return amount == 0 and 0 or -amount
end

local function move(account, amount)
  return redis.call("HINCRBY", key("balances"), account, amount)
end

local function note(account, kind, amount, after, task, other)
  redis.call(
    "XADD", key("statement", account), "MAXLEN", "~", STATEMENT, "*",
    "kind", kind, "amount", amount, "balance", after, "task", task, "other", other, "at", now
  )
end

local function spent_key(tenant, window, at)
  return key("spent", tenant, window[1], math.floor(at / 1000 / window[2]))
end

local function spend(tenant, amount)
  for _, window in ipairs(WINDOWS) do
    local counter = spent_key(tenant, window, now)
    redis.call("INCRBY", counter, amount)
    redis.call("EXPIRE", counter, 2 * window[2])
  end
end

-- What was held and not paid counts as never spent, in the window in which it was held.
local function unspend(tenant, amount, taken)
  for _, window in ipairs(WINDOWS) do
    local counter = spent_key(tenant, window, taken)
    if redis.call("EXISTS", counter) == 1 then
      redis.call("DECRBY", counter, amount)
    end
  end
end

local operations = {}

function operations.grant(account, amount, id)
  amount = tonumber(amount)
  local field = account .. ":" .. id
  local before = redis.call("HGET", key("grants"), field)
  if before then
    return { tonumber(before) == amount and "repeated" or "conflict", balance(account), tonumber(before) }
  end
  if balance(account) + amount < 0 then
    return { "no_funds", balance(account) }
  end
  if balance(MINT) - amount < -MAX then
    return { "too_much", balance(MINT) }
  end
  redis.call("HSET", key("grants"), field, amount)
  move(MINT, negative(amount))
  local after = move(account, amount)
  note(account, amount < 0 and "withdrawal" or "grant", amount, after, "", id)
  if amount >= 0 then
    redis.call("SADD", key("metered"), account)
  end
  return { "granted", after }
end

function operations.hold(tenant, task, amount, due_in_ms)
  amount = tonumber(amount)
  local hold = key("hold", tenant, task)
  local state = redis.call("HGET", hold, "state")
  if state then
    return { state == "held" and "held" or "ended" }
  end
  local has, held = balance(tenant), number(redis.call("HGET", key("held"), tenant))
  if amount > has then
    return { "no_funds", has, held, redis.call("ZCARD", key("holds", tenant)) }
  end
  for _, window in ipairs(WINDOWS) do
    local limit = redis.call("HGET", key("limits"), tenant .. ":" .. window[1])
    local spent = number(redis.call("GET", spent_key(tenant, window, now)))
    if limit and spent + amount > tonumber(limit) then
      local left_ms = window[2] * 1000 - now % (window[2] * 1000)
      return { "over_limit", tonumber(limit), spent, left_ms, window[1] }
    end
  end
  move(tenant, negative(amount))
  redis.call("HINCRBY", key("held"), tenant, amount)
  redis.call("HSET", hold, "state", "held", "amount", amount, "taken", now)
  redis.call("ZADD", key("due"), now + tonumber(due_in_ms), tenant .. ":" .. task)
  redis.call("ZADD", key("holds", tenant), now, task)
  spend(tenant, amount)
  return { "held" }
end

-- Sets aside what a worker's owner puts up for a task whose hold stands. Not for one that has ended: nobody would end it.
function operations.deposit(tenant, task, auction, worker, owner, amount)
  amount = tonumber(amount)
  local hold, name = key("hold", tenant, task), auction .. ":" .. worker
  if redis.call("HGET", hold, "state") ~= "held" then
    return "no_hold"
  end
  if redis.call("HEXISTS", hold, "deposit:" .. name) == 1 then
    return "held"
  end
  if amount > number(redis.call("HGET", key("depositors"), owner .. ":" .. worker)) then
    return "not_allowed"
  end
  if amount > balance(owner) then
    return "no_funds"
  end
  move(owner, negative(amount))
  redis.call("HINCRBY", key("held"), owner, amount)
  redis.call("HSET", hold, "deposit:" .. name, amount, "depositor:" .. name, owner)
  redis.call("ZADD", key("deposits", owner), now, tenant .. ":" .. task .. ":" .. name)
  return "held"
end

-- Ends all deposits of a task: of each what `lost` says goes to the tenant, the rest back.
local function return_deposits(tenant, task, hold, lost)
  local fields = redis.call("HGETALL", hold)
  for i = 1, #fields, 2 do
    local name = string.match(fields[i], "^deposit:(.*)$")
    if name then
      local amount, owner = number(fields[i + 1]), redis.call("HGET", hold, "depositor:" .. name)
      local gone = math.min(lost[name] or 0, amount)
      redis.call("HINCRBY", key("held"), owner, negative(amount))
      redis.call("ZREM", key("deposits", owner), tenant .. ":" .. task .. ":" .. name)
      local after = move(owner, amount - gone)
      if gone > 0 then
        note(owner, "forfeit", -gone, after, task, tenant)
        note(tenant, "compensation", gone, move(tenant, gone), task, owner)
      end
    end
  end
end

-- Ends a hold: `price` of it goes to `account`, the rest back. Also for a task without one, so that a hold which comes
-- later, from a negotiator that was slow, is refused. Then come pairs: a deposit's name, and what is lost of it.
function operations.close(tenant, task, state, account, price, ...)
  local hold = key("hold", tenant, task)
  local found = redis.call("HMGET", hold, "state", "amount", "taken", "paid")
  if found[1] and found[1] ~= "held" then
    return { "repeated", number(found[4]) }
  end
  local amount = number(found[2])
  local paid = math.min(tonumber(price), amount)
  redis.call("HSET", hold, "state", state, "paid", paid, "ended", now)
  redis.call("EXPIRE", hold, KEEP_S)
  if not found[1] then
    return { "no_hold", 0 }
  end
  redis.call("HINCRBY", key("held"), tenant, negative(amount))
  redis.call("ZREM", key("due"), tenant .. ":" .. task)
  redis.call("ZREM", key("holds", tenant), task)
  unspend(tenant, amount - paid, number(found[3]))
  local after = move(tenant, amount - paid)
  if paid > 0 then
    note(tenant, "payment", -paid, after, task, account)
    note(account, "earning", paid, move(account, paid), task, tenant)
  end
  local pairs_, lost = { ... }, {}
  for i = 1, #pairs_, 2 do
    lost[pairs_[i]] = tonumber(pairs_[i + 1])
  end
  return_deposits(tenant, task, hold, lost)
  return { state, paid }
end

function operations.postpone(tenant, task, by_ms)
  local member = tenant .. ":" .. task
  return redis.call("ZADD", key("due"), "XX", now + tonumber(by_ms), member)
end

function operations.due(most)
  return redis.call("ZRANGEBYSCORE", key("due"), "-inf", now, "LIMIT", 0, tonumber(most))
end

function operations.limit(tenant, window, amount)
  redis.call("SADD", key("metered"), tenant)
  if amount == "" then
    redis.call("HDEL", key("limits"), tenant .. ":" .. window)
  else
    redis.call("HSET", key("limits"), tenant .. ":" .. window, amount)
  end
end

function operations.depositor(owner, worker, most)
  if most == "" then
    redis.call("HDEL", key("depositors"), owner .. ":" .. worker)
  else
    redis.call("HSET", key("depositors"), owner .. ":" .. worker, most)
  end
end

function operations.free(tenant)
  for _, window in ipairs(WINDOWS) do
    redis.call("HDEL", key("limits"), tenant .. ":" .. window[1])
  end
  redis.call("SREM", key("metered"), tenant)
end

function operations.account(name)
  local metered = redis.call("SISMEMBER", key("metered"), name)
  local known = redis.call("HEXISTS", key("balances"), name) == 1 or metered == 1
  local found = {
    known and 1 or 0, metered, balance(name), number(redis.call("HGET", key("held"), name)),
    redis.call("ZCARD", key("holds", name)) + redis.call("ZCARD", key("deposits", name)),
  }
  for _, window in ipairs(WINDOWS) do
    table.insert(found, redis.call("HGET", key("limits"), name .. ":" .. window[1]))
    table.insert(found, number(redis.call("GET", spent_key(name, window, now))))
  end
  return found
end

return operations[operation](unpack(ARGV, 3))
