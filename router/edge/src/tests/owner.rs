//! Who gets to know why: the owner of the app with a good token, and nobody else, whatever hosts and guests send.

use std::time::{SystemTime, UNIX_EPOCH};

use http_body_util::Empty;
use marcato_api::{Millis, OwnerProblem, Problem, ProblemKind};

use super::*;

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A token of the app that ends so many seconds from now.
fn token(app: &str, in_s: i64) -> String {
    debug_key(app).token(&AppName::new(app).unwrap(), now_s().saturating_add_signed(in_s))
}

/// A platform error that explains itself to whoever reads it, and claims to be from elsewhere.
fn chatty() -> Answer {
    let problem = Problem::new(ProblemKind::CpuExhausted, "limit cpu_ms (1 s) reached: internal words");
    let told = OwnerProblem {
        limit: Some("cpu_ms".into()),
        limit_value: Some(1_000),
        used: Some(1_001),
        reason: vec!["internal words".into(), "<of the guest>".into()],
        app: Some(AppName::new("forged").unwrap()),
        host: Some(HostId::new("forged").unwrap()),
        ..OwnerProblem::from(problem)
    };
    platform_with(504, "cpu-exhausted", serde_json::to_vec(&told).unwrap())
}

fn platform_with(status: u16, slug: &str, body: impl Into<Bytes>) -> Answer {
    Response::builder().status(status).header("x-marcato-error", slug).body(full(body)).unwrap()
}

/// A request with these fields, over a connection of its own.
async fn ask(rig: &Rig, app: &str, path: &str, fields: &[(&str, &str)]) -> String {
    let fields: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    rig.raw(format!("GET {path} HTTP/1.1\r\nHost: {app}.test\r\nConnection: close\r\n{fields}\r\n")).await
}

fn problem(response: &str) -> OwnerProblem {
    assert!(response.contains("content-type: application/problem+json\r\n"), "{response}");
    serde_json::from_str(body(response)).unwrap_or_else(|e| panic!("{e}: {response}"))
}

fn said(response: &str) -> Option<&str> {
    response.split("\r\n").find_map(|line| line.strip_prefix("marcato-debug: "))
}

#[tokio::test]
async fn only_a_good_token_lets_a_host_s_explanation_through() {
    let rig = Rig::new(|_| {}).await;
    let h = host(&rig.socket("h"), |_| async { chatty() });
    rig.app("shop", &[&h.path]);
    rig.app("other", &[&h.path]);
    let forged = token("shop", 60).replace(char::is_lowercase, "a");
    for (tokens, answer) in [
        (&[][..], None),
        (&[token("shop", -1)], Some("expired")),
        (&[token("other", 60)], Some("invalid")),
        (&[token("other", -60)], Some("invalid")),
        (&[forged], Some("invalid")),
        (&[String::new()], Some("invalid")),
        (&["md_\u{fc}".to_owned()], Some("invalid")),
        (&["x".repeat(8_000)], Some("invalid")),
        // Which of the two was meant is not guessed.
        (&[token("shop", 60), token("shop", 60)], Some("invalid")),
    ] {
        let mut fields: Vec<_> = tokens.iter().map(|token| ("Marcato-Debug", token.as_str())).collect();
        fields.extend([("X-Marcato-Explain", "1"), ("accept", "application/json")]);
        let response = ask(&rig, "shop", "/", &fields).await;
        assert_eq!((status(&response), said(&response)), (504, answer), "{response}");
        let told = problem(&response);
        assert_eq!((told.problem.kind, told.problem.detail.as_str()), (ProblemKind::CpuExhausted, ""), "{response}");
        assert_eq!(told, OwnerProblem::from(told.problem.clone()), "nothing more: {response}");
        assert!(!response.contains("internal words") && !response.contains("cpu_ms"), "{response}");
        for gone in ["marcato-debug", "x-marcato-explain"] {
            assert!(!h.last().headers.contains_key(gone), "{gone} went on with {tokens:?}");
        }
    }

    let good = token("shop", 60);
    let response = ask(&rig, "shop", "/", &[("marcato-debug", &good), ("accept", "text/html")]).await;
    assert_eq!((status(&response), said(&response)), (504, Some("valid")), "{response}");
    let told = problem(&response);
    assert_eq!(told.problem.detail, "limit cpu_ms (1 s) reached: internal words");
    assert_eq!((told.limit.as_deref(), told.limit_value, told.used), (Some("cpu_ms"), Some(1_000), Some(1_001)));
    assert_eq!(told.reason, ["internal words", "<of the guest>"]);
    // What the edge knows itself it does not take from a host.
    assert_eq!((told.app.unwrap().as_str(), told.host.unwrap().as_str()), ("shop", "h1"));
    assert_eq!((told.instance_id.unwrap().as_str(), told.revision), ("shop-0", Some(RevisionNumber(1))));
    let id = told.problem.request_id.unwrap();
    assert!(response.contains(&format!("x-request-id: {id}\r\n")), "{response}");
    let head = h.last().headers;
    assert_eq!((head["x-marcato-explain"].to_str().unwrap(), head.contains_key("marcato-debug")), ("1", false));
}

#[tokio::test]
async fn a_token_counts_for_the_app_that_the_request_leads_to() {
    let rig = Rig::new(|_| {}).await;
    let h = host(&rig.socket("h"), |_| async { chatty() });
    rig.publish(spec("shop", &["x.test"], &[&h.path]));
    rig.publish(spec("api", &["x.test/api"], &[&h.path]));
    let good = token("shop", 60);
    let debug = [("marcato-debug", good.as_str())];
    for (path, answer) in [("/", "valid"), ("/api", "invalid"), ("/api/v1?/", "invalid"), ("/apiary", "valid")] {
        let response = ask(&rig, "x", path, &debug).await;
        assert_eq!(said(&response), Some(answer), "{path}");
        assert_eq!(response.contains("internal words"), answer == "valid", "{path}: {response}");
    }
    let nowhere = ask(&rig, "nowhere", "/", &debug).await;
    assert_eq!((status(&nowhere), said(&nowhere)), (404, None), "no app, no word: {nowhere}");
    // Deleted and made again under the same name: its key is another.
    let again = AppSpec {
        debug: DebugKey::derive(&[7; 32], &AppName::new("shop").unwrap(), 2),
        ..spec("shop", &["x.test"], &[&h.path])
    };
    rig.publish(again);
    let response = ask(&rig, "x", "/", &debug).await;
    assert_eq!((said(&response), response.contains("internal words")), (Some("invalid"), false), "{response}");
}

#[tokio::test]
async fn what_a_guest_answers_stays_as_it_is() {
    let rig = Rig::new(|_| {}).await;
    let h = host(&rig.socket("h"), |_| async {
        Response::builder().status(503).header("marcato-debug", "forged").body(full("the guest's own")).unwrap()
    });
    rig.app("shop", &[&h.path]);
    let plain = ask(&rig, "shop", "/", &[]).await;
    assert_eq!((body(&plain), said(&plain)), ("the guest's own", None), "{plain}");
    let good = token("shop", 60);
    let owner = ask(&rig, "shop", "/", &[("marcato-debug", &good)]).await;
    assert_eq!((body(&owner), said(&owner)), ("the guest's own", Some("valid")), "{owner}");
    let stranger = ask(&rig, "shop", "/", &[("marcato-debug", "md_x"), ("connection", "marcato-debug")]).await;
    assert_eq!((body(&stranger), said(&stranger)), ("the guest's own", Some("invalid")), "{stranger}");
}

#[tokio::test]
async fn the_edge_s_own_errors_explain_themselves_to_the_owner() {
    let rig = Rig::new(|c| c.host_grace_ms = Millis(0)).await;
    let slow = host(&rig.socket("slow"), |_| std::future::pending());
    let mut app = spec("slow", &["slow.test"], &[&slow.path]);
    app.limits.time_ms = Millis(50);
    rig.publish(app);
    rig.app("gone", &[&rig.socket("nobody")]);
    rig.app("none", &[]);
    let mut app = spec("stopped", &["stopped.test"], &[]);
    app.stopped = true;
    rig.publish(app);
    let many = host(&rig.socket("many"), |_| async {
        let fields = (0..150).fold(Response::builder(), |r, n| r.header(format!("x-{n}"), "1"));
        fields.body(full("")).unwrap()
    });
    rig.app("many", &[&many.path]);
    for (name, kind, words, reached) in [
        ("gone", ProblemKind::BadGateway, &["the host could not be reached", "connecting failed"][..], true),
        ("none", ProblemKind::NoInstance, &["no instance was ready within 200 ms", "marcato app show none"], false),
        ("stopped", ProblemKind::AppStopped, &["marcato start stopped"], false),
        ("slow", ProblemKind::TimedOut, &["time_ms (50 ms)"], true),
        ("many", ProblemKind::BadGateway, &["message head is too large"], true),
    ] {
        let good = token(name, 60);
        let response = ask(&rig, name, "/", &[("marcato-debug", &good)]).await;
        assert_eq!((status(&response), said(&response)), (kind.status(), Some("valid")), "{response}");
        let told = problem(&response);
        assert_eq!((told.problem.kind, told.app.as_ref().unwrap().as_str()), (kind, name), "{response}");
        for words in words {
            assert!(told.problem.detail.contains(words), "{name}: {response}");
        }
        assert_eq!((told.host.is_some(), told.instance_id.is_some()), (reached, reached), "{response}");
        assert!(!response.contains(rig.dir.path().to_str().unwrap()), "no address of the platform: {response}");
        let stranger = ask(&rig, name, "/", &[("accept", "application/json"), ("marcato-debug", "md_")]).await;
        for words in words {
            assert!(!stranger.contains(words), "{name}: {stranger}");
        }
        assert_eq!(problem(&stranger).app, None, "{stranger}");
    }
}

#[tokio::test]
async fn an_explanation_that_cannot_be_read_is_left_out() {
    let rig = Rig::new(|_| {}).await;
    let h = host(&rig.socket("h"), |r| async move {
        let long = format!("{{\"detail\":\"{}\"}}", "x".repeat(200 << 10));
        match r.uri().path() {
            "/long" => platform_with(504, "cpu-exhausted", long),
            "/none" => platform_with(504, "cpu-exhausted", ""),
            "/old" => {
                let old = Problem::new(ProblemKind::CpuExhausted, "as hosts said it before");
                platform_with(504, "cpu-exhausted", serde_json::to_vec(&old).unwrap())
            }
            _ => platform_with(504, "cpu-exhausted", "{\"detail\": [1, \u{1}"),
        }
    });
    rig.app("shop", &[&h.path]);
    let good = token("shop", 60);
    for (path, detail) in [
        ("/long", "its host gave no reason"),
        ("/none", "its host gave no reason"),
        ("/garbage", "its host gave no reason"),
        ("/old", "as hosts said it before"),
    ] {
        let response = ask(&rig, "shop", path, &[("marcato-debug", &good)]).await;
        let told = problem(&response);
        assert_eq!((status(&response), told.problem.detail.as_str()), (504, detail), "{path}: {response}");
        assert_eq!((told.limit, told.host.unwrap().as_str()), (None, "h1"), "{path}");
    }
}

#[tokio::test]
async fn http2_and_head_are_no_way_around() {
    let rig = Rig::new(|_| {}).await;
    let h = host(&rig.socket("h"), |_| async { chatty() });
    rig.app("shop", &[&h.path]);
    let mut sender = life::http2(TcpStream::connect(rig.http).await.unwrap()).await;
    for (method, token, answer) in [
        (http::Method::GET, token("shop", 60), "valid"),
        (http::Method::GET, token("shop", -60), "expired"),
        (http::Method::HEAD, token("shop", 60), "valid"),
    ] {
        let request = Request::builder().method(&method).uri("http://shop.test/").header("marcato-debug", token);
        let response = sender.send_request(request.body(Empty::new()).unwrap()).await.unwrap();
        assert_eq!((response.status().as_u16(), &response.headers()["marcato-debug"]), (504, &answer.parse().unwrap()));
        let text = String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().into()).unwrap();
        assert_eq!(text.contains("internal words"), method == http::Method::GET && answer == "valid", "{text}");
        assert!(!h.last().headers.contains_key("marcato-debug"));
    }
}
