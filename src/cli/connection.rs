//! Where the HTTP API is and which token it is shown: options, and the environment behind them.

use std::path::PathBuf;

use anyhow::{Context, Result};
use hawser_api::client::{Address, Client};
use hawser_api::tls::{self, Tls};
use hyper::header::HeaderValue;

/// Whom a client command asks. Nothing here is printed: the token is a secret.
#[derive(Clone, Default, clap::Args)]
pub(crate) struct Connection {
    /// The HTTP API: HOST:PORT, https://HOST:PORT or unix:///PATH [env: HAWSER_HTTP_ADDR,
    /// CONSUL_HTTP_ADDR; with TLS where HAWSER_HTTP_SSL or CONSUL_HTTP_SSL is true]
    /// [default: 127.0.0.1:8500]
    #[arg(long, value_name = "ADDRESS", global = true, help_heading = "Connection")]
    http_addr: Option<String>,
    /// The token to show [env: HAWSER_HTTP_TOKEN, CONSUL_HTTP_TOKEN]
    #[arg(long, value_name = "TOKEN", global = true, help_heading = "Connection")]
    token: Option<String>,
    /// A file that holds the token, which other users cannot see in the list of processes
    /// [env: HAWSER_HTTP_TOKEN_FILE, CONSUL_HTTP_TOKEN_FILE]
    #[arg(long, value_name = "FILE", global = true, help_heading = "Connection")]
    token_file: Option<PathBuf>,
    /// The authorities to trust over TLS, in PEM; the system's unless said [env: HAWSER_CACERT,
    /// CONSUL_CACERT]
    #[arg(long, value_name = "FILE", global = true, help_heading = "Connection")]
    ca_file: Option<PathBuf>,
    /// The certificate to show over TLS, in PEM [env: HAWSER_CLIENT_CERT, CONSUL_CLIENT_CERT]
    #[arg(long, value_name = "FILE", global = true, help_heading = "Connection")]
    client_cert: Option<PathBuf>,
    /// The certificate's key, in PEM [env: HAWSER_CLIENT_KEY, CONSUL_CLIENT_KEY]
    #[arg(long, value_name = "FILE", global = true, help_heading = "Connection")]
    client_key: Option<PathBuf>,
    /// The name that the API's certificate must have; the address's host unless said
    /// [env: HAWSER_TLS_SERVER_NAME, CONSUL_TLS_SERVER_NAME]
    #[arg(long, value_name = "NAME", global = true, help_heading = "Connection")]
    tls_server_name: Option<String>,
}

impl Connection {
    /// A client of the API that options name, or else what `environment` says, or else the local
    /// agent.
    ///
    /// # Errors
    /// An address that is none, or a token that cannot be read or sent.
    pub(crate) fn client(&self, environment: impl Fn(&str) -> Option<String>) -> Result<Client> {
        let ours_or_consuls = |name: &str| {
            let value = |prefix: &str| environment(&format!("{prefix}_{name}"));
            value("HAWSER").or_else(|| value("CONSUL")).filter(|value| !value.is_empty())
        };
        let address = self
            .http_addr
            .clone()
            .or_else(|| ours_or_consuls("HTTP_ADDR"))
            .unwrap_or_else(|| ADDRESS.to_owned());
        let mut address: Address = address.parse().context("-http-addr")?;
        if ours_or_consuls("HTTP_SSL").is_some_and(|text| is_true(&text)) {
            address = address.with_tls();
        }
        let token_file =
            self.token_file.clone().or_else(|| ours_or_consuls("HTTP_TOKEN_FILE").map(Into::into));
        let token = match (&self.token, token_file) {
            (Some(token), _) => Some(token.clone()),
            (None, Some(file)) => Some(
                std::fs::read_to_string(&file)
                    .with_context(|| format!("-token-file: reading {}", file.display()))?,
            ),
            (None, None) => ours_or_consuls("HTTP_TOKEN"),
        };
        let client = match &address {
            Address::Tls(_) => Client::new(address).with_tls(self.tls(ours_or_consuls)?),
            Address::Tcp(_) | Address::Unix(_) => Client::new(address),
        };
        match token.as_deref().map(str::trim) {
            None | Some("") => Ok(client),
            Some(token) => {
                let token = HeaderValue::from_str(token).ok().context("-token: it is no token")?;
                Ok(client.with_token(token))
            }
        }
    }
}

impl Connection {
    /// Whom to trust over TLS, and what to show.
    fn tls(&self, environment: impl Fn(&str) -> Option<String>) -> Result<Tls> {
        let read = |option: &str, given: &Option<PathBuf>, variable: &str| -> Result<_> {
            let path = given.clone().or_else(|| environment(variable).map(Into::into));
            let Some(path) = path else { return Ok(None) };
            let read = std::fs::read(&path);
            read.map(Some).with_context(|| format!("{option}: reading {}", path.display()))
        };
        let settings = tls::Settings {
            authorities: read("-ca-file", &self.ca_file, "CACERT")?,
            certificate: read("-client-cert", &self.client_cert, "CLIENT_CERT")?,
            key: read("-client-key", &self.client_key, "CLIENT_KEY")?,
            server_name: self.tls_server_name.clone().or_else(|| environment("TLS_SERVER_NAME")),
            trusts_anyone: environment("HTTP_SSL_VERIFY").is_some_and(|text| !is_true(&text)),
        };
        Ok(Tls::new(&settings)?)
    }
}

fn is_true(text: &str) -> bool {
    matches!(text, "1" | "t" | "T" | "true" | "TRUE" | "True")
}

/// Where an agent listens unless it is told otherwise.
const ADDRESS: &str = "127.0.0.1:8500";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_rule_over_our_environment_and_that_over_consuls() {
        let hawser = ("HAWSER_HTTP_ADDR", "10.0.0.1:1");
        let consul = ("CONSUL_HTTP_ADDR", "http://10.0.0.2:2");
        let none: &[(&str, &str)] = &[];
        let cases = [
            (None, none, "http://127.0.0.1:8500"),
            (None, &[consul], "http://10.0.0.2:2"),
            (None, &[consul, hawser], "http://10.0.0.1:1"),
            (None, &[("HAWSER_HTTP_ADDR", "")], "http://127.0.0.1:8500"),
            (Some("unix:///run/h.sock"), &[hawser], "unix:///run/h.sock"),
            (Some("https://a"), none, "https://a:8501"),
            (None, &[consul, ("CONSUL_HTTP_SSL", "true")], "https://10.0.0.2:2"),
            (None, &[consul, ("CONSUL_HTTP_SSL", "false")], "http://10.0.0.2:2"),
        ];
        for (option, environment, expected) in cases {
            let connection =
                Connection { http_addr: option.map(str::to_owned), ..Connection::default() };
            let find = |name: &str| {
                let found = environment.iter().find(|(key, _)| *key == name);
                found.map(|(_, value)| (*value).to_owned())
            };
            let client = connection.client(find).expect(expected);
            assert_eq!(client.address().to_string(), expected);
        }
    }

    #[test]
    fn what_cannot_be_is_named_by_its_option() {
        let with = |http_addr: &str, token: &str, file: &str| Connection {
            http_addr: Some(http_addr.to_owned()),
            token: (!token.is_empty()).then(|| token.to_owned()),
            token_file: (!file.is_empty()).then(|| file.into()),
            ..Connection::default()
        };
        let cases = [
            (with("a b", "", ""), "-http-addr"),
            (with("https://", "", ""), "-http-addr"),
            (
                Connection { ca_file: Some("/no/such".into()), ..with("https://a:1", "", "") },
                "-ca-file",
            ),
            (
                Connection { client_cert: Some("/dev/null".into()), ..with("https://a:1", "", "") },
                "-client-cert",
            ),
            (with("a:1", "sec\nret", ""), "-token"),
            (with("a:1", "", "/there/is/no/such"), "-token-file"),
        ];
        for (connection, option) in cases {
            let Err(refused) = connection.client(|_| None) else { panic!("{option}") };
            let text = format!("{refused:#}");
            assert!(text.starts_with(option), "{text}");
            assert!(!text.contains("sec"), "a token is never printed: {text}");
        }
    }
}
