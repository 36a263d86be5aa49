//! Gives one host its next certificate, well before the present one ends.
//!
//! The inventory says how long the present one is good. When the next is due, the host is asked for a request, which
//! is signed, and told the certificate; it keeps it and shows it. No join token is needed: the host has proven who it
//! is by the certificate that still stands. A host whose certificate has ended cannot be reached and must join again.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use marcato_api::{ApiResult, CertificateTerm, HostApi, HostId, NewCertificate, Outcome, Problem, ProblemKind};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use super::hosts::Link;
use crate::ca::Authority;
use crate::state::Deed;

/// How often a certificate's term is looked at.
const CHECK: Duration = Duration::from_secs(600);
/// After a failure with an ingress's certificate: it serves nothing without one.
const INGRESS_RETRY: Duration = Duration::from_secs(2);
/// After a failure; there are months left.
const RETRY: Duration = Duration::from_secs(60);

pub(crate) async fn run(link: Arc<Link>, stop: CancellationToken) {
    let tasks = &link.shared.tasks;
    // What this process gave last: an inventory may be older.
    let mut given: Option<CertificateTerm> = None;
    loop {
        let observed = tasks.observed.load().hosts.get(&link.id).and_then(|h| h.inventory.as_ref()?.certificate);
        let term = later(observed, given);
        let mut pause = CHECK;
        if let Some(term) = term
            && due_at(term, &link.id) <= Timestamp::now()
        {
            let renewed = tokio::select! {
                () = stop.cancelled() => return,
                renewed = renew(&link.client, &tasks.authority, &link.id) => renewed,
            };
            match renewed {
                Ok(term) => {
                    given = Some(term);
                    record(&link, &format!("a new certificate, good until {}", term.not_after), Outcome::Ok).await;
                    link.ask.notify_one();
                }
                Err(problem) => {
                    tracing::warn!(host = %link.id, %problem, ends = %term.not_after, "the host's certificate cannot be renewed; trying again");
                    pause = RETRY;
                }
            }
        }
        let ingress = tokio::select! {
            () = stop.cancelled() => return,
            ingress = ensure_ingress(&link) => ingress,
        };
        if let Err(problem) = ingress {
            tracing::warn!(host = %link.id, %problem, "the ingress gets no certificate; trying again");
            pause = pause.min(INGRESS_RETRY);
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = link.certificate.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Gives the ingress of a host that serves TCP its certificate, when it has none or the next is due. Not an event: it
/// happens each day, and each time a daemon starts.
async fn ensure_ingress(link: &Link) -> ApiResult<()> {
    let tasks = &link.shared.tasks;
    let Some(inventory) = tasks.observed.load().hosts.get(&link.id).and_then(|h| h.inventory.clone()) else {
        return Ok(());
    };
    let due = inventory.ingress_certificate.is_none_or(|term| due_at(term, &link.id) <= Timestamp::now());
    if !inventory.ingress_tls || !due {
        return Ok(());
    }
    let request = link.client.ingress_certificate_request().await?;
    let certificate_pem = tasks
        .authority
        .sign_ingress(&request.csr_pem, &link.id, Timestamp::now())
        .map_err(|e| Problem::new(ProblemKind::Invalid, format!("the request of the host's ingress: {e}")))?;
    link.client.put_ingress_certificate(NewCertificate { certificate_pem }).await?;
    link.ask.notify_one();
    Ok(())
}

async fn record(link: &Link, detail: &str, outcome: Outcome) {
    let deed = Deed::system("host.renew", format!("host/{}", link.id), detail);
    if let Err(error) = link.shared.tasks.state.record(&deed, outcome).await {
        tracing::error!(%error, host = %link.id, "a renewed certificate could not be recorded");
    }
}

/// The one of two that ends later.
fn later(one: Option<CertificateTerm>, other: Option<CertificateTerm>) -> Option<CertificateTerm> {
    [one, other].into_iter().flatten().max_by_key(|t| t.not_after)
}

/// When the host gets its next certificate: after two thirds of the present one's life, and up to a twenty-fourth
/// later, so that hosts that joined together are not all renewed at once. The same for the same host and certificate.
fn due_at(term: CertificateTerm, host: &HostId) -> Timestamp {
    let life_s = term.not_after.as_second().saturating_sub(term.not_before.as_second()).max(0);
    let hash = Sha256::digest(format!("{host} {}", term.not_before));
    let share = i64::from(u16::from_be_bytes([hash[0], hash[1]]));
    let later_s = life_s / 24 * share / i64::from(u16::MAX);
    let due = term.renewal_due_at();
    Timestamp::from_second(due.as_second().saturating_add(later_s)).unwrap_or(due)
}

/// One renewal. May be done again at any time.
async fn renew(host: &impl HostApi, authority: &Authority, id: &HostId) -> ApiResult<CertificateTerm> {
    let request = host.certificate_request().await?;
    let certificate_pem = authority
        .sign_host(&request.csr_pem, id, Timestamp::now())
        .map_err(|e| Problem::new(ProblemKind::Invalid, format!("the host's request: {e}")))?;
    host.put_certificate(NewCertificate { certificate_pem }).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn term(begin: i64, end: i64) -> CertificateTerm {
        let at = |s| Timestamp::from_second(s).unwrap();
        CertificateTerm { not_before: at(begin), not_after: at(end) }
    }

    #[test]
    fn hosts_are_due_after_two_thirds_and_not_all_at_once() {
        let life = 365 * 86_400;
        let hosts: Vec<HostId> = (0..50).map(|n| HostId::new(format!("h{n}")).unwrap()).collect();
        let due: Vec<i64> = hosts.iter().map(|h| due_at(term(0, life), h).as_second()).collect();
        assert!(due.iter().all(|d| (life / 3 * 2..=life / 3 * 2 + life / 24).contains(d)), "{due:?}");
        let days: std::collections::BTreeSet<i64> = due.iter().map(|d| d / 86_400).collect();
        assert!(days.len() > 8, "{days:?}");
        assert_eq!(due[0], due_at(term(0, life), &hosts[0]).as_second());
        // Nonsense from a host's clock is due, or not, but never a panic.
        for odd in [term(10, 5), term(0, 0), term(-62_135_596_800, 253_402_207_200)] {
            due_at(odd, &hosts[0]);
        }
    }

    #[test]
    fn an_old_inventory_does_not_make_a_host_due_again() {
        let (old, new) = (term(0, 100), term(70, 170));
        assert_eq!(later(Some(old), Some(new)), Some(new));
        assert_eq!(later(Some(new), None), Some(new));
        assert_eq!(later(None, None), None);
    }
}
