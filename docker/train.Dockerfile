# syntax=docker/dockerfile:1
# Training, evaluation and the gate, on CUDA. Build from the repository's root:
#   docker build -f docker/train.Dockerfile -t thinkgate-train .
#   docker run --gpus all --shm-size 8g -v "$PWD/runs:/work/runs" thinkgate-train train gsm8k-grpo
FROM python:3.11.13-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1
RUN python -m venv /opt/thinkgate
ENV PATH=/opt/thinkgate/bin:$PATH
WORKDIR /src
COPY requirements/cuda.txt requirements/
RUN pip install -c requirements/cuda.txt vllm==0.31.0
COPY . .
RUN pip install -c requirements/cuda.txt ".[all,qlora]"

FROM python:3.11.13-slim-bookworm
# gcc: triton compiles its launcher at run time. git: Weights & Biases and lm-eval record commits.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc g++ libc6-dev git tini \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --create-home --home-dir /home/thinkgate thinkgate \
 && install -d -o thinkgate -g thinkgate /work /work/runs /cache
COPY --from=build /opt/thinkgate /opt/thinkgate
ENV PATH=/opt/thinkgate/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/cache/huggingface \
    VLLM_CACHE_ROOT=/cache/vllm \
    TRITON_CACHE_DIR=/cache/triton \
    TORCHINDUCTOR_CACHE_DIR=/cache/inductor
USER 10001:10001
WORKDIR /work
VOLUME /cache
# A training run is no service: nothing to ask whether it is healthy.
HEALTHCHECK NONE
ENTRYPOINT ["tini", "--", "thinkgate"]
CMD ["doctor"]
