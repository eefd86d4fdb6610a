# A server of one model over HTTP, without torch: examples/serving/onnx_asgi.py (docs/serving.md).
#
#   pip wheel --no-deps --wheel-dir dist .
#   docker build --build-arg MODEL=vit_b16_in1k --tag classifier .
#   docker run --read-only --publish 127.0.0.1:8000:8000 classifier

ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS export
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# The package states which versions it works with, and this stage is not part of the image.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" "torch>=2.7" "torchvision>=0.22"
COPY dist/*.whl /dist/
# hadolint ignore=DL3013
RUN set -- /dist/*.whl && pip install --no-cache-dir "$1[export]"
COPY dist/ /dist/
# A name, whose weights are downloaded unless dist/bundle has them, or a folder, such as /dist/name
ARG MODEL=regnety_nano_hashtags
ARG DTYPE=float32
ARG OFFLINE=
RUN mkdir /model && SWAG_MODELS_CACHE=/dist/bundle SWAG_MODELS_OFFLINE="$OFFLINE" \
    swag-models export "$MODEL" /model/model.onnx --dtype "$DTYPE"

FROM python:${PYTHON}-slim
ARG DEVICE=cpu
COPY examples/serving/ /app/
RUN pip install --no-cache-dir --requirement "/app/requirements-$DEVICE.txt"
COPY --from=export /dist/*.whl /app/
# The server needs few of the package's dependencies: they are in the requirements.
RUN pip install --no-cache-dir --no-deps /app/*.whl && useradd --uid 10001 server
COPY --from=export /model/ /model/
ENV DEVICE=${DEVICE} SWAG_MODELS_OFFLINE=1 HF_HUB_OFFLINE=1 ORT_DISABLE_TELEMETRY=1 \
    PYTHONDONTWRITEBYTECODE=1
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["python", "/app/health.py"]
ENTRYPOINT ["python", "/app/onnx_asgi.py", "/model/model.onnx", "--host", "0.0.0.0"]
