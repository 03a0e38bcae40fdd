-- Reads a DICOM association request (PS3.8 9.3.2) before any real server sees a byte of it.
--
-- The action `lbdr_dicom` waits for the whole request, within the frontend's inspect-delay, and sets
-- the variables that rules look at: the AE titles and the SOP classes that are proposed; or why the
-- request is refused. The service `lbdr_dicom_refuse` answers a refused one. What is accepted, and
-- what is answered, is the same as in association.py; tests hold them together.

local MAX_REQUEST = 39900 -- bytes after the header; the buffer has to hold all of it
local FIXED = 68 -- version, AE titles, reserved
local MAX_CONTEXTS = 128 -- odd numbers of one byte
local APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"

local unpack, sub, find = string.unpack, string.sub, string.find

local function uid(data, first, last)
    local text = sub(data, first, last):match("^([0-9.]+)[ \0]*$")
    if text and #text <= 64 then
        return text
    end
end

-- 16 bytes: an AE title; nil where it is none, "" where it is all spaces.
local function ae_title(data, first)
    local text = sub(data, first, first + 15):gsub("[ \0]+$", ""):gsub("^ +", "")
    if find(text, "[^\32-\126]") or find(text, "\\", 1, true) then
        return nil
    end
    return text
end

-- A presentation context: its abstract syntax, or nil.
local function context(data, at, stop, seen)
    if stop - at < 4 then
        return nil
    end
    local id = unpack("B", data, at)
    if id % 2 == 0 or seen[id] then
        return nil
    end
    seen[id] = true
    at = at + 4
    local abstract, transfers = nil, 0
    while at < stop do
        if stop - at < 4 then
            return nil
        end
        local kind, _, length = unpack(">BBI2", data, at)
        local from = at + 4
        at = from + length
        if at > stop then
            return nil
        end
        if kind == 0x30 then
            if abstract then
                return nil
            end
            abstract = uid(data, from, at - 1)
            if not abstract then
                return nil
            end
        elseif kind == 0x40 then
            if not uid(data, from, at - 1) then
                return nil
            end
            transfers = transfers + 1
        end
    end
    return transfers > 0 and abstract or nil
end

-- User information: whole sub-items, whatever they are.
local function user_information(data, at, stop)
    while at < stop do
        if stop - at < 4 then
            return false
        end
        local kind, _, length = unpack(">BBI2", data, at)
        if kind == 0x51 and length ~= 4 then
            return false
        end
        at = at + 4 + length
    end
    return at == stop
end

-- The reason for a refusal; or nil, the titles and the SOP classes.
local function read(data)
    local version = unpack(">I2", data, 7)
    if version % 2 == 0 then
        return "version"
    end
    local called, calling = ae_title(data, 11), ae_title(data, 27)
    if not called or not calling then
        return "malformed"
    end
    local at, stop = 75, #data + 1
    local application, user, classes, seen = nil, false, {}, {}
    while at < stop do
        if stop - at < 4 then
            return "malformed"
        end
        local kind, _, length = unpack(">BBI2", data, at)
        local from = at + 4
        at = from + length
        if at > stop then
            return "malformed"
        end
        if kind == 0x10 then
            if application then
                return "malformed"
            end
            application = uid(data, from, at - 1)
            if not application then
                return "malformed"
            end
        elseif kind == 0x20 then
            local class = context(data, from, at, seen)
            if not class or #classes == MAX_CONTEXTS then
                return "malformed"
            end
            classes[#classes + 1] = class
        elseif kind == 0x50 then
            if user or not user_information(data, from, at) then
                return "malformed"
            end
            user = true
        end
    end
    if not application or not user or #classes == 0 then
        return "malformed"
    end
    if application ~= APPLICATION_CONTEXT then
        return "context"
    end
    if called == "" then
        return "called-ae"
    end
    if calling == "" then
        return "calling-ae"
    end
    return nil, called, calling, classes
end

local function no_association(first)
    if first == 0x16 then
        return "tls"
    elseif first >= 0x41 and first <= 0x5a then
        return "http" -- a method, in capitals
    elseif first >= 2 and first <= 7 then
        return "unexpected-pdu"
    end
    return "unknown-pdu"
end

local function judge(request)
    local data = request:data(0, 1)
    if not data or #data == 0 then
        return "empty"
    end
    local first = unpack("B", data)
    if first ~= 1 then
        return no_association(first)
    end
    data = request:data(0, 6)
    if not data or #data < 6 then
        return "truncated"
    end
    local length = unpack(">I4", data, 3)
    if length > MAX_REQUEST then
        return "oversized"
    elseif length < FIXED then
        return "malformed"
    end
    data = request:data(0, 6 + length)
    if not data or #data < 6 + length then
        return "truncated"
    end
    if request:input() > 6 + length then
        return "trailing"
    end
    return read(data)
end

core.register_action("lbdr_dicom", { "tcp-req" }, function(txn)
    -- What is set first stays if the wait ends before the request is whole.
    txn:set_var("txn.lbdr_refusal", "truncated")
    local reason, called, calling, classes = judge(txn.req)
    if reason then
        txn:set_var("txn.lbdr_refusal", reason)
        return
    end
    txn:set_var("txn.lbdr_called", called)
    txn:set_var("txn.lbdr_calling", calling)
    txn:set_var("txn.lbdr_sop_classes", " " .. table.concat(classes, " ") .. " ")
    txn:unset_var("txn.lbdr_refusal")
end)

-- A-ABORT (type 7) and A-ASSOCIATE-RJ (type 3): type, and the last three of four bytes.
local ANSWERS = {
    ["tls"] = { 7, 0, 2, 1 },
    ["http"] = { 7, 0, 2, 1 },
    ["unknown-pdu"] = { 7, 0, 2, 1 },
    ["unexpected-pdu"] = { 7, 0, 2, 2 },
    ["malformed"] = { 7, 0, 2, 6 },
    ["trailing"] = { 7, 0, 2, 2 },
    ["truncated"] = { 7, 0, 2, 0 },
    ["oversized"] = { 3, 1, 3, 2 },
    ["version"] = { 3, 1, 2, 2 },
    ["context"] = { 3, 1, 1, 2 },
    ["called-ae"] = { 3, 1, 1, 7 },
    ["calling-ae"] = { 3, 1, 1, 3 },
    ["rule"] = { 3, 1, 1, 1 },
    ["no-server"] = { 3, 2, 3, 1 },
}

core.register_service("lbdr_dicom_refuse", "tcp", function(applet)
    local answer = ANSWERS[applet:get_var("txn.lbdr_refusal")] or ANSWERS["truncated"]
    applet:send(string.pack(">BBI4BBBB", answer[1], 0, 4, 0, answer[2], answer[3], answer[4]))
end)
