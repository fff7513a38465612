# The engine's image. scripts/build-image prepares the build context: `site/` (the engine's packages, installed by pip on
# the host, so that the build needs no network) and `code/` (spec, formats and engine of this package, nothing else).
ARG BASE=python:3.11-slim
FROM ${BASE}
ARG VERSION=unknown
ARG REVISION=unknown
ARG VARIANT=cpu
LABEL org.opencontainers.image.title="mask2former engine" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.mask2former-mcp.variant="${VARIANT}"
COPY site /opt/mask2former/site
COPY code /opt/mask2former/code
COPY mask2former /usr/local/bin/mask2former
ENV PYTHONPATH=/opt/mask2former/code:/opt/mask2former/site \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=void \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
# The host's Python chose the packages: a base with another one fails here and not in somebody's training.
RUN ["mask2former", "--help"]
RUN ["python3", "-c", "import mask2former_mcp.engine.train, mask2former_mcp.engine.evaluate, mask2former_mcp.engine.inference, mask2former_mcp.engine.export, onnxruntime, tensorboard"]
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["mask2former"]
CMD ["--help"]
