# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # shared with common.sh and the script that sources this
# What scripts/uml and scripts/qemu share: their options, the job handed to the guest, and its end.
# Needs common.sh.
#
# A job is a directory: argv and env (NUL-separated, so that no shell ever parses the user's words),
# cwd, results, modules (where the kernel's are); and for the answer status (the command's exit
# status) and console.log (what the kernel said).

memory=1G
timeout=600
results=''
fetch_only=''
environment=()
command=()

guest_options() {
    while (($#)); do
        case $1 in
        --?*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
        --help | -h) show_help && exit ;;
        --mem) memory=${2:?"$1 needs a size, such as 1G"} && shift 2 ;;
        --timeout) timeout=${2:?"$1 needs seconds"} && shift 2 ;;
        --results) results=${2:?"$1 needs a directory"} && shift 2 ;;
        --env) environment+=("${2:?"$1 needs NAME=VALUE"}") && shift 2 ;;
        --fetch) fetch_only=yes && shift ;;
        --) shift && command=("$@") && break ;;
        *) die "unknown option $1; the command goes after --, and --help shows the options" ;;
        esac
    done
    [[ $fetch_only ]] || ((${#command[@]})) || die "no command: $program [OPTION...] -- COMMAND"
    [[ $timeout =~ ^[1-9][0-9]*$ ]] || die "--timeout $timeout: not a number of seconds"
    [[ $memory =~ ^[1-9][0-9]*[MG]$ ]] || die "--mem $memory: not a size such as 512M or 1G"
    local pair
    for pair in "${environment[@]}"; do
        [[ $pair =~ ^[A-Za-z_][A-Za-z_0-9]*= ]] || die "--env $pair: not NAME=VALUE"
    done
    [[ -z $results ]] || results=$(realpath -e -- "$results") || die '--results: no such directory'
}

# guest_job MODULES: make the job directory ($job), and see that nothing of the guest stays however
# we end.
guest_job() {
    job=$(mktemp -d "${TMPDIR:-/tmp}/lbdr-guest.XXXXXX")
    guest_pid=''
    trap guest_clean EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    printf '%s\0' "${command[@]}" >"$job/argv"
    printf '%s\0' "PATH=$PATH" HOME=/root "LANG=${LANG:-C.UTF-8}" "TERM=${TERM:-dumb}" \
        LBDR_GUEST=1 ${results:+"RESULTS=$results"} "${environment[@]}" >"$job/env"
    printf '%s' "$PWD" >"$job/cwd"
    printf '%s' "$results" >"$job/results"
    printf '%s' "$1" >"$job/modules"
    cp "$project/scripts/lib/guest-job" "$job/"
}

guest_clean() {
    if [[ -n $guest_pid ]] && kill -TERM "$guest_pid" 2>/dev/null; then
        wait "$guest_pid" || true
    fi
    rm -rf "$job"
}

# Run the virtual machine (a command line) under the time limit. Its console goes to console.log,
# and descriptor 3 is where the guest command's output goes: a pipe, because a guest makes its
# descriptors non-blocking, and the caller's own terminal or file must not become so.
guest_run() {
    # The host keeps a file open for each file that the guest knows; sudo allows a thousand only.
    ulimit -Sn "$(ulimit -Hn)"
    exec 3> >(exec cat)
    local cat_pid=$!
    # pdeathsig: the guest ends with us even if we are killed by a signal that cannot be caught.
    setpriv --pdeathsig TERM timeout --kill-after=5 "$timeout" "$@" \
        </dev/null >"$job/console.log" 2>&1 &
    guest_pid=$!
    local code=0
    { wait "$guest_pid" || code=$?; } 2>/dev/null # bash's own word on a signal says less than ours
    guest_pid=''
    exec 3>&-
    wait "$cat_pid" || true # all of the command's output is out before we speak or end
    [[ ! -s $job/status ]] || exit "$(cat "$job/status")"
    say 'the last lines of the guest kernel:'
    # Without a panic's stack and registers, which would push out the lines that led to it.
    tr -d '\r' <"$job/console.log" |
        grep -vE '\+0x[0-9a-f]+/0x|: 00[0-9a-f]{2}:|R[A-Z0-9]{2}: |Code: ' |
        tail -n 25 | sed 's/^/    /' >&2 || true
    if ((code == 124 || code == 137)); then
        say "the guest did not end within $timeout s and was stopped (--timeout gives it more)"
    else
        say "the guest died before its command ended (exit status $code)"
    fi
    exit 125
}
