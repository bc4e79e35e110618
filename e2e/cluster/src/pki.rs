//! Certificates, keys and kubeconfigs, made anew with every new cluster.
//!
//! All keys are ECDSA P-256, which is quick to make. Certificates are valid for a year from yesterday, so that a
//! clock that is corrected backwards does no harm. The authority's key stays in the root folder (mode 0700), because
//! the controller manager signs certificate requests with it.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};

use crate::settings::Settings;
use crate::shell;

/// Components that talk to the API server: file name, user, group.
const CLIENTS: [(&str, &str, Option<&str>); 7] = [
    ("admin", "flotilla-admin", Some("system:masters")),
    ("controller-manager", "system:kube-controller-manager", None),
    ("scheduler", "system:kube-scheduler", None),
    ("kubelet", "system:node:local", Some("system:nodes")),
    ("kube-proxy", "system:kube-proxy", None),
    ("coredns", "system:coredns", None),
    ("kwok", "system:kwok", None),
];

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

/// Makes everything, in `<root>/pki`, and the user's kubeconfig in the state folder.
///
/// # Errors
/// When a file cannot be written.
pub fn generate(settings: &Settings) -> Result<()> {
    let folder = settings.root.join("pki");
    let authority = authority(&folder, "ca", "flotilla-local")?;

    let node = IpAddr::V4(settings.node_ip());
    let api_names = [
        "localhost".to_owned(),
        "kubernetes".to_owned(),
        "kubernetes.default".to_owned(),
        "kubernetes.default.svc".to_owned(),
        format!("kubernetes.default.svc.{}", Settings::DOMAIN),
    ];
    let api_addresses = [
        node,
        IpAddr::V4(settings.api_service_ip()),
        IpAddr::V4(Ipv4Addr::LOCALHOST),
    ];
    server(
        &authority,
        &folder,
        "apiserver",
        "kube-apiserver",
        &api_names,
        &api_addresses,
    )?;
    server(
        &authority,
        &folder,
        "kubelet-server",
        "local",
        &[Settings::NODE.to_owned()],
        &[node],
    )?;
    client(
        &authority,
        &folder,
        "apiserver-kubelet-client",
        "kube-apiserver-kubelet-client",
        Some("system:masters"),
    )?;

    let front = self::authority(&folder, "front-proxy-ca", "flotilla-local-front-proxy")?;
    client(&front, &folder, "front-proxy-client", "front-proxy-client", None)?;

    let tokens = KeyPair::generate()?;
    shell::write_atomically(&folder.join("sa.key"), tokens.serialize_pem().as_bytes(), 0o600)?;
    shell::write_atomically(&folder.join("sa.pub"), tokens.public_key_pem().as_bytes(), 0o644)?;

    for (name, user, group) in CLIENTS {
        let (certificate, key) = client(&authority, &folder, name, user, group)?;
        let text = format!(
            "{:#}\n",
            kubeconfig(settings, &authority.certificate, user, &certificate, &key)
        );
        let file = if name == "admin" {
            settings.kubeconfig()
        } else {
            settings.component_kubeconfig(name)
        };
        shell::write_atomically(&file, text.as_bytes(), 0o600)?;
    }
    Ok(())
}

fn authority(folder: &Path, file: &str, name: &str) -> Result<Authority> {
    let key = KeyPair::generate()?;
    let mut params = params(name, None);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    let certificate = params
        .self_signed(&key)
        .with_context(|| format!("failed to sign {file}"))?
        .pem();
    write_pair(folder, file, &certificate, &key)?;
    Ok(Authority {
        issuer: Issuer::new(params, key),
        certificate,
    })
}

fn server(
    authority: &Authority,
    folder: &Path,
    file: &str,
    name: &str,
    names: &[String],
    addresses: &[IpAddr],
) -> Result<()> {
    let mut params = params(name, None);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    for name in names {
        params
            .subject_alt_names
            .push(SanType::DnsName(name.clone().try_into()?));
    }
    params
        .subject_alt_names
        .extend(addresses.iter().map(|address| SanType::IpAddress(*address)));
    issue(authority, folder, file, params)?;
    Ok(())
}

fn client(
    authority: &Authority,
    folder: &Path,
    file: &str,
    user: &str,
    group: Option<&str>,
) -> Result<(String, String)> {
    let mut params = params(user, group);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    issue(authority, folder, file, params)
}

fn issue(
    authority: &Authority,
    folder: &Path,
    file: &str,
    mut params: CertificateParams,
) -> Result<(String, String)> {
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    let certificate = params
        .signed_by(&key, &authority.issuer)
        .with_context(|| format!("failed to sign {file}"))?
        .pem();
    write_pair(folder, file, &certificate, &key)?;
    Ok((certificate, key.serialize_pem()))
}

fn params(name: &str, group: Option<&str>) -> CertificateParams {
    let now = OffsetDateTime::now_utc();
    let mut subject = DistinguishedName::new();
    if let Some(group) = group {
        subject.push(DnType::OrganizationName, group);
    }
    subject.push(DnType::CommonName, name);
    let mut params = CertificateParams::default();
    params.distinguished_name = subject;
    params.not_before = now - Duration::days(1);
    params.not_after = now + Duration::days(365);
    params
}

fn write_pair(folder: &Path, file: &str, certificate: &str, key: &KeyPair) -> Result<()> {
    shell::write_atomically(
        &folder.join(format!("{file}.key")),
        key.serialize_pem().as_bytes(),
        0o600,
    )?;
    shell::write_atomically(&folder.join(format!("{file}.crt")), certificate.as_bytes(), 0o644)
}

/// A kubeconfig with everything inside, so that it can be copied. JSON is YAML.
fn kubeconfig(settings: &Settings, authority: &str, user: &str, certificate: &str, key: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{
            "name": "flotilla-local",
            "cluster": {
                "server": settings.api_url(),
                "certificate-authority-data": STANDARD.encode(authority),
            },
        }],
        "users": [{
            "name": user,
            "user": {
                "client-certificate-data": STANDARD.encode(certificate),
                "client-key-data": STANDARD.encode(key),
            },
        }],
        "contexts": [{
            "name": "flotilla-local",
            "context": { "cluster": "flotilla-local", "user": user },
        }],
        "current-context": "flotilla-local",
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::example;

    #[test]
    fn every_file_a_command_line_names_is_made() {
        use crate::binaries::Programs;
        use crate::component::Component;
        let folder = std::env::temp_dir().join(format!("flotilla-pki-{}", std::process::id()));
        let mut settings = example();
        settings.state = folder.join("state");
        settings.root = folder.join("root");
        generate(&settings).unwrap();
        let pki = settings.root.join("pki");
        let programs = Programs::at("/cache".into());
        let mut seen = 0;
        for component in Component::ALL {
            for argument in component.command(&settings, &programs) {
                let Some((_, value)) = argument.split_once('=') else {
                    continue;
                };
                if Path::new(value).starts_with(&pki) {
                    assert!(Path::new(value).is_file(), "{argument}");
                    seen += 1;
                }
            }
        }
        assert!(seen > 15, "{seen}");
        let text = std::fs::read_to_string(settings.kubeconfig()).unwrap();
        let config: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            config["clusters"][0]["cluster"]["server"],
            "https://10.244.0.1:6443"
        );
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
