//! [`Source`]: asks the daemon for what the screen shows.

use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::model::{Flow, Sample};
use crate::args::Args;
use crate::client::{Client, ClientError};
use crate::run::{Asked, Failure};

/// Flows that are asked for.
const FLOWS: &str = "50";

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

pub struct Source<'a> {
    args: &'a Args,
    asked: Asked<'a>,
    /// News of the busiest flows, which take their time, from a thread with a connection of its own. It ends with the channel.
    flows: Option<Receiver<Result<Vec<Flow>, String>>>,
}

impl<'a> Source<'a> {
    pub fn connect(args: &'a Args) -> Result<Source<'a>, Failure> {
        Ok(Source { args, asked: Asked::new(args)?, flows: None })
    }

    /// Asks for everything but flows, and takes along the last news of those.
    pub fn sample(&mut self) -> Result<Sample, Failure> {
        self.asked.client.set_deadline(Instant::now() + PATIENCE);
        let mut ask = |command: &str| match self.asked.json(command, &[]) {
            // It may not know the command.
            Err(ClientError::Server(_)) => Ok(Value::Null),
            answer => answer,
        };
        let asked = (|| {
            Ok((
                ask("version")?,
                ask("dpif-netdev/pmd-perf-show")?,
                ask("dpif/offload-show")?,
                ask("offload/queue-show")?,
            ))
        })();
        let (version, perf, offload, queue) = asked.map_err(|error: ClientError| self.asked.failed(error))?;
        let flows = self.flows.as_ref().and_then(|news| news.try_iter().last());
        Ok(Sample { at: Instant::now(), version, perf, offload, queue, flows })
    }

    /// Looks for the daemon anew; it may have been started again.
    pub fn reconnect(&mut self) {
        if let Ok(asked) = Asked::new(self.args) {
            self.asked = asked;
            self.watch_flows();
        }
    }

    /// The busiest flows, in the time that it takes to see them.
    pub fn flows_now(&mut self, over: Duration) -> Option<Result<Vec<Flow>, String>> {
        self.asked.client.set_deadline(Instant::now() + over + PATIENCE);
        let args = ["-n", FLOWS, "--over", &over.as_secs_f64().min(60.0).to_string()].map(str::to_owned);
        Some(read(self.asked.json("flow-top", &args)))
    }

    /// Lets another thread ask for the busiest flows, again and again.
    pub fn watch_flows(&mut self) {
        let (news, receiver) = mpsc::channel();
        self.flows = Some(receiver);
        let socket = self.asked.target.socket.clone();
        let watch = move || -> Result<(), ClientError> {
            let mut client = Client::connect(&socket, Some(Instant::now() + PATIENCE))?;
            client.call("set-options", &["--format".into(), "json".into()])?;
            loop {
                client.set_deadline(Instant::now() + 2 * PATIENCE);
                let flows = read(client.call("flow-top", &["-n".into(), FLOWS.into()]));
                let refused = flows.is_err();
                if news.send(flows).is_err() || refused {
                    return Ok(());
                }
            }
        };
        // Without it there are no flows to be seen, and the rest is.
        let _ = thread::Builder::new().name("flows".into()).spawn(watch);
    }
}

fn read(answer: Result<Value, ClientError>) -> Result<Vec<Flow>, String> {
    let answer = answer.map_err(|error| error.to_string().trim_end().to_owned())?;
    Ok(answer.as_array().into_iter().flatten().map(Flow::read).collect())
}

/// What a daemon might say at the `n`th look.
#[cfg(test)]
pub fn recorded(at: Instant, n: u64) -> Sample {
    use serde_json::json;

    let poller = |scale: u64| {
        json!({
            "place": "pmd thread numa_id 0 core_id 0", "mark_hits": 812_000 * n * scale, "emc_hits": 20_500 * n * scale,
            "megaflow_hits": 97_000 * n * scale + 11 * n * n, "upcalls": 340 * n, "runts": 0,
            "fate": [["sent", 900_000 * n], ["dropped_by_action", 1_200 * n]],
        })
    };
    let percentiles = |scale: u64| json!({"count": 9, "p50_ns": 48_000 * scale, "p99_ns": 913_000 * scale, "p999_ns": 4_100_000 * scale});
    let worker = |id: u64| {
        json!({
            "id": id, "rules": 3_000, "latency": {"all": percentiles(id + 1)},
            "queue": {"depth": 120 * n + id, "limit": 65_536},
        })
    };
    let flow = |i: u64| Flow {
        pps: 90_000.0 / (i + 1) as f64,
        bps: 46_080_000.0 / (i + 1) as f64,
        standing: ["full", "mark", "queued", "refused"][i as usize % 4].to_owned(),
        reason: (i % 4 == 3).then(|| "no-room".to_owned()),
        key: format!("in_port(p1),eth_type(0x0800),ipv4(dst=172.16.0.{i},proto=17,frag=no),udp(dst={})", 2_000 + i),
        actions: "set(ipv4(ttl=63)),p2".to_owned(),
    };
    Sample {
        at,
        version: json!({"name": "offloadd", "version": "0.1.0"}),
        perf: json!({"pollers": [poller(1), poller(2)]}),
        offload: json!({
            "enabled": true, "backend": "sim", "rules": 6_000, "rules_full": 1_500, "capacity": 10_000,
            "marks": {"in_use": 6_000, "quarantined": 12, "capacity": 16_777_215},
            "refused": [["no-room", 740], ["not-worth", 12]], "short": [["action", 4_500]],
            "port_counts": {"p1": {"full": 410_000 * n}, "p2": {"full": 0}},
        }),
        queue: json!({"workers": [worker(0), worker(1)]}),
        flows: (n > 0).then(|| Ok((0..20).map(flow).collect())),
    }
}
