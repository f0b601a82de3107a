# Debian packages the local cluster and the tests are made of.

# COMMAND PACKAGE: the package is missing where the command is.
REQUIRED_COMMANDS="
containerd containerd
runc runc
iptables iptables
conntrack conntrack
ip iproute2
sysctl procps
nsenter util-linux
openssl openssl
redis-server redis-server
redis-cli redis-tools
gcc gcc
make make
"
# More lines of that kind, for what not every command needs.
MORE_COMMANDS=${MORE_COMMANDS:-}

missing_packages() {
  local command package
  while read -r command package; do
    [ -z "$command" ] || command -v "$command" > /dev/null || echo "$package"
  done <<< "$REQUIRED_COMMANDS$MORE_COMMANDS"
  [ -x /usr/lib/cni/bridge ] || echo containernetworking-plugins
  [ -s /etc/ssl/certs/ca-certificates.crt ] || echo ca-certificates
  [ -e /usr/lib/x86_64-linux-gnu/libc.a ] || [ -e /usr/lib/aarch64-linux-gnu/libc.a ] || echo libc6-dev
  # /bin/busybox may be the dynamic one, which does not run in an image of its own.
  [ "$(dpkg-query -W -f '${db:Status-Status}' busybox-static 2> /dev/null)" = installed ] || echo busybox-static
  command -v buildah > /dev/null || docker info > /dev/null 2>&1 || echo buildah
}

packages() {
  local missing
  command -v go > /dev/null || die "Go is missing: install Go 1.26 or newer (https://go.dev/dl) to compile the Kubernetes components"
  missing=$(missing_packages | sort -u | tr '\n' ' ')
  [ -n "$missing" ] || return 0
  command -v apt-get > /dev/null || die "missing packages (Debian's names): $missing"
  [ "$(id -u)" = 0 ] || die "missing packages; install them with: sudo apt-get install --no-install-recommends $missing"
  say "installing $missing"
  # shellcheck disable=SC2086
  install_without_services $missing
  missing=$(missing_packages | sort -u | tr '\n' ' ')
  [ -z "$missing" ] || die "still missing after the installation: $missing"
}

# Debian starts a service as soon as its package is installed, and a redis-server on port 6379 occupies the port.
# policy-rc.d (101: forbidden) is what a container image uses to prevent that; ours is there for the installation only.
install_without_services() {
  local policy=/usr/sbin/policy-rc.d ours=no package
  local -a services=()
  for package in redis-server containerd; do [[ " $* " != *" $package "* ]] || services+=("$package"); done
  if [ ! -e $policy ]; then
    ours=yes
    printf '#!/bin/sh\nexit 101\n' > $policy
    chmod 755 $policy
  fi
  local status=0 log
  log=$(mktemp)
  { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "$@"; } \
    > "$log" 2>&1 < /dev/null || status=$?
  [ $ours = no ] || rm -f $policy
  [ $status = 0 ] || { tail -n 20 "$log" >&2; rm -f "$log"; die "apt-get could not install: $*"; }
  rm -f "$log"
  # Nor at the next boot. A service that was there before is left as it was.
  if [ ${#services[@]} -gt 0 ] && command -v systemctl > /dev/null; then systemctl --quiet disable "${services[@]}" 2> /dev/null || true; fi
}
