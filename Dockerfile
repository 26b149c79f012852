# One image for every node: the two static binaries and nothing else.
#   docker build -t ghcr.io/fairlead/fairlead:0.1.0 .
FROM rust:1.95-bookworm AS build
WORKDIR /source
COPY . .
RUN cargo build --release --locked --package cli --package plugins \
 && mkdir /image && cp target/*/release/fairlead target/*/release/fairlead-cni /image/

FROM scratch
COPY --from=build /image/ /
ENTRYPOINT ["/fairlead"]
