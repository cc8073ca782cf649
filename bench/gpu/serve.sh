#!/usr/bin/env bash
# On a CUDA host: serve on vLLM, the most telling first. Each part has its own limit in seconds, and
# what it finds is printed as it comes: a host that is taken away has shown something.
#   bench/gpu/serve.sh [tests] [bench] [quickstart]      default: all of them, 10 minutes at most
set -uo pipefail
. "$(dirname "$0")/env.sh"
cd "$root" || exit
# Small shares of one GPU, for several engines; each cache has a given size because none can be
# measured while another engine starts. Without compilation a start takes half as long.
export THINKGATE_ENGINE="gpu_memory_utilization=0.1 kv_cache_memory_bytes=$((1 << 30)) enforce_eager=true"
failed=0

within() {
  local limit=$1 began=$SECONDS code=0
  shift
  echo "== $*"
  timeout --signal INT --kill-after 20 "$limit" "$@" || code=$?
  echo "== exit code $code after $((SECONDS - began)) of $limit s"
  ((code == 0)) || failed=1
}

tests() {
  local many=()
  python3 -c 'import xdist' 2> /dev/null && many=(-n 4 --dist loadfile)
  within 270 python3 -m pytest -v -p no:cacheprovider "${many[@]}" tests/test_serve_deploy_vllm.py \
    tests/test_serve_adapters_vllm.py tests/test_evals_vllm.py tests/test_serve_vllm.py
}

bench() {
  within 150 python3 bench/server.py --eager --rounds 2 --streams 1 16 64 --tokens 200 2000
}

quickstart() {
  local folder
  folder=$(mktemp -d)
  within 180 python3 -m thinkgate quickstart --out "$folder/run" --registry "$folder/registry"
}

parts=("$@")
((${#parts[@]})) || parts=(tests bench quickstart)
for part in "${parts[@]}"; do "$part"; done
exit "$failed"
