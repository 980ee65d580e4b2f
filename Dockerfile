# The command line:     docker build -t retro-db .
# Workers for Beam:     docker build -t retro-db-worker --target worker .

FROM python:3.11-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
# pip reads this one from its environment: name an index with CPU builds of torch to leave out CUDA.
ARG PIP_EXTRA_INDEX_URL
RUN python -m venv /opt/venv
ENV PATH="/opt/venv/bin:$PATH"
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY retro_db retro_db
COPY pipelines pipelines
COPY schemas schemas
RUN pip install --constraint constraints.txt '.[build]'

FROM python:3.11-slim AS base
COPY --from=build /opt/venv /opt/venv
ENV PATH="/opt/venv/bin:$PATH" \
    PYTHONUNBUFFERED=1

FROM base AS worker
# Of the same version as apache-beam in constraints.txt.
COPY --from=apache/beam_python3.11_sdk:2.77.0 /opt/apache/beam /opt/apache/beam
# Otherwise boot makes a virtual environment of its own, which does not see /opt/venv.
ENV RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT=1
ENTRYPOINT ["/opt/apache/beam/boot"]

FROM base AS runtime
RUN useradd --create-home --uid 1000 retro \
    && install --directory --owner=retro --group=retro /work
USER 1000:1000
WORKDIR /work
ENTRYPOINT ["retro-db"]
CMD ["--help"]
