# The serving image: no torch, no compiler, no root. The bundle is mounted at /bundle, REDIS_URL names Redis.
#
#   docker build -t glyphrec .                          ONNX Runtime for the CPU
#   docker build -t glyphrec --build-arg VARIANT=gpu .  ONNX Runtime for CUDA 13; run it with --gpus all
#   docker build -t glyphrec --build-arg VERSION=0.2.0 .  the version that the service reports; default 0.0

ARG VARIANT=cpu

FROM python:3.12-slim-bookworm AS base-cpu

# CUDA and cuDNN of the major versions that the onnxruntime-gpu of constraints.txt is built for.
FROM nvidia/cuda:13.0.2-cudnn-runtime-ubuntu24.04 AS base-gpu
# hadolint ignore=DL3008  # the release's own Python with its security updates; its minor version is fixed by Ubuntu 24.04
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

# hadolint ignore=DL3006  # one of the two stages above, whose tags are fixed
FROM base-${VARIANT} AS base
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ORT_DISABLE_TELEMETRY=1

FROM base AS build
ARG VARIANT
WORKDIR /src
COPY deploy/requirements-cpu.txt deploy/requirements-gpu.txt ./
# Only packages whose hash is in the lock are installed, including those that build our own wheel. `make lock` writes it.
RUN python3 -m venv /opt/glyphrec \
    && /opt/glyphrec/bin/pip install --no-cache-dir --require-hashes --requirement "requirements-${VARIANT}.txt"
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY service service
COPY model_export model_export
# The git folder is not sent to the builder, so the version is an argument.
ARG VERSION=0.0
RUN SETUPTOOLS_SCM_PRETEND_VERSION_FOR_GLYPHREC="${VERSION}" \
    /opt/glyphrec/bin/pip install --no-cache-dir --no-deps --no-build-isolation . \
    && /opt/glyphrec/bin/pip uninstall --yes setuptools setuptools-scm vcs-versioning

FROM base AS serve
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin glyphrec
COPY --from=build /opt/glyphrec /opt/glyphrec
ENV PATH=/opt/glyphrec/bin:$PATH \
    GLYPHREC_BUNDLE=/bundle \
    GLYPHREC_HOST=0.0.0.0 \
    GLYPHREC_PORT=8000
WORKDIR /tmp
USER 10001
EXPOSE 8000
# It asks where the environment lets the service listen: GLYPHREC_HOST, GLYPHREC_PORT or GLYPHREC_UNIX_SOCKET.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 CMD ["glyphrec", "health"]
ENTRYPOINT ["glyphrec"]
CMD ["serve"]
