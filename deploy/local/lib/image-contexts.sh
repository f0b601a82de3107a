# What is in each image: context_of_NAME fills a folder that its Dockerfile copies from.

context_of_cluster_controller() { controller_context "$1" cluster-controller; }
context_of_backup_controller() { controller_context "$1" backup-controller; }
context_of_restore_controller() { controller_context "$1" restore-controller; }
context_of_tools() { # FOLDER
  [ -n "${TOOLS:-}" ] || die "the tools image needs TOOLS, the names of the binaries in it"
  # shellcheck disable=SC2086
  controller_context "$1" $TOOLS
}

controller_context() { # FOLDER BINARY...
  local binary
  cp -L /etc/ssl/certs/ca-certificates.crt "$1/"
  echo 'nonroot:x:65532:65532::/nonexistent:/sbin/nologin' > "$1/passwd"
  echo 'nonroot:x:65532:' > "$1/group"
  mkdir "$1/bin"
  for binary in "${@:2}"; do
    [ -x "$BINARIES/$binary" ] || die "no binary $BINARIES/$binary: build it first (cargo build --release)"
    ! dynamic "$BINARIES/$binary" || die "$BINARIES/$binary is not linked statically and would not start in an image of its own: build it without RUSTFLAGS of your own, which replace those of .cargo/config.toml"
    cp "$BINARIES/$binary" "$1/bin/"
  done
}

# A dynamic program names its loader.
dynamic() { LC_ALL=C grep -qa -m 1 -E '/lib(64)?/ld-linux[a-z0-9_-]*\.so' <(head -c 4096 "$1"); }

context_of_pause() {
  gcc -Os -static -s -o "$1/pause" "$DEPLOY/images/pause/pause.c"
}

context_of_busybox() {
  mkdir "$1/rootfs"
  busybox_into "$1/rootfs"
}

# Debian's static busybox and a link for each of its commands.
busybox_into() { # ROOT
  local busybox applet
  busybox=$(dpkg -L busybox-static 2> /dev/null | grep -E '/bin/busybox$' | head -n 1)
  [ -x "$busybox" ] || die "busybox-static is missing: local-kubernetes packages"
  mkdir -p "$1/bin" "$1/etc" "$1/tmp"
  chmod 1777 "$1/tmp"
  cp -L "$busybox" "$1/bin/busybox"
  for applet in $("$busybox" --list); do [ "$applet" = busybox ] || ln -s busybox "$1/bin/$applet"; done
  printf '%s\n' 'root:x:0:0::/:/bin/sh' 'redis:x:999:999::/data:/bin/sh' 'nonroot:x:65532:65532::/tmp:/bin/sh' > "$1/etc/passwd"
  printf '%s\n' 'root:x:0:' 'redis:x:999:' 'nonroot:x:65532:' > "$1/etc/group"
}

redis_version() { redis-server --version | sed -n 's/.* v=\([0-9.]*\) .*/\1/p'; }

context_of_redis() {
  local root=$1/rootfs program library
  for program in redis-server redis-cli; do
    command -v $program > /dev/null || die "$program is missing: local-kubernetes packages"
  done
  mkdir -p "$root/data" "$root/usr/bin"
  busybox_into "$root"
  for program in redis-server redis-cli; do
    cp -L "$(command -v $program)" "$root/usr/bin/"
    # Libraries at the paths the loader looks at, and the loader at the path the program names.
    ldd "$(command -v $program)" | grep -o '/[^ ]*' | while read -r library; do
      mkdir -p "$root$(dirname "$library")"
      cp -L "$library" "$root$library"
    done
  done
  ln -s redis-server "$root/usr/bin/redis-check-rdb"
  ln -s redis-server "$root/usr/bin/redis-check-aof"
  chmod 1777 "$root/data"
}

context_of_kubectl() {
  mkdir "$1/rootfs"
  busybox_into "$1/rootfs"
  cp -L "$(components)/kubectl" "$1/rootfs/bin/kubectl"
}
