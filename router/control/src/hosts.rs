//! Clients of the hosts, kept so that their connections are used again. Shared by the admin API and
//! the tasks.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use marcato_api::HostId;
use marcato_client::HostClient;

use crate::HostRecord;

/// One client per host. Cheap to clone.
#[derive(Clone)]
pub struct HostClients {
    tls: Arc<rustls::ClientConfig>,
    clients: Arc<Mutex<BTreeMap<HostId, HostClient>>>,
}

impl std::fmt::Debug for HostClients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HostClients")
    }
}

impl HostClients {
    /// Clients that show this identity.
    #[must_use]
    pub fn new(tls: Arc<rustls::ClientConfig>) -> Self {
        Self { tls, clients: Arc::default() }
    }

    /// The client of a host where it is now.
    #[must_use]
    pub fn client(&self, host: &HostRecord) -> HostClient {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        match clients.get(&host.id) {
            Some(client) if *client.address() == host.control => client.clone(),
            _ => {
                let client = HostClient::new(host.control.clone(), host.id.clone(), Arc::clone(&self.tls));
                clients.insert(host.id.clone(), client.clone());
                client
            }
        }
    }
}
