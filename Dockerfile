# `train` runs the pipeline's components and the command line, `serve` answers, `mlflow` is the server of infra/base. `test` is
# `train` with its tests.
#
#   docker build --target serve -t conlst-serve --build-arg BASE=python:3.11-slim-bookworm@sha256:<digest> \
#     --build-arg VERSION=<conlst's> --build-arg COMMIT="$(git rev-parse HEAD)" \
#     --build-arg LOCK="$(sha256sum serving/requirements.lock | cut -c -64)" .
#
# The lock of `train` and `test` is requirements.lock, that of `mlflow` is infra/mlflow.lock. No argument has a default, and a wrong one is refused (infra/stamp.py). BASE
# is python:3.11-slim-bookworm by the digest that `docker buildx imagetools inspect` shows; a tag alone changes from one build to
# the next. A private index or CA is mounted for the build, never copied in; pip's cache lies in a mount too.
#
# Each image lists its Python packages in /app/sbom.cdx.json (CycloneDX). What the base's distribution installed is its own to list.
ARG BASE

FROM ${BASE} AS base
# onnxruntime sends telemetry from version 1.29 on unless this is set before it is loaded
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 ORT_DISABLE_TELEMETRY=1 PATH=/opt/venv/bin:$PATH
# by number in USER, so that Kubernetes can see that it is not root; pipelines/cluster.py names the same one
RUN groupadd --gid 10001 conlst \
    && useradd --uid 10001 --gid 10001 --create-home --no-log-init conlst \
    && python3 -m venv /opt/venv
WORKDIR /app

# what lists an image's packages, in no image itself
FROM base AS sbom
COPY infra/sbom.lock ./
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv /opt/sbom \
    && /opt/sbom/bin/pip install --no-deps --require-hashes -r sbom.lock

FROM base AS train-packages
COPY requirements.lock torch.lock ./
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --no-deps --require-hashes -r requirements.lock \
    && pip install -r torch.lock

FROM train-packages AS train-list
COPY --from=sbom /opt/sbom /opt/sbom
RUN /opt/sbom/bin/cyclonedx-py environment --output-file sbom.cdx.json /opt/venv/bin/python

FROM train-packages AS train
COPY pyproject.toml README.md LICENSE ./
COPY configs configs
COPY conlst conlst
COPY components components
COPY pipelines pipelines
COPY serving serving
# editable, as `make` installs it: the profiles are read from /app/configs
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --no-deps --no-build-isolation --editable .
COPY --from=train-list /app/sbom.cdx.json ./
ARG BASE VERSION COMMIT LOCK
# a checkout's own permissions may shut other users out
RUN --mount=type=bind,source=infra/stamp.py,target=/mnt/stamp.py \
    python /mnt/stamp.py requirements.lock \
    && chmod -R a+rX .
LABEL org.opencontainers.image.title="conlst train" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${COMMIT}" \
      org.opencontainers.image.base.name="${BASE}" \
      conlst.lock.sha256="${LOCK}"
ENV CONLST_COMMIT=${COMMIT}
USER 10001:10001
CMD ["conlst", "--help"]

FROM train AS test
COPY --chown=10001:10001 . .
LABEL org.opencontainers.image.title="conlst test"
# the science, the contract, data and serving. The others read parts of the checkout that no image needs, or compile every pipeline
# again, which would take longer than these
CMD ["python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow and not machine", \
     "tests/test_labels.py", "tests/test_losses.py", "tests/test_complementary.py", "tests/test_mixup.py", \
     "tests/test_thresholds.py", "tests/test_metrics.py", "tests/test_gate.py", "tests/test_masking.py", \
     "tests/test_substitution.py", "tests/test_alignment.py", "tests/test_config.py", "tests/test_artifacts.py", \
     "tests/test_objects.py", "tests/test_rows.py", "tests/test_pairs.py", "tests/test_tokens.py", "tests/test_sources.py", \
     "tests/test_source.py", "tests/test_batching.py", "tests/test_starter.py", "tests/test_serving.py", \
     "tests/test_serving_models.py", "tests/test_runtime.py", "tests/test_runtime_tokens.py"]

FROM base AS serve-packages
COPY serving/requirements.lock serving/
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --no-deps --require-hashes -r serving/requirements.lock

FROM serve-packages AS serve-list
COPY --from=sbom /opt/sbom /opt/sbom
RUN /opt/sbom/bin/cyclonedx-py environment --output-file sbom.cdx.json /opt/venv/bin/python

FROM serve-packages AS serve
COPY LICENSE ./
COPY conlst/__init__.py conlst/
COPY conlst/contract conlst/contract
COPY conlst/runtime conlst/runtime
COPY conlst/platform conlst/platform
COPY serving serving
COPY --from=serve-list /app/sbom.cdx.json ./
ARG BASE VERSION COMMIT LOCK
# a checkout's own permissions may shut other users out
RUN --mount=type=bind,source=infra/stamp.py,target=/mnt/stamp.py \
    python /mnt/stamp.py serving/requirements.lock \
    && chmod -R a+rX .
LABEL org.opencontainers.image.title="conlst serve" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${COMMIT}" \
      org.opencontainers.image.base.name="${BASE}" \
      conlst.lock.sha256="${LOCK}"
# the home is read-only in a cluster; BentoML makes its folder wherever it is started
ENV BENTOML_HOME=/tmp/bentoml
USER 10001:10001
EXPOSE 3000
ENTRYPOINT ["python", "-m", "serving"]
CMD ["--host", "0.0.0.0", "--port", "3000"]

FROM base AS mlflow-packages
COPY infra/mlflow.lock infra/
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --no-deps --require-hashes -r infra/mlflow.lock

FROM mlflow-packages AS mlflow-list
COPY --from=sbom /opt/sbom /opt/sbom
RUN /opt/sbom/bin/cyclonedx-py environment --output-file sbom.cdx.json /opt/venv/bin/python

FROM mlflow-packages AS mlflow
COPY LICENSE ./
# the version that it was built with
COPY conlst/__init__.py conlst/
COPY --from=mlflow-list /app/sbom.cdx.json ./
ARG BASE VERSION COMMIT LOCK
RUN --mount=type=bind,source=infra/stamp.py,target=/mnt/stamp.py \
    python /mnt/stamp.py infra/mlflow.lock \
    && chmod -R a+rX .
LABEL org.opencontainers.image.title="conlst mlflow" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${COMMIT}" \
      org.opencontainers.image.base.name="${BASE}" \
      conlst.lock.sha256="${LOCK}"
USER 10001:10001
EXPOSE 5000
# how it is started stands in infra/base/mlflow.yaml
CMD ["mlflow", "--version"]
