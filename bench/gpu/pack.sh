#!/usr/bin/env bash
# Download what a CUDA host without network may lack, as wheels for its Python, into wheels/.
#   bench/gpu/pack.sh [PYTHON_VERSION]        default 3.12; copy the folder to the host, then run.sh
# torch, transformers, peft and accelerate are the host's own: theirs match its CUDA.
set -euo pipefail
cd "$(dirname "$0")"
version=${1:-3.12}
here=../../requirements/cpu.txt
wanted=(trl datasets pyarrow pandas python-dateutil six xxhash multiprocess dill fsspec pydantic pydantic_core
        annotated-types typing-inspection rich markdown-it-py mdurl pygments math-verify
        latex2sympy2_extended antlr4-python3-runtime sympy mpmath jinja2 markupsafe)
mkdir -p wheels
for name in "${wanted[@]}"; do
  pin=$(grep -i "^${name//_/[-_]}==" "$here" | head -1 || true)
  python3 -m pip download -q --no-deps --only-binary=:all: --python-version "$version" \
    --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 --platform any \
    --dest wheels "${pin:-$name}"
done
du -sh wheels
