# Two images: `train` runs the pipeline's components and the command line, `serve` answers. `test` is `train` with its tests.
#
#   docker build --target serve -t conlst-serve --build-arg BASE=python:3.11-slim-bookworm@sha256:<digest> .
#
# BASE has no default: it is python:3.11-slim-bookworm by the digest that `docker buildx imagetools inspect` shows; a tag alone
# changes from one build to the next. A private index or CA is mounted for the build, never copied in.
ARG BASE

FROM ${BASE} AS base
# onnxruntime sends telemetry from version 1.29 on unless this is set before it is loaded
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 ORT_DISABLE_TELEMETRY=1 PATH=/opt/venv/bin:$PATH
# by number in USER, so that Kubernetes can see that it is not root; pipelines/cluster.py names the same one
RUN groupadd --gid 10001 conlst \
    && useradd --uid 10001 --gid 10001 --create-home --no-log-init conlst \
    && python3 -m venv /opt/venv
WORKDIR /app

FROM base AS train
COPY requirements.lock torch.lock ./
RUN pip install --no-cache-dir --no-deps --require-hashes -r requirements.lock \
    && pip install --no-cache-dir -r torch.lock
COPY pyproject.toml README.md LICENSE ./
COPY configs configs
COPY conlst conlst
COPY components components
COPY pipelines pipelines
COPY serving serving
# editable, as `make` installs it: the profiles are read from /app/configs
RUN pip install --no-cache-dir --no-deps --no-build-isolation --editable .
USER 10001:10001
CMD ["conlst", "--help"]

FROM train AS test
COPY . .
CMD ["python", "-m", "pytest", "-p", "no:cacheprovider", "-m", "not slow"]

FROM base AS serve
COPY serving/requirements.lock serving/
RUN pip install --no-cache-dir --no-deps --require-hashes -r serving/requirements.lock
COPY conlst/__init__.py conlst/
COPY conlst/contract conlst/contract
COPY conlst/runtime conlst/runtime
COPY conlst/platform conlst/platform
COPY serving serving
# the home is read-only in a cluster; BentoML makes its folder wherever it is started
ENV BENTOML_HOME=/tmp/bentoml
USER 10001:10001
EXPOSE 3000
ENTRYPOINT ["python", "-m", "serving"]
CMD ["--host", "0.0.0.0", "--port", "3000"]
