-- After a reload, a pool's first connections wait until the worker before has handed over which
-- client belongs to which real server: some milliseconds, in which they would be spread anew.
--
-- Before a reload, lbdr writes a key into each table that no client has. A table is handed over in
-- the order of its changes, so when that key is there, so is everything else.

local WAIT = 500 -- ms since the worker began; then it goes on without
local PAUSE = 2 -- ms

local reloaded = os.getenv("HAPROXY_MWORKER_REEXEC") ~= nil
local began

local function now()
    local time = core.now()
    return time.sec * 1000 + time.usec // 1000
end

core.register_init(function()
    began = now()
end)

core.register_action("lbdr_handover", { "tcp-req" }, function(_, pool, key)
    if not reloaded then
        return
    end
    local entries = core.backends[pool].stktable
    while now() - began < WAIT and not entries:lookup(key) do
        core.msleep(PAUSE)
    end
end, 2)
