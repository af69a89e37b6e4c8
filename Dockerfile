# The whole of Hawser in an image: one static binary, nobody's shell, nobody's root.
# `cargo xtask image` builds it; by hand, with the binary beside this file:
#   buildah build --format docker --build-arg BINARY=hawser --tag hawser .
FROM scratch
ARG BINARY=hawser
# The folder is made here because nothing in the image could make it for this user.
COPY --chown=65532:65532 --chmod=0700 data /var/lib/hawser
COPY --chmod=0755 ${BINARY} /usr/bin/hawser
USER 65532:65532
VOLUME /var/lib/hawser
# The mesh, servers, HTTP API and DNS; the last two listen on loopback unless told otherwise.
EXPOSE 21000-21255 8300 8500 8600/udp 8600
HEALTHCHECK --interval=5s --timeout=4s --start-period=60s --retries=3 \
  CMD ["/usr/bin/hawser", "health"]
ENTRYPOINT ["/usr/bin/hawser"]
CMD ["agent"]
