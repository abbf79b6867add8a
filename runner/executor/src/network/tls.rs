//! TLS of outbound HTTP: the well-known certificate authorities, and those that the runner was given.

use std::io;
use std::sync::{Arc, OnceLock};

use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, IpAddr, ServerName};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};
use wasmtime_wasi_http::Error;

/// Whose certificates are believed; made when the first request needs it.
pub struct Roots {
    /// Certificates in PEM, beside the well-known ones.
    own: String,
    config: OnceLock<Arc<ClientConfig>>,
}

impl Roots {
    pub fn new(own: String) -> Roots {
        Roots {
            own,
            config: OnceLock::new(),
        }
    }

    fn config(&self) -> Result<Arc<ClientConfig>, Error> {
        if let Some(config) = self.config.get() {
            return Ok(Arc::clone(config));
        }
        let mut roots = RootCertStore {
            roots: webpki_roots::TLS_SERVER_ROOTS.into(),
        };
        // What is no certificate authority was told when the runner started.
        roots.add_parsable_certificates(CertificateDer::pem_slice_iter(self.own.as_bytes()).flatten());
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|_| Error::ConfigurationError)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Arc::clone(self.config.get_or_init(|| Arc::new(config))))
    }
}

/// Speak TLS with the host that is meant, and with no other.
pub async fn connect(roots: &Roots, host: &str, stream: TcpStream) -> Result<TlsStream<TcpStream>, Error> {
    let name = server_name(host).ok_or(Error::HttpRequestUriInvalid)?;
    TlsConnector::from(roots.config()?)
        .connect(name, stream)
        .await
        .map_err(failure)
}

/// A name, or an address (of IPv6 in brackets).
fn server_name(host: &str) -> Option<ServerName<'static>> {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    match bare.unwrap_or(host).parse::<std::net::IpAddr>() {
        Ok(address) => Some(ServerName::IpAddress(IpAddr::from(address))),
        Err(_) => ServerName::try_from(host.to_owned()).ok(),
    }
}

fn failure(error: io::Error) -> Error {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) => {
            Error::TlsCertificateError
        }
        Some(rustls::Error::AlertReceived(alert)) => Error::TlsAlertReceived {
            alert_id: Some((*alert).into()),
            alert_message: Some(format!("{alert:?}")),
        },
        Some(_) => Error::TlsProtocolError,
        None => Error::Tls(error),
    }
}
