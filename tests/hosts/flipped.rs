//! Item 3: an intention flipped to deny refuses the new within 1 s and cuts the open within 2 s.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hawser_rig::application::{psql, psql_command};
use hawser_rig::cluster::{API_UPSTREAM, DB_UPSTREAM};
use hawser_rig::{Cluster, Host, Process, wait_for};

use crate::scene::on_hosts;

#[test]
fn a_flipped_intention_holds_at_once_for_new_and_open_connections() {
    on_hosts("flipped", true, |cluster| {
        let a1 = Host::named("a1")?;
        let processes = [cluster.process("a1")?.id(), cluster.process("a3")?.id()];
        for round in 1..=2 {
            // An open session in the midst of a statement, seen from PostgreSQL's own side.
            let mut open = sleeping_session(cluster, round)?;
            cluster.intend("web", "db", "deny")?;
            let flipped = Instant::now();
            let (_, refused) = wait_for("new psql sessions to be refused", REFUSED, || {
                let told = psql(a1, DB_UPSTREAM, "select 1");
                ensure!(told.is_err(), "still allowed");
                Ok(())
            })?;
            let left = CUT.saturating_sub(flipped.elapsed());
            open.ended(left)?;
            let cut = flipped.elapsed();
            let said = open.printed();
            ensure!(!said.contains("slept"), "the session was not cut but ended: {said}");
            report(&format!(
                "db, round {round}: new refused after {refused:?}, open cut after {cut:?}"
            ));

            cluster.intend("web", "db", "allow")?;
            wait_for("psql to be served again", ALLOWED, || psql(a1, DB_UPSTREAM, "select 1"))?;
        }

        cluster.intend("web", "api", "deny")?;
        let (_, refused) = wait_for("requests to be refused", REFUSED, || {
            ensure!(cluster.through("a1", API_UPSTREAM, "/").is_err(), "still allowed");
            Ok(())
        })?;
        report(&format!("api: new refused after {refused:?}"));
        cluster.intend("web", "api", "allow")?;
        cluster.await_carried("a1", API_UPSTREAM, ALLOWED)?;

        ensure!(
            cluster.process("a1")?.alive()? && cluster.process("a3")?.alive()?,
            "an agent died"
        );
        let now = [cluster.process("a1")?.id(), cluster.process("a3")?.id()];
        ensure!(now == processes, "an agent was restarted");
        Ok(())
    });
}

/// Starts `select pg_sleep(60)` through the mesh and returns once PostgreSQL runs it.
fn sleeping_session(cluster: &Cluster, round: u32) -> Result<Process> {
    let mut command = psql_command(Host::named("a1")?, DB_UPSTREAM);
    let statement = format!("select 'slept' from pg_sleep(60) -- session {round}");
    command.args(["-c", &statement]);
    let log = cluster.folder("postgres").join(format!("session-{round}.log"));
    let session = Process::spawn("psql", command, &log)?;
    let running = format!(
        "select count(*) from pg_stat_activity where state = 'active' \
         and query like '%pg_sleep(60) -- session {round}%' and pid <> pg_backend_pid()"
    );
    wait_for("PostgreSQL to run the statement", Duration::from_secs(10), || {
        let count = psql(Host::named("a3")?, 5432, &running)?;
        ensure!(count == "1", "{count} run it: {}", session.printed());
        Ok(())
    })?;
    Ok(session)
}

fn report(figure: &str) {
    println!("{figure}");
}

/// The figure for new connections.
const REFUSED: Duration = Duration::from_secs(1);

/// The figure for open ones.
const CUT: Duration = Duration::from_secs(2);

const ALLOWED: Duration = Duration::from_secs(5);
