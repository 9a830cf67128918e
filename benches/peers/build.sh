#!/usr/bin/env bash
# Builds the peers of the bench into target/peers/, and says which are left out and why.
# Versions are pinned in each peer's go.mod and go.sum.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")"
out=$PWD/../../target/peers
mkdir -p "$out"

if ! command -v go >/dev/null; then
    rm -f "$out/linear"
    echo "Go is not installed: the bench runs without its peer (go-control-plane's LinearCache)."
    exit 0
fi
(cd linear && go build -trimpath -o "$out/linear" .) ||
    { rm -f "$out/linear"; echo "go-control-plane's LinearCache could not be built: the bench runs without it."; }
