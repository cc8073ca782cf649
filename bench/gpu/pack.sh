#!/usr/bin/env bash
# Download what a CUDA host without network may lack, for its Python; copy the folder there.
#   bench/gpu/pack.sh                 for training: wheels/
#   bench/gpu/pack.sh --serve [MB]    for serving too: pieces/ of 60 MB at most, about 115 MB in all
# PYTHON=3.12 is the host's. torch, transformers and what else is large are the host's own: theirs
# match its CUDA, and go before ours.
set -euo pipefail
cd "$(dirname "$0")"
pins=../../requirements
for_host=(--no-deps --only-binary=:all: --python-version "${PYTHON:-3.12}"
          --platform manylinux_2_34_x86_64 --platform manylinux_2_31_x86_64
          --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 --platform any)

training() {
  local name pin
  local wanted=(trl datasets pyarrow pandas python-dateutil six xxhash multiprocess dill fsspec pydantic pydantic_core
        annotated-types typing-inspection rich markdown-it-py mdurl pygments math-verify
        latex2sympy2_extended antlr4-python3-runtime sympy mpmath jinja2 markupsafe)
  mkdir -p wheels
  for name in "${wanted[@]}"; do
    pin=$(grep -i "^${name//_/[-_]}==" $pins/cpu.txt | head -1 || true)
    python3 -m pip download -q "${for_host[@]}" --dest wheels "${pin:-$name}"
  done
  du -sh wheels
}

# All of cuda.txt, without what the host has, what vLLM can do without, and lm-eval.
serving() {
  local host='torch|torchaudio|torchvision|triton|transformers|tokenizers|safetensors|huggingface_hub|hf-xet|sympy|mpmath|networkx|peft|accelerate|numpy|scipy|scikit-learn|pandas|pyarrow|numba|llvmlite|opencv-python-headless|pillow|sentencepiece|grpcio|ml_dtypes|setuptools'
  local spared='bitsandbytes|cuda-.*|fastsafetensors|flashinfer-python|humming-kernels|instanttensor|nccl.*|nvidia-.*|nvtx|pynvvideocodec|quack-kernels|tilelang|tokenspeed-.*|torchcodec|torch_c_dlpack_ext|z3-solver'
  local lm_eval='lm_eval|DataProperty|langdetect|lxml|mbstrdecoder|nltk|pathvalidate|pytablewriter|rouge_score|sacrebleu|sqlitedict|tabledata|tcolorpy|typepy|word2number'
  local site
  site=$(mktemp -d)
  trap "rm -r '$site'" EXIT
  grep -vE "^(#|($host|$spared|$lm_eval)==)" $pins/cuda.txt > "$site.txt"
  python3 -m pip install -q --no-compile "${for_host[@]}" --target "$site" -r "$site.txt"
  rm -r "$site.txt" "$site/bin"
  # 480 MB of kernels for other GPUs than Hopper, for mixtures of experts and for other attention.
  (cd "$site/vllm" && rm -r vllm-rs vllm_flash_attn/_vllm_fa2_C* _moe_C* _flashkda_C* _deepselect_C* \
    _flashmla_C* _qutlass_C* third_party/deep_gemm third_party/fmha_sm100)
  mkdir -p pieces
  rm -f pieces/*
  tar c -C "$site" . | xz -T0 | split -b "${1:-60}M" - pieces/site.tar.xz.
  du -h pieces/*
}

if [ "${1:-}" = --serve ]; then serving "${2:-60}"; else training; fi
