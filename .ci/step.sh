# Part of .ci/run and .ci/versions.
# shellcheck shell=bash

# Run a command, with its words before it and how long it took behind it.
step() {
    local start=$SECONDS
    printf '\n=== %s\n' "$*"
    "$@"
    printf '=== %s s\n' $((SECONDS - start))
}
