# shellcheck shell=bash
# Says which TCP ports are taken, for what they are needed, by whom, and how to choose others.
#
# From /proc alone: a minimal machine has neither ss nor lsof.

# require_free_ports "PORT VARIABLE WHAT FOR"…: names every port that is not free on loopback, then exits 1.
require_free_ports() {
    local entry port variable purpose status=0
    local -A seen=()
    for entry in "$@"; do
        read -r port variable purpose <<<"$entry"
        if ! is_port "$port"; then
            echo "$variable: $port is no port number (1 to 65535), for $purpose." >&2
            status=1
        elif [[ -n ${seen[$port]:-} ]]; then
            echo "Port $port is wanted twice: for ${seen[$port]} and for $purpose ($variable)." >&2
            status=1
        elif is_taken "$port"; then
            echo "Port $port, for $purpose, is taken by $(owner_of "$port"). Choose another: make run $variable=…" >&2
            status=1
        fi
        seen[$port]=$purpose
    done
    ((status == 0)) || exit 1
}

is_port() {
    [[ $1 =~ ^[1-9][0-9]{0,4}$ ]] && (($1 <= 65535))
}

is_taken() {
    [[ -n $(listening_sockets "$1") ]]
}

# The inodes of the sockets that listen on PORT where 127.0.0.1 would meet them: on that address or on all.
listening_sockets() {
    local hex
    printf -v hex %04X "$1"
    cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | awk -v port="$hex" '
        BEGIN {
            meets["00000000"]; meets["0100007F"]
            meets["00000000000000000000000000000000"]; meets["0000000000000000FFFF00000100007F"]
        }
        $4 == "0A" { split($2, local, ":"); if (local[2] == port && local[1] in meets) print $10 }'
}

owner_of() {
    local inode pid
    for inode in $(listening_sockets "$1"); do
        pid=$(find /proc/[0-9]*/fd -maxdepth 1 -lname "socket:\[$inode\]" 2>/dev/null | head -n 1 | cut -d / -f 3)
        if [[ -n $pid ]]; then
            printf 'process %s (%s)' "$pid" "$(command_of "$pid")"
            return 0
        fi
    done
    printf 'a process of another user (sudo ss -ltnp shows it)'
}

# Of a long command line the two ends: Java names its program last.
command_of() {
    local command
    command=$(tr '\0' ' ' <"/proc/$1/cmdline")
    command=${command% }
    ((${#command} <= 100)) || command="${command:0:40} … ${command: -55}"
    printf %s "$command"
}
