//! A cluster's authority for one host without a router: the files that a host has after it joined, and a router's
//! certificate to talk to it with.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};

/// The host's id.
pub(crate) const HOST: &str = "h1";

/// Files of the router's identity.
pub(crate) struct Router {
    pub(crate) ca: PathBuf,
    pub(crate) chain: PathBuf,
    pub(crate) key: PathBuf,
}

/// Makes the data folder `data` look as after joining, and a router's identity beside it.
pub(crate) fn write_identity(folder: &Path) -> Result<Router> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&key)?.pem();
    let issuer = Issuer::new(params, key);
    let leaf = |uri: &str, dns: &str| -> Result<(String, String)> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![dns.to_owned()])?;
        params.subject_alt_names.push(SanType::URI(uri.try_into()?));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        Ok((params.signed_by(&key, &issuer)?.pem(), key.serialize_pem()))
    };
    let data = folder.join("data");
    let identity = data.join("identity");
    fs::create_dir_all(&identity)?;
    for private in [&data, &identity] {
        fs::set_permissions(private, fs::Permissions::from_mode(0o700))?;
    }
    let (cert, key) = leaf(&format!("marcato://host/{HOST}"), &format!("{HOST}.host.marcato.internal"))?;
    let write = |path: PathBuf, text: &str| -> Result<PathBuf> {
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        Ok(path)
    };
    write(identity.join("key.pem"), &key)?;
    write(identity.join("cert.pem"), &cert)?;
    write(identity.join("ca.pem"), &ca)?;
    let (cert, key) = leaf("marcato://router", "router.marcato.internal")?;
    Ok(Router {
        ca: write(folder.join("ca.pem"), &ca)?,
        chain: write(folder.join("router.pem"), &cert)?,
        key: write(folder.join("router.key"), &key)?,
    })
}
