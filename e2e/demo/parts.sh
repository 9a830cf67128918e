# shellcheck shell=bash
# The parts that the demo runs: started, waited for, watched, and stopped whatever happens.
#
# Each part is the leader of a process group of its own. So Ctrl-C reaches only the demo, which stops them
# in order, last started first; and what a part leaves behind in its group is found and ended too.

declare -a part_pids=()
declare -A part_names=() part_logs=()
# The time that a part has to become ready, and that all have to end after SIGTERM.
readonly ready_seconds=60 stop_seconds=15

# start NAME LOG COMMAND…: in the background, with its output in a log file.
start() {
    # shellcheck disable=SC2154 # run_dir is the demo's
    local name=$1 log=$run_dir/$2.log
    shift 2
    # If the demo itself is killed, the kernel ends its parts.
    local -a command=(setsid)
    ! setpriv --pdeathsig TERM true 2>/dev/null || command+=(setpriv --pdeathsig TERM)
    "${command[@]}" "$@" >"$log" 2>&1 </dev/null &
    part_pids+=("$!")
    part_names[$!]=$name
    part_logs[$!]=$log
}

# wait_until WHAT CONDITION…: polls; fails when a part has ended or the time is over.
wait_until() {
    local what=$1 began=$EPOCHREALTIME
    local deadline=$((SECONDS + ready_seconds))
    shift
    until "$@"; do
        fail_if_a_part_ended
        if ((SECONDS >= deadline)); then
            echo "  waited $ready_seconds s in vain until $what; the ends of the logs:" >&2
            local pid
            for pid in "${part_pids[@]}"; do show_log "$pid"; done
            exit 1
        fi
        pause 0.05
    done
    progress "$what" "$began"
}

progress() {
    printf '  %-48s %s\n' "$1" "$(seconds_since "$2")"
}

seconds_since() {
    local now=$EPOCHREALTIME
    printf '%d.%02d s' $(((${now/./} - ${1/./}) / 1000000)) $(((${now/./} - ${1/./}) / 10000 % 100))
}

# `sleep` without a process: waits for input that never comes, and a signal ends it at once.
exec {never}<> <(:)
pause() {
    read -r -t "$1" -u "$never" || true
}

fail_if_a_part_ended() {
    local pid
    for pid in "${part_pids[@]}"; do
        is_running "$pid" || fail_because_of "$pid"
    done
}

# Not `kill -0`: that holds for a process that has ended until the shell has taken its status, which it
# does not do while it is in a trap.
is_running() {
    local stat
    { read -r stat <"/proc/$1/stat"; } 2>/dev/null && [[ ${stat##*) } != Z* ]]
}

fail_because_of() {
    local status=0
    wait "$1" 2>/dev/null || status=$?
    if ((status > 128)); then
        printf '\n%s was killed (signal %d).\n' "${part_names[$1]}" $((status - 128)) >&2
    else
        printf '\n%s ended by itself (status %d).\n' "${part_names[$1]}" "$status" >&2
    fi
    show_log "$1"
    exit 1
}

show_log() {
    printf '\n── %s ──\n' "${part_logs[$1]}" >&2
    tail -n 15 "${part_logs[$1]}" >&2
}

# Until a signal comes or any part ends.
wait_for_end() {
    local ended
    wait -n -p ended "${part_pids[@]}" 2>/dev/null || true
    fail_because_of "$ended"
}

# The trap on EXIT: ends every part, the last started first.
stop_parts() {
    local status=$? i
    # From here on nothing stops it halfway: no second Ctrl-C, and no terminal or pipe that is gone.
    trap '' INT TERM HUP PIPE
    set +e
    local deadline=$((SECONDS + stop_seconds))
    ((${#part_pids[@]} == 0)) || printf '\nstopping …\n' >&2
    for ((i = ${#part_pids[@]} - 1; i >= 0; i--)); do
        stop "${part_pids[i]}" "$deadline"
    done
    ((${#part_pids[@]} == 0)) || printf 'stopped.\n' >&2
    exit "$status"
}

# SIGTERM to the part alone first: it knows best how to end its own children (and deregister before that).
# Even past the deadline each gets a second.
stop() {
    local pid=$1 deadline=$(($2 > SECONDS ? $2 : SECONDS + 1))
    kill -TERM "$pid" 2>/dev/null || true
    while is_running "$pid"; do
        if ((SECONDS > deadline)); then
            echo "  ${part_names[$pid]} does not end, killing it" >&2
            break
        fi
        pause 0.02
    done
    kill -KILL -- "-$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
}
