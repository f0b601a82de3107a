//! Gauges of single objects, computed from a cache at each scrape: what an object showed is gone with it, and nothing has to be
//! removed. Labels are bounded by the objects there are.

use super::metrics::{Described, Metrics, PREFIX};
use prometheus_client::{collector::Collector, encoding::DescriptorEncoder, metrics::MetricType};
use std::fmt;

/// A gauge of objects of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectGauge {
    /// Without the prefix.
    pub name: &'static str,
    /// What it shows.
    pub help: &'static str,
}

/// What a gauge shows of one object.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The gauge that it belongs to.
    pub gauge: ObjectGauge,
    /// `namespace`, `name` and what else tells objects apart.
    pub labels: Vec<(&'static str, String)>,
    /// In the unit that the name ends with.
    pub value: f64,
}

impl Sample {
    /// A sample of a namespaced object.
    pub fn of(gauge: ObjectGauge, namespace: &str, name: &str, value: f64) -> Self {
        Self {
            gauge,
            labels: vec![
                ("namespace", namespace.to_owned()),
                ("name", name.to_owned()),
            ],
            value,
        }
    }
}

impl Metrics {
    /// Adds gauges of objects; `samples` is asked at each scrape.
    pub fn object_gauges(
        &self,
        gauges: &'static [ObjectGauge],
        samples: impl Fn() -> Vec<Sample> + Send + Sync + 'static,
    ) {
        let collector = ObjectGauges {
            gauges,
            samples: Box::new(samples),
        };
        let described = gauges.iter().map(|gauge| Described {
            name: format!("{PREFIX}_{}", gauge.name),
            help: gauge.help,
        });
        self.collector(Box::new(collector), described.collect());
    }
}

struct ObjectGauges {
    gauges: &'static [ObjectGauge],
    samples: Box<dyn Fn() -> Vec<Sample> + Send + Sync>,
}

impl fmt::Debug for ObjectGauges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectGauges")
            .field("gauges", &self.gauges)
            .finish_non_exhaustive()
    }
}

impl Collector for ObjectGauges {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let samples = (self.samples)();
        for gauge in self.gauges {
            let mut of_gauge = samples.iter().filter(|s| s.gauge == *gauge).peekable();
            if of_gauge.peek().is_none() {
                continue;
            }
            let name = format!("{PREFIX}_{}", gauge.name);
            let mut family =
                encoder.encode_descriptor(&name, gauge.help, None, MetricType::Gauge)?;
            for sample in of_gauge {
                family
                    .encode_family(&sample.labels)?
                    .encode_gauge(&sample.value)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Program;
    use std::sync::{Arc, Mutex};

    const GAUGES: [ObjectGauge; 2] = [
        ObjectGauge {
            name: "widget_size",
            help: "Size of a widget",
        },
        ObjectGauge {
            name: "widget_age_seconds",
            help: "Age of a widget",
        },
    ];

    #[test]
    fn samples_go_with_their_object() {
        let metrics = Metrics::new(Program {
            name: "test",
            version: "0",
        });
        let widgets = Arc::new(Mutex::new(vec![("a", 3.0), ("b", 0.5)]));
        let shown = Arc::clone(&widgets);
        metrics.object_gauges(&GAUGES, move || {
            let widgets = shown.lock().unwrap();
            let samples = widgets.iter();
            samples
                .map(|(name, size)| Sample::of(GAUGES[0], "shop", name, *size))
                .collect()
        });
        let text = metrics.encode().unwrap();
        for line in [
            "# TYPE redis_operator_widget_size gauge",
            r#"redis_operator_widget_size{namespace="shop",name="a"} 3.0"#,
            r#"redis_operator_widget_size{namespace="shop",name="b"} 0.5"#,
        ] {
            assert!(text.contains(line), "{line} is not in:\n{text}");
        }
        widgets.lock().unwrap().remove(0);
        let text = metrics.encode().unwrap();
        assert!(
            !text.contains(r#"name="a""#) && text.contains(r#"name="b""#),
            "{text}"
        );
        let names: Vec<String> = metrics.described().into_iter().map(|d| d.name).collect();
        assert!(
            names.contains(&"redis_operator_widget_age_seconds".to_owned()),
            "{names:?}"
        );
    }
}
