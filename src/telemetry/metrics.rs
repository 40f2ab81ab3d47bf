//! Families of samples, and their text: Prometheus' exposition format, version 0.0.4.

use prometheus::proto;
use serde::{Serialize, Serializer};

use super::spread::{BOUNDS_NS, Spread};

/// What all names begin with.
const PREFIX: &str = "offloadd_";

/// Samples of one kind. Names, units and labels are stable; `help` is for people.
#[derive(Debug, Clone, Serialize)]
pub struct Family {
    pub name: String,
    pub help: &'static str,
    pub kind: Kind,
    pub samples: Vec<Sample>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

#[derive(Debug, Clone, Serialize)]
pub struct Sample {
    #[serde(serialize_with = "labels")]
    pub labels: Vec<(&'static str, String)>,
    pub value: Value,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Number(f64),
    /// In nanoseconds; shown in seconds.
    Times(Box<Spread>),
}

impl Family {
    fn new(name: &str, help: &'static str, kind: Kind) -> Family {
        Family { name: format!("{PREFIX}{name}"), help, kind, samples: Vec::new() }
    }

    /// Something that only rises. `name` without the `_total` that it ends in.
    pub fn counter(name: &str, help: &'static str) -> Family {
        Family::new(&format!("{name}_total"), help, Kind::Counter)
    }

    pub fn gauge(name: &str, help: &'static str) -> Family {
        Family::new(name, help, Kind::Gauge)
    }

    /// Times. `name` without the `_seconds` that it ends in.
    pub fn times(name: &str, help: &'static str) -> Family {
        Family::new(&format!("{name}_seconds"), help, Kind::Histogram)
    }

    pub fn with<const N: usize>(mut self, labels: [(&'static str, &str); N], value: f64) -> Family {
        self.add(labels, value);
        self
    }

    pub fn add<const N: usize>(&mut self, labels: [(&'static str, &str); N], value: f64) {
        self.push(labels, Value::Number(value));
    }

    pub fn add_times<const N: usize>(&mut self, labels: [(&'static str, &str); N], times: Spread) {
        self.push(labels, Value::Times(Box::new(times)));
    }

    fn push<const N: usize>(&mut self, labels: [(&'static str, &str); N], value: Value) {
        let labels = labels.map(|(name, value)| (name, value.to_owned())).to_vec();
        self.samples.push(Sample { labels, value });
    }
}

/// All of them as text; families without samples are left out.
pub fn text(families: &[Family]) -> String {
    let encoded: Vec<_> = families.iter().filter(|family| !family.samples.is_empty()).map(encode).collect();
    // Each has samples of its own kind, which is all that can be wrong.
    prometheus::TextEncoder::new().encode_to_string(&encoded).unwrap_or_default()
}

fn encode(family: &Family) -> proto::MetricFamily {
    let mut encoded = proto::MetricFamily::default();
    encoded.set_name(family.name.clone());
    encoded.set_help(family.help.to_owned());
    encoded.set_field_type(match family.kind {
        Kind::Counter => proto::MetricType::COUNTER,
        Kind::Gauge => proto::MetricType::GAUGE,
        Kind::Histogram => proto::MetricType::HISTOGRAM,
    });
    encoded.set_metric(family.samples.iter().map(|sample| encode_sample(family.kind, sample)).collect());
    encoded
}

fn encode_sample(kind: Kind, sample: &Sample) -> proto::Metric {
    let mut metric = proto::Metric::default();
    let label = |(name, value): &(&str, String)| {
        let mut pair = proto::LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value(value.clone());
        pair
    };
    metric.set_label(sample.labels.iter().map(label).collect());
    match (kind, &sample.value) {
        (Kind::Counter, Value::Number(value)) => {
            let mut counter = proto::Counter::default();
            counter.set_value(*value);
            metric.set_counter(counter);
        }
        (_, Value::Number(value)) => {
            let mut gauge = proto::Gauge::default();
            gauge.set_value(*value);
            metric.set_gauge(gauge);
        }
        (_, Value::Times(spread)) => {
            let mut histogram = proto::Histogram::default();
            histogram.set_sample_count(spread.count);
            histogram.set_sample_sum(spread.sum_ns / 1e9);
            let bucket = |(bound, count): (u64, &u64)| {
                let mut bucket = proto::Bucket::default();
                bucket.set_upper_bound(bound as f64 / 1e9);
                bucket.set_cumulative_count(*count);
                bucket
            };
            histogram.set_bucket(BOUNDS_NS.into_iter().zip(&spread.cumulative).map(bucket).collect());
            metric.set_histogram(histogram);
        }
    }
    metric
}

fn labels<S: Serializer>(labels: &[(&'static str, String)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(labels.iter().map(|(name, value)| (name, value)))
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Times {
            count: u64,
            sum: f64,
            /// Upper ends in seconds, and how many values are no larger.
            buckets: Vec<(f64, u64)>,
        }
        match self {
            Value::Number(value) => value.serialize(serializer),
            Value::Times(spread) => {
                let buckets = BOUNDS_NS.iter().map(|ns| *ns as f64 / 1e9).zip(spread.cumulative).collect();
                Times { count: spread.count, sum: spread.sum_ns / 1e9, buckets }.serialize(serializer)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_written_with_help_type_and_samples() {
        let mut times = Family::times("wait", "How long \"it\" takes.");
        let mut spread = Spread::default();
        spread.add(2_000, 3);
        times.add_times([("worker", "0")], spread);
        let families = [
            Family::counter("packets", "Packets.").with([("port", "a\"b\n")], 3.0),
            Family::gauge("nothing", "Never sampled."),
            times,
        ];
        let text = text(&families);
        assert!(text.starts_with(
            "# HELP offloadd_packets_total Packets.\n# TYPE offloadd_packets_total counter\n\
             offloadd_packets_total{port=\"a\\\"b\\n\"} 3\n"
        ));
        assert!(text.contains("offloadd_wait_seconds_bucket{worker=\"0\",le=\"0.0000025\"} 3\n"), "{text}");
        assert!(text.contains("offloadd_wait_seconds_bucket{worker=\"0\",le=\"+Inf\"} 3\n"), "{text}");
        assert!(text.contains("offloadd_wait_seconds_sum{worker=\"0\"} 0.000006\n"), "{text}");
        assert!(!text.contains("nothing"));
    }
}
