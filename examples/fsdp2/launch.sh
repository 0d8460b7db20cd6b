#!/bin/sh
# Starts train.py with one process for each GPU, or with two on a CPU:
#
#   pip install doratune
#   sh examples/fsdp2/launch.sh --model HuggingFaceTB/SmolLM2-135M-Instruct --output runs/fsdp2
#
# PROCESSES=4 takes another number.
set -eu
gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
[ "$gpus" -gt 0 ] || gpus=2
exec python -m torch.distributed.run --standalone --nproc-per-node "${PROCESSES:-$gpus}" \
    "$(dirname "$0")/train.py" "$@"
