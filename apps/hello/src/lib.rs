//! The smallest useful guest: says hello with the greeting that its operator set in `GREETING`, and
//! shows what it was asked. No services, no dependencies beyond the HTTP server loop.

#[cfg(target_arch = "wasm32")]
mod server {
    use wstd::http::{Body, Error, Request, Response};

    #[wstd::http_server]
    async fn main(request: Request<Body>) -> Result<Response<Body>, Error> {
        let greeting = std::env::var("GREETING").unwrap_or_default();
        let text = super::greet(&greeting, request.uri().path());
        let response = Response::builder()
            .header("content-type", "text/plain; charset=utf-8")
            .header("x-content-type-options", "nosniff");
        Ok(response.body(text.into())?)
    }
}

/// The answer. The path is echoed as plain text, so nothing in it is markup.
#[cfg_attr(not(target_arch = "wasm32"), allow(dead_code, reason = "called by the server loop in a sandbox"))]
fn greet(greeting: &str, path: &str) -> String {
    let greeting = if greeting.is_empty() { "Hello from a WebAssembly sandbox" } else { greeting };
    match path {
        "/" | "" => format!("{greeting}!\n"),
        path => format!("{greeting}! You asked for {path}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::greet;

    #[test]
    fn greets_as_told() {
        assert_eq!(greet("", "/"), "Hello from a WebAssembly sandbox!\n");
        assert_eq!(greet("Servus", "/x"), "Servus! You asked for /x\n");
    }
}
