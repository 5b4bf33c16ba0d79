#!/bin/sh
# Everything that a GPU should show, in under 12 minutes: correctness first, then speed, then llama.cpp for comparison.
#
#   benches/gpu.sh [OUT]        build, test and measure; logs go to OUT (default: target/gpu)
#   PREBUILT=DIR benches/gpu.sh the binaries mgm, kernels, models and goldens are in DIR (for a machine without cargo; an absolute path)
#   LLAMA=FILE benches/gpu.sh   the absolute path of a GGUF file, to compare with llama.cpp (needs Node.js)
#   MGM_ADAPTER=NAME            which GPU, as `mgm info` names it
#
# Every part has a limit of its own and runs whether or not another one failed; the summary at the end says what failed.
set -u
cd "$(dirname "$0")/.."
OUT=$(mkdir -p "${1:-target/gpu}" && cd "${1:-target/gpu}" && pwd)
: >"$OUT/summary.txt"
export CARGO_MANIFEST_DIR="$PWD"

# part NAME SECONDS COMMAND...
part() {
    name=$1 limit=$2
    shift 2
    began=$(date +%s)
    timeout "$limit" "$@" >"$OUT/$name.log" 2>&1
    code=$?
    printf '%-18s exit %-3s %4s s\n' "$name" "$code" "$(($(date +%s) - began))" | tee -a "$OUT/summary.txt"
}

if [ -n "${PREBUILT:-}" ]; then
    BIN=$PREBUILT
else
    cargo build --release || exit 1
    BIN=$OUT/bin
    mkdir -p "$BIN"
    cp target/release/mgm "$BIN/mgm"
    # The paths of the test programs, from cargo's own messages.
    cargo test --release --test kernels --test models --test goldens --no-run 2>&1 |
        sed -n 's/.*tests\/\([a-z]*\).*(\(.*\))$/\1 \2/p' | while read -r test path; do cp "$path" "$BIN/$test"; done
fi

"$BIN/mgm" info | tee "$OUT/info.log"
part goldens 60 "$BIN/goldens" --test-threads 2
part session 60 "$BIN/models" session:: --test-threads 2
part kernels 150 "$BIN/kernels" ops:: --test-threads 4
part roofline 60 "$BIN/mgm" bench --roofline
part mgm-2b 30 "$BIN/mgm" bench --synthetic mgm-2b --profile
part mgm-7b 40 "$BIN/mgm" bench --synthetic mgm-7b --profile
part sdxl 60 "$BIN/mgm" bench --synthetic sdxl --profile
part mgm-7b-tuned 60 "$BIN/mgm" bench --synthetic mgm-7b --tune
if [ -n "${LLAMA:-}" ]; then
    part gguf 60 "$BIN/mgm" bench --gguf "$LLAMA" --prefill 640 --decode 64
    (cd benches/peers && npm install --no-audit --no-fund) >"$OUT/npm.log" 2>&1
    part llama.cpp 60 node benches/peers/llama_cpp.mjs "$LLAMA" vulkan 640 64
fi

for log in roofline mgm-2b mgm-7b mgm-7b-tuned sdxl gguf llama.cpp; do
    if [ -f "$OUT/$log.log" ]; then
        printf '\n== %s\n' "$log"
        tail -n 40 "$OUT/$log.log"
    fi
done
grep -hE '^test .*FAILED|panicked' "$OUT"/goldens.log "$OUT"/session.log "$OUT"/kernels.log
printf '\n'
cat "$OUT/summary.txt"
! grep -qv 'exit 0 ' "$OUT/summary.txt"
