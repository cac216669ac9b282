#!/bin/sh
# Every timing of docs/results.md on the CPU, from one command: sh experiments/bench_cpu.sh [FOLDER]     (half an hour; nothing else may run beside it)
set -e
out=${1:-docs/bench}
bench() { name=$1; shift; echo "== $name"; silkworm-bench --threads 2 --out "$out/$name.json" "$@" > "$out/$name.md"; }
mkdir -p "$out"
bench layer --sections layers --only 16x128x56x56 --rounds 9
bench act_num --sections act_num --rounds 5 --budget 45
bench nets_train --sections nets --rounds 5 --budget 75
bench nets_train_kept --sections nets --rounds 5 --budget 75 --keep-memory
bench inference --sections inference --rounds 7 --budget 45
bench peak --sections peak
