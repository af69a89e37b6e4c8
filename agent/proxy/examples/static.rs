//! One sidecar with static input: what the benchmarks beside the peers drive.
//!
//! `static --role client|server --mode h1|h2|tcp --listen A --to B --ca CA.crt --key KEY --workers N`
//!
//! The leaf is made here, signed with the key beside the CA's certificate (`CA.key`): the
//! benchmark's own leaves carry identities of another layout, which the verifiers refuse.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hawser_core::ca::Validity;
use hawser_core::catalog::{Locality, Protocol, Weights};
use hawser_core::chain::Chain;
use hawser_core::clock::{Index, UnixTime};
use hawser_core::entry::Target;
use hawser_core::health::Status;
use hawser_core::intention::{Action, Intentions};
use hawser_core::name::ServiceName;
use hawser_core::view::{Endpoint, ServiceView, Trust, View};
use hawser_identity::Leaf;
use hawser_proxy::{AccessLog, Config, Inbound, LocalService, LogSink, Outbound, Plan, Proxy};
use rcgen::{
    CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

const DOMAIN: &str = "00000000-0000-0000-0000-000000000000.consul";

struct Arguments {
    is_client: bool,
    protocol: Protocol,
    listen: SocketAddr,
    to: SocketAddr,
    ca: PathBuf,
    key: PathBuf,
    workers: usize,
    access_log: AccessLog,
}

fn arguments() -> Result<Arguments, Box<dyn Error>> {
    let mut given = BTreeMap::new();
    let mut words = std::env::args().skip(1);
    while let (Some(name), Some(value)) = (words.next(), words.next()) {
        given.insert(name, value);
    }
    let take = |name: &str| given.get(name).ok_or_else(|| format!("{name} is missing"));
    Ok(Arguments {
        is_client: match take("--role")?.as_str() {
            "client" => true,
            "server" => false,
            other => return Err(format!("--role {other}: use client or server").into()),
        },
        protocol: match take("--mode")?.as_str() {
            "h1" => Protocol::Http,
            "h2" => Protocol::Http2,
            "tcp" => Protocol::Tcp,
            other => return Err(format!("--mode {other}: use h1, h2 or tcp").into()),
        },
        listen: take("--listen")?.parse()?,
        to: take("--to")?.parse()?,
        ca: take("--ca")?.into(),
        key: take("--key")?.into(),
        workers: given.get("--workers").map_or(Ok(1), |workers| workers.parse())?,
        access_log: match given.get("--access-log") {
            Some(path) => AccessLog::all(LogSink::File(path.into())),
            None => AccessLog::default(),
        },
    })
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments = arguments()?;
    let (web, db): (ServiceName, ServiceName) = ("web".parse()?, "db".parse()?);
    let service = if arguments.is_client { &web } else { &db };
    let local = LocalService {
        service: service.clone(),
        instance: "i-1".parse()?,
        identity: Some(Arc::new(leaf(&arguments.ca, &arguments.key, service)?)),
        inbound: (!arguments.is_client).then_some(Inbound {
            listen: arguments.listen,
            application: arguments.to.into(),
            ports: Vec::new(),
        }),
        outbounds: arguments
            .is_client
            .then(|| Outbound {
                destination: Target { service: db.clone(), peer: None },
                port: None,
                listen: arguments.listen.into(),
                mode: 0,
            })
            .into_iter()
            .collect(),
    };
    let (_plans, plan) =
        watch::channel(Arc::new(Plan { services: vec![local], ..Plan::default() }));
    let (_views, view) = watch::channel(Arc::new(view(&arguments, &db)?));
    let config = Config {
        workers: arguments.workers,
        access_log: arguments.access_log,
        ..Config::default()
    };
    let proxy = Proxy::start(config, plan, view, &prometheus::Registry::new())?;
    signal(SignalKind::terminate())?.recv().await;
    proxy.drain(Duration::from_secs(1)).await;
    Ok(())
}

fn view(arguments: &Arguments, db: &ServiceName) -> Result<View, Box<dyn Error>> {
    let endpoint = Endpoint {
        node: "vm-1".parse()?,
        instance: "db-1".parse()?,
        address: arguments.to.ip(),
        has_own_address: false,
        ports: Default::default(),
        port: arguments.to.port(),
        mesh: Some(arguments.to),
        locality: Locality::default(),
        tags: BTreeSet::new(),
        weights: Weights::default(),
        status: Status::Passing,
    };
    let service = ServiceView::alone(
        Chain {
            service: db.clone(),
            protocol: arguments.protocol,
            connect_timeout: Duration::from_secs(1),
            request_timeout: Duration::from_secs(15),
            local_connect_timeout: Duration::from_secs(1),
            inbound_connections_max: None,
            policies: Arc::default(),
        },
        [endpoint].into(),
        Index(1),
    );
    let root = CertificateDer::from_pem_file(&arguments.ca)?;
    Ok(View {
        index: Index(1),
        trust: Some(Arc::new(Trust {
            trust_domain: DOMAIN.parse()?,
            datacenter: "dc1".parse()?,
            roots: vec![root.as_ref().into()],
            default_action: Action::Allow,
            issuing: Default::default(),
            revoked: Default::default(),
        })),
        services: BTreeMap::from([(db.clone(), Arc::new(service))]),
        intentions: Intentions::default(),
        ..View::default()
    })
}

fn leaf(ca: &Path, key: &Path, service: &ServiceName) -> Result<Leaf, Box<dyn Error>> {
    let ca_key = KeyPair::try_from(&PrivateKeyDer::from_pem_file(ca.with_extension("key"))?)?;
    let issuer = Issuer::from_ca_cert_der(&CertificateDer::from_pem_file(ca)?, ca_key)?;
    let key = PrivateKeyDer::from_pem_file(key)?;
    let id = format!("spiffe://{DOMAIN}/ns/default/dc/dc1/svc/{service}");
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(id.clone().try_into()?)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    let now = time::OffsetDateTime::now_utc();
    params.not_before = now - Duration::from_secs(300);
    params.not_after = now + Duration::from_secs(86_400);
    let certificate = params.signed_by(&KeyPair::try_from(&key)?, &issuer)?;
    let moment = |time: time::OffsetDateTime| -> Result<_, Box<dyn Error>> {
        Ok(UnixTime::from_secs(time.unix_timestamp().try_into()?))
    };
    Ok(Leaf {
        id: id.parse()?,
        chain: vec![certificate.der().clone()],
        key,
        validity: Validity {
            not_before: moment(params.not_before)?,
            not_after: moment(params.not_after)?,
        },
    })
}
