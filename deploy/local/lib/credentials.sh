# Keys, certificates, tokens and kubeconfigs. Each start makes new ones.

# credentials FOLDER ADDRESS PORT: a certificate authority, the API server's certificate and its key for service accounts.
credentials() {
  local pki=$1/pki
  mkdir -p "$pki"
  SERVER=https://$2:$3
  ec_key "$pki/ca.key"
  openssl req -x509 -new -key "$pki/ca.key" -days 3650 -subj /CN=redis-operator-local -out "$pki/ca.crt" 2> /dev/null
  ec_key "$pki/sa.key"
  openssl ec -in "$pki/sa.key" -pubout -out "$pki/sa.pub" 2> /dev/null
  certificate "$pki" apiserver kube-apiserver "IP:$2,IP:127.0.0.1${4:+,IP:$4},DNS:kubernetes.default.svc,DNS:kubernetes.default,DNS:kubernetes,DNS:localhost"
  certificate "$pki" kubelet-client kube-apiserver-kubelet-client ""
  : > "$pki/tokens.csv"
}

ec_key() { openssl ecparam -genkey -name prime256v1 -noout -out "$1" 2> /dev/null; }

certificate() { # PKI NAME COMMON_NAME ALTERNATIVE_NAMES
  ec_key "$1/$2.key"
  openssl req -new -key "$1/$2.key" -subj "/CN=$3" 2> /dev/null |
    openssl x509 -req -CA "$1/ca.crt" -CAkey "$1/ca.key" -set_serial "0x$(openssl rand -hex 8)" -days 3650 -out "$1/$2.crt" \
      -extfile <(echo "basicConstraints=CA:FALSE"; [ -z "$4" ] || echo "subjectAltName=$4") 2> /dev/null
}

# identity FOLDER FILE USER [GROUP]: a token for USER, and a kubeconfig with it.
identity() {
  local token
  token=$(openssl rand -hex 16)
  echo "$token,$3,$3${4:+,\"$4\"}" >> "$1/pki/tokens.csv"
  cat > "$1/$2" << Y
apiVersion: v1
kind: Config
clusters: [{name: local, cluster: {server: "$SERVER", certificate-authority-data: $(base64 --wrap 0 "$1/pki/ca.crt")}}]
users: [{name: "$3", user: {token: $token}}]
contexts: [{name: local, context: {cluster: local, user: "$3"}}]
current-context: local
Y
}
