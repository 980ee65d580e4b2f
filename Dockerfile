# The command line:     docker build -t retro-db .
# Workers of Dataflow:  docker build -t retro-db-dataflow --target dataflow .
# Workers elsewhere:    docker build -t retro-db-worker --target worker .
# For GPUs:             the same with --build-arg DEVICE=cuda
# With an encoder in the folder /models/encoder:
#   --build-arg MODEL=bert-base-uncased     from the hub, or
#   --build-context model=FOLDER            from a folder of this machine, in place of the stage `model`

ARG DEVICE=cpu

FROM python:3.11-slim-bookworm AS tools
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/venv
ENV PATH="/opt/venv/bin:$PATH"
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY retro_db retro_db
COPY pipelines pipelines
COPY schemas schemas

# A build of torch without CUDA is 4 GB smaller; its version counts as the one that is pinned.
FROM tools AS venv-cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --constraint constraints.txt --extra-index-url "$TORCH_INDEX" '.[dataflow]'

FROM tools AS venv-cuda
RUN pip install --constraint constraints.txt '.[dataflow]'

FROM venv-cpu AS download
ARG MODEL=
ARG MODEL_REVISION=main
RUN mkdir /encoder \
    && if [ -n "$MODEL" ]; then \
        hf download "$MODEL" --revision "$MODEL_REVISION" --local-dir /encoder \
            --include '*.json' --include '*.txt' --include '*.safetensors' \
        && rm -rf /encoder/.cache; \
    fi

FROM scratch AS model
COPY --from=download /encoder /

FROM python:3.11-slim-bookworm AS base-cpu
COPY --from=venv-cpu /opt/venv /opt/venv

FROM python:3.11-slim-bookworm AS base-cuda
COPY --from=venv-cuda /opt/venv /opt/venv
# torch brings CUDA itself; the driver's libraries are mounted here.
ENV LD_LIBRARY_PATH=/usr/local/nvidia/lib64 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    NVIDIA_VISIBLE_DEVICES=all

# A stage of this file, which the linter takes for an image without a tag.
# hadolint ignore=DL3006
FROM base-${DEVICE} AS base
COPY --from=model / /models/encoder
ENV PATH="/opt/venv/bin:$PATH" \
    PYTHONUNBUFFERED=1
RUN useradd --create-home --uid 1000 retro \
    && install --directory --owner=retro --group=retro /work

FROM base AS boot
# Of the same version as apache-beam in constraints.txt.
COPY --from=apache/beam_python3.11_sdk:2.77.0 /opt/apache/beam /opt/apache/beam
# Otherwise boot makes a virtual environment of its own, which does not see /opt/venv.
ENV RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT=1
ENTRYPOINT ["/opt/apache/beam/boot"]

# Workers and the flex template's launcher in one. Of all images this alone runs as root: Dataflow mounts
# folders of root's into its workers, and its launcher writes below /var/log
# (https://github.com/GoogleCloudPlatform/python-docs-samples/issues/13213).
FROM boot AS dataflow
COPY --from=gcr.io/dataflow-templates-base/python311-template-launcher-base:20230622_RC00 \
    /opt/google/dataflow/python_template_launcher /opt/google/dataflow/python_template_launcher
COPY pipelines/dataflow/launch.py /template/launch.py
ENV FLEX_TEMPLATE_PYTHON_PY_FILE=/template/launch.py

FROM boot AS worker
USER 1000:1000
WORKDIR /work

FROM base AS runtime
USER 1000:1000
WORKDIR /work
ENTRYPOINT ["retro-db"]
CMD ["--help"]
