# certdef without root, for CPUs; one with GPUs: --build-arg GPUS=all. docs/many-machines.md tells how to run it.
ARG PYTHON=3.12
FROM python:${PYTHON}-slim

# Where torch comes from. Unset, from pip's own index, whose build for Linux runs on CPUs and on CUDA alike. An index of
# PyTorch's with builds for CPUs alone makes the image some gigabytes smaller; one for a CUDA version picks that one.
ARG TORCH_INDEX=
# What NVIDIA's container runtime shows the container: void is nothing, all is every GPU.
ARG GPUS=void
ENV NVIDIA_VISIBLE_DEVICES=${GPUS} \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PYTHONUNBUFFERED=1 \
    OMP_WAIT_POLICY=PASSIVE \
    MLFLOW_DISABLE_TELEMETRY=true \
    GIT_PYTHON_REFRESH=quiet \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1

RUN useradd --uid 10001 --create-home certdef
RUN install --directory --owner=10001 --group=10001 /work

# torch by itself first: a change of the code does not download it again.
COPY constraints.txt /src/
RUN pip install --constraint /src/constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch torchvision

COPY setup.cfg pyproject.toml README.md LICENSE /src/
COPY certdef /src/certdef
COPY certify /src/certify
COPY surrogates /src/surrogates
RUN pip install --constraint /src/constraints.txt '/src[onnx]'

USER 10001:10001
WORKDIR /work
# A job ends; nothing listens.
HEALTHCHECK NONE
ENTRYPOINT ["certdef"]
CMD ["--help"]
