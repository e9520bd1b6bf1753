# A bundle to try the service with. It is trained on real purchases while the image is built, which takes minutes, and
# `docker compose run --rm --build demo` copies it to the folder of bundles. Serving needs none of this.
#
# TORCH_INDEX  an --index-url with CPU builds of torch (see PyTorch's install page); without it, pip's own index sends some
#              GB of CUDA libraries, which are not needed and do not stay in the image
# CONFIG       the configuration of the export; tiny is trained faster and recommends worse

# As in the Dockerfile.
ARG BASE=python:3.12-slim-bookworm

FROM ${BASE} AS base
# hadolint ignore=DL3008  # the release's own Python with its security updates
RUN command -v python3 >/dev/null || { apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*; }

FROM base AS train
ARG TORCH_INDEX=""
ARG CONFIG=demo
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./
COPY service service
COPY model_export model_export
RUN python3 -m venv /opt/train \
    && if [ -n "${TORCH_INDEX}" ]; then \
      /opt/train/bin/pip install --no-cache-dir --constraint constraints.txt --index-url "${TORCH_INDEX}" torch; \
    fi \
    && SETUPTOOLS_SCM_PRETEND_VERSION_FOR_GLYPHREC=0.0 \
    /opt/train/bin/pip install --no-cache-dir --constraint constraints.txt '.[cpu,export]' \
    && /opt/train/bin/glyphrec export --data completejourney --config "${CONFIG}" --out /demo --cache /tmp/cache \
    && chmod -R a+rX /demo

FROM base
COPY --from=train /demo /demo
COPY deploy/copy_demo.sh /copy_demo.sh
CMD ["/bin/sh", "/copy_demo.sh", "/demo", "/bundles"]
