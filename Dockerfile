# The service, `gaia-fast serve`, on the CPU:
#   docker build -t gaia-fast --build-arg PIP_EXTRA_INDEX_URL=URL .    # of PyTorch's index of builds for CPUs
#   docker run -p 8000:8000 --shm-size 1g gaia-fast     # the package's own digits network; http://localhost:8000
#   docker run -p 8000:8000 --shm-size 1g -v ./model:/model:ro gaia-fast serve --host 0.0.0.0 \
#     --arch resnet34 --weights /model/weights.safetensors --preset imagenet --detector /model/detector.gaia

FROM python:3.12-slim-bookworm AS build
# Versions are Debian's own: it keeps the newest of its release alone.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY pyproject.toml setup.py MANIFEST.in CMakeLists.txt README.md LICENSE ./
COPY cmake cmake
COPY csrc csrc
COPY gaia_fast gaia_fast
ENV GAIA_FAST_CUDA=off
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim-bookworm
# The one that the extension is linked with; PyTorch brings its own and is loaded first.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
# Without one of builds for CPUs, PyTorch brings gigabytes of CUDA libraries along.
ARG PIP_EXTRA_INDEX_URL
COPY constraints.txt /tmp/constraints.txt
RUN pip install --no-cache-dir -c /tmp/constraints.txt torch
COPY --from=build /wheels /tmp/wheels
RUN pip install --no-cache-dir -c /tmp/constraints.txt "$(echo /tmp/wheels/gaia_fast-*.whl)[serve,onnx]"
RUN useradd --create-home --uid 1000 gaia
USER 1000
WORKDIR /home/gaia
# Threads that spin while they wait slow each other down.
ENV OMP_WAIT_POLICY=PASSIVE PYTHONUNBUFFERED=1
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
ENTRYPOINT ["gaia-fast"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8000", "--arch", "digits_resnet", "--preset", "digits"]
