# The demo in a container. It writes runs/demo/report.html:
#
#   docker build -t doratune .
#   mkdir -p runs && docker run --rm --user "$(id -u)" -v "$PWD/runs:/runs" doratune
#
# On an NVIDIA GPU, from a base image that has CUDA and a C compiler for Triton:
#
#   docker build -t doratune --build-arg BASE=nvidia/cuda:12.8.1-devel-ubuntu24.04 .
#   mkdir -p runs && docker run --rm --gpus all --user "$(id -u)" -v "$PWD/runs:/runs" doratune
#
# Other verbs follow the image's name: docker run --rm doratune doratune env
#
# Checked with hadolint; it has not been built where it was written.
ARG BASE=python:3.12-slim-bookworm
FROM ${BASE}

# Pass --build-arg PIP_INDEX_URL=... (or PIP_EXTRA_INDEX_URL) for a mirror, or for PyTorch built without CUDA.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL

# A CUDA image has no Python. Its version is the image's.
# hadolint ignore=DL3008
RUN command -v python3 || (apt-get update \
    && apt-get install --yes --no-install-recommends python3-venv python3-dev \
    && rm -rf /var/lib/apt/lists/*)

RUN python3 -m venv /opt/doratune && mkdir --mode=777 /runs
ENV PATH=/opt/doratune/bin:$PATH

WORKDIR /opt/source
COPY . .
RUN pip install --no-cache-dir -c constraints.txt '.[cli]'

# Any user may run it: caches go to a folder that all may write to.
ENV HOME=/tmp LOGNAME=doratune
USER 1000
WORKDIR /runs
CMD ["doratune", "compare", "--preset", "demo", "--output", "demo", "--overwrite"]
