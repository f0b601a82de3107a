# The components, compiled once per version of their sources and shared by all instances of the user.

KUBERNETES=v1.35.4   # 1.35 is the last minor version whose kubelet runs on cgroup v1 and on Debian 12's containerd 1.6
PACKAGES=2900     # about so many are compiled
NAMES="etcd kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl"
GENERATED="k8s.io/api k8s.io/client-go/applyconfigurations k8s.io/client-go/kubernetes k8s.io/client-go/informers k8s.io/client-go/listers
  k8s.io/kubernetes/pkg/apis k8s.io/kubernetes/pkg/generated"

# The folder's name is the digest of all that goes into it.
components_path() {
  local key
  key=$(cd "$HERE" && cat components/{go.mod,go.sum,*/main.go} <(echo "$KUBERNETES $(uname -m)") | digest)
  echo "$CACHE/components-$key"
}

# Prints the folder of the compiled components; compiles what is not there. Two callers at once compile once, and a
# folder that exists is complete, because it gets its name last.
components() {
  local path
  path=$(components_path)
  if [ ! -d "$path" ]; then
    mkdir -p "$CACHE"
    ( flock 8
      [ -d "$path" ] || compile "$path" ) 8> "$CACHE/lock" >&2
  fi
  touch "$path"
  echo "$path"
}

compile() { # PATH
  local parts minor package stamp name
  command -v go > /dev/null || die "Go is missing: install Go 1.26 or newer (https://go.dev/dl)"
  say "compiling Kubernetes $KUBERNETES, CoreDNS and a volume provisioner into $1, once: about 5 minutes on 2 idle cores"
  rm -rf "$CACHE"/compiling.*   # of a build that was killed: we hold the lock, so no build writes there
  parts=$(mktemp -d "$CACHE/compiling.XXXXXX")
  # shellcheck disable=SC2064
  trap "rm -rf '$parts'" EXIT
  minor=${KUBERNETES#v1.} minor=${minor%%.*} package=k8s.io/component-base/version
  stamp="-X $package.gitVersion=$KUBERNETES -X $package.gitMajor=1 -X $package.gitMinor=$minor"
  go_build "$stamp" ./kubernetes ./coredns
  # By itself: it names a package in capitals whose name in lower case is in Kubernetes, and Go refuses both in one build.
  go_build "" github.com/rancher/local-path-provisioner
  for name in $NAMES; do ln -s kubernetes "$parts/$name"; done
  chmod 755 "$parts"
  mv -T "$parts" "$1"
  find "$CACHE" -maxdepth 1 -name 'components-*' -mtime +14 -exec rm -rf {} +   # not used for two weeks
}

# One module for all components, so that the packages they share are compiled once: three modules, each with a version of
# Kubernetes' libraries, took 1.4 times the processor time.
go_build() { # STAMP PACKAGE...
  local generated
  # No debugging information, which linking would drop anyway: a seventh less to compile. No inlining in generated code: with
  # both, a third less there.
  local -a flags=(-gcflags="all=-dwarf=false")
  for generated in $GENERATED; do flags+=(-gcflags="$generated/...=-dwarf=false -l"); done
  # -mod=readonly: a build never changes go.mod or go.sum in the checkout. -v: a line for each package, for the progress.
  (cd "$HERE/components" && CGO_ENABLED=0 GOFLAGS="" GOGC=${GOGC:-200} \
    go build -v -mod=readonly -trimpath "${flags[@]}" -ldflags "-s -w $1" -o "$parts/" "${@:2}" 8>&- 9>&- 2>&1) | compiled
}

# Turns Go's list of compiled packages into a line every 20 seconds; what is no name of a package is an error, and printed.
compiled() {
  local line packages=0 next=$((SECONDS + 20))
  while IFS= read -r line; do
    if [[ $line = *[!A-Za-z0-9./_~-]* ]]; then echo "$line"; continue; fi
    packages=$((packages + 1))
    [ $SECONDS -ge $next ] || continue
    next=$((SECONDS + 20))
    say "$packages of about $PACKAGES packages compiled"
  done
}
