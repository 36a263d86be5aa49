//! The accountant by itself.

use super::*;
use crate::LogSink;
use crate::logs::InstanceLog;

struct Deaf;

impl LogSink for Deaf {
    fn line(&self, _: &str, _: marcato_api::LogStream, _: &str) {}
}

fn app(buffers: u64) -> Arc<AppAccount> {
    Arc::new(AppAccount::new(&AppBudget { app_buffer_bytes: marcato_api::Bytes(buffers), ..AppBudget::default() }))
}

fn sandbox(limit: u64, app: &Arc<AppAccount>) -> (Arc<SandboxAccount>, Arc<LimitCounters>) {
    let counters = Arc::new(LimitCounters::default());
    let log = InstanceLog::new(Arc::new(Deaf), Arc::default(), Arc::clone(&counters));
    let log = Arc::new(SandboxLog::new(Arc::new(log)));
    (SandboxAccount::new(limit, Arc::clone(app), Arc::clone(&counters), log, 2), counters)
}

#[test]
fn a_sandbox_and_its_app_have_each_their_limit() {
    let app = app(100_000);
    let ((one, fired), (two, _)) = (sandbox(60_000, &app), sandbox(60_000, &app));
    one.take(60_000).expect("as much as it may");
    assert_eq!(one.take(1), Err(OverBudget(Limit::BufferBytes)));
    assert_eq!(fired.fired(Limit::BufferBytes), 1);
    // Not even a step more than there is: the exact rest is still given.
    let rest = 100_000 - app.buffers.used();
    two.take(rest).expect("the rest");
    assert_eq!(two.take(1), Err(OverBudget(Limit::AppBufferBytes)));
    one.release(60_000);
    two.take(20_000).expect("there is room again");
    drop((one, two));
    assert_eq!(app.buffers.used(), 0, "all is given back");
    assert!(app.buffers.peak() <= 100_000);
    assert_eq!(fired.peak_of(Limit::BufferBytes), 60_000);
}

#[test]
fn charges_give_themselves_back_with_the_last_reference() {
    let app = app(1 << 20);
    let (account, _) = sandbox(1000, &app);
    let bytes = charged(Bytes::from_static(b"hello"), account.charge(900).expect("fits"));
    let part = bytes.slice(1..2);
    drop(bytes);
    assert!(account.charge(200).is_err());
    drop(part);
    drop(account.charge(1000).expect("all of it"));
    account.force(2000);
    assert_eq!((account.over(0), account.over(1000)), (Some(Limit::BufferBytes), None));
    assert!(!account.has_room(0));
}

#[test]
fn what_requests_may_ask_of_others_is_granted_anew() {
    let (account, _) = sandbox(1000, &app(1 << 20));
    assert!(!account.take_outbound_request(), "nothing before a request");
    account.grant(2, 10, 1);
    account.grant(2, 10, 1);
    assert!(account.take_outbound_request() && account.take_outbound_request() && !account.take_outbound_request());
    assert!(account.take_outbound_bytes(10) && !account.take_outbound_bytes(1));
    // Requests that share a sandbox share what they were granted.
    account.grant(2, 10, 2);
    account.grant(2, 10, 2);
    account.grant(2, 10, 2);
    assert!((0..4).all(|_| account.take_outbound_request()) && !account.take_outbound_request());
}

#[test]
fn apps_have_one_account_each_as_long_as_an_instance_lives() {
    let apps = Apps::default();
    let name = |n: u32| AppName::new(format!("app-{n}")).expect("a name");
    let small = AppBudget { outbound_in_flight: Some(3), coarse_clocks: true, ..AppBudget::default() };
    let one = apps.account(&name(1), &AppBudget::default());
    assert_eq!((one.outbound.limit(), one.coarse_clocks()), (u64::from(OUTBOUND_IN_FLIGHT), false));
    let again = apps.account(&name(1), &small);
    assert!(Arc::ptr_eq(&one, &again));
    assert_eq!((one.outbound.limit(), one.coarse_clocks()), (3, true), "the last one decides");
    assert!(!Arc::ptr_eq(&one, &apps.account(&name(2), &small)));
    for n in 0..1000 {
        drop(apps.account(&name(n), &small));
    }
    assert!(apps.0.lock().expect("not poisoned").apps.len() <= 130, "apps that are gone are forgotten");
}
