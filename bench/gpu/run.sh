#!/usr/bin/env bash
# On a CUDA host: unpack what was packed, then train and measure.
#   bench/gpu/run.sh [options of sft_grpo.py]
set -euo pipefail
. "$(dirname "$0")/env.sh"
exec python3 "$root/bench/gpu/sft_grpo.py" "$@"
