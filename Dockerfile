# An image with the program, ONNX Runtime and the examples. docker-compose.yml builds it. To build it alone:
# docker build --tag aefusion .

FROM rust:1.95-bookworm AS build
# Package versions are not pinned (DL3008), here and below. Debian's mirrors keep only the newest version, with its fixes.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libssl-dev pkg-config python3-pip zlib1g-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY . .
# Cache mounts are not part of the image. So the program is copied out of target/ in the same step.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/root/.cache/pip \
    --mount=type=cache,target=/build/target,sharing=locked \
    cargo build --release --locked --bin aefusion \
    && cp target/release/aefusion /usr/local/bin/ \
    && cargo xtask setup

FROM debian:bookworm-slim
# The folder of the model store belongs to the user of the program. A new volume takes the owner of its mount point.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates libssl3 zlib1g \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 aefusion \
    && useradd --uid 10001 --gid 10001 --no-log-init --home-dir /var/lib/aefusion --shell /usr/sbin/nologin aefusion \
    && install --directory --owner=10001 --group=10001 /var/lib/aefusion /var/lib/aefusion/models
COPY --from=build /build/.onnxruntime/lib/libonnxruntime.so /usr/local/lib/
COPY --from=build /build/.onnxruntime/LICENSE /build/.onnxruntime/ThirdPartyNotices.txt /usr/share/doc/onnxruntime/
# The page of `aefusion run` contains uPlot.
COPY LICENSE src/cli/run/page/uPlot.LICENSE /usr/share/doc/aefusion/
COPY examples /usr/share/aefusion/examples
COPY --from=build /usr/local/bin/aefusion /usr/local/bin/
ENV ORT_DYLIB_PATH=/usr/local/lib/libonnxruntime.so \
    AEFUSION_MODELS=/var/lib/aefusion/models
WORKDIR /usr/share/aefusion
# Numbers instead of names: Kubernetes can then check that the user is not root.
USER 10001:10001
STOPSIGNAL SIGTERM
ENTRYPOINT ["aefusion"]
