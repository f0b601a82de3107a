# The components, compiled once per version of their sources and shared by all instances of the user.

KUBERNETES=v1.35.4   # 1.35 is the last minor version whose kubelet runs on cgroup v1 and on Debian 12's containerd 1.6
NAMES="etcd kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl"

# The folder's name is the digest of all that goes into it.
components_path() {
  local key
  key=$(cd "$HERE" && cat control-plane/{main.go,go.mod,go.sum} dns/{main.go,go.mod,go.sum} provisioner/{go.mod,go.sum} <(echo "$KUBERNETES $(uname -m)") | digest)
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
  local parts minor stamp
  command -v go > /dev/null || die "Go is missing: install Go 1.26 or newer (https://go.dev/dl)"
  say "compiling Kubernetes $KUBERNETES into $1 (about 5 minutes on 2 cores the first time)"
  rm -rf "$CACHE"/compiling.*   # of a build that was killed: we hold the lock, so no build writes there
  parts=$(mktemp -d "$CACHE/compiling.XXXXXX")
  # shellcheck disable=SC2064
  trap "rm -rf '$parts'" EXIT
  minor=${KUBERNETES#v1.} minor=${minor%%.*}
  local package=k8s.io/component-base/version
  stamp="-X $package.gitVersion=$KUBERNETES -X $package.gitMajor=1 -X $package.gitMinor=$minor"
  go_build control-plane kubernetes "$stamp" .
  go_build dns coredns "" .
  go_build provisioner local-path-provisioner "" github.com/rancher/local-path-provisioner
  for name in $NAMES; do ln -s kubernetes "$parts/$name"; done
  chmod 755 "$parts"
  mv -T "$parts" "$1"
  find "$CACHE" -maxdepth 1 -name 'components-*' -mtime +14 -exec rm -rf {} +   # not used for two weeks
}

go_build() { # MODULE OUTPUT STAMP PACKAGE
  # -mod=readonly: a build never changes go.mod or go.sum in the checkout.
  (cd "$HERE/$1" && CGO_ENABLED=0 GOFLAGS="" go build -mod=readonly -trimpath -ldflags "-s -w $3" -o "$parts/$2" "$4" 8>&- 9>&-)
}
