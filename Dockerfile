# The serving image: no torch, no compiler, no pip, no root. The bundle is mounted, REDIS_URL names Redis.
#
#   docker build -t glyphrec .                            ONNX Runtime for the CPU
#   docker build -t glyphrec --build-arg VARIANT=gpu \
#     --build-arg BASE=nvidia/cuda:13.0.2-cudnn-runtime-ubuntu24.04 .   for CUDA 13; run it with --gpus all
#   docker build -t glyphrec --build-arg VERSION=0.2.0 --build-arg REVISION=$(git rev-parse HEAD) .
#
# buildah and podman build it with the same arguments. docs/deployment.md has the command that runs it.

# Debian or Ubuntu with Python 3.11 to 3.14, or without any: then the distribution's own is installed.
ARG BASE=python:3.12-slim-bookworm

FROM ${BASE} AS base
# hadolint ignore=DL3008  # the release's own Python with its security updates
RUN command -v python3 >/dev/null || { apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*; }
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ORT_DISABLE_TELEMETRY=1

FROM base AS build
ARG VARIANT=cpu
WORKDIR /src
COPY deploy/requirements-cpu.txt deploy/requirements-gpu.txt ./
# Only packages whose hash is in the lock are installed, including those that build our own wheel. `make lock` writes it.
RUN if [ "${VARIANT}" = gpu ] && ! ls -d /usr/local/cuda* >/dev/null 2>&1; then \
      echo "VARIANT=gpu needs a BASE with CUDA and cuDNN; the first lines of the Dockerfile name one." >&2; exit 1; \
    fi \
    && python3 -m venv /opt/glyphrec \
    && /opt/glyphrec/bin/pip install --no-cache-dir --require-hashes --requirement "requirements-${VARIANT}.txt"
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY service service
# The git folder is not sent to the builder, so the version is an argument. What only building needs goes, and so do the
# tests of libraries and the tools of ONNX Runtime that change models. Its library for C++ is not what Python loads.
ARG VERSION=0.0
RUN SETUPTOOLS_SCM_PRETEND_VERSION_FOR_GLYPHREC="${VERSION}" \
    /opt/glyphrec/bin/pip install --no-cache-dir --no-deps --no-build-isolation . \
    && /opt/glyphrec/bin/pip uninstall --yes setuptools setuptools-scm vcs-versioning pip \
    && find /opt/glyphrec -type d \( -name tests -o -path '*/onnxruntime/transformers' -o -path '*/onnxruntime/tools' \
      -o -path '*/onnxruntime/quantization' -o -path '*/onnxruntime/datasets' \) -prune -exec rm -rf {} + \
    && if [ "${VARIANT}" = cpu ]; then find /opt/glyphrec -name 'libonnxruntime.so*' -delete; fi

FROM base AS serve
ARG VERSION=0.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="glyphrec" \
    org.opencontainers.image.description="Online recommendations from items read as pictures" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"
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
