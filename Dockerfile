# The program with ONNX Runtime and the examples. docker-compose.yml builds it; alone: docker build --tag aefusion .

FROM rust:1.95-bookworm AS build
# No versions of packages (DL3008), here and below: Debian's mirrors keep only the newest of each, which has its fixes.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libssl-dev pkg-config python3-pip zlib1g-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY . .
# Caches are no part of an image, so the program is copied out of target/ while that is there.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/root/.cache/pip \
    --mount=type=cache,target=/build/target,sharing=locked \
    cargo build --release --locked --bin aefusion \
    && cp target/release/aefusion /usr/local/bin/ \
    && cargo xtask setup

FROM debian:bookworm-slim
# A new volume takes over the owner of the folder that it is mounted at.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates libssl3 zlib1g \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 aefusion \
    && useradd --uid 10001 --gid 10001 --no-log-init --home-dir /var/lib/aefusion --shell /usr/sbin/nologin aefusion \
    && install --directory --owner=10001 --group=10001 /var/lib/aefusion /var/lib/aefusion/models
COPY --from=build /build/.onnxruntime/lib/libonnxruntime.so /usr/local/lib/
COPY --from=build /build/.onnxruntime/LICENSE /build/.onnxruntime/ThirdPartyNotices.txt /usr/share/doc/onnxruntime/
# uPlot draws the page of `aefusion run`.
COPY LICENSE src/stream/page/uPlot.LICENSE /usr/share/doc/aefusion/
COPY examples /usr/share/aefusion/examples
COPY --from=build /usr/local/bin/aefusion /usr/local/bin/
ENV ORT_DYLIB_PATH=/usr/local/lib/libonnxruntime.so \
    AEFUSION_MODELS=/var/lib/aefusion/models
WORKDIR /usr/share/aefusion
# In numbers, so that Kubernetes can tell that it is not root.
USER 10001:10001
STOPSIGNAL SIGTERM
ENTRYPOINT ["aefusion"]
