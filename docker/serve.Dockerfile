# syntax=docker/dockerfile:1
# The server. Build from the repository's root:
#   docker build -f docker/serve.Dockerfile -t thinkgate-serve .                          CUDA
#   docker build -f docker/serve.Dockerfile -t thinkgate-serve:cpu --build-arg VARIANT=cpu .
# CUDA needs no CUDA base image: torch's wheels bring the libraries, the host brings the driver.
ARG VARIANT=cuda

FROM python:3.11.13-slim-bookworm AS base
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1
RUN python -m venv /opt/thinkgate
ENV PATH=/opt/thinkgate/bin:$PATH
WORKDIR /src

FROM base AS build-cuda
COPY requirements/cuda.txt requirements/
RUN pip install -c requirements/cuda.txt vllm==0.31.0
COPY . .
RUN pip install -c requirements/cuda.txt ".[serve,sign,otel]"

# The whole pinned list, training and test tools too: this image is for trying things out.
FROM base AS build-cpu
COPY requirements/torch.txt requirements/cpu.txt requirements/
RUN pip install --extra-index-url https://download.pytorch.org/whl/cpu -r requirements/torch.txt \
 && pip install --no-deps -r requirements/cpu.txt
COPY . .
RUN pip install --no-deps --no-build-isolation .

# hadolint ignore=DL3006
FROM build-${VARIANT} AS build

FROM python:3.11.13-slim-bookworm
# Triton compiles its launcher when a GPU kernel first runs; tini reaps what engines leave behind.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc libc6-dev tini \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --create-home --home-dir /home/thinkgate thinkgate \
 && install -d -o thinkgate -g thinkgate /models /cache
COPY --from=build /opt/thinkgate /opt/thinkgate
# The root file system may be read-only: what is written at run time goes to /cache and /tmp.
ENV PATH=/opt/thinkgate/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/cache/huggingface \
    VLLM_CACHE_ROOT=/cache/vllm \
    TRITON_CACHE_DIR=/cache/triton \
    TORCHINDUCTOR_CACHE_DIR=/cache/inductor \
    THINKGATE_REGISTRY=/models/registry
USER 10001:10001
WORKDIR /models
VOLUME /cache
EXPOSE 8000
# Five minutes for a large model to load; then /ready is 503 only while draining or broken.
HEALTHCHECK --start-period=300s --interval=15s --timeout=5s --retries=3 \
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/ready', timeout=4)"]
# SIGTERM drains; give `docker stop --time` longer than --drain.
STOPSIGNAL SIGTERM
ENTRYPOINT ["tini", "--", "thinkgate", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD ["production", "--log-format", "json", "--drain-delay", "5"]
