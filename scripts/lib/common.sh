# shellcheck shell=bash
# What every script here shares: where the project is, and how to speak to the user.

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cache=$project/.cache

# The command as the user typed it, for messages.
program=scripts/$(basename "$0")

say() { printf '%s: %s\n' "$program" "$*" >&2; }

die() {
    say "$@"
    exit 1
}

# Make the cache directory, unless it is there, and see that this user can write to it.
writable_cache() {
    if ! mkdir -p "$cache" || [[ ! -w $cache ]]; then
        die "cannot write to $cache, which another user made: run it with sudo"
    fi
}

# After sudo: give what root made in a user's clone to that user, who runs the next command.
hand_over() {
    local owner
    owner=$(stat -c %u:%g "$project")
    [[ $EUID -eq 0 && $owner != 0:* ]] || return 0
    find "$project" -user 0 -exec chown --no-dereference "$owner" {} +
}

# quietly LOG COMMAND...: run a talkative command with its output in a log in the cache directory;
# the end of it is shown only if the command fails.
quietly() {
    local log=$cache/$1.log
    shift
    writable_cache
    "$@" </dev/null >"$log" 2>&1 && return
    tail -n 30 "$log" >&2
    return 1
}

# Print the comment at the head of the running script: its --help text. Written once, read twice.
show_help() {
    sed -n '2,/^[^#]/{ s/^# \{0,1\}//p }' "$0"
}

# What this machine is, for the reader of a measured figure.
machine() {
    local cpu
    cpu=$(sed -n '/^model name/{ s/^.*: //p; q }' /proc/cpuinfo)
    echo "${cpu:-unknown processor}, $(nproc) cores, Linux $(uname -r)"
}
