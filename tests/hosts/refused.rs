//! Item 2: who may not speak is refused, each with a reason of its own in log and metric.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hawser_rig::process::{finish, told};
use hawser_rig::{Cluster, Host, wait_for};

use crate::scene::on_hosts;

#[test]
fn strangers_are_refused_each_with_its_own_reason() {
    on_hosts("refused", false, |cluster| {
        let port = cluster.mesh_port("api", "a2")?;
        let folder = cluster.folder("openssl");
        fs::create_dir_all(&folder)?;
        let cron = leaf(cluster, "a2", "cron", &folder)?;
        let web = leaf(cluster, "a1", "web", &folder)?;
        let foreign = foreign_leaf(cluster, &folder)?;

        // The control: with the certificate that the intention allows, s_client gets an answer.
        let allowed = s_client(port, Some(&web), cluster)?;
        ensure!(allowed.contains("api-1 /"), "web's own certificate is not served: {allowed}");

        let cases = [
            // certificate, expected reason
            (None, "no_client_certificate"),
            (Some(&foreign), "untrusted_certificate"),
            (Some(&cron), "intention_denied"),
        ];
        for (certificate, reason) in cases {
            let lines = refusals(cluster, reason)?;
            let counted = counted(cluster, reason)?;
            let printed = s_client(port, certificate, cluster)?;
            ensure!(!printed.contains("api-1"), "{reason}: nginx was reached: {printed}");
            wait_for(format_args!("{reason} in a2's access log"), SOON, || {
                ensure!(refusals(cluster, reason)? > lines, "no new line; s_client: {printed}");
                Ok(())
            })?;
            wait_for(format_args!("{reason} in a2's metrics"), SOON, || {
                ensure!(counted_more(cluster, reason, counted)?, "still {counted}");
                Ok(())
            })?;
        }
        // And the mesh's own traffic is none the worse for it.
        cluster.through("a1", hawser_rig::cluster::API_UPSTREAM, "/").map(drop)
    });
}

/// A certificate with its chain, and its key.
struct Pair {
    certificate: PathBuf,
    key: PathBuf,
}

/// The leaf of a service, as its own host's agent hands it out.
fn leaf(cluster: &Cluster, host: &str, service: &str, folder: &Path) -> Result<Pair> {
    let told = cluster.get(host, &format!("/v1/agent/connect/ca/leaf/{service}"))?;
    let text = |field: &str| {
        told[field].as_str().map(str::to_owned).with_context(|| format!("no {field} in {told}"))
    };
    let pair = Pair {
        certificate: folder.join(format!("{service}.pem")),
        key: folder.join(format!("{service}.key")),
    };
    fs::write(&pair.certificate, text("CertPEM")?)?;
    fs::write(&pair.key, text("PrivateKeyPEM")?)?;
    Ok(pair)
}

/// A certificate of another CA that claims to be `web` of this very mesh.
fn foreign_leaf(cluster: &Cluster, folder: &Path) -> Result<Pair> {
    let roots = cluster.get("s1", "/v1/connect/ca/roots")?;
    let domain = roots["TrustDomain"].as_str().context("no trust domain")?;
    let extensions = format!(
        "subjectAltName=URI:spiffe://{domain}/ns/default/dc/dc1/svc/web\n\
         keyUsage=critical,digitalSignature\nextendedKeyUsage=clientAuth,serverAuth\n"
    );
    fs::write(folder.join("extensions"), extensions)?;
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    let steps: [&[&str]; 3] = [
        &[
            "req",
            "-x509",
            "-subj",
            "/CN=foreign",
            "-days",
            "1",
            "-keyout",
            "ca.key",
            "-out",
            "ca.pem",
        ],
        &["req", "-new", "-subj", "/CN=web", "-keyout", "foreign.key", "-out", "foreign.csr"],
        &[
            "x509",
            "-req",
            "-in",
            "foreign.csr",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            "1",
            "-extfile",
            "extensions",
            "-out",
            "foreign.pem",
        ],
    ];
    for step in steps {
        let mut command = Command::new("openssl");
        command.current_dir(folder).args(step);
        if step[0] == "req" {
            command.args(key);
        }
        told(command, Duration::from_secs(20))?;
    }
    Ok(Pair { certificate: folder.join("foreign.pem"), key: folder.join("foreign.key") })
}

/// What `openssl s_client` prints when it asks api-1's mesh port for `/` from outside.
fn s_client(port: u16, pair: Option<&Pair>, cluster: &Cluster) -> Result<String> {
    let roots = cluster.get("s1", "/v1/connect/ca/roots")?;
    let domain = roots["TrustDomain"].as_str().context("no trust domain")?;
    let mut command = Host::named("r")?.command("timeout");
    command.args(["5", "openssl", "s_client", "-ign_eof", "-tls1_3"]);
    command.args(["-servername", &format!("api.default.dc1.internal.{domain}")]);
    command.args(["-connect", &format!("{}:{port}", Host::named("a2")?.address)]);
    if let Some(pair) = pair {
        command.arg("-cert").arg(&pair.certificate).arg("-key").arg(&pair.key);
        command.arg("-cert_chain").arg(&pair.certificate);
    }
    let request = b"GET / HTTP/1.1\r\nHost: api\r\nConnection: close\r\n\r\n";
    let output = finish(command, request, Duration::from_secs(10))?;
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Ok(format!("{out}{err}"))
}

fn refusals(cluster: &Cluster, reason: &str) -> Result<usize> {
    Ok(cluster.access("a2")?.iter().filter(|line| line["reason"] == reason).count())
}

/// The sum of all of a2's counters that carry the reason.
fn counted(cluster: &Cluster, reason: &str) -> Result<f64> {
    let label = format!("reason=\"{reason}\"");
    let metrics = cluster.metrics("a2")?;
    let values = metrics.lines().filter(|line| line.contains(&label));
    Ok(values.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
}

fn counted_more(cluster: &Cluster, reason: &str, before: f64) -> Result<bool> {
    Ok(counted(cluster, reason)? > before)
}

const SOON: Duration = Duration::from_secs(5);
