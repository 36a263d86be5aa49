//! `logs`: an app's output and what the platform says of it.

use std::time::Duration;

use anyhow::Result;
use clap::Args;
use futures::StreamExt;
use marcato_api::{AppName, LogLine, LogStream, ProblemKind};

use crate::output::{Output, clean, time};

/// How long a broken stream is tried again before it is given up.
const RECONNECT_ATTEMPTS: u32 = 60;
const RECONNECT_PAUSE: Duration = Duration::from_secs(1);

/// Show an app's log
#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// Which app
    app: AppName,
    /// Go on with what comes
    #[arg(long, short)]
    follow: bool,
    /// How many of the last lines
    #[arg(long, short = 'n', default_value_t = 100)]
    tail: u32,
}

pub(crate) async fn logs(args: LogsArgs, out: Output) -> Result<()> {
    let client = crate::login::client()?;
    let (mut tail, mut attempts) = (args.tail, 0);
    loop {
        let broken = match client.logs(&args.app, args.follow, tail).await {
            Ok(lines) => {
                let mut lines = std::pin::pin!(lines);
                let mut broken = None;
                while let Some(line) = lines.next().await {
                    match line {
                        Ok(line) => {
                            print(out, &line)?;
                            attempts = 0;
                        }
                        Err(problem) => broken = Some(problem),
                    }
                }
                // What was shown must not come again.
                tail = 0;
                broken
            }
            Err(problem) => Some(problem),
        };
        let again = args.follow
            && attempts < RECONNECT_ATTEMPTS
            && (tail == 0 || attempts > 0)
            && broken.as_ref().is_none_or(|p| p.kind == ProblemKind::Unavailable);
        match broken {
            _ if again => {
                attempts += 1;
                if attempts == 1 {
                    out.note("the log broke off; connecting again");
                }
                tokio::time::sleep(RECONNECT_PAUSE).await;
            }
            Some(problem) => return Err(problem.into()),
            None => return Ok(()),
        }
    }
}

fn print(out: Output, line: &LogLine) -> Result<()> {
    if out.json {
        // One per line, also on a terminal: it is a stream.
        return out.line(serde_json::to_string(line)?);
    }
    let stream = match line.stream {
        LogStream::Stdout => "out",
        LogStream::Stderr => "err",
        LogStream::Log => "log",
        LogStream::Platform => "platform",
    };
    let request = if line.request_id.is_empty() { "-" } else { &line.request_id };
    out.line(format!("{} {} {} {stream}: {}", time(line.at), line.instance, clean(request), clean(&line.text)))
}
