#!/usr/bin/env bash
# On a CUDA host: install the packed wheels into a folder of their own, then train and measure.
#   bench/gpu/run.sh [options of sft_grpo.py]
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
# dill takes what lies elsewhere for the user's own code, and pickles it whole.
site=$root/bench/gpu/wheels/site-packages
if [ ! -e "$site/.done" ]; then
  python3 -m pip install -q --no-deps --no-index --target "$site" "$root"/bench/gpu/wheels/*.whl
  touch "$site/.done"
fi
# Behind the host's own packages, so that nothing of its CUDA set-up is replaced.
export PYTHONPATH="$root:$root/train:$root/serve:$root/evals:$root/clients:$(
  python3 -c 'import site; print(site.getsitepackages()[0])'):$site"
exec python3 "$root/bench/gpu/sft_grpo.py" "$@"
