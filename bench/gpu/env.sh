# Sourced by run.sh and serve.sh: unpack what pack.sh packed, behind the host's own packages.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# dill takes what lies elsewhere for the user's own code, and pickles it whole.
site=$root/bench/gpu/wheels/site-packages
if [ ! -e "$site/.done" ]; then
  mkdir -p "$site"
  if compgen -G "$root/bench/gpu/pieces/*" > /dev/null; then
    cat "$root"/bench/gpu/pieces/* | tar xJ -C "$site"
  else
    python3 -m pip install -q --no-deps --no-index --target "$site" "$root"/bench/gpu/wheels/*.whl
  fi
  touch "$site/.done"
fi
# Behind, so that nothing of the host's CUDA set-up is replaced.
export PYTHONPATH="$root:$root/train:$root/serve:$root/evals:$root/clients:$(
  python3 -c 'import site; print(site.getsitepackages()[0])'):$site"
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
# flashinfer is not packed: 1 GB, and vLLM samples without it.
export VLLM_USE_FLASHINFER_SAMPLER=0
