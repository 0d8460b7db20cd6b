#!/bin/sh
# From your own rows to a report: train, evaluate what came out and what it was before, set them side by side.
#
#   pip install 'doratune[cli]'
#   sh examples/own_data/run.sh runs/own
#
# A row is {"question": ..., "choices": [...], "answer": ...}. Put your files in the place of train.jsonl and test.jsonl.
# MODEL names another model, FLAGS what else `doratune train` is to know.
set -eu
here=$(dirname "$0") out=$1 model=${MODEL:-smollm2-135m}
task="--task multiple-choice --format continuation"

doratune train --model "$model" --method dora $task --data "$here/train.jsonl" \
    --epochs 4 --batch-size 8 --learning-rate 1e-3 --warmup-steps 2 ${FLAGS:-} --output "$out/dora"
doratune eval "$out/dora" $task --data "$here/test.jsonl"
doratune eval "$model" $task --data "$here/test.jsonl" --output "$out/base"
doratune report "$out/base" "$out/dora" --output "$out/report"
