#!/usr/bin/env bash
# Builds the peers of the bench into target/peers/, and says which are left out and why.
# Versions are pinned in each peer's go.mod and go.sum. istiod has hundreds of packages and takes minutes,
# so it is built only while it is not there, and gets twenty minutes at most; without it, the bench runs
# with an empty column. `rm target/peers/istiod` has it built again.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")"
out=$PWD/../../target/peers
mkdir -p "$out"

if ! command -v go >/dev/null; then
    rm -f "$out/linear"
    echo "Go is not installed: the bench runs without what is not built yet of its peers (LinearCache, istiod)."
    exit 0
fi

(cd linear && go build -trimpath -o "$out/linear" .) ||
    { rm -f "$out/linear"; echo "go-control-plane's LinearCache could not be built: the bench runs without it."; }

if [ ! -x "$out/istiod" ]; then
    echo "Building istiod, once; this takes minutes."
    (cd istiod && timeout 1200 nice -n 10 go build -trimpath -ldflags '-s -w' -o "$out/istiod.new" .) &&
        mv "$out/istiod.new" "$out/istiod" ||
        { rm -f "$out/istiod.new"; echo "istiod could not be built (it needs Go 1.26): the bench runs without it."; }
fi
