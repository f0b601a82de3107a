//! What the scripts in the pods give the command line client besides.

/// In an encrypted cluster: the port, and a certificate where servers ask for one. Who answers at the own address is no question, and a
/// certificate that is over is no reason to end a server or to hand nothing over.
pub(super) const CLIENT_OPTIONS: &str = r#"if [ -e /tls/tls.conf ]; then
  file() { sed -n "s|^$1 \.\.||p" /tls/tls.conf; }
  tls_port=6380
  set -- "$@" -p "$tls_port" --tls --insecure --cert "$(file tls-cert-file)" --key "$(file tls-key-file)"
fi
"#;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::start_script::tests::{folders, shell};
    use std::fs;

    /// The options as a script gets them whose folder of certificates has this file.
    fn options(settings: Option<&str>) -> String {
        let (root, [bin, certificates]) = folders(["bin", "certificates"]);
        if let Some(settings) = settings {
            fs::write(certificates.join("tls.conf"), settings).unwrap();
        }
        let folder = format!("{}/", certificates.display());
        let script = format!("set -eu\nset -- --user probe\n{CLIENT_OPTIONS}echo \"$@\"\n");
        let ended = shell(&script.replace("/tls/", &folder), &bin).output();
        fs::remove_dir_all(&root).unwrap();
        String::from_utf8(ended.unwrap().stdout).unwrap()
    }

    #[test]
    fn the_client_shows_the_certificate_of_the_server() {
        assert_eq!(options(None), "--user probe\n");
        let settings = "port 0\ntls-cert-file ../tls/1-ab.crt\ntls-key-file ../tls/1-ab.key\n";
        assert_eq!(
            options(Some(settings)),
            "--user probe -p 6380 --tls --insecure --cert /tls/1-ab.crt --key /tls/1-ab.key\n"
        );
    }
}
