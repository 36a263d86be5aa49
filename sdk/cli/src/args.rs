//! The command line: every verb, and where it goes.

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::output::Output;
use crate::verbs::{
    apps, env, events, hosts, login, logs, policy, push, revisions, routes, services, shell, tokens, usage,
};
use crate::{server, up};

const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 failed, 2 usage, 3 log in first, 4 not allowed, 5 not found, 6 conflict,
7 not available or timed out, 8 bad component or manifest.
MARCATO_ADMIN (URL), MARCATO_CA (file) and MARCATO_TOKEN override the saved login.";

/// A private cloud for WebAssembly components
#[derive(Debug, Parser)]
#[command(name = "marcato", version, after_help = EXIT_CODES, propagate_version = true)]
pub(crate) struct Cli {
    /// Print JSON instead of text
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Up(up::UpArgs),
    Login(login::LoginArgs),
    /// Forget the saved login
    Logout,
    /// Show which server and token are used
    Whoami,
    Push(push::PushArgs),
    /// Show all apps
    Apps,
    #[command(subcommand)]
    App(apps::AppCommand),
    Scale(apps::ScaleArgs),
    /// Start an app that was stopped
    Start(apps::AppArgs),
    /// Stop an app: its routes answer 503
    Stop(apps::AppArgs),
    /// Replace every instance, one after another
    Restart(apps::AppArgs),
    Delete(apps::DeleteArgs),
    Revisions(revisions::RevisionsArgs),
    Rollback(revisions::RollbackArgs),
    #[command(subcommand)]
    Env(env::EnvCommand),
    #[command(subcommand)]
    Routes(routes::RoutesCommand),
    Logs(logs::LogsArgs),
    Events(events::EventsArgs),
    /// Show hosts, or make a join token
    Hosts {
        #[command(subcommand)]
        command: Option<hosts::HostsCommand>,
    },
    /// Show, make, delete, back up and restore services
    Services {
        #[command(subcommand)]
        command: Option<services::ServicesCommand>,
    },
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    Usage(usage::UsageArgs),
    Bind(services::BindArgs),
    Unbind(services::UnbindArgs),
    /// Show, make and delete tokens
    Tokens {
        #[command(subcommand)]
        command: Option<tokens::TokensCommand>,
    },
    #[command(subcommand)]
    Manifest(shell::ManifestCommand),
    /// Print a completion script
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
    },
    Router(server::router::RouterArgs),
    Hostd(server::hostd::HostdArgs),
    /// Run apps for a host daemon
    #[command(hide = true)]
    Worker,
    #[command(hide = true)]
    CompileComponent(server::compile::CompileArgs),
}

impl Cli {
    /// Whether errors go out as JSON.
    pub(crate) fn json(&self) -> bool {
        self.json
    }

    /// Does what was asked. Servers run until they are told to stop.
    pub(crate) fn run(self) -> Result<()> {
        let out = Output { json: self.json };
        match self.command {
            Command::Up(args) => up::run(&args, out),
            Command::Router(args) => server::router::run(args),
            Command::Hostd(args) => server::hostd::run(args),
            Command::Worker => server::worker::run(),
            Command::CompileComponent(args) => server::compile::run(&args),
            Command::Logout => login::logout(out),
            Command::Manifest(command) => shell::manifest(command, out),
            Command::Completions { shell } => shell::completions(shell, out),
            // Boxed: the future of all verbs together is large, and made once.
            command => server::runtime::client()?.block_on(Box::pin(client(command, out))),
        }
    }
}

/// The verbs that call the admin API.
async fn client(command: Command, out: Output) -> Result<()> {
    match command {
        Command::Login(args) => login::login(args, out).await,
        Command::Whoami => login::whoami(out).await,
        Command::Push(args) => push::push(args, out).await,
        Command::Apps => apps::list(out).await,
        Command::App(command) => apps::run(command, out).await,
        Command::Scale(args) => apps::scale(args, out).await,
        Command::Start(args) => apps::start(args, out).await,
        Command::Stop(args) => apps::stop(args, out).await,
        Command::Restart(args) => apps::restart(args, out).await,
        Command::Delete(args) => apps::delete(args, out).await,
        Command::Revisions(args) => revisions::list(args, out).await,
        Command::Rollback(args) => revisions::rollback(args, out).await,
        Command::Env(command) => env::run(command, out).await,
        Command::Routes(command) => routes::run(command, out).await,
        Command::Logs(args) => logs::logs(args, out).await,
        Command::Events(args) => events::events(args, out).await,
        Command::Hosts { command } => hosts::run(command, out).await,
        Command::Services { command } => services::run(command, out).await,
        Command::Policy(command) => policy::run(command, out).await,
        Command::Usage(args) => usage::usage(args, out).await,
        Command::Bind(args) => services::bind(args, out).await,
        Command::Unbind(args) => services::unbind(args, out).await,
        Command::Tokens { command } => tokens::run(command, out).await,
        Command::Up(_)
        | Command::Router(_)
        | Command::Hostd(_)
        | Command::Worker
        | Command::CompileComponent(_)
        | Command::Logout
        | Command::Manifest(_)
        | Command::Completions { .. } => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn no_verb_takes_a_secret_as_an_argument() {
        for line in [
            &["marcato", "login", "https://a", "--token", "x"][..],
            &["marcato", "env", "set", "a", "K", "V"],
            &["marcato", "hostd", "--join-token", "x"],
        ] {
            assert!(Cli::try_parse_from(line).is_err(), "{line:?}");
        }
        assert!(Cli::try_parse_from(["marcato", "scale", "a", "101"]).is_err());
        assert!(Cli::try_parse_from(["marcato", "scale", "a", "3", "--json"]).unwrap().json());
        assert!(Cli::try_parse_from(["marcato", "services"]).is_ok());
        assert!(Cli::try_parse_from(["marcato", "hosts", "show", "h1"]).is_ok());
        assert!(Cli::try_parse_from(["marcato", "app", "show", "a", "--limits"]).is_ok());
        assert!(Cli::try_parse_from(["marcato", "app", "debug", "a", "--for", "30m"]).is_ok());
        assert!(Cli::try_parse_from(["marcato", "app", "debug", "a", "--for", "forever"]).is_err());
    }
}
