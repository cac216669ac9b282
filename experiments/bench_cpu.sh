#!/bin/sh
# Every timing of docs/results.md on the CPU, from one command: sh experiments/bench_cpu.sh [FOLDER]     (half an hour; nothing else may run beside it)
set -e
out=${1:-runs/bench}
bench() { name=$1; shift; echo "== $name"; silkworm-bench --threads 2 --out "$out/$name.json" "$@" > "$out/$name.md"; }
mkdir -p "$out"
bench layer --sections layers --only 16x128x56x56 --rounds 9
bench act_num --sections act_num --rounds 5 --budget 45
bench nets_train --sections nets --rounds 5 --budget 300
bench nets_train_kept --sections nets --rounds 5 --budget 75 --keep-memory
bench inference_x0_25 --sections inference --only "vanillanet_5_x0_25, batch 8" --rounds 21
bench inference_b1 --sections inference --only "vanillanet_5, batch 1," --rounds 25 --no-compile
bench inference_b16 --sections inference --only "vanillanet_5, batch 16," --rounds 5 --no-compile --arms lslu "lslu, fused" "lslu, fused, NCHW" "lslu, channels last" "lslu, fused, ONNX Runtime" series "series, fused" "series, fused, ONNX Runtime" relu "relu, fused"
bench peak --sections peak --only "x0_25"
