#!/bin/sh
# Everything of this project that wants a GPU, from one command; what is there already isn't done again:
#   sh experiments/gpu.sh [OUT]                      ten minutes: exactness on the card, speed tables, one CIFAR-100 training
#   MINUTES=40 sh experiments/gpu.sh [OUT]           also the paper's comparisons on CIFAR-100: activations, positions in ResNet-18, act_num, three seeds, equal epochs
#   DEVICE=cpu sh experiments/gpu.sh /tmp/tiny       every line of it at tiny sizes, without a card: no figure of it means anything
# OUT is runs/gpu, of a rehearsal runs/gpu_rehearsal; it is for one device. Left out is told, and the exit code is the number of steps that failed.
# CIFAR100=cifar100.zip names the pictures (folders train and test with one folder a class inside); without it the trainings are left out, and the page says so.
# PROCS (6) trainings of the comparisons share the card. STEPS names what is done, for example STEPS="layers grids"; all of it otherwise.
set -u
device=${DEVICE:-cuda}; if [ "$device" = cpu ]; then out=${1:-runs/gpu_rehearsal}; else out=${1:-runs/gpu}; fi
minutes=${MINUTES:-10}; cifar=${CIFAR100:-}; python=${PYTHON:-python}; procs=${PROCS:-6}; steps=${STEPS:-}
if [ "$device" = cuda ] && ! $python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "gpu.sh: PyTorch sees no CUDA card here; DEVICE=cpu runs every line at tiny sizes"; exit 64
fi
mkdir -p "$out"
was=$(cat "$out/device.txt" 2>/dev/null || echo "$device")
if [ "$was" != "$device" ]; then echo "gpu.sh: $out holds what DEVICE=$was gave; name another folder for DEVICE=$device"; exit 64; fi
echo "$device" > "$out/device.txt"
tiny=""; epochs=15; pictures=0; served="vanillanet_5, "
if [ "$device" = cpu ]; then tiny="--quick"; epochs=1; pictures=200; procs=1; served=""; fi
left_out="$out/left_out.txt"; failed=0; : > "$left_out"
leave() { echo "$1" | tee -a "$left_out"; }
step() { # name, file that shows it is done, what it is, command
    name=$1; done_file="$out/$2"; what=$3; shift 3
    if [ -e "$done_file" ]; then echo "== $what: there already"; return 0; fi
    case " $steps " in "  "|*" $name "*) ;; *) leave "$what: not among STEPS"; return 0;; esac
    echo "== $what"; start=$(date +%s)
    if "$@"; then echo "== $what: $(( $(date +%s) - start )) s"; else leave "$what: failed, see $out/*.log"; failed=$((failed + 1)); fi
}
checks() {
    $python -m pytest -q -rs -p no:cacheprovider tests/test_cuda.py --override-ini addopts= -m "cuda or not slow" > "$out/exact.log" 2>&1; code=$?
    tail -1 "$out/exact.log"; [ $code = 0 ] && cp "$out/exact.log" "$out/exact.txt"
}
bench() { # what was measured until it was stopped stands in the JSON; the table says that it came to its end
    name=$1; shift; $python -m silkworm_app.lab.bench --device "$device" $tiny --out "$out/$name.json" "$@" > "$out/$name.part" 2> "$out/$name.log" && mv "$out/$name.part" "$out/$name.md"
}
train() {
    $python -m silkworm_app.train --data_path "$cifar" --data_set CIFAR100 --model vanillanet_5_x0_25 --output_dir "$out/cifar100" --epochs "$epochs" --batch_size 256 --n_train "$pictures" --n_test "$pictures" \
        --use_amp true --device "$device" --aug light --bundle false --progress false > "$out/cifar100.log" 2>&1 && cp "$out/cifar100/metrics.json" "$out/cifar100.json"
}
compare() { # name of the grid
    grid=experiments/$1.yaml
    if [ "$device" = cpu ]; then
        sed 's/^base: {/base: {n_train: 200, n_test: 200, /; s/epochs: [0-9]*/epochs: 1/; s/batch_size: [0-9]*/batch_size: 64/; s/seed: \[[^]]*\]/seed: [0]/; s/input_size: 64/input_size: 32/' "$grid" > "$out/$1.yaml"; grid="$out/$1.yaml"
    fi
    $python -c 'import sys; from silkworm_app.cli import experiment_main; sys.exit(experiment_main())' "$grid" --source "$cifar" --out "$out/$1" --procs "$procs" > "$out/$1.log" 2>&1 && cp "$out/$1/results.md" "$out/$1.md"
}
step exact exact.txt "exactness on the card" checks
step layers layers.md "one layer: the definition, ours, series, relu, a copy" bench layers --sections layers --no-compile --budget 20
step nets nets.md "training steps of whole nets" bench nets --sections nets peak --no-compile --budget 25
step act_num act_num.md "time over the number of activations" bench act_num --sections act_num --budget 15
step inference inference.md "fused and unfused nets" bench inference --sections inference --only "$served" --no-compile --budget 10
if [ -z "$cifar" ]; then leave "the trainings: CIFAR100 names no zip file of pictures"
else
    step cifar100 cifar100.json "a CIFAR-100 training" train
    for grid in cifar100_gpu position_gpu act_num_gpu; do
        if [ "$minutes" -ge 40 ] || [ -e "$out/$grid.md" ]; then step grids "$grid.md" "the comparison $grid" compare "$grid"; else leave "the comparison $grid: MINUTES is under 40"; fi
    done
fi
step compiled compiled_layers.md "one layer, compiled" bench compiled_layers --sections layers --arms "definition, compiled" "lslu, compiled" "relu, compiled" --budget 20
step compiled compiled_inference.md "a fused net, compiled" bench compiled_inference --sections inference --only "$served" --arms "lslu, fused, torch.compile" --budget 10
step compiled compiled_nets.md "whole nets, compiled" bench compiled_nets --sections nets --arms "definition, compiled" "lslu, compiled" "relu, compiled" --budget 25
if [ "$device" = cpu ]; then leave "everything that needs a card: this was made on a CPU at tiny sizes, and no figure of it means anything"; fi
$python experiments/gpu_page.py "$out" || failed=$((failed + 1))
exit $failed
