#!/usr/bin/env bash
# The demo as a user would type it: phantom archive, shards, training under the deepspeed launcher, report.
# Prints how long each stage took. Usage: tools/demo.sh BIN_FOLDER
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$(cd "$1" && pwd):$PATH"
started=$SECONDS
stage() {
    local name=$1 begin=$SECONDS
    shift
    echo "== $name: $*"
    "$@"
    printf '== %s took %d s\n\n' "$name" $((SECONDS - begin))
}
rm -rf data/demo data/demo-archive data/demo.secret data/demo.mapping.csv runs/demo
stage "phantom archive" python -m data_tools.phantom --layout embed --out data/demo-archive --patients 240 --seed 0 --risk-prevalence 0.5
stage "shards" python -m data_tools.convert --dataset embed --root data/demo-archive --out data/demo --rows 128 --cols 104
stage "inspection" python -m data_tools.inspect data/demo
accelerators=()
if ! python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    export DS_ACCELERATOR=cpu
    accelerators=(--num_accelerators 2) # without it the launcher counts CPU sockets and starts one rank
fi
stage "training and evaluation" deepspeed -q "${accelerators[@]}" train.py --ds_config ds_configs/zero2.json --config configs/demo.yaml
echo "demo finished in $((SECONDS - started)) s"
echo "runs/demo/report.html"
